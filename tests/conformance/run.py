"""Hold a server to every case: ``python -m tests.conformance.run HOST:PORT``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import Progress

from tests.conformance.compare import Asked
from tests.conformance.grpcurl import Caller, NotRunError, Target, find_grpcurl
from tests.conformance.judge import judge
from tests.conformance.load import Case, load_cases, load_identity_headers, load_statements
from tests.conformance.report import Report, Result, print_report, render_json
from tests.conformance.template import PLAIN, fill
from tests.conformance.tokens import mint, read_recipes

JOBS: Final = 4
"""Questions at a time."""

_FAILED: Final = 1
_NOT_RUN: Final = 2


def run_cases(
    caller: Caller,
    cases: Sequence[Case],
    *,
    reasons: bool = False,
    jobs: int = JOBS,
    note: Callable[[Result], object] = lambda _: None,
) -> list[Result]:
    """Ask every case and judge its answer; ``note`` is told of each as it comes.

    Raises:
        NotRunError: if one cannot be sent.

    """
    recipes = read_recipes()
    identity = load_identity_headers()

    def run(case: Case) -> Result:
        # As of now: what is just within a leeway would be outside of it at the end of a long run.
        now_s = time.time()
        used: dict[str, str] = {}

        def take(name: str) -> str:
            if name not in used:
                used[name] = mint(recipes[name], recipes, now_s=now_s)
            return used[name]

        request = fill(case.request, {**PLAIN, "token": take})
        metadata = [f"{name}: {fill(value, PLAIN)}" for name, value in case.metadata.items()]
        reply = caller.ask(request, schema=case.schema, max_time_s=case.max_time_s, metadata=metadata)
        asked = Asked(case=case, request=request, tokens=tuple(used.values()), identity=identity, reasons=reasons)
        result = Result(case=case, problems=judge(asked, reply), took_s=reply.took_s)
        note(result)
        return result

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        return list(pool.map(run, cases))


def choose_cases(groups: Sequence[str], without: Sequence[str]) -> list[Case]:
    """Return the cases of some groups, or of all but some.

    Raises:
        NotRunError: for a group that there is not.

    """
    cases = load_cases()
    known = list(dict.fromkeys(case.group for case in cases))
    for name in (*groups, *without):
        if name not in known:
            raise NotRunError(f"there is no group `{name}`: write one of {', '.join(known)}")
    return [case for case in cases if (not groups or case.group in groups) and case.group not in without]


def run(target: Target, cases: Sequence[Case], *, reflection: bool, reasons: bool, jobs: int, eyes: Console) -> Report:
    """Hold a target to some cases, showing on a terminal how far it is.

    Raises:
        NotRunError: if it cannot be reached, or a case cannot be sent.

    """
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder, _progress(eyes, len(cases)) as note:
        caller = Caller(find_grpcurl(), target, Path(folder), reflection=reflection)
        results = run_cases(caller, cases, reasons=reasons, jobs=jobs, note=note)
    return Report(
        target=target.address,
        schema=caller.schema,
        results=results,
        statements=load_statements(),
        took_s=time.monotonic() - begun_s,
    )


@contextlib.contextmanager
def _progress(eyes: Console, total: int) -> Iterator[Callable[[Result], object]]:
    if not eyes.is_terminal:
        yield lambda _: None
        return
    with Progress(console=eyes, transient=True) as bar:
        task = bar.add_task("asking", total=total)

        def note(result: Result) -> None:
            bar.update(task, advance=1, description=result.case.group)

        yield note


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="HOST:PORT")
@click.option("--json", "as_json", is_flag=True, help="one document instead of a table")
@click.option("--group", "groups", multiple=True, help="only this group of cases; may come several times")
@click.option("--without", multiple=True, help="all but this group; may come several times")
@click.option("--reasons", is_flag=True, help="compare `reason` in the metadata too, which only some servers tell")
@click.option("--schema", type=click.Choice(["reflection", "files"]), default="reflection", help="whose proto files")
@click.option("--cacert", type=click.Path(exists=True), help="TLS, with a server that this certificate signed")
@click.option("--cert", type=click.Path(exists=True), help="our certificate, for mutual TLS")
@click.option("--key", type=click.Path(exists=True), help="its key")
@click.option("--authority", help="the name that the server's certificate is for")
@click.option("--jobs", type=click.IntRange(1, 64), default=JOBS, show_default=True, help="questions at a time")
def main(
    target: str,
    as_json: bool,  # noqa: FBT001 - a flag
    groups: tuple[str, ...],
    without: tuple[str, ...],
    reasons: bool,  # noqa: FBT001 - a flag
    schema: str,
    cacert: str | None,
    cert: str | None,
    key: str | None,
    authority: str | None,
    jobs: int,
) -> None:
    """Hold the ext_authz gRPC server at HOST:PORT to Envoy's words. README.md says what it must be set to.

    The exit code is 0 if every case is as it must be, 1 if not, and 2 if they could not be asked.
    """
    words = {"-cacert": cacert, "-cert": cert, "-key": key, "-authority": authority}
    options = [word for name, value in words.items() if value for word in (name, value)]
    if cacert is None:
        options.insert(0, "-plaintext")
    eyes = Console(stderr=True)
    try:
        report = run(
            Target(address=target, options=tuple(options)),
            choose_cases(groups, without),
            reflection=schema == "reflection",
            reasons=reasons,
            jobs=jobs,
            eyes=eyes,
        )
    except NotRunError as error:
        eyes.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(_NOT_RUN)
    if as_json:
        click.echo(render_json(report))
    else:
        print_report(report, Console())
    sys.exit(_FAILED if report.failed else 0)


if __name__ == "__main__":
    main()
