"""Method, host and target: what is read, what is marked, what is refused, each for its own Reason."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.path import (
    MAX_HOST_CHARS,
    MAX_METHOD_CHARS,
    MAX_SEGMENTS,
    MAX_TARGET_CHARS,
    check_accepted,
    other_readings,
    parse_host,
    parse_host_name,
    parse_method,
    parse_target,
)
from authz.model import Ambiguity, Reason, Rejected

A = Ambiguity


def refusal(raw: str, method: str = "GET") -> Reason | None:
    try:
        parse_target(raw, method=method)
    except Rejected as rejected:
        return rejected.reason
    return None


@pytest.mark.parametrize("method", ["GET", "PROPFIND", "get", "M-SEARCH", "A" * MAX_METHOD_CHARS])
def test_methods_are_kept_as_they_are(method: str) -> None:
    assert parse_method(method) == method


@pytest.mark.parametrize("method", ["", "G T", "GET ", "GET\n", "GÉT", "A" * (MAX_METHOD_CHARS + 1), "(GET)"])
def test_what_is_no_method(method: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_method(method)
    assert caught.value.reason is Reason.BAD_METHOD


@pytest.mark.parametrize(
    ("raw", "name", "port"),
    [
        ("shop.example.com", "shop.example.com", None),
        ("SHOP.Example.COM", "shop.example.com", None),
        ("shop.example.com.", "shop.example.com", None),
        ("shop.example.com:8080", "shop.example.com", 8080),
        ("shop.example.com.:1", "shop.example.com", 1),
        ("shop.example.com:65535", "shop.example.com", 65535),
        ("localhost", "localhost", None),
        ("a_b.example.com", "a_b.example.com", None),
        ("b\u00fccher.example", "xn--bcher-kva.example", None),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
        ("127.0.0.1", "127.0.0.1", None),
        ("[::1]", "::1", None),
        ("[2001:DB8::0:1]:443", "2001:db8::1", 443),
        ("a" * 63 + ".example", "a" * 63 + ".example", None),
        (".".join(["a" * 62] * 4) + "b", ".".join(["a" * 62] * 4) + "b", None),
        ("0x.example", "0x.example", None),
    ],
)
def test_hosts(raw: str, name: str, port: int | None) -> None:
    host = parse_host(raw)
    assert (host.name, host.port) == (name, port)


@pytest.mark.parametrize(
    "raw",
    [
        *("", ".", "..", "a..b", ".a", "a..", "-a.example", "a-.example", "a b", "a/b", "a\\b", "a@b", "user@a", "a,b"),
        *("a:", "a:0", "a:65536", "a:080000", "a:008000", "a:-1", "a:+1", "a: 1", "a:1:2", "a:x", "a:\u0661"),
        *("[::1", "::1", "[::1]x", "[::1]:", "[::1%25eth0]", "[1.2.3.4]", "[]", "[g::1]"),
        *("127.1", "0x7f.0.0.1", "2130706433", "127.0.0.01", "1.2.3.256", "1.2.3.4.5", "0x7f000001"),
        *("a%2eb", "a\0b", "a\tb", "a\nb", "*.example", "{x}.example", "a#b", "a?b"),
        *(
            "a\u3002b",
            "\uff41.example",
            "a\u200db.example",
            "stra\u00dfe.EXAMPLE\u0130",
            "xn--a",
        ),
        *("a" * 64 + ".example", ".".join(["a" * 60] * 5), "a" * (MAX_HOST_CHARS + 1)),
    ],
)
def test_odd_hosts_are_refused(raw: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_host(raw)
    assert caught.value.reason is Reason.BAD_HOST


@pytest.mark.parametrize(
    ("raw", "segments", "query"),
    [
        ("/", (), None),
        ("/a", ("a",), None),
        ("/a/", ("a",), None),
        ("/a/b?", ("a", "b"), ""),
        ("/a?b=/../c", ("a",), "b=/../c"),
        ("/a?b?c", ("a",), "b?c"),
        ("/%61%20b", ("a b",), None),
        ("/%C3%A4", ("\u00e4",), None),
        ("/a.b/...", ("a.b", "..."), None),
        ("/a%3Fb", ("a?b",), None),
        ("/a:b@c,d", ("a:b@c,d",), None),
        ("/100%25", ("100%",), None),
        ("/%41%42%43", ("ABC",), None),
        ("/%25g1%251g", ("%g1%1g",), None),
        ("/x%C2%A0..", ("x\u00a0..",), None),
        ("/" + "/".join(["a"] * MAX_SEGMENTS), ("a",) * MAX_SEGMENTS, None),
        ("/" + "a" * (MAX_TARGET_CHARS - 1), ("a" * (MAX_TARGET_CHARS - 1),), None),
    ],
)
def test_targets_that_everybody_reads_alike(raw: str, segments: tuple[str, ...], query: str | None) -> None:
    target = parse_target(raw, method="GET")
    assert (target.segments, target.query, target.ambiguities) == (segments, query, frozenset())


def test_the_asterisk_is_for_options_only() -> None:
    target = parse_target("*", method="OPTIONS")
    assert (target.asterisk, target.raw_path, target.segments) == (True, "*", ())
    assert refusal("*", "GET") is Reason.PATH_FORM


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", Reason.PATH_FORM),
        ("a", Reason.PATH_FORM),
        ("http://a/b", Reason.PATH_FORM),
        ("?a", Reason.PATH_FORM),
        ("/" + "a" * MAX_TARGET_CHARS, Reason.PATH_TOO_LONG),
        ("/" + "/".join(["a"] * (MAX_SEGMENTS + 1)), Reason.PATH_TOO_LONG),
        ("/a#b", Reason.PATH_FRAGMENT),
        ("/a?b#c", Reason.PATH_FRAGMENT),
        ("/a b", Reason.PATH_CONTROL),
        ("/a\tb", Reason.PATH_CONTROL),
        ("/a\u00e4", Reason.PATH_CONTROL),
        ("/a?b\n", Reason.PATH_CONTROL),
        ("/a%00", Reason.PATH_CONTROL),
        ("/a%0a", Reason.PATH_CONTROL),
        ("/a%7f", Reason.PATH_CONTROL),
        ("/a%2500", Reason.PATH_CONTROL),
        ("/a\\b", Reason.PATH_BACKSLASH),
        ("/a%5cb", Reason.PATH_BACKSLASH),
        ("/a%255cb", Reason.PATH_BACKSLASH),
        ("/a%", Reason.PATH_BAD_ESCAPE),
        ("/a%4", Reason.PATH_BAD_ESCAPE),
        ("/a%4g", Reason.PATH_BAD_ESCAPE),
        ("/a%u0041", Reason.PATH_BAD_ESCAPE),
        ("/%41%zz", Reason.PATH_BAD_ESCAPE),
        ("/%41%42%4", Reason.PATH_BAD_ESCAPE),
        ("/%4g%41", Reason.PATH_BAD_ESCAPE),
        ("/a%41b%", Reason.PATH_BAD_ESCAPE),
        ("/%41%zz%41", Reason.PATH_BAD_ESCAPE),
        ("/a/\u00a0..", Reason.PATH_CONTROL),
        ("/a%ff", Reason.PATH_BAD_UTF8),
        ("/a%c0%ae", Reason.PATH_BAD_UTF8),
        ("/a%ed%a0%80", Reason.PATH_BAD_UTF8),
        ("/.", Reason.PATH_DOT_SEGMENT),
        ("/..", Reason.PATH_DOT_SEGMENT),
        ("/a/../b", Reason.PATH_DOT_SEGMENT),
        ("/a/./b", Reason.PATH_DOT_SEGMENT),
        ("/a/%2e%2E/b", Reason.PATH_DOT_SEGMENT),
        ("/a/.%2e/b", Reason.PATH_DOT_SEGMENT),
        ("/a/%252e%252e/b", Reason.PATH_DOT_SEGMENT),
        ("/a/..;x/b", Reason.PATH_DOT_SEGMENT),
        ("/a/..%3fx/b", Reason.PATH_DOT_SEGMENT),
        ("/a/..%23x/b", Reason.PATH_DOT_SEGMENT),
        ("/a/..%2fb", Reason.PATH_DOT_SEGMENT),
        ("/a/..%252fb", Reason.PATH_DOT_SEGMENT),
        ("/a/%20../b", Reason.PATH_DOT_SEGMENT),
        ("/a/%C2%A0../b", Reason.PATH_DOT_SEGMENT),
        ("/a/..%E3%80%80/b", Reason.PATH_DOT_SEGMENT),
        ("/%" + "25" * 20 + "2e", Reason.PATH_PERCENT),
    ],
)
def test_what_no_rule_can_accept(raw: str, reason: Reason) -> None:
    assert refusal(raw) is reason


@pytest.mark.parametrize(
    ("raw", "segments", "ambiguity", "reason"),
    [
        ("/a%2fb", ("a/b",), A.ENCODED_SLASH, Reason.PATH_ENCODED_SLASH),
        ("/a%2541", ("a%41",), A.PERCENT, Reason.PATH_PERCENT),
        ("/a%25ff", ("a%ff",), A.PERCENT, Reason.PATH_PERCENT),
        ("/%25zz%2541", ("%zz%41",), A.PERCENT, Reason.PATH_PERCENT),
        ("/%25%2541", ("%%41",), A.PERCENT, Reason.PATH_PERCENT),
        ("/%2541%25", ("%41%",), A.PERCENT, Reason.PATH_PERCENT),
        ("/%25%2541%25", ("%%41%",), A.PERCENT, Reason.PATH_PERCENT),
        ("/a;b=c", ("a;b=c",), A.SEMICOLON, Reason.PATH_SEMICOLON),
        ("/a%3bb", ("a;b",), A.SEMICOLON, Reason.PATH_SEMICOLON),
        ("/a//b", ("a", "", "b"), A.EMPTY_SEGMENT, Reason.PATH_EMPTY_SEGMENT),
        ("//a", ("", "a"), A.EMPTY_SEGMENT, Reason.PATH_EMPTY_SEGMENT),
        ("/a//", ("a", ""), A.EMPTY_SEGMENT, Reason.PATH_EMPTY_SEGMENT),
    ],
)
def test_what_a_rule_may_accept_by_name(
    raw: str, segments: tuple[str, ...], ambiguity: Ambiguity, reason: Reason
) -> None:
    target = parse_target(raw, method="GET")
    assert (target.segments, target.ambiguities) == (segments, frozenset({ambiguity}))
    asked = parse_target(f"{raw}?q", method="GET")
    assert (asked.raw_path, asked.query) == (raw, "q")
    check_accepted(target, frozenset({ambiguity}))
    for accept in (frozenset[Ambiguity](), frozenset(set(Ambiguity) - {ambiguity})):
        with pytest.raises(Rejected) as caught:
            check_accepted(target, accept)
        assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("raw", "readings"),
    [
        ("/a/b", set()),
        ("/a%2fb", {("a", "b")}),
        ("/a;x/b", {("a", "b")}),
        ("/a//b", {("a", "b")}),
        ("/a%252fb", {("a", "b")}),
        ("/a;x//b", {("a", "b"), ("a", "", "b"), ("a;x", "b")}),
        ("/a%2fb/%2541", {("a", "b", "%41"), ("a", "b", "A")}),
        ("/a;x%2fadmin", {("a", "admin"), ("a;x", "admin")}),
        ("/x%2541", {("xA",)}),
        # Parameters cut, or empty segments dropped, before anything is decoded.
        ("/api;x=%2fy/admin", {("api", "admin"), ("api;x=", "y", "admin")}),
        ("//users/a%2fb", {("users", "a/b"), ("users", "a", "b")}),
        ("/a;%2f..x/b", {("a", "b"), ("a", "..x", "b")}),
        ("/admin%3fx/y", {("admin",)}),
        ("/admin%23x", {("admin",)}),
        ("/a;x/b%3by%2fc", {("a", "b;y", "c"), ("a;x", "b;y", "c"), ("a", "b", "c")}),
        ("//a%2f/b", {("a", "", "b"), ("", "a", "", "b"), ("a", "b")}),
        ("/a%2f%2fb", {("a", "", "b"), ("a", "b")}),
    ],
)
def test_guards_see_what_an_upstream_may_make_of_it(raw: str, readings: set[tuple[str, ...]]) -> None:
    assert readings <= set(other_readings(parse_target(raw, method="GET")))
    assert len(set(other_readings(parse_target(raw, method="GET")))) == len(
        other_readings(parse_target(raw, method="GET"))
    )
    if not readings:
        assert other_readings(parse_target(raw, method="GET")) == ()


@pytest.mark.parametrize(
    ("raw", "readings"),
    [("/a%2fb/", {("a", "b")}), ("/a//b/", {("a", "b")}), ("/a%3fb", {("a",)}), ("/a%3fb/c", {("a",), ("a?b", "c")})],
)
def test_guards_see_nothing_that_no_upstream_reads(raw: str, readings: set[tuple[str, ...]]) -> None:
    target = parse_target(raw, method="GET")
    assert {target.segments, *other_readings(target)} == readings | {target.segments}
    assert target.segments not in other_readings(target)


@pytest.mark.parametrize(("raw", "name"), [("Shop.Example.com.", "shop.example.com"), ("a.0xg", "a.0xg")])
def test_names_of_hosts_in_the_rules_file(raw: str, name: str) -> None:
    assert parse_host_name(raw) == name


@given(st.text(max_size=60), st.text(max_size=60))
def test_only_rejected_escapes(target: str, host: str) -> None:
    with contextlib.suppress(Rejected):
        parse_method(host)
    with contextlib.suppress(Rejected):
        assert parse_host(host).name == parse_host(host).name.lower()
    with contextlib.suppress(Rejected):
        parse_host_name(host)
    with contextlib.suppress(Rejected):
        other_readings(parse_target("/" + target, method="GET"))


@given(st.text(alphabet="/.%25ef;ab\\#?", max_size=20))
def test_no_accepted_segment_is_a_dot_however_often_it_is_decoded(text: str) -> None:
    try:
        target = parse_target("/" + text, method="GET")
    except Rejected:
        return
    for reading in (target.segments, *other_readings(target)):
        assert not {".", ".."} & set(reading)
        assert not any("\\" in piece for piece in reading)
