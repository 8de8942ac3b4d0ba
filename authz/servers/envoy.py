"""Envoy's words: ``CheckRequest`` to Request, Decision to ``CheckResponse``.

Invariant ONE-CONSTRUCTOR: no other module builds a ``CheckResponse``; its ``status.code`` is 0 if and only if
``ok_response`` is set. A default-constructed one would let the request in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, assert_never

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from authz.core.headers import find_odd_names
from authz.core.path import parse_host, parse_method, parse_target
from authz.model import (
    NO_HEADERS,
    Allow,
    Decision,
    Deny,
    HeaderAction,
    HeaderEdit,
    Principal,
    Reason,
    Rejected,
    Request,
    SharedEdits,
    Unread,
)
from authz.pb.envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, HeaderValueOption
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, OkHttpResponse
from authz.quick import quick

_RPC_CODES: Final = {400: 3, 401: 16, 403: 7, 404: 5, 429: 8, 500: 13, 503: 14}
"""``google.rpc.Code`` by HTTP status. Envoy only looks whether it is 0; people read it in grpcurl's output."""

_PERMISSION_DENIED: Final = 7

NOT_REPEATED: Final[frozenset[str]] = frozenset()

_new_request: Final = quick(Request)

# The numbers of the fields in Envoy's protos: a test compares them with the descriptors.
_STATUS, _OK_RESPONSE, _METADATA = (b"\x0a", b"\x1a", b"\x22")
_ALLOWED: Final = _STATUS + b"\x00"
"""A ``google.rpc.Status`` with nothing in it, which is OK: an allow is said, and never only left unsaid."""


def parse_check(raw: bytes) -> Request:
    """Read a serialized ``CheckRequest``.

    Raises:
        Rejected: NOT_HTTP where it is none or speaks of a TCP connection; BAD_… and PATH_… for what it says.

    """
    try:
        message = CheckRequest.FromString(raw)
    except DecodeError:
        raise Rejected(Reason.NOT_HTTP, "not a CheckRequest") from None
    attributes = message.attributes
    asked = attributes.request
    if not asked.HasField("http"):
        raise Rejected(Reason.NOT_HTTP, "the CheckRequest has no `request.http`: only HTTP filters are served")
    http = asked.http
    if http.fragment:
        raise Rejected(Reason.PATH_FRAGMENT)
    method, host, path = http.method, http.host, http.path
    seen: Mapping[str, str]
    if http.HasField("header_map"):
        seen, repeated = _read_header_map(http.header_map)
    else:
        seen, repeated = http.headers, NOT_REPEATED
    names = "\n".join(seen)
    if not names.islower():
        seen = _lower_names(seen)
    _check_told_twice(seen, method, path, host)
    source, context = attributes.source, attributes.context_extensions
    return _new_request(
        method=parse_method(method),
        host=parse_host(host),
        target=parse_target(path, method=method),
        headers=_Headers(seen),
        repeated=repeated,
        odd_names=find_odd_names(seen) if "_" in names or "." in names else (),
        # What access logs show comes first; Envoy's own stream id only where there is none.
        id=seen.get("x-request-id") or http.id,
        scheme=http.scheme,
        protocol=http.protocol,
        source_address=_read_address(source.address.socket_address.address),
        source_principal=source.principal,
        context=dict(context) if context else NO_HEADERS,
    )


def _check_told_twice(seen: Mapping[str, str], method: str, path: str, host: str) -> None:
    """Compare what Envoy says twice; HTTP/2 callers may send ``host`` too, and upstreams may read either."""
    told = seen.get
    for name, value in ((":method", method), (":path", path), (":authority", host), ("host", host)):
        if told(name, value) != value:
            raise Rejected(Reason.BAD_HEADER, f"`{name}` and the request's own are not the same")


def describe_check(raw: bytes) -> Unread | None:
    """Return what can be told of a ``CheckRequest`` that :func:`parse_check` refused; None where it is no HTTP."""
    try:
        message = CheckRequest.FromString(raw)
    except DecodeError:
        return None
    if not message.attributes.request.HasField("http"):
        return None
    http = message.attributes.request.http
    if http.HasField("header_map"):
        seen, _ = _join_headers(http.header_map)
    else:
        seen = {name.lower(): value for name, value in http.headers.items()}
    return Unread(
        method=http.method,
        host=http.host,
        path=http.path.partition("?")[0],
        headers=seen,
        id=seen.get("x-request-id") or http.id,
    )


def render_check(decision: Decision) -> bytes:
    """Write the answer, serialized: an Allow with its edits, or a Deny with its whole HTTP answer."""
    match decision:
        case Allow():
            return _render_allow(decision)
        case Deny():
            return _render_deny(decision)
        case _:
            assert_never(decision)


def _render_allow(allow: Allow) -> bytes:
    """Put together what was serialized before: a message's bytes are the concatenation of its fields'."""
    upstream = allow.upstream
    if upstream.__class__ is SharedEdits:
        ok = upstream.wire
        if ok is None:
            ok = upstream.wire = _render_upstream(upstream)
    else:
        ok = _render_upstream(upstream)
    if allow.downstream or allow.remove_query:
        ok += OkHttpResponse(
            response_headers_to_add=_render_edits(allow.downstream), query_parameters_to_remove=allow.remove_query
        ).SerializeToString()
    metadata = _render_rule(allow.rule)
    principal = allow.principal
    if principal is not None:
        who: bytes | None = principal.derived.get(_METADATA)
        if who is None:
            who = principal.derived[_METADATA] = _render_principal(principal)
        metadata += who
    return b"".join((_ALLOWED, _OK_RESPONSE, _render_size(ok), ok, _METADATA, _render_size(metadata), metadata))


def _render_deny(deny: Deny) -> bytes:
    response = CheckResponse()
    response.status.code = _RPC_CODES.get(deny.status, _PERMISSION_DENIED)
    response.status.message = deny.reason.value
    denied = response.denied_response
    denied.status.code = deny.status  # type: ignore[assignment]  # an open enum: any HTTP status
    # Up to 1.36 Envoy loses what is appended to a denied answer; nothing is there yet to append to.
    denied.headers.extend(_render_edits(HeaderEdit(HeaderAction.SET, its.name, its.value) for its in deny.headers))
    denied.body = deny.body
    fields = {"decision": "deny", "rule": deny.rule, "guard": deny.guard, "reason": deny.reason.value}
    metadata = _render_metadata(fields)
    if deny.principal is not None:
        metadata += _render_principal(deny.principal)
    return response.SerializeToString() + _METADATA + _render_size(metadata) + metadata


def _render_upstream(edits: Iterable[HeaderEdit]) -> bytes:
    removed = [edit.name for edit in edits if edit.action is HeaderAction.REMOVE]
    return OkHttpResponse(headers=_render_edits(edits), headers_to_remove=removed).SerializeToString()


@lru_cache(maxsize=16_384)
def _render_rule(name: str) -> bytes:
    return _render_metadata({"decision": "allow", "rule": name})


def _render_principal(principal: Principal) -> bytes:
    """Tell Envoy's access log and rate limits who asked: never a claim beyond that."""
    return _render_metadata(
        {
            "provider": principal.provider,
            "issuer": principal.issuer,
            "subject": principal.subject,
            "client": principal.client_id,
        }
    )


def _render_metadata(facts: Mapping[str, str | None]) -> bytes:
    metadata = Struct()
    for name, value in facts.items():
        if value:
            metadata.fields[name].string_value = value
    return metadata.SerializeToString()


@lru_cache(maxsize=4_096)
def _render_length(size: int) -> bytes:
    """Write a length as protobuf does: seven bits a byte, the lowest first."""
    written = bytearray()
    while size > 0x7F:  # noqa: PLR2004 - the seven bits
        written.append(size & 0x7F | 0x80)
        size >>= 7
    written.append(size)
    return bytes(written)


def _render_size(field: bytes) -> bytes:
    return _render_length(len(field))


def _render_edits(edits: Iterable[HeaderEdit]) -> list[HeaderValueOption]:
    options = []
    for edit in edits:
        if edit.action is HeaderAction.REMOVE:
            continue
        option = HeaderValueOption(header=HeaderValue(key=edit.name, value=edit.value))
        if edit.action is HeaderAction.SET:
            # Both say overwrite: which one counts differs between Envoy's versions (IDENTITY-HEADERS-ARE-OURS).
            option.append.value = False
            option.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        else:
            option.append.value = True
            option.append_action = HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
        options.append(option)
    return options


class _Headers(Mapping[str, str]):
    """The headers of a ``CheckRequest``'s map, read where they are asked for: most never are."""

    __slots__ = ("_found",)

    def __init__(self, found: Mapping[str, str]) -> None:
        self._found = found

    def __getitem__(self, name: str) -> str:
        if name not in self._found:  # the message's own map would make an entry
            raise KeyError(name)
        return self._found[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._found.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._found if name[:1] != ":")

    def __len__(self) -> int:
        return sum(name[:1] != ":" for name in self._found)


def _lower_names(headers: Mapping[str, str]) -> Mapping[str, str]:
    seen = {name.lower(): value for name, value in headers.items()}
    if len(seen) != len(headers):
        raise Rejected(Reason.BAD_HEADER, "two header names differ in case only")
    return seen


def _read_header_map(header_map: HeaderMap) -> tuple[Mapping[str, str], frozenset[str]]:
    seen, repeated = _join_headers(header_map)
    if any(name.startswith(":") for name in repeated):
        raise Rejected(Reason.BAD_HEADER, "a pseudo-header comes twice")
    return seen, frozenset(repeated) if repeated else NOT_REPEATED


def _join_headers(header_map: HeaderMap) -> tuple[dict[str, str], set[str]]:
    """Join repeated headers as HTTP does (RFC 9110 §5.3); what is not UTF-8 becomes U+FFFD, which no check takes."""
    pairs = [(its.key.lower(), str(its.raw_value, "utf-8", "replace") or its.value) for its in header_map.headers]
    seen = dict(pairs)
    if len(seen) == len(pairs):
        return seen, set()
    several: dict[str, list[str]] = {}
    for name, value in pairs:
        several.setdefault(name, []).append(value)
    several = {name: values for name, values in several.items() if len(values) > 1}
    for name, values in several.items():
        seen[name] = ("; " if name == "cookie" else ",").join(values)
    return seen, set(several)


@lru_cache(maxsize=1_024)
def _read_address(text: str) -> IPv4Address | IPv6Address | None:
    if not text:
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None
