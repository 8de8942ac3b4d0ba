"""From ``CheckRequest`` to Request, and from Decision to ``CheckResponse``: what Envoy says, and what it is told."""

from __future__ import annotations

import contextlib
import json
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.answers import Refusal, render_deny
from authz.model import Allow, Decision, Deny, HeaderAction, HeaderEdit, Reason, Rejected, SharedEdits
from authz.pb.envoy.config.core.v3.base_pb2 import HeaderValueOption
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz.servers.envoy import describe_check, parse_check, render_check
from tests.core.build import principal, request


def message(path: str = "/x?a=b", **headers: str) -> CheckRequest:
    found = CheckRequest()
    http = found.attributes.request.http
    http.method, http.host, http.path, http.scheme, http.protocol, http.id = (
        "GET",
        "A.Example:80",
        path,
        "http",
        "HTTP/2",
        "7",
    )
    http.size = -1
    for name, value in headers.items():
        http.headers[name.replace("_", "-")] = value
    found.attributes.source.address.socket_address.address = "192.0.2.1"
    found.attributes.source.principal = "spiffe://x"
    found.attributes.context_extensions["tier"] = "gold"
    return found


def add(found: CheckRequest, name: str, value: bytes) -> None:
    found.attributes.request.http.header_map.headers.add(key=name, raw_value=value)


def refusal(raw: bytes) -> Reason:
    with pytest.raises(Rejected) as caught:
        parse_check(raw)
    return caught.value.reason


def answer(decision: Decision) -> CheckResponse:
    return CheckResponse.FromString(render_check(decision))


def test_what_envoy_saw() -> None:
    found = parse_check(message(accept="x", X_Two="y").SerializeToString())
    assert (found.method, found.host.name, found.host.port) == ("GET", "a.example", 80)
    assert (found.target.segments, found.target.query) == (("x",), "a=b")
    assert found.headers == {"accept": "x", "x-two": "y"}
    assert (found.id, found.scheme, found.protocol) == ("7", "http", "HTTP/2")
    assert found.source_address == ip_address("192.0.2.1")
    assert (found.source_principal, found.context) == ("spiffe://x", {"tier": "gold"})
    assert parse_check(message(x_request_id="mine").SerializeToString()).id == "mine"


def test_header_map_and_headers_say_the_same_where_nothing_is_double() -> None:
    plain, raw = message(accept="x", cookie="a=1"), message()
    for name, value in ((":method", b"GET"), (":path", b"/x?a=b"), (":authority", b"A.Example:80")):
        add(raw, name, value)
    add(raw, "Accept", b"x")
    add(raw, "cookie", b"a=1")
    assert parse_check(plain.SerializeToString()) == parse_check(raw.SerializeToString())


def test_repeated_headers_are_joined_and_named() -> None:
    found = message()
    for name, value in (("x", b"1"), ("X", b"2"), ("cookie", b"a=1"), ("cookie", b"b=2"), ("y", b"\xff")):
        add(found, name, value)
    found.attributes.request.http.header_map.headers.add(key="z", value="text")
    request = parse_check(found.SerializeToString())
    assert request.headers == {"x": "1,2", "cookie": "a=1; b=2", "y": "\ufffd", "z": "text"}
    assert request.repeated == {"x", "cookie"}


def test_two_stories_of_one_request_are_refused() -> None:
    found = message()
    add(found, ":path", b"/other")
    assert refusal(found.SerializeToString()) is Reason.BAD_HEADER
    found = message()
    for _ in range(2):
        add(found, ":path", b"/x?a=b")
    assert refusal(found.SerializeToString()) is Reason.BAD_HEADER
    for host, refused in (("A.Example:80", False), ("b.example", True)):
        found = message(host=host)
        if refused:
            assert refusal(found.SerializeToString()) is Reason.BAD_HEADER
        else:
            parse_check(found.SerializeToString())
    found = message(accept="x")
    found.attributes.request.http.headers["Accept"] = "y"
    assert refusal(found.SerializeToString()) is Reason.BAD_HEADER
    found = message()
    found.attributes.request.http.fragment = "x"
    assert refusal(found.SerializeToString()) is Reason.PATH_FRAGMENT


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", Reason.NOT_HTTP),
        (b"\xff\xff", Reason.NOT_HTTP),
        (CheckRequest().SerializeToString(), Reason.NOT_HTTP),
    ],
)
def test_what_is_no_http_request(raw: bytes, reason: Reason) -> None:
    assert refusal(raw) is reason
    tcp = message()
    tcp.attributes.request.ClearField("http")
    assert refusal(tcp.SerializeToString()) is reason


@pytest.mark.parametrize(("address", "read"), [("", None), ("nonsense", None), ("::1", ip_address("::1"))])
def test_the_peers_address(address: str, read: object) -> None:
    found = message()
    found.attributes.source.address.socket_address.address = address
    assert parse_check(found.SerializeToString()).source_address == read


@given(st.binary(max_size=200))
def test_only_rejected_escapes(raw: bytes) -> None:
    with contextlib.suppress(Rejected):
        parse_check(raw)
    describe_check(raw)


def test_what_can_be_told_of_a_request_that_cannot_be_read() -> None:
    found = message(path="/a/../b?token=hidden", x_request_id="r1", accept="text/html")
    assert refusal(found.SerializeToString()) is Reason.PATH_DOT_SEGMENT
    seen = describe_check(found.SerializeToString())
    assert seen is not None
    assert (seen.id, seen.method, seen.host, seen.path) == ("r1", "GET", "A.Example:80", "/a/../b")
    found.attributes.request.http.headers.clear()
    add(found, "accept", b"text/html")
    again = describe_check(found.SerializeToString())
    assert again is not None
    assert (again.id, again.headers) == ("7", {"accept": "text/html"})
    for raw in (b"\xff\xff", CheckRequest().SerializeToString()):
        assert describe_check(raw) is None


def test_a_request_that_cannot_be_read_is_answered_in_the_callers_manner() -> None:
    def answer(**headers: str) -> Deny:
        raw = message("/a/../b", **headers).SerializeToString()
        return render_deny(Refusal(reason=Reason.PATH_DOT_SEGMENT), request=describe_check(raw))

    assert answer(content_type="application/grpc").body == "bad request"
    assert answer(accept="text/html,*/*").body.startswith("<!doctype html>")
    assert json.loads(answer(x_request_id="r1").body)["request_id"] == "r1"
    twice = render_deny(Refusal(reason=Reason.CREDENTIAL_TWICE), request=describe_check(message().SerializeToString()))
    assert HeaderEdit(HeaderAction.SET, "www-authenticate", 'Bearer realm="authz", error="invalid_request"') in (
        twice.headers
    ), "a host that was not read is not repeated"


@pytest.mark.parametrize("reason", list(Reason))
def test_no_deny_looks_like_an_allow(reason: Reason) -> None:
    response = answer(render_deny(Refusal(reason=reason), request=request()))
    assert response.status.code != 0
    assert response.WhichOneof("http_response") == "denied_response"
    assert response.denied_response.status.code >= 200
    assert response.dynamic_metadata.fields["reason"].string_value == reason.value


def test_an_allow_says_so_even_with_nothing_to_do() -> None:
    response = answer(Allow(rule="one"))
    assert response.HasField("status")
    assert response.status.code == 0
    assert response.WhichOneof("http_response") == "ok_response"
    assert dict(response.dynamic_metadata.items()) == {"decision": "allow", "rule": "one"}


def test_the_edits_of_an_allow() -> None:
    allow = Allow(
        rule="one",
        principal=principal(),
        upstream=(HeaderEdit(HeaderAction.SET, "x-user", "alice"), HeaderEdit(HeaderAction.REMOVE, "x_user")),
        downstream=(HeaderEdit(HeaderAction.APPEND, "vary", "origin"),),
        remove_query=("token",),
    )
    response = answer(allow)
    (option,) = response.ok_response.headers
    assert (option.header.key, option.header.value) == ("x-user", "alice")
    assert option.HasField("append")
    assert not option.append.value
    assert option.append_action == HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    assert list(response.ok_response.headers_to_remove) == ["x_user"]
    (added,) = response.ok_response.response_headers_to_add
    assert added.append.value
    assert added.append_action == HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
    assert list(response.ok_response.query_parameters_to_remove) == ["token"]
    metadata = dict(response.dynamic_metadata.items())
    assert metadata["subject"] == "alice"
    assert metadata["client"] == "web"
    assert metadata["issuer"] == "https://sso.example.com"


EDITS = st.lists(
    st.builds(
        HeaderEdit,
        st.sampled_from([HeaderAction.SET, HeaderAction.REMOVE]),
        st.text("abc-", min_size=1),
        st.text("xyz"),
    ),
    max_size=30,
)


@given(
    upstream=EDITS,
    downstream=EDITS,
    query=st.lists(st.text("abc"), max_size=3),
    rule=st.text(max_size=300),
    who=st.booleans(),
    shared=st.booleans(),
)
def test_what_is_put_together_is_what_the_message_says(
    upstream: list[HeaderEdit], downstream: list[HeaderEdit], query: list[str], rule: str, *, who: bool, shared: bool
) -> None:
    """An answer put together of parts kept from before is the one that the message itself would write."""
    allow = Allow(
        rule=rule,
        principal=principal() if who else None,
        upstream=SharedEdits(upstream) if shared else tuple(upstream),
        downstream=tuple(downstream),
        remove_query=tuple(query),
    )
    first, second = answer(allow), answer(allow)
    assert first == second
    expected = CheckResponse()
    expected.status.SetInParent()
    ok = expected.ok_response
    ok.SetInParent()
    for edits, headers in ((upstream, ok.headers), (downstream, ok.response_headers_to_add)):
        for edit in edits:
            if edit.action is HeaderAction.SET:
                option = headers.add()
                option.header.key, option.header.value = edit.name, edit.value
                option.append.value = False
                option.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    ok.headers_to_remove.extend(edit.name for edit in upstream if edit.action is HeaderAction.REMOVE)
    ok.query_parameters_to_remove.extend(query)
    facts = {"decision": "allow", "rule": rule}
    if who:
        facts |= {"provider": "shop", "issuer": "https://sso.example.com", "subject": "alice", "client": "web"}
    for name, value in facts.items():
        if value:
            expected.dynamic_metadata.fields[name].string_value = value
    assert first == expected


def test_the_numbers_that_answers_are_put_together_with_are_the_protos_own() -> None:
    for name, tag in (("status", b"\x0a"), ("ok_response", b"\x1a"), ("dynamic_metadata", b"\x22")):
        message = CheckResponse()
        getattr(message, name).SetInParent()
        assert message.SerializeToString() == tag + b"\0"


@pytest.mark.parametrize("name", ["a", "x-a", ":path", "host", "missing"])
@pytest.mark.parametrize("raw", [False, True])
def test_headers_are_read_where_they_are_asked_for(name: str, *, raw: bool) -> None:
    found = message(x_a="1", a="2")
    if raw:
        for key, value in found.attributes.request.http.headers.items():
            add(found, key, value.encode())
        found.attributes.request.http.headers.clear()
    headers = parse_check(found.SerializeToString()).headers
    assert dict(headers) == {"x-a": "1", "a": "2"}
    assert len(headers) == 2
    assert (name in headers) is (name in {"a", "x-a"})
    assert headers.get(name, "none") == {"a": "2", "x-a": "1"}.get(name, "none")
    if name in {"a", "x-a"}:
        assert headers[name]
    else:
        with pytest.raises(KeyError):
            headers[name]
    assert dict(headers) == {"x-a": "1", "a": "2"}, "asking makes no entry"


def test_the_answer_of_a_deny() -> None:
    headers = (HeaderEdit(HeaderAction.SET, "x-a", "b"),)
    deny = Deny(reason=Reason.ROLE_MISSING, status=403, headers=headers, body="no", rule="one", guard="g")
    response = answer(deny)
    assert (response.status.code, response.status.message) == (7, "role_missing")
    assert (response.denied_response.status.code, response.denied_response.body) == (403, "no")
    assert response.denied_response.headers[0].header.key == "x-a"
    assert response.dynamic_metadata.fields["guard"].string_value == "g"
    # Envoy up to 1.36 loses what would be appended to a denied answer.
    vary = Deny(reason=Reason.NOBODY, status=403, headers=(HeaderEdit(HeaderAction.APPEND, "vary", "origin"),))
    (option,) = answer(vary).denied_response.headers
    assert (option.header.value, option.HasField("append"), option.append.value) == ("origin", True, False)
    odd = Deny(reason=Reason.NOBODY, status=418)
    assert answer(odd).status.code == 7
