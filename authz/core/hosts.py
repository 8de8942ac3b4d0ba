"""Host patterns, from narrow to broad, and an index that finds every pattern a host matches.

An exact name, then ``{label}.suffix`` (exactly one label), then ``*.suffix`` (one or more), longest suffix first, then
``everywhere``. The order is the policy's: the first pattern with a table of its own judges the request.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from authz.core.path import parse_host_name
from authz.model import Rejected

T = TypeVar("T")

EVERYWHERE_WORD: Final = "everywhere"


class HostKind(enum.IntEnum):
    """How much a pattern covers; the smaller, the narrower."""

    EXACT = 0
    LABEL = 1
    SUFFIX = 2
    EVERYWHERE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPattern:
    """One pattern: ``name`` is the whole name (EXACT) or what follows the first dot; ``capture`` names a LABEL."""

    kind: HostKind
    name: str = ""
    capture: str | None = None

    @property
    def key(self) -> tuple[HostKind, str]:
        """What makes two patterns cover the same hosts: the capture's name does not."""
        return (self.kind, self.name)

    def __str__(self) -> str:
        """Render as the operator writes it."""
        match self.kind:
            case HostKind.EXACT:
                return self.name
            case HostKind.LABEL:
                return f"{{{self.capture}}}.{self.name}"
            case HostKind.SUFFIX:
                return f"*.{self.name}"
            case _:
                return EVERYWHERE_WORD


EVERYWHERE: Final = HostPattern(kind=HostKind.EVERYWHERE)


def parse_host_pattern(text: str) -> HostPattern:
    """Read a pattern as the operator wrote it; Unicode names become A-labels.

    Raises:
        ValueError: with a message for the operator. A port is refused: rules are for names.

    """
    if text == EVERYWHERE_WORD:
        return EVERYWHERE
    if text.startswith("["):
        return _parse_ipv6(text)
    if ":" in text:
        raise ValueError(f"`{text}` has a port or a scheme: write the bare host name, rules hold on every port")
    if text == "*":
        raise ValueError("`*` alone is no pattern: write `*.example.com`, or `hosts: everywhere` without a list")
    first, _, rest = text.partition(".")
    if first == "*":
        return HostPattern(kind=HostKind.SUFFIX, name=_parse_name(text, rest))
    if first.startswith("{") and first.endswith("}"):
        capture = first[1:-1]
        if not capture.isidentifier():
            raise ValueError(f"`{first}` is no capture: write a name such as `{{tenant}}`")
        return HostPattern(kind=HostKind.LABEL, name=_parse_name(text, rest), capture=capture)
    if any(mark in text for mark in "*{}"):
        raise ValueError(f"`{text}`: `*` and `{{name}}` stand for whole labels, and only for the first")
    return HostPattern(kind=HostKind.EXACT, name=_parse_name(text, text))


def _parse_name(whole: str, name: str) -> str:
    try:
        return parse_host_name(name)
    except Rejected:
        raise ValueError(f"`{whole}` is not a host name: write one such as `shop.example.com`") from None


def _parse_ipv6(text: str) -> HostPattern:
    try:
        address = ipaddress.IPv6Address(text[1:-1] if text.endswith("]") else "")
    except ValueError:
        raise ValueError(f"`{text}` is not an IPv6 address in brackets") from None
    return HostPattern(kind=HostKind.EXACT, name=str(address))


def broader_patterns(pattern: HostPattern) -> Iterator[tuple[HostKind, str]]:
    """Yield the keys of all patterns that cover every host of this one, narrowest first, without ``everywhere``."""
    match pattern.kind:
        case HostKind.EXACT:
            yield from list(_keys(pattern.name))[1:]
        case HostKind.LABEL:
            yield from _suffixes(pattern.name, whole=True)
        case HostKind.SUFFIX:
            yield from _suffixes(pattern.name, whole=False)
        case _:
            pass


def covers(pattern: HostPattern, name: str) -> bool:
    """Say whether a host name (as parsed) falls under the pattern."""
    return pattern.kind is HostKind.EVERYWHERE or pattern.key in _keys(name)


def _keys(name: str) -> Iterator[tuple[HostKind, str]]:
    yield (HostKind.EXACT, name)
    _, dot, rest = name.partition(".")
    if dot:
        yield (HostKind.LABEL, rest)
        yield from _suffixes(rest, whole=True)


def _suffixes(name: str, *, whole: bool) -> Iterator[tuple[HostKind, str]]:
    if whole:
        yield (HostKind.SUFFIX, name)
    _, dot, rest = name.partition(".")
    if dot:
        yield from _suffixes(rest, whole=True)


@dataclass(frozen=True, slots=True)
class HostIndex(Generic[T]):
    """Values by host pattern. Numeric addresses match by their whole name only."""

    exact: Mapping[str, T]
    label: Mapping[str, T]
    suffix: Mapping[str, T]
    everywhere: T | None

    def match_first(self, name: str) -> T | None:
        """Return the value of the narrowest pattern that covers the host, or None."""
        found = self.exact.get(name)
        if found is not None:
            return found
        if self.label or self.suffix:
            at = name.find(".")
            if at != -1:
                found = self.label.get(name[at + 1 :])
                if found is not None:
                    return found
            while at != -1:
                found = self.suffix.get(name[at + 1 :])
                if found is not None:
                    return found
                at = name.find(".", at + 1)
        return self.everywhere

    def match_all(self, name: str) -> tuple[T, ...]:
        """Return the values of all patterns that cover the host, narrowest first."""
        found = [self.exact[name]] if name in self.exact else []
        if self.label or self.suffix:
            at = name.find(".")
            if at != -1 and name[at + 1 :] in self.label:
                found.append(self.label[name[at + 1 :]])
            while at != -1:
                if name[at + 1 :] in self.suffix:
                    found.append(self.suffix[name[at + 1 :]])
                at = name.find(".", at + 1)
        if self.everywhere is not None:
            found.append(self.everywhere)
        return tuple(found)

    def items(self) -> Iterator[tuple[tuple[HostKind, str], T]]:
        """Yield every pattern's key and value, ``everywhere`` first and the exact names last."""
        if self.everywhere is not None:
            yield EVERYWHERE.key, self.everywhere
        for kind, values in (
            (HostKind.SUFFIX, self.suffix),
            (HostKind.LABEL, self.label),
            (HostKind.EXACT, self.exact),
        ):
            for name, value in values.items():
                yield (kind, name), value


def index_hosts(values: Mapping[tuple[HostKind, str], T]) -> HostIndex[T]:
    """Build an index from values by pattern key."""

    def of(kind: HostKind) -> Mapping[str, T]:
        return MappingProxyType({name: value for (its, name), value in values.items() if its is kind})

    return HostIndex(of(HostKind.EXACT), of(HostKind.LABEL), of(HostKind.SUFFIX), values.get((HostKind.EVERYWHERE, "")))
