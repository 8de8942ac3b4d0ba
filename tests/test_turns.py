"""Compiling beside checks: the collector waits, turns are short, and nothing that is replaced stays behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from authz.config import load
from authz.turns import MANY, TURN_S, making_what_stays
from tests.servers.service import RULES


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_the_collector_waits_and_turns_are_short_until_it_is_over() -> None:
    before_s = sys.getswitchinterval()
    with making_what_stays():
        assert not gc.isenabled()
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
        made: list[list[int]] = [[] for _ in range(2 * MANY)]
    assert gc.isenabled()
    assert sys.getswitchinterval() == pytest.approx(before_s)
    assert gc.get_freeze_count() > len(made), "later passes do not go over it"
    assert not any(its is made for its in gc.get_objects())


def test_what_fails_leaves_the_collector_at_work() -> None:
    before_s = sys.getswitchinterval()
    with pytest.raises(ValueError, match="bad"), making_what_stays():
        raise ValueError("bad")
    assert gc.isenabled()
    assert sys.getswitchinterval() == pytest.approx(before_s)


def test_a_replaced_policy_is_freed_without_the_collector(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    rules = "".join(
        f'  - {{name: r{n}, hosts: ["*.b.example"], paths: ["/{n}/{{id}}"], allow: anyone}}\n' for n in range(200)
    )
    guards = 'guards: [{name: inside, hosts: ["*.example"], paths: ["/x/{id}/**"], require: {networks: 10.0.0.0/8}}]'
    file.write_text(f"{RULES}{rules}{guards}\n")
    counts = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            configuration = load(file, environ={})
            assert len(configuration.policy.rules) == 201
            counts.append(len(gc.get_objects()))
            del configuration
            counts.append(len(gc.get_objects()))
    finally:
        gc.enable()
    assert counts[-2] - counts[-1] > 2_000
    assert counts[-1] - counts[3] < 100, "nothing of a policy refers to itself"


def test_few_objects_stay_in_sight() -> None:
    before = gc.get_freeze_count()
    with making_what_stays():
        assert [[] for _ in range(10)]
    assert gc.get_freeze_count() == before
