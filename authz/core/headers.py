"""Identity headers: the only names that the policy sets upstream, always overwritten or removed.

Invariant IDENTITY-HEADERS-ARE-OURS: on every allow each of these names is set to our value or removed, and so is every
spelling that an upstream may read as the same name (``x-user``, ``x_user``, ``x.user``: CGI and WSGI fold them).

A value is made of a template's parts. Lists are joined with ``,``. Within an element ``,``, ``%``, controls, non-ASCII
and outer blanks are percent-encoded, so that one role ``x,admin`` stays one role. A missing part removes the header.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from authz.core.require import match_claim
from authz.model import HeaderAction, HeaderEdit, Principal, Provider, Reason, Rejected, Role

MAX_IDENTITY_BYTES: Final = 8_192
"""All identity headers of one request together. Over it the request is denied: a cut value could mean anything."""

MAX_NAME_CHARS: Final = 128

_NAME: Final = re.compile(r"[a-z0-9!#$&'*+.^_`|~-]+")
_SAFE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",%")
_PLAIN: Final = re.compile(r"[!-$&-+\--~](?:[ -$&-+\--~]*[!-$&-+\--~])?")
"""A text that needs no encoding, as nearly all do."""

_PLAIN_NAME: Final = re.compile(r"[ -$&-+\--9;-~]*")
"""The same for a role's name, in which `:` is encoded too."""

_FOLD: Final = str.maketrans("_.", "--")
_PART: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])")

FORBIDDEN: Final = frozenset(
    {
        *("host", "authorization", "cookie", "connection", "content-length", "content-type", "transfer-encoding"),
        *("te", "trailer", "upgrade", "keep-alive", "proxy-connection", "proxy-authorization", "expect", "set-cookie"),
        *("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "forwarded", "via", "date"),
    }
)
"""Names that mean something to proxies: an identity header of this name could change where or how a request goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Literal texts and slots, in order. ``slots`` are the names used, for checks at load."""

    text: str
    parts: tuple[str | tuple[str, ...], ...]

    @property
    def slots(self) -> frozenset[str]:
        """The first word of each slot."""
        return frozenset(part[0] for part in self.parts if not isinstance(part, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityHeaders:
    """The policy's names with a rule's templates; ``also_removed`` are other spellings, removed though unseen."""

    templates: tuple[tuple[str, Template], ...] = ()
    also_removed: tuple[HeaderEdit, ...] = ()


def fold_name(name: str) -> str:
    """Return what a careless upstream makes of a header's name."""
    return name.lower().translate(_FOLD)


def parse_header_name(text: str) -> str:
    """Return the name in lower case.

    Raises:
        ValueError: with a message for the operator.

    """
    name = text.lower()
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
        raise ValueError(f"`{text}` is not a header name")
    return name


def parse_header_value(text: str) -> str:
    """Return a fixed value unchanged.

    Raises:
        ValueError: for anything but printable ASCII.

    """
    if not text.isascii() or (text and not text.isprintable()) or text != text.strip(" "):
        raise ValueError(f"`{text!a}` is not safe as a header value: write printable ASCII without outer blanks")
    return text


def parse_identity_name(text: str) -> str:
    """Return an identity header's name in lower case.

    Raises:
        ValueError: also for names that mean something to proxies.

    """
    name = parse_header_name(text)
    folded = fold_name(name)
    if folded in FORBIDDEN or folded.startswith("x-envoy-"):
        raise ValueError(f"`{text}` steers proxies or carries credentials: choose a name of your own, such as `x-user`")
    return name


def parse_template(text: str) -> Template:
    """Read ``{sub}``, ``{claims.a.b}`` and the like; ``{{`` and ``}}`` are literal braces.

    Raises:
        ValueError: with a message for the operator.

    """
    parse_header_value(text)
    parts: list[str | tuple[str, ...]] = []
    at = 0
    for found in _PART.finditer(text):
        parts.append(text[at : found.start()])
        at = found.end()
        if found[2] is not None:
            raise ValueError(f"`{text}` has a lone `{found[2]}`: write `{{{{` or `}}}}` for a brace")
        parts.append(found[0][0] if found[1] is None else _parse_slot(found[1]))
    parts.append(text[at:])
    if not any(isinstance(part, tuple) for part in parts) and not text:
        raise ValueError("an empty template sets nothing: name a value such as `{sub}`")
    return Template(text=text, parts=tuple(part for part in parts if part != ""))


@dataclass(frozen=True, slots=True)
class Mark:
    """What every value of a template begins with (or ends with) for one provider: whose it is."""

    text: str
    at_end: bool = False


def match_mark(template: Template, provider: Provider) -> Mark | None:
    """Return how a template says whose its values are, or None where a value could read like another provider's.

    ``{provider}`` or ``{issuer}`` comes first or last, and a literal parts it from the rest: else what follows could
    continue another provider's name.
    """
    for at_end in (False, True):
        parts = template.parts[::-1] if at_end else template.parts
        texts: list[str] = []
        for part, behind in zip(parts, (*parts[1:], None), strict=True):
            if isinstance(part, str):
                texts.append(part)
                continue
            value = _encode({"provider": provider.name, "issuer": provider.issuer}.get(part[0], ""))
            if value is not None and isinstance(behind, str):
                texts += [value, behind]
                return Mark("".join(texts[::-1] if at_end else texts), at_end)
            break
    return None


def are_apart(one: Mark | None, other: Mark | None) -> bool:
    """Say whether no value with the one mark is a value with the other."""
    if one is None or other is None or one.at_end is not other.at_end:
        return False
    if one.at_end:
        return not one.text.endswith(other.text) and not other.text.endswith(one.text)
    return not one.text.startswith(other.text) and not other.text.startswith(one.text)


def plan_identity(templates: Mapping[str, Template]) -> IdentityHeaders:
    """Work out, once at load, all that a request's names are compared with."""
    other = {name.translate(str.maketrans("-_.", mark * 3)) for name in templates for mark in "-_."}
    return IdentityHeaders(
        templates=tuple(templates.items()),
        also_removed=tuple(HeaderEdit(HeaderAction.REMOVE, name) for name in sorted(other - set(templates))),
    )


def render_identity(plan: IdentityHeaders, principal: Principal | None) -> list[HeaderEdit]:
    """Return the edits that make every identity header ours, whatever the request has; see :func:`render_odd_names`.

    Raises:
        Rejected: HEADER_BUDGET where the values together are longer than MAX_IDENTITY_BYTES.

    """
    edits: list[HeaderEdit] = []
    size = 0
    for name, template in plan.templates:
        value = render_template(template, principal)
        if value is None:
            edits.append(HeaderEdit(HeaderAction.REMOVE, name))
        else:
            size += len(name) + len(value)
            edits.append(HeaderEdit(HeaderAction.SET, name, value))
    if size > MAX_IDENTITY_BYTES:
        raise Rejected(Reason.HEADER_BUDGET, f"identity headers of {size} bytes, at most {MAX_IDENTITY_BYTES} pass")
    edits.extend(plan.also_removed)
    return edits


def find_odd_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that a careless reader may take for others: those with ``_`` or ``.``."""
    return tuple(name for name in names if "_" in name or "." in name)


def render_odd_names(folded: frozenset[str], edits: Iterable[HeaderEdit], odd: Iterable[str]) -> list[HeaderEdit]:
    """Return the removal of every odd name that is, once folded, one of these. ``edits`` are those that stand."""
    done = {edit.name for edit in edits}
    return [HeaderEdit(HeaderAction.REMOVE, name) for name in odd if name not in done and fold_name(name) in folded]


def render_template(template: Template, principal: Principal | None) -> str | None:
    """Return the value, or None where a part is missing or nobody is asking."""
    if principal is None:
        return None
    values: list[str] = []
    for part in template.parts:
        if isinstance(part, str):
            values.append(part)
            continue
        found = match_claim(principal.claims, part[1:]) if part[0] == "claims" else _SLOTS[part[0]](principal)
        value = _render_value(found)
        if value is None:
            return None
        values.append(value)
    return "".join(values)


def _parse_slot(text: str) -> tuple[str, ...]:
    first, dot, rest = text.partition(".")
    if first == "claims" and dot:
        names = (rest[2:-2],) if rest.startswith('["') and rest.endswith('"]') else tuple(rest.split("."))
        if all(names):
            return (first, *names)
    if text in _SLOTS:
        return (text,)
    known = ", ".join(f"`{{{name}}}`" for name in _SLOTS)
    raise ValueError(f"`{{{text}}}` is no value: write one of {known}, or `{{claims.NAME}}`")


def _render_value(found: object) -> str | None:
    if isinstance(found, list | tuple):
        elements = [_render_scalar(element) for element in found]
        known = [element for element in elements if element is not None]
        return ",".join(known) if known and len(known) == len(elements) else None
    return _render_scalar(found)


def _render_scalar(found: object) -> str | None:
    """Return a text, a number or a truth value, encoded; None for what has no plain spelling."""
    if isinstance(found, str):
        return found if isinstance(found, _Encoded) else _encode(found)
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int) or (isinstance(found, float) and math.isfinite(found)):
        return repr(found)
    return None


def _encode(text: str) -> str | None:
    if _PLAIN.fullmatch(text):
        return text
    try:
        value = quote(text, safe=_SAFE, encoding="utf-8", errors="strict")
    except UnicodeEncodeError:
        return None
    if text != text.strip(" "):
        bare = value.strip(" ")
        before = len(value) - len(value.lstrip(" "))
        value = "%20" * before + bare + "%20" * (len(value) - len(bare) - before)
    return value or None


class _Encoded(str):
    """A text that is encoded already."""

    __slots__ = ()


def _encode_role(role: Role) -> str:
    """Return ``role`` or ``client:role``, with ``:`` inside a name encoded, so that no two roles read alike."""
    name, client = (
        part if _PLAIN_NAME.fullmatch(part) else quote(part, safe=_SAFE.replace(":", ""), errors="replace")
        for part in (role.name, role.client)
    )
    return _Encoded(f"{client}:{name}" if client else name)


_SLOTS: Final[Mapping[str, Callable[[Principal], object]]] = {
    "sub": lambda principal: principal.subject,
    "email": lambda principal: principal.email,
    "roles": lambda principal: [_encode_role(role) for role in sorted(principal.roles)],
    "groups": lambda principal: sorted(principal.groups),
    "scopes": lambda principal: sorted(principal.scopes),
    "client_id": lambda principal: principal.client_id,
    "issuer": lambda principal: principal.issuer,
    "provider": lambda principal: principal.provider,
}
