"""Show what came of each case: a table for eyes, lines in a pipe, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz.report.lines import plain
from tests.conformance.judge import Problem
from tests.conformance.load import Case, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One case, with what is wrong with its answer."""

    case: Case
    problems: tuple[Problem, ...]
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one run found. ``schema`` says whose proto files the questions were written by."""

    target: str
    schema: str
    results: Sequence[Result]
    statements: Mapping[str, Statement]
    took_s: float

    @property
    def failed(self) -> int:
        """How many cases have a problem."""
        return sum(bool(its.problems) for its in self.results)

    @property
    def summary(self) -> str:
        """The last line."""
        total = len(self.results)
        return f"{total - self.failed} of {total} cases as Envoy and the RFCs have it, in {self.took_s:.1f} s"


def render_json(report: Report) -> str:
    """Write one document."""
    cases = [
        {
            "group": its.case.group,
            "name": its.case.name,
            "from": its.case.statement.source,
            "says": its.case.statement.says,
            "passed": not its.problems,
            "problems": [
                {"text": problem.text, "from": report.statements[problem.origin].source} for problem in its.problems
            ],
            "took_ms": round(its.took_s * 1_000),
        }
        for its in report.results
    ]
    facts = {"target": report.target, "schema": report.schema, "cases": cases}
    counts = {"passed": len(report.results) - report.failed, "failed": report.failed}
    return json.dumps(facts | counts, indent=2)


def print_report(report: Report, console: Console) -> None:
    """Print it for whoever reads: a table and then what failed on a terminal, a line a case in a pipe."""
    console.print(f"{report.target}, asked by {report.schema}", markup=False, highlight=False)
    if console.is_terminal:
        console.print(_render_table(report))
    for result in report.results:
        if console.is_terminal and not result.problems:
            continue
        case, mark = result.case, "NO" if result.problems else "ok"
        line = f"{mark} {case.group}: {case.name} [{case.statement.source}]"
        console.print(line, style="red" if result.problems else "", markup=False, highlight=False, soft_wrap=True)
        if result.problems:
            console.print(f"   {case.statement.says}", style="dim", markup=False, highlight=False, soft_wrap=True)
        for problem in result.problems:
            _print_problem(report, problem, console)
    console.print(report.summary, style="red" if report.failed else "green", highlight=False)


def _print_problem(report: Report, problem: Problem, console: Console) -> None:
    # The text repeats what a server said, which may be anybody's.
    line = plain(f"   {problem.text} [{report.statements[problem.origin].source}]")
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _render_table(report: Report) -> Table:
    table = Table()
    for name, width in (("", 2), ("group", 11), ("case", 20), ("from", 20), ("ms", 4)):
        table.add_column(name, overflow="fold", min_width=width, no_wrap=name in {"", "group"})
    for result in report.results:
        mark = Text("NO", style="red") if result.problems else Text("ok", style="green")
        row = (Text(result.case.group), Text(result.case.name), Text(result.case.statement.source, style="dim"))
        table.add_row(mark, *row, str(round(result.took_s * 1_000)))
    return table
