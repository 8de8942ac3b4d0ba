"""Read YAML into plain values, keeping the line of each, and refuse what two readers would read differently.

YAML 1.2's core schema, whatever the library's own is: ``yes``, ``no``, ``on`` and ``off`` are texts, octal is ``0o17``,
a date is a text. Refused, each with its line: a key written twice, tags, merge keys, an alias inside its own anchor,
a zero byte in a text, nesting beyond MAX_DEPTH, more than MAX_NODES values once aliases are followed. Of a rules file
also a second document, and more than MAX_BYTES. Kubernetes' own readers take YAML 1.1's words for booleans:
`parse_documents` does so for files that are theirs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from authz.model import ConfigError, ConfigProblem

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_DEPTH: Final = 32
MAX_NODES: Final = 1_000_000
"""10,000 rules need about a tenth of it; a file of nested aliases needs more than any memory holds."""

MAX_DIGITS: Final = 15
"""What every reader of JSON numbers can hold exactly."""

Loc = tuple[str | int, ...]

_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TAB: Final = re.compile(" *\t")
_WORDS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_KUBERNETES_WORDS: Final[Mapping[str, bool | None]] = {
    **_WORDS,
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF"), False),
}
"""What kubectl, Helm and istiod read: YAML 1.1, with its one-letter words."""


class Allowance:
    """How many values aliases may still make: one for all texts that are read together."""

    def __init__(self, values: int = MAX_NODES) -> None:
        """Begin with so many."""
        self.left = values


@dataclass(frozen=True, slots=True)
class Document:
    """A file's values, and the line where each stands: for a key's value that of the key.

    ``problems`` are the keys that are written twice; the value is then the last one's.
    """

    value: Any
    lines: Mapping[Loc, int]
    problems: tuple[ConfigProblem, ...] = ()

    def line(self, loc: Loc) -> int:
        """Return the line of a value, or of the nearest one around it that is there."""
        for end in range(len(loc), -1, -1):
            found = self.lines.get(loc[:end])
            if found is not None:
                return found
        return 0


def parse_document(text: str, *, file: str) -> Document:
    """Read one YAML document.

    Raises:
        ConfigError: with the one problem that ended the reading.

    """
    builder = _Builder(file)
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise builder.error(0, f"larger than {MAX_BYTES} bytes: split hosts over several services")
    found = _parse(text, builder, several=False)
    return found[0] if found else Document(None, {})


def parse_documents(text: str, *, file: str, allowance: Allowance | None = None) -> list[Document]:
    """Read every YAML document of a text of Kubernetes but the empty ones, with lines of the whole text.

    Its size is the caller's business; ``allowance`` is for one who reads several texts.

    Raises:
        ConfigError: with the one problem that ended the reading.

    """
    return [
        document
        for document in _parse(text, _Builder(file, allowance, _KUBERNETES_WORDS), several=True)
        if document.value is not None
    ]


def _parse(text: str, builder: _Builder, *, several: bool) -> list[Document]:
    try:
        return list(builder.build(yaml.parse(text, Loader=yaml.CSafeLoader), several=several))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        if _is_indented_by_a_tab(text, line):
            raise builder.error(line, "not valid yaml: a tab, indent with blanks") from None
        raise builder.error(line, f"not valid yaml: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise builder.error(line, "not valid yaml: a character that cannot be printed") from None
    except UnicodeEncodeError:
        raise builder.error(0, "not valid yaml: an unpaired surrogate") from None


def _is_indented_by_a_tab(text: str, line: int) -> bool:
    lines = text.split("\n", line)
    return 0 < line <= len(lines) and _TAB.match(lines[line - 1]) is not None


class _Builder:
    """Puts values together from the parser's events; thrown away with them."""

    def __init__(
        self, file: str, allowance: Allowance | None = None, words: Mapping[str, bool | None] = _WORDS
    ) -> None:
        self.file = file
        self._allowance = allowance or Allowance()
        self._words = words
        self._aliases = 0
        self.lines: dict[Loc, int] = {}
        self.problems: list[ConfigProblem] = []
        self._events: Iterator[yaml.Event] = iter(())
        self._anchors: dict[str, list[yaml.Event] | None] = {}
        self._recording: list[list[yaml.Event]] = []
        self._nodes = 0

    def error(self, line: int, message: str) -> ConfigError:
        return ConfigError(ConfigProblem(file=self.file, line=line, message=message))

    def build(self, events: Iterator[yaml.Event], *, several: bool) -> Iterator[Document]:
        self._events = events
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1 and not several:
                    raise self.error(_line(event), "a second yaml document: keep one, or write two files")
                first = self._next()
                self.lines, self.problems, self._anchors = {(): _line(first) if several else 1}, [], {}
                value = self._value(first, ())
                yield Document(value, self.lines, tuple(self.problems))

    def _next(self) -> yaml.Event:
        event = next(self._events)
        for record in self._recording:
            record.append(event)
        return event

    def _value(self, event: yaml.Event, loc: Loc) -> Any:
        self._nodes += 1
        self._allowance.left -= self._aliases > 0
        if self._nodes > MAX_NODES or self._allowance.left < 0:
            raise self.error(_line(event), f"more than {MAX_NODES} values: write fewer aliases")
        if len(loc) > MAX_DEPTH:
            raise self.error(_line(event), f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, loc)
        if not isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent):
            raise self.error(_line(event), "not valid yaml")
        if event.tag is not None and event.tag != "!":
            raise self.error(_line(event), f"tag `{event.tag}`: write the value without a tag")
        if event.anchor is None:
            return self._node(event, loc)
        record: list[yaml.Event] = [event]
        self._anchors[event.anchor] = None
        self._recording.append(record)
        value = self._node(event, loc)
        self._recording.remove(record)
        self._anchors[event.anchor] = record
        return value

    def _alias(self, event: yaml.AliasEvent, loc: Loc) -> Any:
        record = self._anchors.get(str(event.anchor))
        if record is None:
            inside = event.anchor in self._anchors
            why = "stands inside its own anchor" if inside else "has no anchor before it"
            raise self.error(_line(event), f"an alias {why}: write the value out, in quotes if it begins with `*`")
        outer, self._events = self._events, iter(record[1:])
        recording, self._recording = self._recording, []
        self._aliases += 1
        value = self._node(record[0], loc)
        self._aliases -= 1
        self._events, self._recording = outer, recording
        return value

    def _node(self, event: yaml.Event, loc: Loc) -> Any:
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(loc)
        return self._scalar(event) if isinstance(event, yaml.ScalarEvent) else self._sequence(loc)

    def _sequence(self, loc: Loc) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            item = (*loc, len(items))
            self.lines[item] = _line(event)
            items.append(self._value(event, item))
        return items

    def _mapping(self, loc: Loc) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self.error(_line(event), "a key that is no text")
            key, line = self._text(event), _line(event)
            if key == "<<" and event.implicit[0]:
                raise self.error(line, "merge key `<<`: write the keys out")
            if key in members:
                first = self.lines[(*loc, key)]
                text = f"key `{key}` is written twice: it stands on line {first} already, remove one"
                self.problems.append(ConfigProblem(file=self.file, line=line, message=text))
            else:
                self.lines[(*loc, key)] = line
            members[key] = self._value(self._next(), (*loc, key))
        return members

    def _text(self, event: yaml.ScalarEvent) -> str:
        text: str = event.value
        if "\0" in text:
            raise self.error(_line(event), "a zero byte, at which some readers of a text stop: leave it out")
        return text

    def _scalar(self, event: yaml.ScalarEvent) -> str | int | float | bool | None:
        text = self._text(event)
        if not event.implicit[0]:
            return text
        if text in self._words:
            return self._words[text]
        if _INT.fullmatch(text):
            if len(text) > MAX_DIGITS:
                raise self.error(_line(event), f"a number of more than {MAX_DIGITS} digits: quote it if it is a text")
            return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
        if _FLOAT.fullmatch(text):
            if text[-1] in "fFnN" or not math.isfinite(float(text)):
                raise self.error(_line(event), f"`{text}` is no number: quote it if it is a text")
            return float(text)
        return text


def _line(event: yaml.Event) -> int:
    return 0 if event.start_mark is None else int(event.start_mark.line) + 1
