"""What is made quickly is what is made slowly: the same class, the same fields, and as frozen."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any

import pytest

from authz.quick import quick


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: int
    y: int = 7
    notes: dict[str, Any] = field(init=False, default_factory=dict, compare=False)


new_point = quick(Point)


def test_it_is_the_same_object() -> None:
    made, expected = new_point(x=1), Point(x=1)
    assert made == expected
    assert type(made) is Point
    assert (repr(made), hash(made)) == (repr(expected), hash(expected))
    assert new_point(x=1, y=2) == Point(x=1, y=2) != made
    assert replace(made, x=3) == Point(x=3)


def test_it_is_as_frozen() -> None:
    made = new_point(x=1)
    with pytest.raises(FrozenInstanceError):
        made.x = 2  # type: ignore[misc]  # that is the point
    with pytest.raises((AttributeError, TypeError)):  # which of them depends on Python's version
        made.z = 2  # type: ignore[attr-defined]  # the same


def test_each_has_its_own_of_what_is_made() -> None:
    one, other = new_point(x=1), new_point(x=1)
    one.notes["a"] = 1
    assert other.notes == {}


@pytest.mark.parametrize("arguments", [{}, {"x": 1, "z": 2}, {"x": 1, "notes": {}}])
def test_it_takes_the_same_arguments(arguments: dict[str, Any]) -> None:
    for make in (Point, new_point):
        with pytest.raises(TypeError):
            make(**arguments)
