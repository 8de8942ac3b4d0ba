"""Compile beside checks without holding them up: no pass of the cyclic collector, and short turns.

Ten thousand rules are a million objects that all stay. Left to itself the collector goes over all of them again and
again, and nothing else runs meanwhile: a quarter of a second in one piece.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Final

TURN_S: Final = 0.0005
"""How long one thread computes before another may: a tenth of Python's own."""

MANY: Final = 20_000
"""New objects that the collector goes over in some five milliseconds."""


@contextlib.contextmanager
def making_what_stays() -> Iterator[None]:
    """Make very many objects that stay, in another thread or before anything runs.

    If they are many, they are taken from the collector's sight afterwards; what nobody refers to any more is freed all
    the same, as long as it does not refer to itself. So is everything else that is there then: the little that was
    waiting to be collected stays. Not to be nested.
    """
    turn_s = sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(turn_s)
        if gc.get_count()[0] > MANY:
            gc.freeze()
        gc.enable()
