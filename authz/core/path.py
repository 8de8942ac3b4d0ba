"""Read a request's method, host and target, and refuse whatever an upstream could read differently.

Rules, after RFC 9112 §3.2 and RFC 3986, and stricter where readers are known to differ:

* Only the origin-form (``/…``) names something; ``*`` is for ``OPTIONS``; the absolute and authority forms are refused.
* The target is cut at the first ``?``. No rule ever sees the query.
* Every segment is percent-decoded exactly once. What a second reader might see differently (an encoded slash, an
  encoded percent sign, ``;`` parameters, empty segments) is marked, and judged by the rule that matches.
* Dot segments, backslashes, fragments, controls, bad escapes and bad UTF-8 are refused always, also where they only
  appear after decoding once more (invariant AMBIGUOUS-IS-REJECTED).

Nothing is repaired: the upstream receives the target as it was sent.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

import idna

from authz.model import Ambiguity, Host, Reason, Rejected, Target
from authz.quick import quick

MAX_TARGET_CHARS: Final = 8_192
"""Longest target we read. Envoy's default limit for all headers together is 60 KiB; no sane path comes near this."""

MAX_SEGMENTS: Final = 256
MAX_METHOD_CHARS: Final = 32
MAX_HOST_CHARS: Final = 253
"""RFC 1035 §2.3.4, without the trailing dot."""

MAX_PORT: Final = 65_535
MAX_HOSTS_KEPT: Final = 1_024
"""A service sees the same few hosts again and again; what others send only pushes each other out."""

_new_target: Final = quick(Target)

_TOKEN: Final = frozenset(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})
_LABEL: Final = frozenset(string.ascii_lowercase + string.digits + "-_")
_HEX: Final = frozenset(string.hexdigits)
_DOTS: Final = frozenset({".", ".."})
_CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160)))
_MAX_NESTED_DECODINGS: Final = 8

_REFUSALS: Final = (
    (Ambiguity.ENCODED_SLASH, Reason.PATH_ENCODED_SLASH),
    (Ambiguity.PERCENT, Reason.PATH_PERCENT),
    (Ambiguity.SEMICOLON, Reason.PATH_SEMICOLON),
    (Ambiguity.EMPTY_SEGMENT, Reason.PATH_EMPTY_SEGMENT),
)


def parse_method(raw: str) -> str:
    """Return the method unchanged: methods are case-sensitive tokens (RFC 9110 §9.1).

    Raises:
        Rejected: BAD_METHOD for anything that is no token, or is too long.

    """
    if raw in _KNOWN_METHODS:
        return raw
    if not raw or len(raw) > MAX_METHOD_CHARS or not _TOKEN.issuperset(raw):
        raise Rejected(Reason.BAD_METHOD)
    return raw


@lru_cache(maxsize=MAX_HOSTS_KEPT)
def parse_host(raw: str) -> Host:
    """Read ``host[:port]``: lower case, one trailing dot dropped, IPv6 in brackets, U-labels turned into A-labels.

    Raises:
        Rejected: BAD_HOST for anything else, incl. user information, an empty port and odd spellings of addresses.

    """
    if raw.startswith("["):
        return _parse_ipv6(raw)
    name, colon, port_text = raw.partition(":")
    port = _parse_port(port_text) if colon else None
    return Host(name=parse_host_name(name), port=port)


def parse_host_name(raw: str) -> str:
    """Return a DNS name or an IPv4 address in the one spelling that rules are compared with.

    Raises:
        Rejected: BAD_HOST.

    """
    name = raw if raw.isascii() else _to_a_labels(raw)
    name = name.lower().removesuffix(".")
    if not name or len(name) > MAX_HOST_CHARS:
        raise Rejected(Reason.BAD_HOST)
    labels = name.split(".")
    for label in labels:
        if not 0 < len(label) <= 63 or not _LABEL.issuperset(label) or label[0] == "-" or label[-1] == "-":  # noqa: PLR2004 - RFC 1035 §2.3.4
            raise Rejected(Reason.BAD_HOST)
        if label.startswith("xn--"):
            _check_a_label(label)
    last = labels[-1]
    if last.isdigit() or (last.startswith("0x") and _HEX.issuperset(last[2:])):
        _check_ipv4(name)
    return name


def parse_target(raw: str, *, method: str) -> Target:
    """Read a request target and mark what only some readers would read as we do.

    Raises:
        Rejected: PATH_… for what is refused under every rule. See :func:`check_accepted` for the rest.

    """
    if raw == "*" and method == "OPTIONS":
        return Target(raw_path="*", segments=(), asterisk=True)
    if not raw.startswith("/"):
        raise Rejected(Reason.PATH_FORM)
    if len(raw) > MAX_TARGET_CHARS:
        raise Rejected(Reason.PATH_TOO_LONG)
    if "#" in raw:
        raise Rejected(Reason.PATH_FRAGMENT)
    path, mark, rest = raw.partition("?")
    query = rest if mark else None
    if not path.isascii() or not path.isprintable() or " " in path or (query and not query.isprintable()):
        raise Rejected(Reason.PATH_CONTROL)
    if "\\" in path:
        raise Rejected(Reason.PATH_BACKSLASH)
    parts = path[1:].split("/")
    if not parts[-1]:
        parts.pop()
    if len(parts) > MAX_SEGMENTS:
        raise Rejected(Reason.PATH_TOO_LONG)
    if "%" not in path and ";" not in path and "//" not in path and "/." not in path:
        return _new_target(raw_path=path, segments=tuple(parts), query=query)
    found: set[Ambiguity] = set()
    segments = tuple([_parse_segment(part, found) for part in parts])
    return Target(raw_path=path, segments=segments, query=query, ambiguities=frozenset(found))


def check_accepted(target: Target, accept: frozenset[Ambiguity]) -> None:
    """Refuse each ambiguity of the target that is not accepted by name.

    Raises:
        Rejected: the Reason of the first ambiguity that is not in ``accept``.

    """
    for ambiguity, reason in _REFUSALS:
        if ambiguity in target.ambiguities and ambiguity not in accept:
            raise Rejected(reason)


def other_readings(target: Target) -> tuple[tuple[str, ...], ...]:
    """Return the segments that an upstream may see that resolves what we keep as data; empty for a plain target.

    Guards are judged on every reading, so that accepting an ambiguity on one rule cannot lead around a guard. Readers
    differ in what they do first: cut parameters or decode, drop empty segments or split at decoded slashes.
    """
    marked = any("?" in segment or "#" in segment for segment in target.segments)
    if not target.ambiguities and not marked:
        return ()
    raw = target.raw_path[1:].removesuffix("/").split("/")
    found: dict[tuple[str, ...], None] = {}
    for parts in _variants(tuple(raw), _cut_parameters, _drop_empty):
        for decoded in dict.fromkeys((_decode_again(parts, 1), _decode_again(parts, _MAX_NESTED_DECODINGS))):
            # An encoded `?` or `#` ends the path for those who decode before they split.
            for whole in _variants(decoded, _cut_marks):
                for reading in _variants(whole, _split_slashes, _cut_parameters, _drop_empty):
                    found[reading] = None
    found.pop(target.segments, None)
    return tuple(found)


_Reading = tuple[str, ...]


def _variants(parts: _Reading, *steps: Callable[[_Reading], _Reading]) -> list[_Reading]:
    """Return what is read with any of the steps left out, nothing twice."""
    found = [parts]
    for step in steps:
        found += [step(its) for its in found]
    return list(dict.fromkeys(found))


def _decode_again(parts: _Reading, times: int) -> _Reading:
    return tuple(_decode_loosely(part, times) for part in parts)


def _cut_parameters(parts: _Reading) -> _Reading:
    return tuple(part.partition(";")[0] for part in parts)


def _cut_marks(parts: _Reading) -> _Reading:
    at = next((at for at, part in enumerate(parts) if "?" in part or "#" in part), None)
    return parts if at is None else (*parts[:at], parts[at].partition("?")[0].partition("#")[0])


def _split_slashes(parts: _Reading) -> _Reading:
    return tuple("/".join(parts).split("/"))


def _drop_empty(parts: _Reading) -> _Reading:
    return tuple(part for part in parts if part)


def _parse_segment(part: str, found: set[Ambiguity]) -> str:
    if not part:
        found.add(Ambiguity.EMPTY_SEGMENT)
        return part
    segment = _decode_segment(part) if "%" in part else part
    if "/" in segment:
        found.add(Ambiguity.ENCODED_SLASH)
    if ";" in segment:
        found.add(Ambiguity.SEMICOLON)
    if _has_escape(segment):
        found.add(Ambiguity.PERCENT)
    _check_harmless(segment)
    return segment


def _decode_segment(part: str) -> str:
    at = part.find("%")
    while at != -1:
        if len(part) < at + 3 or part[at + 1] not in _HEX or part[at + 2] not in _HEX:
            raise Rejected(Reason.PATH_BAD_ESCAPE)
        at = part.find("%", at + 3)
    try:
        return unquote_to_bytes(part).decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise Rejected(Reason.PATH_BAD_UTF8) from None


def _has_escape(segment: str) -> bool:
    at = segment.find("%")
    while at != -1:
        if len(segment) >= at + 3 and segment[at + 1] in _HEX and segment[at + 2] in _HEX:
            return True
        at = segment.find("%", at + 1)
    return False


def _decode_loosely(segment: str, times: int) -> str:
    """Decode up to ``times`` more, as a careless reader would: bad escapes are kept, bad UTF-8 is replaced."""
    for _ in range(times):
        if not _has_escape(segment):
            break
        segment = unquote(segment, errors="replace")
    return segment


def _check_harmless(segment: str) -> None:
    """Refuse what may never be data, in the segment as decoded once and as decoded to the end."""
    deepest = _decode_loosely(segment, _MAX_NESTED_DECODINGS)
    for text in (segment, deepest):
        if text.translate(_CONTROLS) != text:
            raise Rejected(Reason.PATH_CONTROL)
        if "\\" in text:
            raise Rejected(Reason.PATH_BACKSLASH)
        for piece in text.split("/"):
            if "." in piece and _cut(piece).strip() in _DOTS:
                raise Rejected(Reason.PATH_DOT_SEGMENT)
    if _has_escape(deepest):
        raise Rejected(Reason.PATH_PERCENT)


def _cut(piece: str) -> str:
    """Return what stands before all that some reader ends a segment at, once it is decoded."""
    return piece.partition(";")[0].partition("?")[0].partition("#")[0]


def _parse_ipv6(raw: str) -> Host:
    inside, bracket, after = raw[1:].partition("]")
    if not bracket or "%" in inside:
        raise Rejected(Reason.BAD_HOST)
    try:
        address = IPv6Address(inside)
    except AddressValueError:
        raise Rejected(Reason.BAD_HOST) from None
    if not after:
        return Host(name=str(address))
    if not after.startswith(":"):
        raise Rejected(Reason.BAD_HOST)
    return Host(name=str(address), port=_parse_port(after[1:]))


def _parse_port(text: str) -> int:
    if not 0 < len(text) <= 5 or not text.isascii() or not text.isdigit():  # noqa: PLR2004 - digits of MAX_PORT
        raise Rejected(Reason.BAD_HOST)
    port = int(text)
    if not 0 < port <= MAX_PORT:
        raise Rejected(Reason.BAD_HOST)
    return port


def _check_ipv4(name: str) -> None:
    try:
        IPv4Address(name)
    except AddressValueError:
        raise Rejected(Reason.BAD_HOST) from None


def _to_a_labels(name: str) -> str:
    """Encode by IDNA 2008 without any mapping: look-alikes of dots, letters and case are refused, not folded."""
    try:
        return idna.encode(name, uts46=False, strict=True).decode("ascii")
    except (idna.IDNAError, UnicodeError, IndexError):
        raise Rejected(Reason.BAD_HOST) from None


def _check_a_label(label: str) -> None:
    try:
        idna.ulabel(label)
    except (idna.IDNAError, UnicodeError, IndexError):
        raise Rejected(Reason.BAD_HOST) from None
