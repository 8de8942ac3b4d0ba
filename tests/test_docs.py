"""The documents say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from authz.cli import main
from authz.config import json_schema, load
from authz.model import REASONS, Reason
from authz.reasons import REASON_TEXT

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_explained_and_has_an_answer(reason: Reason) -> None:
    assert REASON_TEXT[reason].meaning
    assert REASON_TEXT[reason].remedy
    assert reason in REASONS
    assert f"`{reason.value}`" in (ROOT / "docs/reasons.md").read_text()


def test_generated_documents_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/docs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(ROOT.glob("**/*.md")), ids=lambda its: its.name)
def test_links_lead_somewhere(path: Path) -> None:
    if ".venv" in path.parts or "node_modules" in path.parts:
        return
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), target


def test_the_quick_start_is_the_example() -> None:
    block = re.search(r"cat > rules\.yaml <<'EOF'\n(.*?)EOF\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert block[1] == (ROOT / "examples/quickstart.yaml").read_text()
    assert len(block[1].splitlines()) <= 10


def _keys(node: Any) -> Iterator[tuple[str, bool]]:
    """Yield each key that a schema names, and whether a list is its value."""
    if isinstance(node, list):
        for item in node:
            yield from _keys(item)
    elif isinstance(node, dict):
        for name, its in node.get("properties", {}).items():
            yield name, any(kind.get("type") == "array" for kind in (its, *its.get("anyOf", ())))
        for its in node.values():
            yield from _keys(its)


@pytest.mark.parametrize(("key", "is_list"), sorted(set(_keys(json_schema()))))
def test_every_key_of_the_rules_file_is_documented(key: str, is_list: bool) -> None:  # noqa: FBT001 - a parameter
    text = (ROOT / "docs/rules.md").read_text()
    if is_list and key not in _ONE_OR_SEVERAL:
        assert f"`{key}[]`" in text
    else:
        assert re.search(rf"[`{{ ]{key}[`:,}}]", text)


_ONE_OR_SEVERAL = {"any", "all", "tokens_from"}
"""Lists that are shown where they stand, and one that may be."""


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda its: its.name)
def test_every_example_loads(path: Path) -> None:
    assert load(path, environ={"ORDERS_API_SECRET": "x"}).policy.rules


def test_the_table_of_standards_names_what_exists() -> None:
    names = re.findall(r"`((?:authz|tests)/[^`]+\.py)`", (ROOT / "docs/standards.md").read_text())
    assert len(names) > 40
    for name in names:
        assert (ROOT / name).exists(), name


def test_the_table_of_standards_has_every_rfc_that_the_code_cites() -> None:
    """Each in a row of its own or with its neighbour, beside a module that goes by it."""
    standards = r"RFC \d+|IDNA 2008|OpenID Connect Discovery"
    rows = [line for line in (ROOT / "docs/standards.md").read_text().splitlines() if line.startswith("| ")]
    listed = {name: row for row in rows for name in re.findall(standards, row)}
    for path in ROOT.glob("authz/**/*.py"):
        if "pb" in path.parts:
            continue
        for name in re.findall(standards, path.read_text().replace("\n", " ")):
            assert name in listed, f"{path.name} cites {name}"
    assert len(listed) > 25


def test_the_glossary_has_every_word_once() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    words = [
        word.strip(" `") for row in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)[1:] for word in row.split(",")
    ]
    assert len(set(words)) == len(words)
    nouns = (
        "place issuer preset introspection capture ambiguity accept snapshot evidence reason decision rule guard policy"
    )
    assert set(nouns.split()) <= set(words)


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    for name in main.commands:
        assert f"`authz {name}" in text
