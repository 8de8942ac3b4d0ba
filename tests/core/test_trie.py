"""Path patterns: the first differing segment decides, and a literal that leads nowhere hides nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.trie import (
    ANY_SEGMENT,
    MAX_PATTERN_SEGMENTS,
    Node,
    count_segments,
    count_visits,
    match_all_paths,
    match_path,
    parse_path_pattern,
    sample_below,
    walk,
)


def trie(*texts: str) -> Node[str]:
    root: Node[str] = Node()
    for text in texts:
        pattern = parse_path_pattern(text)
        node = root.reach(pattern)
        if pattern.deep:
            node.deep = text
        else:
            node.exact = text
    return root


def segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:]) if path != "/" else ()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/users/me", "/users/me"),
        ("/users/7", "/users/{id}"),
        ("/users/me/orders", "/users/{id}/orders"),
        ("/users/me/other", "/users/**"),
        ("/users/7/orders/1", "/users/**"),
        ("/users", "/users/**"),
        ("/a/b/c", "/a/{x}/c"),
        ("/a/lit/d", "/a/lit/**"),
        ("/a/lit/c", "/a/lit/**"),
        ("/a/lit", "/a/lit/**"),
        ("/b/lit/c", "/b/{x}/c"),
        ("/b/lit/d", "/b/lit/d"),
        ("/b/lit/e", None),
        ("/a/b", None),
        ("/", "/"),
        ("/nowhere", None),
    ],
)
def test_the_most_specific_pattern(path: str, expected: str | None) -> None:
    users = ("/users/me", "/users/{id}", "/users/{id}/orders", "/users/**")
    root = trie("/", *users, "/a/{x}/c", "/a/lit/**", "/b/{x}/c", "/b/lit/d")
    assert match_path(root, segments(path)) == expected
    every = list(match_all_paths(root, segments(path)))
    assert (every[0] if every else None) == expected


def test_a_capture_is_not_empty() -> None:
    root = trie("/a/{x}", "/a/{x}/b", "/c/**")
    assert match_path(root, ("a", "")) is None
    assert match_path(root, ("a", "", "b")) is None
    assert list(match_all_paths(root, ("a", ""))) == []
    assert match_path(root, ("c", "")) == "/c/**"


def test_all_patterns_that_match() -> None:
    root = trie("/**", "/a/**", "/a/{x}", "/a/b", "/{y}/b")
    assert list(match_all_paths(root, ("a", "b"))) == ["/a/b", "/a/{x}", "/a/**", "/{y}/b", "/**"]
    assert list(match_all_paths(root, ())) == ["/**"]


LITERAL = "".join(mark for mark in map(chr, range(0x20, 0x7F)) if mark not in "%?#\\*{}/")
"""All of ASCII that stands for itself."""


@pytest.mark.parametrize(
    ("text", "shape", "captures", "deep"),
    [
        ("/", (), (), False),
        ("/**", (), (), True),
        ("/a/", ("a",), (), False),
        ("/a/{b}/c/**", ("a", None, "c"), ((1, "b"),), True),
        ("/\u00e4", ("\u00e4",), (), False),
        (f"/{LITERAL}/.a/..b/...", (LITERAL, ".a", "..b", "..."), (), False),
        ("/a" * MAX_PATTERN_SEGMENTS, ("a",) * MAX_PATTERN_SEGMENTS, (), False),
    ],
)
def test_patterns_are_read(
    text: str, shape: tuple[str | None, ...], captures: tuple[tuple[int, str], ...], *, deep: bool
) -> None:
    pattern = parse_path_pattern(text)
    assert (pattern.shape, pattern.captures, pattern.deep) == (shape, captures, deep)
    assert match_path(trie(text), pattern.sample) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not start with"),
        ("a", "does not start with"),
        ("/a//b", "an empty or a dot segment"),
        ("//", "an empty or a dot segment"),
        ("/.", "an empty or a dot segment"),
        ("/..", "an empty or a dot segment"),
        ("/a/./b", "an empty or a dot segment"),
        ("/a%20", "has an escape"),
        ("/a?b", "has a query"),
        ("/a#b", "has a fragment"),
        ("/a\\b", "has a backslash"),
        ("/a\n", "cannot be seen"),
        ("/**/a", "must be the last segment"),
        ("/*", "write `{name}` for one segment"),
        ("/a*", "mixes a literal"),
        ("/a{b}", "mixes a literal"),
        ("/{1}", "is no capture"),
        ("/{a}/{a}", "names a capture twice"),
        ("/a" * (MAX_PATTERN_SEGMENTS + 1), "more than 64 segments"),
    ],
)
def test_what_is_no_pattern_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_path_pattern(text)


def test_a_sample_is_what_the_fewest_patterns_match() -> None:
    root = trie("/a/**", "/a/{x}/c/**", "/a/b/c", "/{y}/b/c", "/{y}/{x}/**")
    sample = parse_path_pattern("/a/{x}/c/**").sample
    assert sample == ("a", ANY_SEGMENT, "c")
    assert list(match_all_paths(root, sample)) == ["/a/{x}/c/**", "/a/**", "/{y}/{x}/**"]
    with pytest.raises(ValueError, match=r"whole segments|is no pattern"):
        parse_path_pattern(f"/{ANY_SEGMENT}")


@pytest.mark.parametrize(
    ("longest", "below"),
    [
        (1, [("a", "*"), ("a", "")]),
        (2, [("a", "*"), ("a", "*", "*"), ("a", "")]),
    ],
)
def test_samples_below_go_on_until_no_pattern_is_as_long(longest: int, below: list[tuple[str, ...]]) -> None:
    assert list(sample_below(("a",), longest)) == below


def test_a_trie_is_walked_and_measured() -> None:
    root = trie("/", "/a/{x}/c", "/a/b/**", "/{y}/**")
    assert [its.exact or its.deep for its in walk(root)] == ["/", None, "/a/b/**", None, "/a/{x}/c", "/{y}/**"]
    assert (count_segments(root), count_segments(trie("/**"))) == (3, 0)


def test_the_search_is_bounded_by_the_shape_and_not_by_the_number() -> None:
    assert count_visits(trie(*(f"/a/p{n}/x" for n in range(10_000)))) == 4
    forked = trie(*("/" + "/".join("a" if n >> bit & 1 else f"{{x{bit}}}" for bit in range(6)) for n in range(64)))
    assert count_visits(forked) == 2**7 - 1


PATTERN_PIECES = st.sampled_from(
    [
        "/",
        "a",
        "{x}",
        "{y}",
        "**",
        "*",
        "{",
        "}",
        ".",
        "..",
        "%2f",
        "?",
        "#",
        "\\",
        " ",
        "\u00e4",
        "\u2028",
        "\0",
        "{1}",
    ]
)


@given(st.text(max_size=20) | st.lists(PATTERN_PIECES, max_size=10).map("".join))
def test_only_a_value_error_escapes_and_a_pattern_matches_its_own_sample(text: str) -> None:
    try:
        pattern = parse_path_pattern(text)
    except ValueError as error:
        told = str(error)
    else:
        root = trie(text)
        assert match_path(root, pattern.sample) == text
        assert all(part is None or part for part in pattern.shape)
        return
    assert told.startswith(("`", "'`"))


def test_a_cut_pattern_is_refused_or_is_another_and_junk_behind_it_is_told() -> None:
    text = "/orders/{order}/items/**"
    for end in range(len(text)):
        try:
            pattern = parse_path_pattern(text[:end])
        except ValueError:
            continue
        assert not pattern.deep
        assert pattern.key != parse_path_pattern(text).key
    for junk in ("/x", "?", "#", "%", "\\", "*", "\n", "\0", "{", "x"):
        with pytest.raises(ValueError, match="`"):
            parse_path_pattern(text + junk)
