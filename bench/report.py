"""What was measured, as tables for eyes, Markdown and a plot."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from load import Result
from rich.console import Console
from rich.table import Table


@dataclass(slots=True)
class Row:
    """One server under one load: a value for each round."""

    what: str
    server: str
    load: str
    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    p999_us: list[float] = field(default_factory=list)
    calls: int = 0
    bad: int = 0

    def add(self, result: Result, cpu_s: float) -> None:
        """Note one round."""
        calls = max(1, result.calls)
        self.cpu_us.append(cpu_s * 1e6 / calls)
        self.rate.append(result.calls / result.seconds)
        self.p50_us.append(result.percentile_us(0.50))
        self.p99_us.append(result.percentile_us(0.99))
        self.p999_us.append(result.percentile_us(0.999))
        self.calls += result.calls
        self.bad += result.bad + result.lost

    def cells(self) -> tuple[str, ...]:
        """Render for a table: medians, and the least and the most CPU of a round."""
        spread = f"{min(self.cpu_us):.0f}-{max(self.cpu_us):.0f}"
        rate, p50, p99, p999 = (f"{median(its):,.0f}" for its in (self.rate, self.p50_us, self.p99_us, self.p999_us))
        return f"{median(self.cpu_us):.1f}", spread, rate, p50, p99, p999, str(self.bad)


HEAD = ("CPU µs", "rounds", "checks/s", "p50 µs", "p99 µs", "p99.9 µs", "bad")


@dataclass(frozen=True, slots=True)
class Target:
    """One promise: what was measured, what was promised, the figure, and whether it holds; None if not shown here."""

    work: str
    target: str
    figure: str
    met: bool | None

    def cells(self) -> tuple[str, str, str, str]:
        """Render for a table."""
        verdict = "not shown" if self.met is None else "met" if self.met else "not met"
        return self.work, self.target, self.figure, verdict


@dataclass(slots=True)
class Report:
    """All of one run."""

    rows: list[Row] = field(default_factory=list)
    servers: dict[str, str] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def cpu_us(self, what: str, server: str, load: str | None = None) -> float | None:
        """Return the median CPU time of a check."""
        found = [its for its in self.rows if (its.what, its.server) == (what, server) and load in (None, its.load)]
        return median(found[0].cpu_us) if found else None

    def groups(self) -> list[tuple[str, str]]:
        """Return each kind of work with its load, in order."""
        return list(dict.fromkeys((its.what, its.load) for its in self.rows))

    def ratio(self, what: str, load: str, server: str, other: str) -> float | None:
        """Return how much of the other's CPU time a check costs."""
        ours, theirs = self.cpu_us(what, server, load), self.cpu_us(what, other, load)
        return None if ours is None or not theirs else ours / theirs

    def show(self, console: Console) -> None:
        """Print one table for each kind of work."""
        for what, load in self.groups():
            table = Table("server", *HEAD, title=f"{what}; {load}")
            for its in self.rows:
                if (its.what, its.load) == (what, load):
                    table.add_row(its.server, *its.cells())
            console.print(table)
        for line in self.summary():
            console.print(line, markup=False, highlight=False)
        table = Table("work", "target", "figure", "", title="targets")
        for target in self.targets:
            table.add_row(*target.cells())
        console.print(table)

    def summary(self) -> list[str]:
        """Return the ratios that matter, a line each."""
        lines = []
        for what, load in self.groups():
            for door in ("fast", "grpcio"):
                ours = f"authz, {door}"
                for other in ("heimdall", "opa"):
                    ratio = self.ratio(what, load, ours, other)
                    if ratio is not None:
                        lines.append(f"{what}; {load}: {ours} takes {ratio:.2f} of the CPU of {other}")
                mine, nothing = self.cpu_us(what, ours, load), self.cpu_us(what, f"nothing, {door}", load)
                if mine is not None and nothing is not None:
                    more = f"{mine - nothing:.0f} µs above doing nothing ({nothing:.0f} µs)"
                    lines.append(f"{what}; {load}: {ours} {mine:.0f} µs, {more}")
        for name, size in self.memory.items():
            lines.append(f"memory of {name}: {size / 1e6:.0f} MB (PSS of all its processes)")
        for name, seconds in self.ready_s.items():
            lines.append(f"{name}: ready {seconds:.2f} s after its start")
        return lines

    def write(self, folder: Path) -> None:
        """Write results.json, results.md and results.png."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        lines = [f"Python {platform.python_version()}, one pinned core.", ""]
        lines += [f"* {name}: {what}" for name, what in self.servers.items()]
        lines += ["", "| work | target | figure | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(its.cells())} |" for its in self.targets]
        for what, load in self.groups():
            lines += [
                "",
                f"## {what}; {load}",
                "",
                "| server | " + " | ".join(HEAD) + " |",
                "|---" * (len(HEAD) + 1) + "|",
            ]
            for its in self.rows:
                if (its.what, its.load) == (what, load):
                    lines.append(f"| {its.server} | " + " | ".join(its.cells()) + " |")
        lines += ["", "## In short", "", *(f"* {line}" for line in self.summary())]
        (folder / "results.md").write_text("\n".join(lines) + "\n")
        self._plot(folder / "results.png")

    def _plot(self, file: Path) -> None:
        """Draw the CPU time of a check, a bar for each server, a group for each kind of work under closed load."""
        import matplotlib as mpl  # noqa: PLC0415 - only who writes a report needs it

        mpl.use("Agg")
        import matplotlib.pyplot as plt  # noqa: PLC0415 - as above

        groups = [(what, load) for what, load in self.groups() if "in flight" in load]
        names = list(dict.fromkeys(its.server for its in self.rows))
        figure, axes = plt.subplots(figsize=(11, 1.2 + 0.9 * len(groups)))
        height = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            values = [self.cpu_us(what, name, load) or 0 for what, load in groups]
            places = [at + number * height for at in range(len(groups))]
            bars = axes.barh(places, values, height, label=name)
            axes.bar_label(bars, [f"{value:.0f}" if value else "" for value in values], padding=2, fontsize=7)
        axes.set_yticks([at + 0.4 for at in range(len(groups))], [what for what, _ in groups], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("CPU µs of one check, process tree on one pinned core (less is better)")
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(file, dpi=110)
