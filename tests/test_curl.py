"""A curl command, or a CheckRequest in JSON, becomes what Envoy would send; what is not understood is said."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.curl import MAX_REQUEST_BYTES, parse_curl, parse_json_request
from authz.servers.envoy import parse_check


@pytest.mark.parametrize(
    ("text", "method", "path", "headers"),
    [
        ("curl http://a.example/x?y=z", "GET", ("x",), {}),
        ("curl -X POST -H 'A: b' a.example/x", "POST", ("x",), {"a": "b"}),
        ("curl -XPUT a.example/x", "PUT", ("x",), {}),
        ("curl -d '{}' http://a.example", "POST", (), {}),
        ("curl -I http://a.example/", "HEAD", (), {}),
        ("curl -b 'a=1' -A me --url http://a.example/x", "GET", ("x",), {"cookie": "a=1", "user-agent": "me"}),
        ("curl --oauth2-bearer t http://a.example/x", "GET", ("x",), {"authorization": "Bearer t"}),
        ("curl -sSk -H 'Host: a.example' http://127.0.0.1:10000/x", "GET", ("x",), {}),
        ("http://a.example/x", "GET", ("x",), {}),
        ("curl --compressed --insecure --http2 http://a.example/x", "GET", ("x",), {}),
        ("curl 'http://a.example/x' \\\n  -H 'a: b' \\\r\n  -H 'c: d'", "GET", ("x",), {"a": "b", "c": "d"}),
        ("curl -H 'empty;' a.example/x", "GET", ("x",), {"empty": ""}),
    ],
)
def test_curl_commands(text: str, method: str, path: tuple[str, ...], headers: dict[str, str]) -> None:
    found = parse_check(parse_curl(text))
    assert (found.method, found.host.name, found.target.segments) == (method, "a.example", path)
    assert headers.items() <= found.headers.items()


def test_a_header_without_a_value_is_not_sent_as_curl_does_not() -> None:
    assert "authorization" not in parse_check(parse_curl("curl -H 'Authorization:' a.example")).headers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "exactly one URL"),
        ("curl", "exactly one URL"),
        ("curl http://a http://b", "exactly one URL"),
        ("curl 'unclosed", "a quote is not closed"),
        ('curl "http://a', "a quote is not closed"),
        ("curl http://a \\", "a quote is not closed"),
        ("curl -K file http://a", "`-K` is not understood"),
        ("curl --data-urlencode x http://a", "`--data-urlencode` is not understood"),
        ("curl http://a -H", "`-H` lacks its value"),
        ("curl -X", "`-X` lacks its value"),
        ("curl -H nonsense http://a", "no name or no value"),
        ("curl -H ': x' http://a", "no name or no value"),
        ("curl http://[::1", "the URL cannot be read"),
        ("curl http://me:secret@a.example/", "the URL holds a user"),
        ("curl http://a/\udc80", "not utf-8"),
    ],
)
def test_curl_commands_that_are_not_understood(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        parse_curl(text)
    assert "secret" not in str(raised.value)
    assert str(raised.value).isprintable()


@given(st.text(alphabet=st.sampled_from("curl -HXdb'\"\\\n:;@/?#[]htp.\udc80é"), max_size=40))
def test_only_a_message_escapes(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_curl(text)


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_only_a_message_escapes_from_json(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_json_request(raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"nonsense": 1}', "not a CheckRequest in json"),
        (b"", "not a CheckRequest in json"),
        (b"1", "not a CheckRequest in json"),
        (b"[" * 100_000, "not a CheckRequest in json"),
        (b'{"attributes": {"request": {"http": {"path": "\\ud800"}}}}', "not a CheckRequest in json"),
        ('{"é": 1}'.encode("latin-1"), "not utf-8"),
        (b" " * (MAX_REQUEST_BYTES + 1), "larger than"),
    ],
)
def test_json_that_is_no_check_request(raw: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json_request(raw)


def test_a_message_about_json_shows_no_token_and_is_short() -> None:
    token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLWFsaWNl"
    text = json.dumps({"attributes": {"request": {"http": {"size": f"Bearer {token}" + " x" * 1_000}}}})
    with pytest.raises(ValueError, match="not a CheckRequest") as raised:
        parse_json_request(text.encode())
    assert token not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_byte_order_mark_is_no_part_of_json() -> None:
    assert parse_json_request(b"\xef\xbb\xbf{}") == b""
