"""What is told of a check: enough to see what happened, and never a token."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from authz.core.answers import Refusal, render_deny
from authz.model import Allow, Reason, Secret, Unread
from authz.observe import MAX_PATH_CHARS, Observer, Timing, configure_logging, redact
from tests.core.build import principal, request


def timed() -> Timing:
    timing = Timing(received_ns=1_000, parsed_ns=4_100, generation=2)
    timing.matched, timing.authenticated, timing.answered = 6_200, 10_300, 13_600
    timing.cache = "hit"
    return timing


TIMING = timed()
JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLXRoaXM"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_decision_line_says_who_what_and_why() -> None:
    stream = io.StringIO()
    observer = Observer(stream=stream)
    asked = replace(request("GET", "a.example/secret?token=hidden", authorization=f"Bearer {JWT}"), id="r1")
    observer.record(asked, Allow(rule="one", principal=principal()), TIMING)
    observer.record(
        asked, render_deny(Refusal(reason=Reason.NO_RULE, detail=f"saw Bearer {JWT}"), request=asked), TIMING
    )
    observer.record(None, render_deny(Refusal(reason=Reason.NOT_HTTP)), TIMING)
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["time"] > 1_700_000_000
    del first["time"]
    assert first == {
        "decision": "allow",
        "status": 200,
        "rule": "one",
        "id": "r1",
        "method": "GET",
        "host": "a.example",
        "path": "/secret",
        "provider": "shop",
        "issuer": "https://sso.example.com",
        "subject": "alice",
        "client": "web",
        "cache": "hit",
        "generation": 2,
        "us": {"total": 12, "parse": 3, "match": 2, "authenticate": 4, "authorize": 3},
    }
    assert (second["decision"], second["reason"], second["status"]) == ("deny", "no_rule", 403)
    assert second["detail"] == "saw [redacted]"
    assert "method" not in third
    assert "hidden" not in stream.getvalue()
    assert JWT not in stream.getvalue()


def test_a_request_that_could_not_be_read_is_told_of_too() -> None:
    stream = io.StringIO()
    observer = Observer(stream=stream)
    seen = Unread(id="r1", method="GET", host="a.example", path=f"http://me:secret@a.example/{JWT}\x1b[2J")
    deny = render_deny(Refusal(reason=Reason.PATH_FORM), request=seen)
    observer.record(seen, deny, TIMING)
    line = json.loads(stream.getvalue())
    assert (line["id"], line["method"], line["host"], line["reason"]) == ("r1", "GET", "a.example", "path_form")
    assert line["path"] == "http://[redacted]@a.example/[redacted]\x1b[2J"
    terminal = Terminal()
    Observer(stream=terminal).record(seen, deny, TIMING)
    assert "\x1b[2J" not in terminal.getvalue()


def test_only_denies_where_that_is_asked_for() -> None:
    stream = io.StringIO()
    observer = Observer(stream=stream, sink=None)
    observer.denies_only = True
    observer.record(request(), Allow(rule="one"), TIMING)
    assert stream.getvalue() == ""
    observer.record(request(), render_deny(Refusal(reason=Reason.NO_RULE)), TIMING)
    assert json.loads(stream.getvalue())["reason"] == "no_rule"
    assert b'authz_decisions_total{decision="allow",reason="",rule="one"} 1.0' in observer.render_metrics()


def test_a_line_for_eyes_cannot_be_forged() -> None:
    stream = Terminal()
    asked = replace(request("GET", "a.example/x"), id="\x1b[2Jnew\nline")
    Observer(stream=stream).record(asked, Allow(rule="one\x1b"), TIMING)
    (line,) = stream.getvalue().splitlines()
    assert "allow 200" in line
    assert "\x1b[2J" not in line
    assert 'rule="one\\u001b"' in line
    Observer(stream=stream).record(asked, render_deny(Refusal(reason=Reason.NO_RULE)), TIMING)
    assert "\x1b[31mdeny  403" in stream.getvalue()


def test_long_values_are_cut() -> None:
    stream = io.StringIO()
    asked = replace(request("GET", "a.example/" + "x" * 3_000), id="i" * 3_000)
    Observer(stream=stream).record(asked, Allow(rule="one"), TIMING)
    found = json.loads(stream.getvalue())
    assert len(found["path"]) == len(found["id"]) == MAX_PATH_CHARS


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"a {JWT} b", "a [redacted] b"),
        ("Bearer abc", "[redacted]"),
        ("basic dXNlcjpwYXNz", "[redacted]"),
        ("x" * 40, "[redacted]"),
        ("x" * 39, "x" * 39),
        (
            "plain words at `https://sso.example.com/realms/shop`",
            "plain words at `https://sso.example.com/realms/shop`",
        ),
    ],
)
def test_whatever_looks_like_a_secret_is_taken_out(text: str, left: str) -> None:
    assert redact(text) == left


def test_provider_events_are_counted_and_told_where_somebody_is_needed() -> None:
    log = io.StringIO()
    configure_logging(stream=log)
    observer = Observer(stream=io.StringIO())
    observer.provider_event("shop", "keys_fetched", seconds=0.2)
    assert log.getvalue() == ""
    observer.provider_event("shop", "keys_failed", f"no answer to Bearer {JWT}")
    line = json.loads(log.getvalue())
    assert (line["event"], line["provider"], line["level"]) == ("keys_failed", "shop", "warning")
    assert JWT not in log.getvalue()
    metrics = observer.render_metrics()
    assert b'authz_provider_events_total{event="keys_failed",provider="shop"} 1.0' in metrics
    assert b'authz_provider_seconds_count{event="keys_fetched",provider="shop"} 1.0' in metrics


def test_a_bug_is_told_without_its_message() -> None:
    log = io.StringIO()
    configure_logging(stream=log)
    observer = Observer(stream=io.StringIO())
    try:
        int(JWT)
    except ValueError as error:
        observer.internal_error(error)
    line = json.loads(log.getvalue())
    assert line["kind"] == "ValueError"
    assert "test_observe.py" in line["frames"][-1]
    assert JWT not in log.getvalue()
    observer.internal_error(None)


def test_a_terminal_gets_colour() -> None:
    log = Terminal()
    configure_logging(stream=log)
    Observer(stream=io.StringIO()).lifecycle("draining", seconds=1)
    assert "\x1b[" in log.getvalue()


def test_secrets_hide_themselves() -> None:
    secret = Secret("hidden")
    for text in (repr(secret), str(secret), f"{secret}", f"{secret:>9}", repr([secret])):
        assert "hidden" not in text
    with pytest.raises(TypeError):
        secret.__reduce__()
    assert secret == Secret("hidden")
    assert hash(secret) == hash(Secret("hidden"))
    assert secret != "hidden"
