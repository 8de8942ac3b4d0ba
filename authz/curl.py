"""Read a request for ``authz check``: a ``CheckRequest`` in JSON, or a curl command as people paste it.

Both become a serialized ``CheckRequest``, so that what is explained takes the same way as what Envoy sends.
"""

from __future__ import annotations

import re
import shlex
from typing import Final
from urllib.parse import urlsplit

from google.protobuf import json_format

from authz.observe import redact
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
"""Of the JSON text: no proxy sends more than that in a ``CheckRequest``."""

MAX_ERROR_CHARS: Final = 300
"""Of a parser's own message, which may repeat the whole text."""

_WITH_VALUE: Final = {
    "-X": "method",
    "--request": "method",
    "-H": "header",
    "--header": "header",
    "-b": "cookie",
    "--cookie": "cookie",
    "--oauth2-bearer": "bearer",
    "-d": "data",
    "--data": "data",
    "--data-raw": "data",
    "--data-binary": "data",
    "--json": "data",
    "--url": "url",
    "-A": "agent",
    "--user-agent": "agent",
    "-o": "",
    "--output": "",
    "-m": "",
    "--max-time": "",
    "--cacert": "",
    "--resolve": "",
    "--connect-to": "",
}
_HEAD: Final = frozenset({"-I", "--head"})
_HARMLESS: Final = frozenset(
    {"--silent", "--show-error", "--insecure", "--verbose", "--include", "--location", "--fail", "--globoff"}
    | {"--no-buffer", "--compressed", "--http1.1", "--http2"}
)
"""Long options that change nothing that is decided by; the short ones may be joined in one word."""

_HARMLESS_SHORT: Final = frozenset("sSkvivLfgN")
_CONTINUED: Final = re.compile(r"\\\r?\n")
"""A line that goes on, as browsers copy commands: a shell drops both characters."""


def parse_json_request(raw: bytes) -> bytes:
    """Return the ``CheckRequest`` that a JSON text describes, serialized.

    Raises:
        ValueError: with a message for the user.

    """
    if len(raw) > MAX_REQUEST_BYTES:
        raise ValueError(f"the request is larger than {MAX_REQUEST_BYTES} bytes: no proxy sends that much")
    try:
        return json_format.Parse(raw.decode("utf-8-sig"), CheckRequest()).SerializeToString()
    except UnicodeDecodeError:
        raise ValueError("the request is not utf-8: save it as utf-8") from None
    except json_format.ParseError as error:
        raise ValueError(f"not a CheckRequest in json: {redact(str(error))[:MAX_ERROR_CHARS]}") from None


def parse_curl(text: str) -> bytes:
    """Return the ``CheckRequest`` that Envoy would send for a curl command, serialized.

    Raises:
        ValueError: for options that would change the request in a way that is not understood here.

    """
    words = _split(text)
    found: dict[str, list[str]] = {}
    while words:
        word = words.pop(0)
        name = word if word in _WITH_VALUE else word[:2]
        if word in _HEAD:
            found.setdefault("method", []).append("HEAD")
        elif name in _WITH_VALUE:
            if word == name and not words:
                raise ValueError(f"`{name}` lacks its value")
            found.setdefault(_WITH_VALUE[name], []).append(words.pop(0) if word == name else word[len(name) :])
        elif not word.startswith("-"):
            found.setdefault("url", []).append(word)
        elif word not in _HARMLESS and (word.startswith("--") or not _HARMLESS_SHORT.issuperset(word[1:])):
            shown = redact(word)[:MAX_ERROR_CHARS]
            raise ValueError(f"`{shown}` is not understood: leave it out, or describe the request with --request")
    if len(found.get("url", [])) != 1:
        raise ValueError("write exactly one URL")
    return _render(found)


def _split(text: str) -> list[str]:
    try:
        text.encode()
        words = shlex.split(_CONTINUED.sub("", text))
    except UnicodeEncodeError:
        raise ValueError("the command is not utf-8") from None
    except ValueError:
        raise ValueError("a quote is not closed, or a backslash ends the command: quote it as in a shell") from None
    return words[1:] if words[:1] == ["curl"] else words


def _render(found: dict[str, list[str]]) -> bytes:
    url = found["url"][0] if "://" in found["url"][0] else f"http://{found['url'][0]}"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"the URL cannot be read: {error}") from None
    if "@" in parts.netloc:
        raise ValueError("the URL holds a user: write the header that is meant, with -H 'authorization: …'")
    # Cut by hand: urlsplit drops what we must see, such as a tab or a fragment.
    rest = url.split("://", 1)[1]
    at = min((index for index in (rest.find("/"), rest.find("?")) if index != -1), default=len(rest))
    path = rest[at:] if rest[at:].startswith("/") else f"/{rest[at:]}"
    message = CheckRequest()
    http = message.attributes.request.http
    http.method = (found.get("method") or ["POST" if "data" in found else "GET"])[-1]
    http.scheme = parts.scheme
    http.protocol = "HTTP/1.1"
    headers = [header for line in found.get("header", []) if (header := _parse_header(line)) is not None]
    headers += [("cookie", value) for value in found.get("cookie", [])]
    headers += [("authorization", f"Bearer {value}") for value in found.get("bearer", [])]
    headers += [("user-agent", value) for value in found.get("agent", [])]
    http.host = next((value for name, value in headers if name == "host"), parts.netloc)
    http.path = path
    for name, value in headers:
        if name != "host":
            http.header_map.headers.add(key=name, value=value)
    for name, value in ((":method", http.method), (":path", path), (":authority", http.host)):
        http.header_map.headers.add(key=name, value=value)
    message.attributes.source.address.socket_address.address = "127.0.0.1"
    return message.SerializeToString()


def _parse_header(line: str) -> tuple[str, str] | None:
    """Read ``name: value`` as curl does: ``name;`` is an empty header, and ``name:`` is one that is not sent."""
    name, colon, value = line.partition(":")
    if not colon and line.endswith(";"):
        return line[:-1].strip().lower(), ""
    if not colon or not name.strip():
        raise ValueError("a header has no name or no value: write -H 'name: value'")
    return (name.strip().lower(), value.strip()) if value.strip() else None
