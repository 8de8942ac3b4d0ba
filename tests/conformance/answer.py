"""Read a ``CheckResponse`` as grpcurl prints it: as the proto files spell it or as JSON does, names or numbers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from authz.pb.envoy.type.v3.http_status_pb2 import StatusCode

FORBIDDEN: Final = 403
"""What Envoy sends where a deny names no status."""

APPEND: Final = "APPEND_IF_EXISTS_OR_ADD"
OVERWRITE: Final = "OVERWRITE_IF_EXISTS_OR_ADD"
_ACTIONS: Final = (APPEND, "ADD_IF_ABSENT", OVERWRITE, "OVERWRITE_IF_EXISTS")

Kind = Literal["ok_response", "denied_response", "error_response", ""]

_KINDS: Final[tuple[Kind, ...]] = ("ok_response", "denied_response", "error_response")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    r"""One header of an answer, and what is to become of another of its name.

    ``value`` is the text or the bytes, whichever is set; bytes that are no UTF-8 stand as ``\xff``. ``is_said_twice``
    tells that both are. ``append`` None means unsaid.
    """

    name: str
    value: str
    is_said_twice: bool
    append: bool | None
    action: str

    @property
    def overwrites(self) -> bool:
        """Whether both fields say so: which one counts differs between Envoy's versions."""
        return self.append is False and self.action == OVERWRITE

    @property
    def appends(self) -> bool:
        """Whether both fields say so."""
        return self.append is True and self.action == APPEND


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A ``CheckResponse``.

    ``is_said`` tells whether it has a status at all. ``headers`` are those of an allow for the upstream, or of a deny
    for the client; ``added`` those for the client of what passes. ``status`` is what a client would see of a deny.
    """

    is_said: bool
    code: int
    kind: Kind
    status: int | None = None
    headers: tuple[Option, ...] = ()
    removed: tuple[str, ...] = ()
    added: tuple[Option, ...] = ()
    removed_query: tuple[str, ...] = ()
    body: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    has_old_metadata: bool = False

    @property
    def verdict(self) -> str:
        """What Envoy makes of it: the code decides, and nothing else."""
        return "deny" if self.code else "allow"


def read_answer(document: Mapping[str, Any]) -> Answer:
    """Read a ``CheckResponse`` in JSON."""
    status = _member(document, "status")
    kind: Kind = ""
    http: Mapping[str, Any] = {}
    for name in _KINDS:
        found = _member(document, name)
        if found is not None:
            kind, http = name, found
    code = int(_member(status or {}, "code") or 0)
    return Answer(
        is_said=status is not None,
        code=code,
        kind=kind,
        status=_read_status(_member(http, "status") or {}) if code else None,
        headers=_read_options(http, "headers"),
        removed=tuple(_member(http, "headers_to_remove") or ()),
        added=_read_options(http, "response_headers_to_add"),
        removed_query=tuple(_member(http, "query_parameters_to_remove") or ()),
        body=_member(http, "body") or "",
        metadata=_member(document, "dynamic_metadata") or {},
        has_old_metadata=_member(http, "dynamic_metadata") is not None,
    )


def _read_raw(encoded: str) -> str:
    r"""Read bytes as JSON carries them; what is no UTF-8 stands as ``\xff``."""
    return base64.b64decode(encoded).decode("utf-8", "backslashreplace")


def _member(message: Mapping[str, Any], name: str) -> Any:
    """Return a field under either of its names."""
    first, *rest = name.split("_")
    return message.get(name, message.get(first + "".join(map(str.capitalize, rest))))


def _read_status(status: Mapping[str, Any]) -> int:
    code = _member(status, "code") or FORBIDDEN
    return int(StatusCode.Value(code)) if isinstance(code, str) else int(code)


def _read_options(http: Mapping[str, Any], name: str) -> tuple[Option, ...]:
    return tuple(_read_option(its) for its in _member(http, name) or ())


def _read_option(option: Mapping[str, Any]) -> Option:
    header = _member(option, "header") or {}
    text, raw = _member(header, "value") or "", _read_raw(_member(header, "raw_value") or "")
    action = _member(option, "append_action") or APPEND
    return Option(
        name=_member(header, "key") or "",
        value=text + raw,
        is_said_twice=bool(text and raw),
        append=_member(option, "append"),
        action=action if isinstance(action, str) else _ACTIONS[action],
    )
