"""Read a JSON object of which no two readers disagree (RFC 8259, and RFC 7493 where it is stricter).

Refused, beside what is no JSON: a member named twice, NaN and the infinities (also as ``1e999``), integers of more
than 20 digits, unpaired surrogates, bytes that are not UTF-8, nesting beyond the limit, and anything but an object at
the top. The size is the caller's to bound before.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from authz.model import Reason, Rejected

MAX_INT_CHARS: Final = 21
"""A sign and 20 digits: all 64-bit numbers, signed or not, and nothing whose conversion takes time."""


def parse_object(raw: bytes, *, reason: Reason, max_depth: int = 32) -> dict[str, Any]:
    """Read one JSON object; ``max_depth`` counts the containers around the innermost value, the object included.

    Raises:
        Rejected: with the caller's ``reason``.

    """
    try:
        text = raw.decode("utf-8")
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise Rejected(reason, "no strict json") from None
    if not isinstance(value, dict):
        raise Rejected(reason, "no json object")
    if text.count("{") + text.count("[") > max_depth and _is_deeper(value, max_depth):
        raise Rejected(reason, "json too deep")
    if "\\u" in text and not _is_unicode(value):
        raise Rejected(reason, "unpaired surrogate in json")
    return value


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a member named twice")
    return value


def _parse_int(text: str) -> int:
    if len(text) > MAX_INT_CHARS:
        raise ValueError("an integer too long")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number out of range")
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"`{text}` is no json")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object_of_pairs,
    parse_int=_parse_int,
    parse_float=_parse_float,
    parse_constant=_refuse_constant,
)


def _is_deeper(value: Any, max_depth: int) -> bool:
    """Say whether containers are nested deeper than allowed, level by level: no recursion of ours."""
    level = [value]
    for _ in range(max_depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
