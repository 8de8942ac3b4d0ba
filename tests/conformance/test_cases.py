"""The suite's data: cases that say something, statements and tokens that are used, rules that load, and a judge."""

from __future__ import annotations

import base64
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from authz.config import load
from tests.conformance.compare import Asked
from tests.conformance.grpcurl import Reply
from tests.conformance.judge import Problem, judge
from tests.conformance.load import FOLDER, Case, Expect, Statement, load_cases, load_identity_headers, load_statements
from tests.conformance.template import PLAIN, fill
from tests.conformance.tokens import KIDS, mint_all, public_jwk, read_recipes

CASES = load_cases()
TOKEN = "a-token-of-more-than-sixteen-characters"


def written() -> str:
    return "".join(path.read_text() for path in (FOLDER / "cases").glob("*.yaml"))


def test_there_are_cases_of_every_kind() -> None:
    assert len(CASES) >= 150
    groups = {case.group for case in CASES}
    assert groups == {
        *("verdicts", "headers", "header_map", "tcp", "bodies", "hosts", "targets", "methods", "credentials"),
        *("tokens", "attributes", "cross-origin", "deadlines", "unknown fields", "odd octets", "oversized", "metadata"),
    }
    for group in groups:
        verdicts = {case.expect.verdict for case in CASES if case.group == group}
        assert group == "tcp" or verdicts == {"allow", "deny"}, group


def test_no_two_cases_ask_and_expect_the_same() -> None:
    seen: dict[str, str] = {}
    for case in CASES:
        key = repr((case.schema, case.request, case.metadata, case.max_time_s, case.expect))
        other = seen.setdefault(key, case.name)
        assert other == case.name, f"`{case.group}: {case.name}` is `{other}` again"


def test_every_statement_is_one_that_something_comes_from() -> None:
    judged = set(re.findall(r'"(\w+)"\)', (FOLDER / "judge.py").read_text()))
    assert load_statements().keys() == {case.origin for case in CASES} | (judged & load_statements().keys())
    for name, statement in load_statements().items():
        assert statement.source, name
        assert statement.says, name


def plain(text: str) -> str:
    """Return the words of a proto's comment without its markup."""
    text = re.sub(r":(?:ref|repo):`([^`<]*?)\s*<[^>]*>`", r"\1", text)
    return " ".join(re.sub(r"[`*]", "", text.replace('\\"', '"')).split()).lower()


def test_what_envoy_is_said_to_say_it_says() -> None:
    """Every sentence stands in the comments of its proto file, which the typed package carries along."""
    package = find_spec("envoy_data_plane")
    assert package is not None
    assert package.origin is not None
    seen = 0
    for name, statement in load_statements().items():
        file = re.match(r"(envoy/[a-z0-9_/]+)/[a-z_]+\.proto, ", statement.source)
        if file is None:
            continue
        comments = plain((Path(package.origin).parent / file[1] / "__init__.py").read_text())
        for sentence in re.split(r"(?<=[.;:?]) ", statement.says):
            assert plain(sentence).rstrip(".;:?") in comments, f"{name}: {sentence}"
            seen += 1
    assert seen > 40


def test_every_token_is_asked_with() -> None:
    named = set(re.findall(r"bearer: (\w+)|token:(\w+)\}", written()))
    used = {one or other for one, other in named}
    assert used == read_recipes().keys()


def test_every_reason_is_one_that_there_is() -> None:
    known = set(re.findall(r"^\| `(\w+)` \|", (FOLDER.parents[1] / "docs" / "reasons.md").read_text(), re.MULTILINE))
    for case in CASES:
        assert known.issuperset(case.expect.reason), case.name
        if case.expect.verdict == "deny" and case.schema != "octets" and not case.expect.metadata:
            assert case.expect.reason, f"`{case.group}: {case.name}` has no reason"


def test_the_rules_load_and_their_keys_are_the_suites_own() -> None:
    path = FOLDER / "rules.yaml"
    assert load(path, environ={}).policy.rules
    providers = yaml.safe_load(path.read_text())["providers"]
    keys = [key for name in ("main", "partner") for key in providers[name]["keys"]["jwks"]["keys"]]
    by_kid = {key["kid"]: key for key in keys}
    for name in ("main", "edwards", "encryption", "partner"):
        own = public_jwk(name)
        assert own.items() <= by_kid.pop(KIDS[name]).items()
    assert by_kid == {}
    assert public_jwk("stranger")["kid"] == KIDS["main"]
    assert public_jwk("stranger")["x"] != public_jwk("main")["x"]


def test_tokens_are_what_they_are_called() -> None:
    tokens = mint_all(now_s=1_800_000_000.0)
    assert len(set(tokens.values())) == len(tokens)
    assert [len(tokens[name].split(".")) for name in ("alice", "opaque", "two_segments", "encrypted")] == [3, 1, 2, 5]
    assert tokens["no_signature"].endswith(".")
    assert len(tokens["roomy"]) < 16_384 < len(tokens["too_large"])


@pytest.mark.parametrize(
    ("value", "filled"),
    [
        ("plain", "plain"),
        ("${repeat:ab:3}", "ababab"),
        ("${repeat:a::2}", "a:a:"),
        ("x${repeat:a:2}y${repeat:b:1}", "xaayb"),
        ("${base64:${repeat:a:3}}", "YWFh"),
        ("${hex:00 ff}", "AP8="),
        ({"a": ["${repeat:a:1}", 1, None]}, {"a": ["a", 1, None]}),
        ("$${repeat:a:1}", "$a"),
    ],
)
def test_places_are_filled_in(value: Any, filled: Any) -> None:
    assert fill(value, PLAIN) == filled


def test_a_place_of_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no `tokn`"):
        fill({"a": ["Bearer ${tokn:alice}"]}, PLAIN)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({"verdict": "allow", "status": 403}, "`status` is nothing that a verdict `allow` has"),
        ({"verdict": "deny", "sets": {"x-user": "a"}}, "`sets` is nothing that a verdict `deny` has"),
        ({"verdict": "deny", "statsu": 403}, "Extra inputs are not permitted"),
        ({"verdict": "maybe"}, "Input should be 'allow' or 'deny'"),
        ({"status": 403}, "Field required"),
    ],
)
def test_an_expectation_that_would_never_be_looked_at_is_an_error(part: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Expect.model_validate(part)


# --- the judge ---------------------------------------------------------------------------------------------------


def overwriting(name: str, value: str) -> dict[str, Any]:
    return {
        "header": {"key": name, "value": value},
        "append": False,
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def in_octets(option: dict[str, Any], octets: str | bytes) -> dict[str, Any]:
    """Return an option with its value in the other field, as grpcurl prints bytes."""
    raw = octets.encode() if isinstance(octets, str) else octets
    return option | {"header": {"key": option["header"]["key"], "raw_value": base64.b64encode(raw).decode()}}


def appending(name: str, value: str) -> dict[str, Any]:
    """As grpcurl prints it: the first action is the default, and left out."""
    return {"header": {"key": name, "value": value}, "append": True}


ALLOW: dict[str, Any] = {
    "status": {},
    "ok_response": {
        "headers": [overwriting("x-user", "main:alice")],
        "headers_to_remove": ["x_user", "cookie", *sorted(load_identity_headers() - {"x-user"})],
        "response_headers_to_add": [overwriting("x-frame-options", "DENY"), appending("vary", "origin")],
        "query_parameters_to_remove": ["access_token"],
    },
    "dynamic_metadata": {"rule": "any", "subject": "alice"},
}
DENY: dict[str, Any] = {
    "status": {"code": 16, "message": "no_credential"},
    "denied_response": {
        "status": {"code": "Unauthorized"},
        "headers": [overwriting("www-authenticate", "Bearer realm=a"), overwriting("cache-control", "no-store")],
        "body": '{"status": 401}',
    },
    "dynamic_metadata": {"reason": "no_credential"},
}
ALLOW_EXPECTED: dict[str, Any] = {
    "verdict": "allow",
    "code": 0,
    "sets": {"x-user": "main:alice"},
    "removes": ["cookie"],
    "keeps": ["authorization"],
    "adds": {"x-frame-options": "DENY"},
    "appends": {"vary": "origin"},
    "removes_query": ["access_token"],
    "lacks_headers": ["x-admin"],
    "metadata": {"rule": "any"},
    "lacks_metadata": ["email"],
    "within_s": 1.0,
}
DENY_EXPECTED: dict[str, Any] = {
    "verdict": "deny",
    "code": 16,
    "status": 401,
    "reason": ["no_credential", "other_scheme"],
    "headers": {"cache-control": "no-store", "www-authenticate": {"has": ["Bearer"], "lacks": ["error="]}},
    "lacks_headers": ["x-user"],
    "body": {"has": ["401"], "lacks": ["alice"], "json": {"status": 401}},
    "metadata": {"reason": "no_credential"},
    "lacks_metadata": ["subject"],
}


def problems(answer: dict[str, Any], expected: dict[str, Any], *, error: str = "", took_s: float = 0.1) -> list[str]:
    return [problem.text for problem in found(answer, expected, error=error, took_s=took_s)]


def found(
    answer: dict[str, Any], expected: dict[str, Any], *, error: str = "", took_s: float = 0.1
) -> tuple[Problem, ...]:
    http = {"headers": {"authorization": f"Bearer {TOKEN}", "X_User": "root"}}
    request = {"attributes": {"request": {"http": http}}}
    case = Case(
        group="g",
        name="n",
        origin="check_status",
        statement=Statement(source="s", says="t"),
        schema="target",
        request=request,
        metadata={},
        max_time_s=1.0,
        expect=Expect.model_validate(expected),
    )
    asked = Asked(case=case, request=request, tokens=(TOKEN,), identity=load_identity_headers(), reasons=True)
    return judge(asked, Reply(took_s=took_s, answer=None if error else answer, error=error))


def changed(answer: dict[str, Any], part: str, **members: Any) -> dict[str, Any]:
    """Return an answer with other members in one part; None removes one."""
    new = answer.get(part, {}) | members
    return answer | {part: {name: value for name, value in new.items() if value is not None}}


def camel(value: Any) -> Any:
    """Spell the names as JSON does where the proto files are known."""
    if isinstance(value, list):
        return [camel(its) for its in value]
    if not isinstance(value, dict):
        return value
    return {re.sub(r"_(.)", lambda its: its[1].upper(), name): camel(its) for name, its in value.items()}


@pytest.mark.parametrize("spell", [dict, camel])
def test_good_answers_have_no_problem(spell: Any) -> None:
    assert problems(spell(ALLOW), ALLOW_EXPECTED) == []
    assert problems(spell(DENY), DENY_EXPECTED) == []


def test_numbers_are_read_as_names_are() -> None:
    denied = changed(DENY, "denied_response", status={"code": 401})
    assert problems(denied, DENY_EXPECTED) == []
    option = overwriting("x-user", "main:alice") | {"append_action": 2}
    assert problems(changed(ALLOW, "ok_response", headers=[option]), ALLOW_EXPECTED) == []


def test_a_deny_that_names_no_status_is_what_envoy_makes_of_it() -> None:
    assert problems(changed(DENY, "denied_response", status=None), DENY_EXPECTED) == ["the HTTP status is 403, not 401"]


ODD = overwriting("x-user", "main:alice")


@pytest.mark.parametrize(
    ("answer", "text", "origin"),
    [
        ({}, "`status` is not there, and an empty one is an allow: say it", "check_status"),
        ({"status": {}}, "`status.code` is 0 with `nothing` beside it", "http_response"),
        (ALLOW | {"status": {"code": 7}}, "`status.code` is 7 with `ok_response` beside it", "http_response"),
        (DENY | {"status": {}}, "`status.code` is 0 with `denied_response` beside it", "http_response"),
        (
            {"status": DENY["status"], "error_response": DENY["denied_response"]},
            "a verdict in `error_response`, which `failure_mode_allow` turns into an allow",
            "error_response",
        ),
        (
            changed(ALLOW, "ok_response", dynamic_metadata={"a": "b"}),
            "`ok_response.dynamic_metadata` is set, which hides the other one",
            "ok_dynamic_metadata",
        ),
        (
            changed(DENY, "denied_response", status={"code": "OK"}),
            "a deny with the HTTP status 200, which looks like a success",
            "denied_status",
        ),
        (
            changed(ALLOW, "ok_response", headers=[overwriting("X-User", "a")]),
            "header `X-User` is not a name in lower case",
            "lower_case",
        ),
        (
            changed(DENY, "denied_response", headers=[overwriting("a", "b\r\nc: d")]),
            "the value of `a` has a control character",
            "valid_mutations",
        ),
        (
            changed(ALLOW, "ok_response", headers=[{name: its for name, its in ODD.items() if name != "append"}]),
            "`append` of `x-user` is not said",
            "append",
        ),
        (
            changed(ALLOW, "ok_response", response_headers_to_add=[ODD | {"append": True}]),
            "`append` of `x-user` is true, and `append_action` is OVERWRITE_IF_EXISTS_OR_ADD",
            "append_action",
        ),
        (
            changed(ALLOW, "ok_response", headers=[{"header": ODD["header"], "append": False}]),
            "`append` of `x-user` is false, and `append_action` is APPEND_IF_EXISTS_OR_ADD",
            "append_action",
        ),
        (changed(ALLOW, "ok_response", headers_to_remove=[":path"]), "`:path` cannot be removed", "pseudo_headers"),
        (changed(ALLOW, "ok_response", headers_to_remove=["Host"]), "`Host` cannot be removed", "pseudo_headers"),
        (
            changed(ALLOW, "ok_response", headers_to_remove=["Cookie"]),
            "removed header `Cookie` is not a name in lower case",
            "lower_case",
        ),
        (
            changed(ALLOW, "ok_response", headers_to_remove=["x-user"]),
            "`x-user` is both set and removed: Envoy removes last",
            "headers_to_remove",
        ),
        (
            changed(ALLOW, "ok_response", headers_to_remove=["x_user", "x-email", "x-roles"]),
            "`x-tenant` is neither overwritten nor removed: a client could set it",
            "ok_headers",
        ),
        (
            changed(ALLOW, "ok_response", headers_to_remove=["x-tenant", "x-email", "x-roles"]),
            "`x_user` is neither overwritten nor removed: a client could set it",
            "ok_headers",
        ),
        (
            changed(ALLOW, "ok_response", headers=[appending("x-user", "main:alice")]),
            "`x-user` is neither overwritten nor removed: a client could set it",
            "ok_headers",
        ),
        (changed(DENY, "denied_response", body=f"no {TOKEN}"), "the answer repeats the token", "not_leaked"),
        (
            changed(ALLOW, "ok_response", headers=[appending("x-user", "root"), ODD]),
            "`x-user` stands 2 times among the headers for the upstream",
            "ok_headers",
        ),
        (
            changed(ALLOW, "ok_response", headers=[overwriting("x-user", "root"), ODD]),
            "`x-user` stands 2 times among the headers for the upstream",
            "ok_headers",
        ),
        (
            changed(ALLOW, "ok_response", headers=[ODD, appending("x-group", "a"), appending("X-Group", "b")]),
            "`x-group` stands 2 times among the headers for the upstream",
            "ok_headers",
        ),
        (
            changed(ALLOW, "ok_response", headers=[appending("x-user", "root"), ODD]),
            "`x-user` is an identity header, and may only be overwritten",
            "ok_headers",
        ),
        (
            changed(ALLOW, "ok_response", headers=[ODD, appending("x.user", "root")]),
            "`x.user` is an identity header, and may only be overwritten",
            "ok_headers",
        ),
        (
            changed(ALLOW, "ok_response", response_headers_to_add=[overwriting("vary", "a"), appending("vary", "b")]),
            "`vary` stands 2 times among the headers for the client",
            "append_action",
        ),
        (
            changed(DENY, "denied_response", headers=[overwriting("location", "/a"), overwriting("location", "/b")]),
            "`location` stands 2 times among the headers for the client",
            "append_action",
        ),
        (
            changed(ALLOW, "ok_response", headers=[in_octets(ODD, "main:alice\r\nx-roles: root")]),
            "the value of `x-user` has a control character",
            "valid_mutations",
        ),
        (
            changed(ALLOW, "ok_response", headers=[overwriting("x-user", "main:alice\x1b[2J")]),
            "the value of `x-user` has a control character",
            "valid_mutations",
        ),
        (
            changed(ALLOW, "ok_response", headers=[ODD | {"header": ODD["header"] | {"raw_value": "cm9vdA=="}}]),
            "`x-user` has both a `value` and a `raw_value`",
            "one_value",
        ),
        (
            changed(ALLOW, "ok_response", headers=[ODD, in_octets(overwriting("x-debug", ""), f"Bearer {TOKEN}")]),
            "the answer repeats the token",
            "not_leaked",
        ),
    ],
)
def test_what_no_answer_may_do(answer: dict[str, Any], text: str, origin: str) -> None:
    expected = {"verdict": "deny" if answer.get("status", {}).get("code") else "allow"}
    assert Problem(text, origin) in found(answer, expected)
    assert Problem(text, origin) not in (*found(ALLOW, {"verdict": "allow"}), *found(DENY, {"verdict": "deny"}))


def encoded(text: str, *, urlsafe: bool = False) -> str:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    return encode(text.encode()).decode()


@pytest.mark.parametrize("urlsafe", [False, True])
@pytest.mark.parametrize("before", ["", "B", "Be", "Bearer "])
@pytest.mark.parametrize("after", ["", ">", ">>"])
def test_a_token_in_base64_is_a_token(before: str, after: str, *, urlsafe: bool) -> None:
    text = encoded(f"{before}{TOKEN}{after}", urlsafe=urlsafe)
    leaks = [Problem("the answer repeats the token in base64", "not_leaked")]
    of_nobody = encoded(f"{before}{TOKEN[::-1]}{after}", urlsafe=urlsafe)
    for leak, wanted in ((text, leaks), (of_nobody, [])):
        metadata = changed(ALLOW, "dynamic_metadata", trace={"seen": [leak]})
        body = changed(DENY, "denied_response", body=f"see {leak}")
        octets = changed(ALLOW, "ok_response", headers=[ODD, in_octets(overwriting("x-debug", ""), leak)])
        assert list(found(metadata, ALLOW_EXPECTED)) == wanted
        assert list(found(body, {"verdict": "deny"})) == wanted
        assert [its for its in found(camel(octets), ALLOW_EXPECTED) if its.origin == "not_leaked"] == wanted


def test_octets_are_read_as_a_text_is() -> None:
    option = in_octets(ODD, "main:alice")
    assert problems(changed(ALLOW, "ok_response", headers=[option]), ALLOW_EXPECTED) == []
    assert problems(camel(changed(ALLOW, "ok_response", headers=[option])), ALLOW_EXPECTED) == []
    other = in_octets(ODD, b"main:\xff")
    (text,) = problems(changed(ALLOW, "ok_response", headers=[other]), ALLOW_EXPECTED)
    assert text == r"header `x-user` is `main:\xff` for the upstream, not `main:alice`"


def test_what_is_no_name_that_comes_twice() -> None:
    """Two names for the upstream are two headers, and a client may be told one field on two lines."""
    two = [ODD, overwriting("x-email", "main:alice@example.com")]
    answer = changed(ALLOW, "ok_response", headers=two, headers_to_remove=["x_user", "cookie", "x-roles", "x-tenant"])
    expected = ALLOW_EXPECTED | {"sets": {"x-user": "main:alice", "x-email": "main:alice@example.com"}}
    assert problems(answer, expected) == []
    lines = [appending("www-authenticate", "Bearer realm=a"), appending("www-authenticate", "Basic realm=a")]
    assert problems(changed(DENY, "denied_response", headers=lines), {"verdict": "deny"}) == []
    assert problems(changed(ALLOW, "ok_response", headers=[overwriting("x-user", "a\tb")]), {"verdict": "deny"}) == [
        "an allow instead of a deny"
    ]


@pytest.mark.parametrize(
    ("name", "member", "text"),
    [
        (
            "headers",
            overwriting("x-forwarded-for", "1.2.3.4"),
            "header `x-forwarded-for` is set for the upstream, which nobody asked for",
        ),
        (
            "headers",
            overwriting("x.roles", "main:admin"),
            "header `x.roles` is set for the upstream, which nobody asked for",
        ),
        (
            "response_headers_to_add",
            appending("set-cookie", "session=a"),
            "header `set-cookie` is set for the client, which nobody asked for",
        ),
        ("headers_to_remove", "accept", "header `accept` is removed, which nobody asked for"),
        ("query_parameters_to_remove", "page", "query parameter `page` is removed, which nobody asked for"),
    ],
)
def test_what_nobody_asked_for(name: str, member: Any, text: str) -> None:
    assert problems(changed(ALLOW, "ok_response", **{name: [*ALLOW["ok_response"][name], member]}), ALLOW_EXPECTED) == [
        text
    ]


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("headers_to_remove", "x.roles"),
        ("headers_to_remove", "x_tenant"),
        ("headers_to_remove", "authorization"),
        ("headers_to_remove", "proxy-authorization"),
        ("response_headers_to_add", overwriting("x-checked", "1")),
    ],
)
def test_what_a_server_may_choose_to_do(name: str, member: Any) -> None:
    expected = ALLOW_EXPECTED | {"keeps": [], "may_add": ["x-checked"]}
    answer = changed(ALLOW, "ok_response", **{name: [*ALLOW["ok_response"][name], member]})
    assert problems(answer, expected) == []


def test_an_expectation_that_is_like_another_says_what_it_wants_besides() -> None:
    by_name = {case.name: case.expect for case in CASES}
    expect = by_name["a token in a cookie goes no further, the other cookies do"]
    alice = by_name["a forged identity is overwritten"]
    assert expect.sets == alice.sets | {"cookie": "theme=dark; lang=de"}
    assert len(alice.sets) == len(load_identity_headers())


def test_an_rpc_error_is_no_verdict() -> None:
    (problem,) = found({}, DENY_EXPECTED, error="Unavailable: overloaded")
    text = "no answer but an RPC error (Unavailable: overloaded): a proxy that fails open lets the request in"
    assert problem == Problem(text, "failure_mode")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"code": 7}, "`status.code` is 0, not 7"),
        ({"sets": {"x-user": "main:bob"}}, "header `x-user` is `main:alice` for the upstream, not `main:bob`"),
        ({"sets": {"x-user": "main:alice", "x-group": "a"}}, "header `x-group` is not set for the upstream"),
        ({"removes": ["accept"]}, "header `accept` is not removed"),
        ({"keeps": ["cookie"]}, "header `cookie` is not left as it is"),
        ({"keeps": ["x-user"]}, "header `x-user` is not left as it is"),
        ({"adds": {"x-frame-options": "ALLOW"}}, "header `x-frame-options` is `DENY` for the client, not `ALLOW`"),
        (
            {"adds": {"x-frame-options": "DENY", "vary": "origin"}},
            "header `vary` has `append` True and APPEND_IF_EXISTS_OR_ADD for the client",
        ),
        (
            {"appends": {"x-frame-options": "DENY", "vary": "origin"}},
            "header `x-frame-options` has `append` False and OVERWRITE_IF_EXISTS_OR_ADD for the client",
        ),
        ({"removes_query": ["token"]}, "query parameter `token` is not removed"),
        ({"lacks_headers": ["vary"]}, "header `vary` is there"),
        ({"metadata": {"rule": "other"}}, '`rule` of the metadata is "any", not `other`'),
        ({"metadata": {"guard": "a"}}, "`guard` of the metadata is null, not `a`"),
        ({"lacks_metadata": ["subject"]}, "`subject` is in the metadata"),
        ({"within_s": 0.05}, "the answer took 0.1 s, more than 0.05 s"),
    ],
)
def test_what_an_allow_may_lack(changes: dict[str, Any], text: str) -> None:
    assert problems(ALLOW, ALLOW_EXPECTED | changes) == [text]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"code": 7}, "`status.code` is 16, not 7"),
        ({"status": 403}, "the HTTP status is 401, not 403"),
        ({"reason": "nobody"}, 'the reason is "no_credential", not `nobody`'),
        ({"headers": {"cache-control": "private"}}, "header `cache-control` is `no-store`, not `private`"),
        ({"headers": {"location": {}}}, "header `location` is not there"),
        (
            {"headers": {"www-authenticate": {"has": ["Basic"]}}},
            "header `www-authenticate` is `Bearer realm=a`, without `Basic`",
        ),
        (
            {"headers": {"www-authenticate": {"lacks": ["realm"]}}},
            "header `www-authenticate` is `Bearer realm=a`, with `realm`",
        ),
        ({"lacks_headers": ["cache-control"]}, "header `cache-control` is there"),
        ({"body": {"has": ["403"]}}, 'the body is `{"status": 401}`, without `403`'),
        ({"body": {"lacks": ["401"]}}, 'the body is `{"status": 401}`, with `401`'),
        ({"body": {"json": {"status": 403}}}, 'the body is `{"status": 401}`, without {"status": 403}'),
        ({"metadata": {"reason": "nobody"}}, '`reason` of the metadata is "no_credential", not `nobody`'),
    ],
)
def test_what_a_deny_may_lack(changes: dict[str, Any], text: str) -> None:
    assert problems(DENY, DENY_EXPECTED | changes) == [text]


def test_another_verdict_than_is_meant() -> None:
    assert problems(ALLOW, {"verdict": "deny"}) == ["an allow instead of a deny"]
    assert problems(DENY, {"verdict": "allow"}) == ["a deny 401 (no_credential) instead of an allow"]


def test_a_body_that_is_no_object() -> None:
    answer = changed(DENY, "denied_response", body="Unauthorized")
    assert problems(answer, {"verdict": "deny", "body": {"json": {"status": 401}}}) == [
        "the body is `Unauthorized`, no JSON object"
    ]


def test_the_readme_names_every_file_that_cases_are_made_of() -> None:
    text = (FOLDER / "README.md").read_text()
    for name in ("rules.yaml", "answers.yaml", "statements.yaml", "tokens.yaml", "tokens.py", "load.py", "protos"):
        assert name in text
        assert (FOLDER / name).exists()
