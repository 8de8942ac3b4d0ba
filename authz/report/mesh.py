"""Print what ``authz istio-check`` found: a table for eyes, a line a finding into a pipe, or one JSON document."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz.config.problems import count
from authz.mesh.traps import TRAPS, MeshFinding, Severity
from authz.model import ConfigProblem
from authz.report.lines import plain, print_plain

_STYLES: Final[Mapping[Severity, str]] = {Severity.OPEN: "bold red", Severity.OUTAGE: "yellow", Severity.NOTE: "cyan"}


def print_mesh(
    findings: Sequence[MeshFinding], problems: Sequence[ConfigProblem], *, objects: int, as_json: bool
) -> None:
    """Print the findings, and what could not be read."""
    if as_json:
        click.echo(json.dumps(_describe(findings, problems, objects), indent=2))
        return
    for problem in problems:
        print_plain(str(problem), err=True)
    if sys.stdout.isatty() and findings:
        Console().print(_table(findings))
    else:
        for its in findings:
            place = f"{its.file}:{its.line}: {its.severity} {its.trap} {its.place}"
            print_plain(f"{place}: {its.text}; instead: {TRAPS[its.trap].remedy}")
    numbers = Counter(its.severity for its in findings)
    told = ", ".join(_count(numbers[severity], severity) for severity in Severity if numbers[severity])
    unread = f", {count(len(problems), 'problem')} in reading" if problems else ""
    print_plain(f"{count(objects, 'object')}: {told or 'no findings'}{unread}")


def _count(number: int, severity: Severity) -> str:
    return f"{number} {severity}" if severity is Severity.OPEN else count(number, severity)


def _describe(findings: Sequence[MeshFinding], problems: Sequence[ConfigProblem], objects: int) -> dict[str, Any]:
    return {
        "objects": objects,
        "problems": [{"file": its.file, "line": its.line, "message": its.message} for its in problems],
        "findings": [
            {
                "finding": its.trap.value,
                "severity": its.severity.value,
                "object": its.place,
                "file": its.file,
                "line": its.line,
                "text": its.text,
                "meaning": TRAPS[its.trap].meaning,
                "remedy": TRAPS[its.trap].remedy,
            }
            for its in findings
        ],
    }


def _table(findings: Sequence[MeshFinding]) -> Table:
    table = Table(show_lines=True)
    for name in ("finding", "where", "what is there, and what to write instead"):
        table.add_column(name, overflow="fold")
    for its in findings:
        table.add_row(
            Text(f"{its.severity}\n{its.trap}", style=_STYLES[its.severity]),
            Text(f"{plain(its.place)}\n{plain(its.file)}:{its.line}"),
            Text(f"{plain(its.text)}\n{plain(TRAPS[its.trap].remedy)}"),
        )
    return table
