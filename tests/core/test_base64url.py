"""One value has one spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.base64url import parse_base64url, render_base64url


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("", b""),
        ("AA", b"\0"),
        ("Zg", b"f"),
        ("Zm8", b"fo"),
        ("Zm9v", b"foo"),
        ("-_-_", b"\xfb\xff\xbf"),
        ("_w", b"\xff"),
    ],
)
def test_canonical_text_is_decoded(text: str, raw: bytes) -> None:
    assert parse_base64url(text) == raw
    assert render_base64url(raw) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("A", id="one character carries no octet"),
        pytest.param("Zm9vA", id="the same after a whole group"),
        pytest.param("Zg==", id="padding"),
        pytest.param("Zm8=", id="padding of one"),
        pytest.param("=", id="only padding"),
        pytest.param("Zh", id="bits left over, two characters"),
        pytest.param("Zm9", id="bits left over, three characters"),
        pytest.param("+/+/", id="the standard alphabet"),
        pytest.param("Zm 9", id="space"),
        pytest.param("Zm9\n", id="line break"),
        pytest.param("Zm9!", id="outside the alphabet"),
        pytest.param("Zm9\u00e9", id="not ascii"),
    ],
)
def test_every_other_spelling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64url"):
        parse_base64url(text)


@given(st.binary(max_size=64))
def test_what_is_rendered_is_read_back(raw: bytes) -> None:
    assert parse_base64url(render_base64url(raw)) == raw


@given(st.text(max_size=24))
def test_what_is_read_has_this_one_spelling(text: str) -> None:
    try:
        raw = parse_base64url(text)
    except ValueError:
        return
    assert render_base64url(raw) == text
