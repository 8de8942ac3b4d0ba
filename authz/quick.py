"""Make frozen dataclasses at the cost of plain objects, where one is made for every check.

The constructor that ``dataclasses`` writes for a frozen class sets each field through ``object.__setattr__``, at nine
times the cost of an assignment. What is made here is the same object, of the same class and as frozen: its fields are
assigned while it still is of an open twin with the same slots.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, TypeVar, cast

T = TypeVar("T")


def quick(cls: type[T]) -> type[T]:
    """Return a constructor of a frozen, slotted dataclass that takes the same arguments, by name.

    Fields with a ``default_factory`` have no default here, unless they are no arguments at all.

    Not checked: ``__post_init__``, which a class given to this must not have.
    """
    names, arguments, lines = [], [], []
    scope: dict[str, Any] = {"_cls": cls}
    for its in fields(cls):  # type: ignore[arg-type]  # a dataclass, as the caller says
        names.append(its.name)
        value = its.name
        if not its.init:
            scope[f"_make_{its.name}"] = its.default_factory
            value = f"_make_{its.name}()"
        elif its.default is MISSING:
            arguments.append(its.name)
        else:
            scope[f"_default_{its.name}"] = its.default
            arguments.append(f"{its.name}=_default_{its.name}")
        lines.append(f"    self.{its.name} = {value}")
    text = "\n".join([f"def __init__(self, *, {', '.join(arguments)}):", *lines, "    self.__class__ = _cls"])
    exec(text, scope)  # noqa: S102 - a constructor of the class's own field names, as `dataclasses` writes it
    twin = type(cls.__name__, (), {"__slots__": tuple(names), "__init__": scope["__init__"]})
    return cast("type[T]", twin)
