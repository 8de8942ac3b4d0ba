"""What is promised of the service's speed, and whether a run shows it. Figures are ratios within the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from statistics import median
from typing import Final

from load import Result
from long import PROVIDER_S, TOKENS, Memory, Reloads, Soak
from proxy import PLAIN
from report import Report, Row, Target

FAST, GRPCIO, HEIMDALL = "authz, fast", "authz, grpcio", "heimdall"
LEAST_CORES: Final = 4


def judge_rows(report: Report) -> Iterator[Target]:
    """Judge what checks cost, of a peer and of doing nothing."""
    zipf = [its for its in report.groups() if its[0].startswith("Zipf")]
    for server, most in ((FAST, 0.25), (GRPCIO, 1.0)):
        ratios = [its for what, load in zipf if (its := report.ratio(what, load, server, HEIMDALL)) is not None]
        yield _judge(f"Zipf tokens, {server}: CPU of heimdall's (which verifies each time)", ratios, most)
    new = [its for its in report.groups() if its[0] == "every token new (RS256)"]
    ratios = [its for what, load in new if (its := report.ratio(what, load, FAST, HEIMDALL)) is not None]
    yield _judge(f"every token new, {FAST}: CPU of heimdall's", ratios, 0.5)
    for door in ("fast", "grpcio"):
        name = f"one token, {door}: µs above a server that parses the same and returns the same bytes"
        what, load = next(its for its in report.groups() if its[0].startswith("one token"))
        ours, nothing = (report.cpu_us(what, f"{its}, {door}", load) for its in ("authz", "nothing"))
        if ours is not None and nothing is not None:
            yield Target(name, "25", f"{ours - nothing:.0f} ({ours:.0f}, nothing {nothing:.0f})", ours - nothing <= 25)
    for server in (FAST, GRPCIO):
        few, many = (report.cpu_us(f"random hits, {rules} rules", server) for rules in ("10", "10,000"))
        if few is not None and many is not None:
            yield Target(f"10,000 rules against 10, {server}: CPU", "1.1", f"{many / few:.2f}", many / few <= 1.1)


def _judge(work: str, ratios: list[float], most: float) -> Target:
    if not ratios:
        return Target(work, f"{most:g}", "no such peer here", None)
    return Target(work, f"{most:g}", f"{min(ratios):.2f} to {max(ratios):.2f}", max(ratios) <= most)


def judge_proxy(rows: list[Row]) -> Iterator[Target]:
    """Judge what is added to a request through Envoy."""
    plain = next(its for its in rows if its.server == PLAIN)
    peer = next((its for its in rows if its.server == f"Envoy, {HEIMDALL}"), None)
    for server in (FAST, GRPCIO):
        ours = next((its for its in rows if its.server == f"Envoy, {server}"), None)
        if ours is None:
            continue
        for name, field in (("p99", "p99_us"), ("p99.9", "p999_us")):
            base = median(getattr(plain, field))
            mine = median(getattr(ours, field)) - base
            work = f"added {name} through Envoy, {server}: of heimdall's"
            if peer is None:
                yield Target(work, "0.5", f"{mine:.0f} µs; no such peer here", None)
                continue
            theirs = median(getattr(peer, field)) - base
            yield Target(work, "0.5", f"{mine / theirs:.2f} ({mine:.0f} µs of {theirs:.0f})", mine <= theirs / 2)


def judge_reload(server: str, found: Reloads) -> Iterator[Target]:
    """Judge the compiling of very many rules."""
    yield Target(f"10,000 rules compiled, {server}", "5 s", f"{found.seconds:.1f} s", found.seconds <= 5)
    ratio = found.p99_us / found.usual_p99_us
    text = f"{ratio:.1f} ({found.p99_us:.0f} µs, usual {found.usual_p99_us:.0f})"
    yield Target(f"p99 while they are compiled, {server}: of the usual", "2", text, ratio <= 2)


def judge_memory(server: str, found: Memory) -> Iterator[Target]:
    """Judge the memory with very many tokens."""
    full = found.full_bytes / 1e6
    kept = f"{found.entries:,} kept by {found.workers} workers, {found.empty_bytes / 1e6:.0f} MB before"
    met = full <= 512 and found.entries >= TOKENS
    yield Target(f"whole memory (PSS), 100,000 tokens kept, {server}", "512 MB", f"{full:.0f} MB ({kept})", met)


def judge_ready(server: str, seconds: float) -> Target:
    """Judge the start."""
    return Target(f"start to ready, {server}", "1.5 s", f"{seconds:.2f} s", seconds <= 1.5)


def judge_introspection(server: str, found: Result) -> Target:
    """Judge a slow provider: what is above its own time."""
    above_ms = found.percentile_us(0.99) / 1e3 - PROVIDER_S * 1e3
    rate = found.calls / found.seconds
    work = f"1,000 new opaque tokens a second, 50 ms at the provider, {server}: p99 above that"
    return Target(
        work,
        "20 ms",
        f"{above_ms:.0f} ms at {rate:,.0f}/s, {found.bad + found.lost} bad",
        above_ms <= 20 and not found.bad + found.lost,
    )


def judge_soak(server: str, found: Soak) -> Target:
    """Judge a long run."""
    growth = found.late_bytes / max(1, found.early_bytes) - 1
    text = f"{found.calls:,} calls at {found.rate:,.0f}/s, {found.wrong} wrong, {found.lost} lost, "
    text += f"{found.reloads} reloads, "
    text += f"{found.rotations} rotations, memory {growth:+.1%}"
    return Target(f"{found.seconds / 60:.0f} minutes at 70 % of peak, {server}", "0 wrong, +2 %", text,
                  found.wrong == 0 and growth <= 0.02)  # fmt: skip


def judge_cores() -> Target:
    """Say why more workers were not compared with fewer."""
    cores = len(os.sched_getaffinity(0))
    return Target("two workers against one", "1.8", f"needs {LEAST_CORES} free cores; here are {cores}", None)
