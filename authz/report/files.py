"""Print what is in rules files, or wrong with them, for ``authz validate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz.clients.probe import Finding
from authz.config import Configuration
from authz.config.problems import count
from authz.core.findings import find_surprises
from authz.core.policy import Access, Branch, Guard, Rule
from authz.core.require import Test
from authz.model import ConfigError, ConfigProblem
from authz.report.lines import plain, print_plain

Online = Mapping[str, Sequence[Finding]]
"""What was found at each provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """One rules file: compiled, or every problem. ``online`` is None where no provider was asked."""

    file: str
    configuration: Configuration | None = None
    error: ConfigError | None = None
    online: Online | None = None

    @property
    def problems(self) -> tuple[ConfigProblem, ...]:
        """Everything that is wrong with it."""
        return () if self.error is None else self.error.problems

    @property
    def good(self) -> bool:
        """Whether the file can be used, and its providers, where they were asked, are as it says."""
        findings = [finding for its in (self.online or {}).values() for finding in its]
        return self.configuration is not None and all(finding.good for finding in findings)


def print_files(reports: Sequence[FileReport], *, as_json: bool) -> None:
    """Print what ``validate`` found: one document for all files, or each file's table and notes."""
    if as_json:
        click.echo(json.dumps({"files": [_describe_file(report) for report in reports]}, indent=2))
        return
    for report in reports:
        if report.error is not None:
            print_problems(report.error)
        if report.configuration is not None:
            _print_policy(report.file, report.configuration)
        for provider, findings in (report.online or {}).items():
            for finding in findings:
                print_plain(f"{provider}: {'good' if finding.good else 'BAD'}: {finding.text}")


def print_problems(error: ConfigError) -> None:
    """Print what is wrong with a file, each with its line, and whether more may show."""
    print_plain(str(error), err=True)


def _describe_file(report: FileReport) -> dict[str, Any]:
    configuration, online = report.configuration, report.online
    described: dict[str, Any] = {"file": report.file, "good": report.good}
    described["problems"] = [
        {"file": its.file, "line": its.line, "path": its.path, "message": its.message} for its in report.problems
    ]
    if configuration is None:
        return described | {"rules": [], "guards": [], "findings": [], "providers": []}
    policy = configuration.policy
    described["rules"] = [_describe_rule(rule) for rule in policy.rules]
    described["guards"] = [_describe_guard(guard) for guard in policy.guards]
    described["findings"] = [{"rule": its.rule, "line": its.line, "text": its.text} for its in find_surprises(policy)]
    described["providers"] = [
        {
            "provider": name,
            "issuer": provider.issuer,
            "online": None if online is None else [{"good": its.good, "text": its.text} for its in online[name]],
        }
        for name, provider in configuration.providers.items()
    ]
    return described


def _describe_rule(rule: Rule) -> dict[str, Any]:
    branches = [{"provider": its.provider, "requires": list(map(str, its.tests))} for its in rule.branches]
    return {
        "rule": rule.name,
        "line": rule.line,
        "hosts": list(map(str, rule.hosts)),
        "paths": [path.text for path in rule.paths],
        "methods": None if rule.methods is None else sorted(rule.methods),
        "access": rule.access.value,
        "branches": branches,
    }


def _describe_guard(guard: Guard) -> dict[str, Any]:
    return {
        "guard": guard.name,
        "line": guard.line,
        "hosts": list(map(str, guard.hosts)),
        "paths": [path.text for path in guard.paths],
        "requires": list(map(str, guard.tests)),
    }


def _print_policy(file: str, configuration: Configuration) -> None:
    policy = configuration.policy
    _print_rows([_row(rule) for rule in policy.rules], title=file)
    for guard in policy.guards:
        covered = ", ".join(f"{host}{path.text}" for host in guard.hosts for path in guard.paths)
        print_plain(f"guard `{guard.name}` on {covered}: {'; '.join(map(str, guard.tests))}")
    for its in find_surprises(policy):
        print_plain(f"{file}:{its.line}: note: rule `{its.rule}`: {its.text}")
    counted = ((policy.rules, "rule"), (policy.guards, "guard"), (configuration.providers, "provider"))
    print_plain(f"{file}: {', '.join(count(len(parts), word) for parts, word in counted)}: good")


def _print_rows(rows: list[dict[str, list[str]]], *, title: str) -> None:
    """Print a table for eyes, and a line a rule into a pipe; never a cut value."""
    if not sys.stdout.isatty():
        for row in rows:
            facts = [(name, (" " if name == "requires" else ", ").join(lines)) for name, lines in row.items()]
            print_plain("; ".join(f"{name} {text}" for name, text in facts if text))
        return
    table = Table(title=Text(plain(title)))
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text("\n".join(map(plain, lines))) for lines in row.values()))
    Console().print(table)


def _row(rule: Rule) -> dict[str, list[str]]:
    who = rule.access.value
    if rule.access in (Access.PROVED, Access.OPTIONAL):
        names = ", ".join(branch.provider for branch in rule.branches)
        who = f"tokens of {names}" + (" or nobody" if rule.access is Access.OPTIONAL else "")
    return {
        "rule": [rule.name],
        "hosts": list(map(str, rule.hosts)),
        "paths": [path.text for path in rule.paths],
        "methods": sorted(rule.methods) if rule.methods is not None else ["every"],
        "who": [who],
        "requires": list(_render_branches(rule.branches)),
    }


def _render_branches(branches: tuple[Branch, ...]) -> Iterator[str]:
    """Yield a line a test, that read on from each other: what one provider's tokens need is nobody else's."""
    for number, branch in enumerate(branches):
        first, *others = _render_tests(branch.tests)
        named = f"{branch.provider}: {first}" if len(branches) > 1 else first
        yield f"or {named}" if number else named
        yield from (f"and {text}" for text in others)


def _render_tests(tests: tuple[Test, ...]) -> list[str]:
    return list(map(str, tests)) or ["any token"]
