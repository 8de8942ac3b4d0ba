"""Each file under tests/policies/invalid has one thing wrong: the first line says where, and in which words we tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from authz.config import load
from authz.model import ConfigError

POLICIES = Path(__file__).parent.parent / "policies"
ENVIRON = {"HS_SECRET": "0123456789012345678901234567890123456789", "SHORT": "short", "SECRET": "hidden-away"}
INVALID = sorted(POLICIES.glob("invalid/*.yaml"))
VALID = sorted(POLICIES.glob("valid/*.yaml"))


@pytest.mark.parametrize("file", INVALID, ids=lambda its: its.stem)
def test_a_file_with_one_fault_is_refused_for_that_fault(file: Path) -> None:
    expected = re.fullmatch(r"# line (\d+): (.+)", file.read_text().split("\n", 1)[0])
    assert expected is not None
    with pytest.raises(ConfigError) as caught:
        load(file, environ=ENVIRON)
    problems = caught.value.problems
    assert len(problems) == 1, [str(problem) for problem in problems]
    problem = problems[0]
    assert expected[2] in problem.message
    assert problem.line == int(expected[1]), str(problem)
    assert problem.file == str(file)
    assert not any(secret in str(problem) for secret in ENVIRON.values() if len(secret) > 5)


@pytest.mark.parametrize("file", VALID, ids=lambda its: its.stem)
def test_a_valid_file_loads(file: Path) -> None:
    assert load(file, environ=ENVIRON).policy.rules


def test_the_corpora_are_there() -> None:
    assert len(INVALID) > 100
    assert VALID
