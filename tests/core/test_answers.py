"""How a Deny is worded: by its Reason, by who asks, and by the rule's own choice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from authz.core.answers import Refusal, render_deny
from authz.core.policy import Match, match_rule
from authz.model import REASONS, Deny, HeaderAction, Reason, Request
from tests.core.build import policy_of, principal, request, rule

CHALLENGED = {reason for reason, outcome in REASONS.items() if outcome.status == 401 or outcome.error}


def header(deny: Deny, name: str) -> str | None:
    return next((edit.value for edit in deny.headers if edit.name == name), None)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_an_answer_that_denies(reason: Reason) -> None:
    deny = render_deny(Refusal(reason=reason, detail="for the operator"), request=request())
    outcome = REASONS[reason]
    assert deny.status == outcome.status
    assert deny.status in {204, 400, 401, 403, 500, 503}
    assert header(deny, "cache-control") == "no-store"
    assert {edit.action for edit in deny.headers} == {HeaderAction.SET}
    assert (deny.reason, deny.detail, deny.rule, deny.principal) == (reason, "for the operator", "", None)
    challenge = header(deny, "www-authenticate")
    assert (challenge is not None) is (reason in CHALLENGED)
    if challenge is not None:
        assert challenge.startswith('Bearer realm="a.example"')
        assert ("error=" in challenge) is (outcome.error is not None)
    assert header(deny, "retry-after") == ("1" if deny.status == 503 else None)
    if deny.status != 204:
        assert "for the operator" not in deny.body
        assert reason.value not in deny.body


@pytest.mark.parametrize(
    ("headers", "kind", "start"),
    [
        ({}, "application/problem+json", "{"),
        ({"accept": "application/json"}, "application/problem+json", "{"),
        ({"accept": "text/html,*/*"}, "text/html; charset=utf-8", "<!doctype html>"),
        ({"sec-fetch-mode": "navigate", "accept": "*/*"}, "text/html; charset=utf-8", "<!doctype html>"),
        ({"content-type": "application/grpc+proto"}, "text/plain; charset=utf-8", "forbidden"),
    ],
)
def test_the_body_is_for_who_asks(headers: dict[str, str], kind: str, start: str) -> None:
    asked = replace(request(), headers=headers, id='<script>"')
    deny = render_deny(Refusal(reason=Reason.NO_RULE), request=asked)
    assert header(deny, "content-type") == kind
    assert deny.body.startswith(start)
    assert "<script>" not in deny.body or kind == "application/problem+json"
    assert ("<p>Request &lt;script&gt;&quot;</p>" in deny.body) is kind.startswith("text/html")
    if kind == "application/problem+json":
        assert json.loads(deny.body) == {
            "type": "about:blank",
            "title": "Forbidden",
            "status": 403,
            "request_id": '<script>"',
        }


def test_without_a_request_there_is_still_an_answer() -> None:
    deny = render_deny(Refusal(reason=Reason.NO_CREDENTIAL))
    assert header(deny, "www-authenticate") == 'Bearer realm="authz"'
    assert json.loads(deny.body) == {"type": "about:blank", "title": "Unauthorized", "status": 401}
    page = render_deny(Refusal(reason=Reason.NO_RULE), request=replace(request(), headers={"accept": "text/html"}))
    assert page.body.endswith("</h1>\n")


OWN = """
rules:
  - name: one
    hosts: [a.example]
    paths: ["/**"]
    tokens_from: shop
    require: any_token
    answers:
      "401": {status: 302, location: "https://login.example/", headers: {Cache-Control: private, x-why: login}}
      "403": {status: 404, body: "nothing here"}
      "503": {body: "<b>later</b>", content_type: text/html}
"""


def matched(asked: Request) -> Match:
    return match_rule(policy_of(OWN), asked.host, asked.target, asked.method)


def test_a_rule_words_its_own_answers() -> None:
    asked = request()
    login = render_deny(Refusal(reason=Reason.NO_CREDENTIAL), request=asked, match=matched(asked))
    assert (login.status, login.body, header(login, "location")) == (302, "", "https://login.example/")
    assert (header(login, "cache-control"), header(login, "x-why")) == ("private", "login")
    assert header(login, "www-authenticate") is None
    assert header(login, "content-type") is None
    assert {edit.action for edit in login.headers} == {HeaderAction.SET}
    hidden = render_deny(Refusal(reason=Reason.ROLE_MISSING), request=asked, match=matched(asked))
    assert (hidden.status, hidden.body) == (404, "nothing here")
    assert header(hidden, "content-type") == "text/plain; charset=utf-8"
    later = render_deny(Refusal(reason=Reason.DEADLINE, retry_after_s=7), request=asked, match=matched(asked))
    assert (later.status, header(later, "content-type"), header(later, "retry-after")) == (503, "text/html", "7")
    who = principal()
    known = render_deny(Refusal(reason=Reason.ROLE_MISSING), request=asked, match=matched(asked), principal=who)
    assert (known.principal, known.rule) == (who, "one")
    plain = render_deny(Refusal(reason=Reason.PATH_PERCENT), request=asked, match=matched(asked))
    assert plain.status == 400


def test_a_page_can_read_a_deny_where_its_origin_may() -> None:
    policy = policy_of(
        'cors: [{hosts: [a.example], origins: ["https://app.example"], methods: [GET]}]\nrules:\n'
        + rule("one", "[a.example]", "/x")
    )
    cors = policy.cors.match_first("a.example")
    deny = render_deny(Refusal(reason=Reason.NO_RULE), request=request(origin="https://app.example"), cors=cors)
    assert header(deny, "access-control-allow-origin") == "https://app.example"
    assert header(deny, "access-control-allow-credentials") is None
    assert header(deny, "vary") == "origin"
    plain = render_deny(Refusal(reason=Reason.NO_RULE), request=request(), cors=cors)
    assert header(plain, "access-control-allow-origin") is None
    assert header(plain, "vary") == "origin"
