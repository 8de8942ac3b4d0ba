"""The command line: serve, validate, check, schema, and ready configurations for Envoy and Istio."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn, TextIO

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz import __version__
from authz.app import App, SystemClock
from authz.clients.authenticate import Authenticator, EvidenceCache
from authz.clients.probe import probe
from authz.config import Configuration, json_schema, load
from authz.config.settings import Door
from authz.core.policy import Access, Rule
from authz.core.tables import find_surprises
from authz.curl import parse_curl, parse_json_request
from authz.envoy_config import render_envoy_config, render_istio_config
from authz.explain import Explanation, explain
from authz.lines import LineQueue
from authz.model import Allow, ConfigError, ConfigProblem, Deny, HeaderAction, Rejected, Request
from authz.observe import Observer, configure_logging
from authz.reasons import REASON_TEXT
from authz.servers.engine import find_engine
from authz.servers.envoy import parse_check
from authz.supervisor import Supervisor, choose_workers

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_BAD_CONFIG = 2
_DENIED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="authz")
def main() -> None:
    """External authorization for Envoy and Istio: deny by default, and say why."""


@main.command()
@click.argument("file", type=_FILE)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes of the fast door; the cores if not said.")
def serve(file: Path, *, workers: int | None) -> None:
    """Serve the rules of FILE until SIGTERM. SIGHUP, or a change of its files, reloads them."""
    # Until the handler of reloads is there: the system would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log, decisions = LineQueue(sys.stderr), LineQueue(sys.stdout)
    configure_logging(stream=log, colour=None)
    observer = Observer(stream=decisions)
    try:
        asyncio.run(_serve(file, observer, workers))
    except ConfigError as error:
        _refuse(error)
    finally:
        log.close()
        decisions.close()


@main.command()
@click.argument("files", type=_FILE, nargs=-1, required=True)
@click.option("--online", is_flag=True, help="Ask each provider: issuer, keys, clock, introspection client.")
@click.option("--token-file", type=_FILE, help="With --online: a token to ask the introspection endpoint about.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate(files: tuple[Path, ...], *, online: bool, token_file: Path | None, as_json: bool) -> None:
    """Check rules FILES: print every problem, or the effective table of rules. Exit code 2 if any is bad."""
    failed = False
    for file in files:
        try:
            configuration = load(file, environ=os.environ)
        except ConfigError as error:
            failed = True
            _print_problems(error, as_json=as_json)
            continue
        _print_policy(file, configuration, as_json=as_json)
        if online:
            token = token_file.read_text().strip() if token_file is not None else None
            failed = not asyncio.run(_ask_providers(configuration, token)) or failed
    sys.exit(_BAD_CONFIG if failed else 0)


@main.command()
@click.argument("file", type=_FILE)
@click.option("--request", "request_file", type=click.File("r"), help="A CheckRequest in JSON; `-` reads stdin.")
@click.option("--curl", "curl_text", help="A curl command, as pasted: \"curl -H 'authorization: …' https://…\".")
@click.option("--online", is_flag=True, help="Verify tokens with the provider's live keys.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, *, request_file: TextIO | None, curl_text: str | None, online: bool, as_json: bool) -> None:
    """Decide one request by the rules of FILE and say why. Exit code 0 for an allow, 1 for a deny."""
    if (request_file is None) == (curl_text is None):
        raise click.UsageError("name one of --request and --curl")
    try:
        configuration = load(file, environ=os.environ)
        raw = parse_curl(curl_text) if curl_text is not None else parse_json_request(_read(request_file))
        request = parse_check(raw)
    except ConfigError as error:
        _refuse(error)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except Rejected as rejected:
        click.echo(f"deny {rejected.reason}: {REASON_TEXT[rejected.reason].meaning} {rejected.detail}".rstrip())
        sys.exit(_DENIED)
    explanation = asyncio.run(_explain(configuration, request, online=online))
    _print_explanation(explanation, as_json=as_json)
    sys.exit(0 if isinstance(explanation.decision, Allow) else _DENIED)


@main.command()
def schema() -> None:
    """Print the JSON Schema of the rules file, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))


@main.command("envoy-config")
@click.argument("file", type=_FILE)
@click.option("--upstream", default="127.0.0.1:8080", show_default=True, help="The service to protect, HOST:PORT.")
@click.option("--listen", default="127.0.0.1:10000", show_default=True, help="Where Envoy listens, HOST:PORT.")
def envoy_config(file: Path, *, upstream: str, listen: str) -> None:
    """Print a complete Envoy configuration that asks this service."""
    configuration = _load(file)
    address = configuration.server.grpc[0].address
    click.echo(
        render_envoy_config(
            authz_address=address,
            upstream_address=upstream,
            listen_address=listen,
            timeout_ms=configuration.server.deadline_ms + 250,
        )
    )


@main.command("istio-config")
@click.argument("file", type=_FILE)
@click.option("--service", default="authz.authz.svc.cluster.local", show_default=True, help="This service's host name.")
@click.option("--namespace", default="istio-ingress", show_default=True, help="Where the protected workloads live.")
def istio_config(file: Path, *, service: str, namespace: str) -> None:
    """Print the meshConfig extension provider and an AuthorizationPolicy that asks this service."""
    configuration = _load(file)
    addresses = [its.address for its in configuration.server.grpc if not its.address.startswith("unix:")]
    if not addresses:
        text = "`server.grpc` has unix sockets only, which a mesh's proxies cannot reach: add a `host:port`"
        _refuse(ConfigError(ConfigProblem(message=text, file=str(file), path="server.grpc")))
    port = int(addresses[0].rpartition(":")[2])
    click.echo(render_istio_config(service=service, port=port, namespace=namespace))


@main.command()
@click.option("--once", is_flag=True, help="End after the table: exit code 0 only if every row came out as expected.")
def demo(*, once: bool) -> None:
    """Watch a real Envoy let the right requests through and turn the wrong ones away."""
    from authz.demo.run import run_demo  # noqa: PLC0415 - only the demo needs Envoy and the demo's provider

    sys.exit(run_demo(once=once, console=Console(soft_wrap=not sys.stdout.isatty())))


async def _serve(file: Path, observer: Observer, workers: int | None) -> None:
    configuration = load(file, environ=os.environ)
    if configuration.server.door is Door.FAST:
        count = choose_workers(configuration, workers)
        engine = find_engine(os.environ)
        await Supervisor(file, configuration, engine, workers=count, observer=observer).run()
        return
    if workers is not None and workers > 1:
        text = "the door `grpcio` has one process: several workers need `server.door: fast`"
        raise ConfigError(ConfigProblem(message=text, file=str(file), path="server.workers"))
    await App(file, environ=os.environ, observer=observer, configuration=configuration).run()


def _load(file: Path) -> Configuration:
    try:
        return load(file, environ=os.environ)
    except ConfigError as error:
        _refuse(error)


def _refuse(error: ConfigError) -> NoReturn:
    _print_problems(error, as_json=False)
    sys.exit(_BAD_CONFIG)


def _read(file: TextIO | None) -> str:
    return "" if file is None else file.read()


def _print_problems(error: ConfigError, *, as_json: bool) -> None:
    if as_json:
        problems = [
            {"file": its.file, "line": its.line, "path": its.path, "message": its.message} for its in error.problems
        ]
        click.echo(json.dumps({"problems": problems}, indent=2))
        return
    for problem in error.problems:
        click.echo(str(problem), err=True)


def _print_policy(file: Path, configuration: Configuration, *, as_json: bool) -> None:
    policy = configuration.policy
    surprises = list(find_surprises(policy))
    rows = [_row(rule) for rule in policy.rules]
    if as_json:
        found = [{"rule": its.rule, "line": its.line, "text": its.text} for its in surprises]
        click.echo(json.dumps({"file": str(file), "rules": rows, "findings": found}, indent=2))
        return
    _print_rows(rows, title=str(file))
    for guard in policy.guards:
        covered = ", ".join(f"{host}{path.text}" for host in guard.hosts for path in guard.paths)
        click.echo(f"guard `{guard.name}` on {covered}: {'; '.join(map(str, guard.tests))}")
    for its in surprises:
        click.echo(f"{file}:{its.line}: note: rule `{its.rule}`: {its.text}")
    counts = f"{len(policy.rules)} rules, {len(policy.guards)} guards, {len(configuration.providers)} providers"
    click.echo(f"{file}: {counts}: good")


def _print_rows(rows: list[dict[str, str]], *, title: str) -> None:
    """Print a table for eyes, and a line a rule into a pipe; never a cut value."""
    if not sys.stdout.isatty():
        for row in rows:
            facts = "; ".join(f"{name} {', '.join(text.split(chr(10)))}" for name, text in row.items() if text)
            click.echo(facts)
        return
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(text) for text in row.values()))
    Console().print(table)


def _row(rule: Rule) -> dict[str, str]:
    who = rule.access.value
    if rule.access in (Access.PROVED, Access.OPTIONAL):
        names = ", ".join(branch.provider for branch in rule.branches)
        who = f"tokens of {names}" + (" or nobody" if rule.access is Access.OPTIONAL else "")
    return {
        "rule": rule.name,
        "hosts": "\n".join(map(str, rule.hosts)),
        "paths": "\n".join(path.text for path in rule.paths),
        "methods": ", ".join(sorted(rule.methods)) if rule.methods is not None else "every",
        "who": who,
        "requires": "\n".join(str(test) for branch in rule.branches for test in branch.tests),
    }


async def _ask_providers(configuration: Configuration, token: str | None) -> bool:
    clock = SystemClock()
    cache = EvidenceCache(max_bytes=1 << 20, clock=clock.monotonic_s)
    observer = Observer(stream=sys.stderr)
    good = True
    for provider in configuration.providers.values():
        authenticator = Authenticator(provider, cache=cache, clock=clock, events=observer)
        await authenticator.start()
        findings = await probe(authenticator, token, clock=clock)
        await authenticator.close()
        for finding in findings:
            good = good and finding.good
            click.echo(f"{provider.name}: {'good' if finding.good else 'BAD'}: {finding.text}")
    return good


async def _explain(configuration: Configuration, request: Request, *, online: bool) -> Explanation:
    if not online:
        return await explain(configuration.policy, configuration.providers, request, now_s=time.time())
    clock = SystemClock()
    cache = EvidenceCache(max_bytes=1 << 20, clock=clock.monotonic_s)
    observer = Observer(stream=sys.stderr)
    authenticators = {
        name: Authenticator(provider, cache=cache, clock=clock, events=observer)
        for name, provider in configuration.providers.items()
    }
    try:
        await asyncio.gather(*(its.start() for its in authenticators.values()))
        return await explain(
            configuration.policy, configuration.providers, request, now_s=clock.now_s(), authenticators=authenticators
        )
    finally:
        for its in authenticators.values():
            await its.close()


def _print_explanation(explanation: Explanation, *, as_json: bool) -> None:
    decision = explanation.decision
    edits = decision.upstream if isinstance(decision, Allow) else decision.headers
    headers = [
        f"{edit.action} {edit.name}" + (f": {edit.value}" if edit.action is not HeaderAction.REMOVE else "")
        for edit in edits
    ]
    if as_json:
        steps = [{"stage": its.stage, "held": its.held, "text": its.text} for its in explanation.steps]
        answer: dict[str, object] = {"decision": "allow", "rule": decision.rule, "steps": steps, "headers": headers}
        if isinstance(decision, Deny):
            answer |= {
                "decision": "deny",
                "reason": decision.reason,
                "status": decision.status,
                "guard": decision.guard,
            }
        click.echo(json.dumps(answer, indent=2))
        return
    marks = {True: "yes ", False: "NO  ", None: "    "}
    for step in explanation.steps:
        click.echo(f"{marks[step.held]}{step.stage}: {step.text}")
    if isinstance(decision, Deny):
        text = REASON_TEXT[decision.reason]
        click.secho(f"deny {decision.status} {decision.reason}", fg="red", bold=True)
        click.echo(f"{text.meaning}\n{text.remedy}")
    else:
        click.secho(f"allow by rule `{decision.rule}`", fg="green", bold=True)
    for line in headers:
        click.echo(f"  {line}")
