"""Requests as people write them: what comes out is what Envoy would send, and what is no request is told in words."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf import json_format
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authz.curl import parse_curl, parse_json_request
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest

COMMAND = "curl -X POST -H 'X-One: 1' --cookie 'a=b' --oauth2-bearer t 'https://shop.example.com:8443/a%20b?c=d'"
MESSAGE = (
    '{"attributes": {"request": {"http": {"method": "GET", "host": "a.example", "path": "/x", "headers": {"a": "b"}}}}}'
)


def read(parse: Callable[[str], bytes], text: str) -> CheckRequest | str:
    """Return the request, or the words that a text is refused with: nothing else may escape."""
    try:
        return CheckRequest.FromString(parse(text))
    except ValueError as error:
        return str(error)


def test_a_whole_command() -> None:
    found = read(parse_curl, COMMAND)
    assert isinstance(found, CheckRequest)
    http = found.attributes.request.http
    assert (http.method, http.scheme, http.host, http.path) == ("POST", "https", "shop.example.com:8443", "/a%20b?c=d")
    headers = {header.key: header.value for header in http.header_map.headers}
    assert headers == {
        "x-one": "1",
        "cookie": "a=b",
        "authorization": "Bearer t",
        ":method": "POST",
        ":path": "/a%20b?c=d",
        ":authority": "shop.example.com:8443",
    }


def test_a_whole_message() -> None:
    found = read(parse_json_request, MESSAGE)
    assert isinstance(found, CheckRequest)
    assert json_format.MessageToDict(found) == json_format.MessageToDict(json_format.Parse(MESSAGE, CheckRequest()))
    assert found.attributes.request.http.path == "/x"


def test_every_cut_of_a_command_is_refused_and_so_is_junk_behind_it() -> None:
    """What is cut inside the quotes of the URL has no end; before them there is no URL."""
    whole = ("c", "cu", "cur")  # the names of hosts
    for end in range(len(COMMAND)):
        assert isinstance(read(parse_curl, COMMAND[:end]), str) is (COMMAND[:end] not in whole), COMMAND[:end]
    for junk in ("'", ' "', " https://b.example/", " --unknown", " -w", " \\"):
        assert isinstance(read(parse_curl, COMMAND + junk), str), junk


def test_every_cut_of_a_message_and_junk_behind_it_is_refused() -> None:
    for end in range(len(MESSAGE)):
        found = read(parse_json_request, MESSAGE[:end])
        assert isinstance(found, str), MESSAGE[:end]
        assert found.startswith("not a CheckRequest in JSON")
    for junk in ("}", "x", "\0", MESSAGE, ","):
        assert isinstance(read(parse_json_request, MESSAGE + junk), str), junk


CURL_PIECES = st.sampled_from(
    [
        *("curl", " ", "-H", "'a: b'", "-X", "POST", "--url", "http://a.example/x", "https://[::1", "http://h:99999/"),
        *(
            "-b",
            "-d",
            "'",
            '"',
            "\\",
            "\n",
            "\t",
            "\0",
            "\ud800",
            "\u00e4",
            "--",
            "-",
            "-I",
            "-sS",
            "?",
            "#",
            "://",
            "@",
        ),
        *("-Hhost: x", "--oauth2-bearer", "-A", "--json", "-o", "/dev/null", "a.example", "%", "http://", "file:///x"),
    ]
)


@given(st.text(max_size=60) | st.lists(CURL_PIECES, max_size=10).map("".join) | st.lists(CURL_PIECES).map(" ".join))
@example("curl http://[::bad/x")
@example("curl http://a.example/\ud800")
@example("curl -H '\ud800: x' http://a.example/")
def test_only_a_value_error_escapes_from_a_command(text: str) -> None:
    found = read(parse_curl, text)
    assert found


JSON_PIECES = st.sampled_from(
    [
        *("{", "}", "[", "]", ":", ",", '"attributes"', '"request"', '"http"', '"path"', '"headers"', '"a"', '"size"'),
        *("1", "-1", "1e999", "NaN", "null", "true", '"\\ud800"', '"1970-01-01T00:00:00Z"', '"rawBody"', '"time"', "x"),
        *('"metadataContext"', '"filterMetadata"', '"@type"', '"headerMap"', '"rawValue"', "99999999999999999999"),
    ]
)


@settings(deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(JSON_PIECES, max_size=12).map("".join)
    | JSON_PIECES.map(lambda its: f'{{"attributes": {{"request": {{"http": {{"path": {its}}}}}}}}}')
    | JSON_PIECES.map(lambda its: f'{{"attributes": {{"request": {{"http": {{"size": {its}}}}}}}}}')
    | JSON_PIECES.map(lambda its: f'{{"attributes": {{"request": {{"time": {its}}}}}}}')
    | JSON_PIECES.map(lambda its: f'{{"attributes": {{"metadataContext": {{"filterMetadata": {its}}}}}}}')
)
@example("[" * 100_000)
@example('{"attributes": ' * 5_000)
@example('{"attributes": {"contextExtensions": {"a": "\\ud800"}}}')
@example("\ud800")
@example('"\ud800"')
@example("9" * 5_000)
@example('{"attributes": {"request": {"http": {"size": ' + "9" * 5_000 + "}}}}")
def test_only_a_value_error_escapes_from_a_message(text: str) -> None:
    found = read(parse_json_request, text)
    assert isinstance(found, CheckRequest) or found
