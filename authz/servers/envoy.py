"""Envoy's words: ``CheckRequest`` to Request, Decision to ``CheckResponse``.

Invariant ONE-CONSTRUCTOR: no other module builds a ``CheckResponse``; its ``status.code`` is 0 if and only if
``ok_response`` is set. A default-constructed one would let the request in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, assert_never

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from authz.core.path import parse_host, parse_method, parse_target
from authz.model import Allow, Decision, Deny, HeaderAction, HeaderEdit, Principal, Reason, Rejected, Request, Unread
from authz.pb.envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, HeaderValueOption
from authz.pb.envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

_OK: Final = 0
_RPC_CODES: Final = {400: 3, 401: 16, 403: 7, 404: 5, 429: 8, 500: 13, 503: 14}
"""``google.rpc.Code`` by HTTP status. Envoy only looks whether it is 0; people read it in grpcurl's output."""

_PERMISSION_DENIED: Final = 7

_PSEUDO: Final = ((":method", "method"), (":path", "path"), (":authority", "host"))
"""What Envoy says twice. ``host`` beside ``:authority`` comes from HTTP/2 callers, and upstreams may read either."""


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
    if not attributes.HasField("request") or not attributes.request.HasField("http"):
        raise Rejected(Reason.NOT_HTTP, "the CheckRequest has no `request.http`: only HTTP filters are served")
    http = attributes.request.http
    if http.fragment:
        raise Rejected(Reason.PATH_FRAGMENT)
    seen, repeated = _read_headers(http)
    for name, field in _PSEUDO:
        if seen.pop(name, None) not in (None, getattr(http, field)):
            raise Rejected(Reason.BAD_HEADER, f"`{name}` and `http.{field}` differ")
    if seen.get("host", http.host) != http.host:
        raise Rejected(Reason.BAD_HEADER, "`host` and `:authority` differ")
    method = parse_method(http.method)
    return Request(
        method=method,
        host=parse_host(http.host),
        target=parse_target(http.path, method=method),
        headers=seen,
        repeated=repeated,
        # What access logs show comes first; Envoy's own stream id only where there is none.
        id=seen.get("x-request-id") or http.id,
        scheme=http.scheme,
        protocol=http.protocol,
        source_address=_read_address(attributes.source.address.socket_address.address),
        source_principal=attributes.source.principal,
        context=dict(attributes.context_extensions),
    )


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


def render_check(decision: Decision) -> CheckResponse:
    """Write the answer: an Allow with its edits, or a Deny with its whole HTTP answer."""
    match decision:
        case Allow():
            return _render_allow(decision)
        case Deny():
            return _render_deny(decision)
        case _:
            assert_never(decision)


def _render_allow(allow: Allow) -> CheckResponse:
    response = CheckResponse()
    response.status.code = _OK
    ok = response.ok_response
    ok.headers.extend(_render_edits(allow.upstream))
    ok.headers_to_remove.extend(edit.name for edit in allow.upstream if edit.action is HeaderAction.REMOVE)
    ok.response_headers_to_add.extend(_render_edits(allow.downstream))
    ok.query_parameters_to_remove.extend(allow.remove_query)
    # Present even with nothing in it: Envoy and we both read an unset answer as none.
    ok.SetInParent()
    _render_metadata(response.dynamic_metadata, allow.principal, {"decision": "allow", "rule": allow.rule})
    return response


def _render_deny(deny: Deny) -> CheckResponse:
    response = CheckResponse()
    response.status.code = _RPC_CODES.get(deny.status, _PERMISSION_DENIED)
    response.status.message = deny.reason.value
    denied = response.denied_response
    denied.status.code = deny.status  # type: ignore[assignment]  # an open enum: any HTTP status
    # Up to 1.36 Envoy loses what is appended to a denied answer; nothing is there yet to append to.
    denied.headers.extend(_render_edits(HeaderEdit(HeaderAction.SET, its.name, its.value) for its in deny.headers))
    denied.body = deny.body
    facts = {"decision": "deny", "rule": deny.rule, "guard": deny.guard, "reason": deny.reason.value}
    _render_metadata(response.dynamic_metadata, deny.principal, facts)
    return response


def _render_metadata(metadata: Struct, principal: Principal | None, facts: Mapping[str, str]) -> None:
    """Tell Envoy's access log and rate limits who asked and what was decided: never a claim beyond that."""
    for name, value in facts.items():
        if value:
            metadata.fields[name].string_value = value
    if principal is not None:
        known = {
            "provider": principal.provider,
            "issuer": principal.issuer,
            "subject": principal.subject,
            "client": principal.client_id,
        }
        for name, known_value in known.items():
            if known_value:
                metadata.fields[name].string_value = known_value


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


def _read_headers(http: AttributeContext.HttpRequest) -> tuple[dict[str, str], frozenset[str]]:
    if http.HasField("header_map"):
        return _read_header_map(http.header_map)
    seen = {name.lower(): value for name, value in http.headers.items()}
    if len(seen) != len(http.headers):
        raise Rejected(Reason.BAD_HEADER, "two header names differ in case only")
    return seen, frozenset()


def _read_header_map(header_map: HeaderMap) -> tuple[dict[str, str], frozenset[str]]:
    seen, repeated = _join_headers(header_map)
    if any(name.startswith(":") for name in repeated):
        raise Rejected(Reason.BAD_HEADER, "a pseudo-header comes twice")
    return seen, frozenset(repeated)


def _join_headers(header_map: HeaderMap) -> tuple[dict[str, str], set[str]]:
    """Join repeated headers as HTTP does (RFC 9110 §5.3); what is not UTF-8 becomes U+FFFD, which no check takes."""
    seen: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for header in header_map.headers:
        name = header.key.lower()
        value = header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value
        if name in seen:
            several.setdefault(name, [seen[name]]).append(value)
        else:
            seen[name] = value
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
