"""Read a request for ``authz check``: a ``CheckRequest`` in JSON, or a curl command as people paste it.

Both become a serialized ``CheckRequest``, so that what is explained takes the same way as what Envoy sends.
"""

from __future__ import annotations

import shlex
from typing import Final
from urllib.parse import urlsplit

from google.protobuf import json_format

from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest

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


def parse_json_request(text: str) -> bytes:
    """Return the ``CheckRequest`` that a JSON text describes, serialized.

    Raises:
        ValueError: with a message for the user.

    """
    try:
        return json_format.Parse(text, CheckRequest()).SerializeToString()
    except json_format.ParseError as error:
        raise ValueError(f"not a CheckRequest in JSON: {error}") from None


def parse_curl(text: str) -> bytes:
    """Return the ``CheckRequest`` that Envoy would send for a curl command, serialized.

    Raises:
        ValueError: for options that would change the request in a way that is not understood here.

    """
    words = shlex.split(text)
    if words[:1] == ["curl"]:
        del words[0]
    found: dict[str, list[str]] = {}
    while words:
        word = words.pop(0)
        if word in _HEAD:
            found.setdefault("method", []).append("HEAD")
        elif word in _WITH_VALUE or word[:2] in _WITH_VALUE:
            name = word if word in _WITH_VALUE else word[:2]
            value = words.pop(0) if word == name and words else word[len(name) :]
            found.setdefault(_WITH_VALUE[name], []).append(value)
        elif not word.startswith("-"):
            found.setdefault("url", []).append(word)
        elif word.startswith("--") or not set(word[1:]) <= set("sSkvivLfgN"):
            raise ValueError(f"`{word}` is not understood: leave it out, or describe the request with --request")
    if len(found.get("url", [])) != 1:
        raise ValueError("write exactly one URL")
    return _render(found)


def _render(found: dict[str, list[str]]) -> bytes:
    url = found["url"][0] if "://" in found["url"][0] else f"http://{found['url'][0]}"
    parts = urlsplit(url)
    authority = parts.netloc.rpartition("@")[2]
    # Cut by hand: urlsplit drops what we must see, such as a tab or a fragment.
    rest = url.split("://", 1)[1]
    at = min((index for index in (rest.find("/"), rest.find("?")) if index != -1), default=len(rest))
    path = rest[at:] if rest[at:].startswith("/") else f"/{rest[at:]}"
    message = CheckRequest()
    http = message.attributes.request.http
    http.method = (found.get("method") or ["POST" if "data" in found else "GET"])[-1]
    http.scheme = parts.scheme
    http.protocol = "HTTP/1.1"
    headers: list[tuple[str, str]] = []
    for line in found.get("header", []):
        name, _, value = line.partition(":")
        headers.append((name.strip().lower(), value.strip()))
    headers += [("cookie", value) for value in found.get("cookie", [])]
    headers += [("authorization", f"Bearer {value}") for value in found.get("bearer", [])]
    headers += [("user-agent", value) for value in found.get("agent", [])]
    http.host = next((value for name, value in headers if name == "host"), authority)
    http.path = path
    for name, value in headers:
        if name != "host":
            http.header_map.headers.add(key=name, value=value)
    for name, value in ((":method", http.method), (":path", path), (":authority", http.host)):
        http.header_map.headers.add(key=name, value=value)
    message.attributes.source.address.socket_address.address = "127.0.0.1"
    return message.SerializeToString()
