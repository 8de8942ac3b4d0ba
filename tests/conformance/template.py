"""Fill in what stands as ``${kind:argument}`` in cases and tokens."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Fill = Callable[[str], Any]

_PLACE: Final = re.compile(r"\$\{(\w+):([^{}]*)\}")


def repeat(argument: str) -> str:
    """Return a text so many times: ``a:1000`` is a thousand letters."""
    text, _, times = argument.rpartition(":")
    return text * int(times)


def encode_text(argument: str) -> str:
    """Return the base64 of a text's UTF-8, which is how JSON carries bytes."""
    return base64.b64encode(argument.encode()).decode()


def encode_hex(argument: str) -> str:
    """Return the base64 of bytes written in hex."""
    return base64.b64encode(bytes.fromhex(argument)).decode()


PLAIN: Final[Mapping[str, Fill]] = {"repeat": repeat, "base64": encode_text, "hex": encode_hex}


def fill(value: Any, kinds: Mapping[str, Fill]) -> Any:
    """Return a JSON value with every place filled in; a text that is one place alone may become any value.

    Raises:
        ValueError: for a kind that there is not.

    """
    if isinstance(value, dict):
        return {key: fill(its, kinds) for key, its in value.items()}
    if isinstance(value, list):
        return [fill(its, kinds) for its in value]
    while isinstance(value, str) and (found := _PLACE.search(value)) is not None:
        # The innermost first: a token may stand inside of what is encoded.
        made = _make(found, kinds)
        value = made if found[0] == value else value[: found.start()] + str(made) + value[found.end() :]
    return value


def _make(found: re.Match[str], kinds: Mapping[str, Fill]) -> Any:
    kind, argument = found.groups()
    if kind not in kinds:
        raise ValueError(f"`{found[0]}`: there is no `{kind}`: write one of {', '.join(sorted(kinds))}")
    return kinds[kind](argument)
