"""Generate the tables of ``docs/`` from the code; with ``--check`` only report what differs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chart_values import render_chart_readme

from authz.mesh.traps import TRAPS, Trap
from authz.model import REASONS, Reason
from authz.reasons import REASON_TEXT

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- from the code: make docs -->\n", "<!-- end -->\n"


def render_reasons() -> str:
    """Write the table of Reasons."""
    lines = [
        "# Reasons",
        "",
        "Why a request was denied: stable slugs in the decision log, the metrics and Envoy's dynamic metadata.",
        "The client never sees them; it sees the status and, for a token, RFC 6750's error code.",
        "",
        "| reason | status | error | meaning | what to do |",
        "|---|---|---|---|---|",
    ]
    for reason in Reason:
        outcome, text = REASONS[reason], REASON_TEXT[reason]
        lines.append(f"| `{reason}` | {outcome.status} | {outcome.error or ''} | {text.meaning} | {text.remedy} |")
    return "\n".join(lines) + "\n"


def render_istio() -> str:
    """Write the table of what ``istio-check`` finds into its page, the rest of which is written by hand."""
    before, _, rest = (ROOT / "docs/istio.md").read_text().partition(BEGIN)
    lines = ["| finding | is | what it means | instead |", "|---|---|---|---|"]
    for trap in Trap:
        text = TRAPS[trap]
        meaning, remedy = (its.replace("|", "\\|") for its in (text.meaning, text.remedy))
        lines.append(f"| `{trap}` | {text.severity} | {meaning} | {remedy} |")
    return before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


PAGES = {
    "docs/reasons.md": render_reasons,
    "docs/istio.md": render_istio,
    "manifests/chart/README.md": render_chart_readme,
}


def main() -> None:
    """Write the pages, or say which are not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is not current")
    check = parser.parse_args().check
    stale = []
    for name, render in PAGES.items():
        path, text = ROOT / name, render()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if check and stale:
        sys.exit(f"run make docs: {', '.join(stale)} differ from the code")


if __name__ == "__main__":
    main()
