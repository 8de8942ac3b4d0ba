"""Collect every problem of a file, each with its line and the path to it in the operator's own words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, Final, ParamSpec, TypeVar

from authz.config.document import Document, Loc
from authz.model import ConfigError, ConfigProblem

P = ParamSpec("P")
T = TypeVar("T")

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_BARE: Final = re.compile(r"[A-Za-z/](?:[A-Za-z0-9_./-]|\*\*)*")
_MAX_SHOWN: Final = 80


class Problems:
    """What is wrong so far with one file."""

    def __init__(self, document: Document, *, file: str) -> None:
        self._document = document
        self._file = file
        self.found: list[ConfigProblem] = [*document.problems]

    def add(self, loc: Loc, message: str) -> None:
        """Note one problem."""
        line, path = self._document.line(loc), self.path(loc)
        problem = ConfigProblem(message=message, file=self._file, line=line, path=path)
        if problem not in self.found:
            self.found.append(problem)

    def extend(self, problems: Iterable[ConfigProblem]) -> None:
        """Note problems found by those who know the line, but not the file."""
        for its in problems:
            line = its.line or self._document.line((its.path,))
            self.found.append(ConfigProblem(message=its.message, file=self._file, line=line, path=its.path))

    def attempt(self, loc: Loc, parse: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what ``parse`` returns; note its ValueError, whose text is for the operator, and return None."""
        try:
            return parse(*args, **kwargs)
        except ValueError as error:
            self.add(loc, str(error))
            return None

    def raise_if_any(self, *, incomplete: bool = False) -> None:
        """End the loading if anything is wrong. ``incomplete`` means that not everything could be judged.

        Raises:
            ConfigError: with every problem, in the order of the lines.

        """
        if self.found:
            raise ConfigError(*sorted(self.found, key=lambda its: its.line), incomplete=incomplete)

    def path(self, loc: Loc) -> str:
        """Render ``rules[read one order].paths[0]``: items by their name where they have one."""
        value: Any = self._document.value
        text = ""
        for step in loc:
            known = isinstance(value, dict) or (isinstance(value, list) and isinstance(step, int) and step < len(value))
            value = (value.get(step) if isinstance(value, dict) else value[step]) if known else None
            if isinstance(step, int):
                name = value.get("name") if isinstance(value, dict) else None
                text += f"[{name}]" if isinstance(name, str) else f"[{step}]"
            elif _PLAIN.fullmatch(step):
                text += f".{step}" if text else step
            else:
                text += f"[{step}]"
        return text


def suggest(word: str, known: Iterable[str]) -> str:
    """Return what to write instead of an unknown word: the nearest known one, or all of them."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    return "known are " + ", ".join(f"`{name}`" for name in names) if names else "none is known here"


def count(number: int, word: str) -> str:
    """Render ``1 rule`` and ``2 rules``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def render_yaml(value: object) -> str | None:
    """Render a value as it could stand in a YAML list on one line; None for what is too long or holds more parts."""
    text: str | None = None
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int | float):
        text = str(value)
    elif isinstance(value, str):
        text = value if _BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    elif isinstance(value, dict) and not any(isinstance(item, dict) for item in value.values()):
        members = [(render_yaml(key), render_yaml(item)) for key, item in value.items()]
        text = "{" + ", ".join(f"{key}: {item}" for key, item in members) + "}"
        text = text if all(item is not None for _, item in members) else None
    return text if text is not None and len(text) <= _MAX_SHOWN and text.isprintable() else None


def show(value: object) -> str:
    """Render a value for a message: short, and in backticks."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return f"`{text[:_MAX_SHOWN]}…`" if len(text) > _MAX_SHOWN else f"`{text}`"
