"""Host patterns: how they are written, what they cover, and which one is the narrowest."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.hosts import HostKind, broader_patterns, covers, index_hosts, parse_host_pattern

PATTERNS = ("everywhere", "*.example.com", "*.shop.example.com", "{tenant}.shop.example.com", "a.shop.example.com")


@pytest.mark.parametrize(
    ("text", "kind", "name", "capture"),
    [
        ("everywhere", HostKind.EVERYWHERE, "", None),
        ("Shop.EXAMPLE.COM", HostKind.EXACT, "shop.example.com", None),
        ("*.example.com", HostKind.SUFFIX, "example.com", None),
        ("{tenant}.example.com", HostKind.LABEL, "example.com", "tenant"),
        ("b\u00fccher.example", HostKind.EXACT, "xn--bcher-kva.example", None),
        ("[2001:DB8::1]", HostKind.EXACT, "2001:db8::1", None),
        ("127.0.0.1", HostKind.EXACT, "127.0.0.1", None),
    ],
)
def test_patterns_are_read(text: str, kind: HostKind, name: str, capture: str | None) -> None:
    pattern = parse_host_pattern(text)
    assert (pattern.kind, pattern.name, pattern.capture) == (kind, name, capture)
    assert str(parse_host_pattern(str(pattern).join(("[", "]")) if ":" in name else str(pattern))) == str(pattern)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a host name"),
        ("*", "or `hosts: everywhere`"),
        ("*.", "is not a host name"),
        ("a.*.com", "only for the first"),
        ("a*.example.com", "only for the first"),
        ("{a}", "is not a host name"),
        ("{1}.example.com", "is no capture"),
        ("{}.example.com", "is no capture"),
        ("x{a}.example.com", "only for the first"),
        ("a.example.com:80", "has a port or a scheme"),
        ("https://a.example.com", "has a port or a scheme"),
        ("[::1", "not an IPv6 address"),
        ("[::1]:80", "not an IPv6 address"),
        ("a..b", "is not a host name"),
        ("127.1", "is not a host name"),
    ],
)
def test_what_is_no_pattern_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_host_pattern(text)


@pytest.mark.parametrize(
    ("host", "narrowest_first"),
    [
        ("a.shop.example.com", PATTERNS[::-1]),
        ("b.shop.example.com", ("{tenant}.shop.example.com", "*.shop.example.com", "*.example.com", "everywhere")),
        ("a.b.shop.example.com", ("*.shop.example.com", "*.example.com", "everywhere")),
        ("shop.example.com", ("*.example.com", "everywhere")),
        ("example.com", ("everywhere",)),
        ("evilshop.example.com", ("*.example.com", "everywhere")),
        ("com", ("everywhere",)),
        ("::1", ("everywhere",)),
    ],
)
def test_the_narrowest_pattern_comes_first(host: str, narrowest_first: tuple[str, ...]) -> None:
    index = index_hosts({parse_host_pattern(text).key: text for text in PATTERNS})
    assert index.match_all(host) == narrowest_first
    assert index.match_first(host) == narrowest_first[0]
    for text in PATTERNS:
        assert covers(parse_host_pattern(text), host) is (text in narrowest_first)


def test_an_index_lists_all_its_patterns() -> None:
    values = {parse_host_pattern(text).key: text for text in PATTERNS}
    assert list(index_hosts(values).items()) == list(values.items())
    assert list(index_hosts({parse_host_pattern("a.example").key: 1}).items()) == [((HostKind.EXACT, "a.example"), 1)]


def test_an_index_of_exact_names_only() -> None:
    index = index_hosts({parse_host_pattern("a.example").key: 1})
    assert (index.match_first("a.example"), index.match_first("b.example")) == (1, None)
    assert (index.match_all("a.example"), index.match_all("b.example")) == ((1,), ())


def test_a_domain_is_no_host_of_its_own() -> None:
    for text in ("{tenant}.internal", "*.internal"):
        index = index_hosts({parse_host_pattern(text).key: 1})
        assert (index.match_all("internal"), index.match_all("a.internal")) == ((), (1,))


@pytest.mark.parametrize(
    ("text", "broader"),
    [
        ("a.b.c", ["{label}.b.c", "*.b.c", "*.c"]),
        ("{x}.b.c", ["*.b.c", "*.c"]),
        ("*.b.c", ["*.c"]),
        ("*.c", []),
        ("a", []),
        ("everywhere", []),
    ],
)
def test_what_covers_every_host_of_a_pattern(text: str, broader: list[str]) -> None:
    expected = [parse_host_pattern(its).key for its in broader]
    assert list(broader_patterns(parse_host_pattern(text))) == expected


@given(
    st.text(max_size=20)
    | st.text(alphabet="*{}[]:.a-_x1\u00e4", max_size=12)
    | st.from_regex(r"\A(\*|\{\w*\})?\.?[\w.-]*\Z")
)
def test_only_a_value_error_escapes_and_what_is_read_is_read_again_alike(text: str) -> None:
    try:
        pattern = parse_host_pattern(text)
    except ValueError as error:
        told = str(error)
    else:
        name = str(pattern)
        again = f"[{name}]" if ":" in name else name
        assert parse_host_pattern(again) == pattern
        return
    assert told.startswith("`")


@pytest.mark.parametrize("text", ["{tenant}.shop.example.com", "*.shop.example.com", "[2001:db8::1]", "everywhere"])
def test_a_cut_pattern_or_junk_behind_it_is_never_broader(text: str) -> None:
    whole = parse_host_pattern(text)
    for cut in (text[:end] for end in range(len(text))):
        with contextlib.suppress(ValueError):
            assert parse_host_pattern(cut).kind <= whole.kind
    for junk in ("/", " ", "\n", "\0", ":80", "*", "{", "}", "]", "%2e", "?", "#", "@", ","):
        with pytest.raises(ValueError, match="`"):
            parse_host_pattern(text + junk)
