"""The command line: serve, validate, check, schema, and ready configurations for Envoy and Istio."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import click
from rich.console import Console

from authz import __version__
from authz.app import App
from authz.config import Configuration, json_schema, load
from authz.config.settings import Door, Listener
from authz.core.jwt import MAX_TOKEN_BYTES
from authz.curl import MAX_REQUEST_BYTES, parse_curl, parse_json_request
from authz.dry_run import log_to_stderr, try_file, try_request
from authz.envoy_config import parse_address, render_envoy_config
from authz.istio_config import PROVIDER, Workloads, parse_labels, render_istio_config, spell_hosts
from authz.lines import LineQueue
from authz.mesh.check import check_mesh
from authz.mesh.objects import read_objects
from authz.mesh.traps import Severity
from authz.model import Allow, ConfigError, ConfigProblem
from authz.observe import Observer
from authz.proxy_tls import FILL_IN, FILL_IN_NAME, ProxyTls, read_server_name
from authz.report.decision import print_explanation
from authz.report.files import print_files, print_problems
from authz.report.mesh import print_mesh
from authz.servers.engine import find_engine
from authz.supervisor import Supervisor, choose_workers
from authz.turns import making_what_stays

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_MANIFESTS: Final = click.Path(exists=True, allow_dash=True, path_type=Path)
_BAD_CONFIG: Final = 2
_DENIED: Final = 1
_FOUND: Final = 1
_UNDECIDED: Final = 3
_PROXY_MARGIN_MS: Final = 250
"""How much longer a proxy waits than a check may take, so that the answer is ours."""

_TLS_OPTIONS: Final[Mapping[str, str]] = {
    "ca-file": "With `tls`: the authority of this service's certificate, on the proxy's machine.",
    "server-name": "With `tls`: the name in this service's certificate, if not the first that it holds.",
    "client-cert": "With `client_ca_file`: the proxy's certificate, on its machine.",
    "client-key": "With `client_ca_file`: the certificate's key, on the proxy's machine.",
}

_WORKLOAD_OPTIONS: Final[Mapping[str, str]] = {
    "selector": "Ask for the workloads with these labels only: app=orders.",
    "gateway": "Ask at this Gateway of the Gateway API only.",
    "waypoint-for": "Ask at the waypoint of this Service only (ambient).",
}


def _check_called(_: click.Context, __: click.Parameter, value: str) -> str:
    return _check_address(value, listen=False)


def _check_listened(_: click.Context, __: click.Parameter, value: str) -> str:
    return _check_address(value, listen=True)


def _check_address(value: str, *, listen: bool) -> str:
    try:
        return parse_address(value, listen=listen)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="authz")
def main() -> None:
    """External authorization for Envoy and Istio: deny by default, and say why."""


@main.command()
@click.argument("file", type=_FILE)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes; as many as cores if not said.")
def serve(file: Path, *, workers: int | None) -> None:
    """Serve the rules of FILE until SIGTERM. SIGHUP, or a change of its files, reloads them."""
    # Until the handler of reloads is there: the system would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    decisions = LineQueue(sys.stdout)
    with log_to_stderr():
        try:
            asyncio.run(_serve(file, Observer(stream=decisions), workers))
        except ConfigError as error:
            _refuse(error)
        finally:
            decisions.close()


@main.command()
@click.argument("files", type=_FILE, nargs=-1, required=True)
@click.option("--online", is_flag=True, help="Ask each provider: issuer, keys, clock, introspection client.")
@click.option("--token-file", type=_FILE, help="With --online: a token to ask the introspection endpoint about.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document for all files.")
def validate(files: tuple[Path, ...], *, online: bool, token_file: Path | None, as_json: bool) -> None:
    """Check rules FILES: print every problem, or the effective table of rules. Exit code 2 if any is bad."""
    if token_file is not None and not online:
        raise click.UsageError("--token-file needs --online: a token is shown to its provider only")
    token = None if token_file is None else _read_token(token_file)
    reports = [try_file(file, token, online=online) for file in files]
    print_files(reports, as_json=as_json)
    sys.exit(0 if all(report.good for report in reports) else _BAD_CONFIG)


@main.command()
@click.argument("file", type=_FILE)
@click.option("--request", "request_file", type=click.File("rb"), help="A CheckRequest in JSON; `-` reads stdin.")
@click.option("--curl", "curl_text", help="A curl command, as pasted: \"curl -H 'authorization: …' https://…\".")
@click.option("--online", is_flag=True, help="Verify tokens with the provider's live keys, and by introspection.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, *, request_file: BinaryIO | None, curl_text: str | None, online: bool, as_json: bool) -> None:
    """Decide one request by the rules of FILE and say why.

    Exit code 0 for an allow, 1 for a deny, 3 where only --online can tell.
    """
    if (request_file is None) == (curl_text is None):
        raise click.UsageError("name one of --request and --curl")
    configuration = _load(file)
    try:
        raw = parse_json_request(_read(request_file)) if curl_text is None else parse_curl(curl_text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with log_to_stderr():
        explanation = asyncio.run(try_request(configuration, raw, online=online))
    print_explanation(explanation, as_json=as_json)
    decision = explanation.decision
    sys.exit(_UNDECIDED if decision is None else 0 if isinstance(decision, Allow) else _DENIED)


@main.command()
def schema() -> None:
    """Print the JSON Schema of the rules file, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))


def _tls_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for what stands on the proxy's side, where this service speaks TLS."""
    for name, text in reversed(tuple(_TLS_OPTIONS.items())):  # the last one added is shown first
        command = click.option(f"--{name}", help=text)(command)
    return command


@main.command("envoy-config")
@click.argument("file", type=_FILE)
@click.option(
    "--upstream",
    default="127.0.0.1:8080",
    show_default=True,
    callback=_check_called,
    help="The service to protect, HOST:PORT.",
)
@click.option(
    "--listen",
    default="127.0.0.1:10000",
    show_default=True,
    callback=_check_listened,
    help="Where Envoy listens, IP:PORT.",
)
@_tls_options
def envoy_config(file: Path, *, upstream: str, listen: str, **tls: str | None) -> None:
    """Print a complete Envoy configuration that asks this service."""
    server = _load(file).server
    listener = server.grpc[0]
    if _match_port(listener) == 0:
        _refuse(_no_port(file))
    text = render_envoy_config(
        authz_address=listener.address,
        authz_tls=_proxy_tls(listener, tls),
        upstream_address=upstream,
        listen_address=listen,
        timeout_ms=server.deadline_ms + _PROXY_MARGIN_MS,
    )
    click.echo(text)


def _workload_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which workloads ask."""
    for name, text in reversed(tuple(_WORKLOAD_OPTIONS.items())):  # the last one added is shown first
        command = click.option(f"--{name}", help=text)(command)
    return command


@main.command("istio-config")
@click.argument("file", type=_FILE)
@click.option("--service", default="authz.authz.svc.cluster.local", show_default=True, help="This service's host name.")
@click.option("--namespace", default="istio-ingress", show_default=True, help="Where the protected workloads live.")
@_workload_options
@click.option("--hosts", "by_hosts", is_flag=True, help="For gateways: ask about the hosts of the rules only.")
@_tls_options
def istio_config(file: Path, *, service: str, namespace: str, by_hosts: bool, **options: str | None) -> None:
    """Print the meshConfig extension provider and an AuthorizationPolicy that asks this service.

    The policy asks about every request, or with --hosts about every request for the hosts of the rules: never about
    some paths only, since what Istio does not match is never checked.
    """
    workloads = _parse_workloads(namespace, {name: options.pop(name.replace("-", "_")) for name in _WORKLOAD_OPTIONS})
    if by_hosts and workloads.service is not None:
        raise click.UsageError("a waypoint passes every host on to its service: leave out --hosts")
    configuration = _load(file)
    server = configuration.server
    listener = next((its for its in server.grpc if _match_port(its) is not None), None)
    if listener is None:
        text = "`server.grpc` has unix sockets only, which a mesh's proxies cannot reach: add a `host:port`"
        _refuse(ConfigError(ConfigProblem(message=text, file=str(file), path="server.grpc")))
    port = _match_port(listener)
    if not port:
        _refuse(_no_port(file))
    text = render_istio_config(
        service=service,
        port=port,
        workloads=workloads,
        timeout_ms=server.deadline_ms + _PROXY_MARGIN_MS,
        tls=_proxy_tls(listener, options),
        hosts=_spell_hosts(configuration) if by_hosts else (),
    )
    click.echo(text)


@main.command("istio-check")
@click.argument("files", type=_MANIFESTS, nargs=-1, required=True)
@click.option("--rules", "rules_file", type=_FILE, help="The rules file: its hosts, identity headers and limits count.")
@click.option("--provider", default=PROVIDER, show_default=True, help="The extension provider that is this service.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def istio_check(files: tuple[Path, ...], *, rules_file: Path | None, provider: str, as_json: bool) -> None:
    """Say what the mesh's own objects in FILES leave open around this service.

    FILES are manifests, what `kubectl get -A -o yaml` prints, Helm values or a meshConfig; folders of them; `-` for
    stdin. Exit code 0 if nothing is open and nothing fails, 1 if something is or does, 2 for what cannot be read.
    """
    rules = None if rules_file is None else _load(rules_file)
    objects, problems = read_objects(files, sys.stdin.buffer)
    findings = check_mesh(objects, provider=provider, rules=rules, rules_file=str(rules_file or ""))
    print_mesh(findings, problems, objects=len(objects), as_json=as_json)
    found = any(its.severity is not Severity.NOTE for its in findings)
    sys.exit(_BAD_CONFIG if problems else _FOUND if found else 0)


@main.command()
@click.option("--once", is_flag=True, help="End after the table: exit code 0 only if every row came out as expected.")
def demo(*, once: bool) -> None:
    """Watch a real Envoy let the right requests through and turn the wrong ones away."""
    from authz.demo.run import run_demo  # noqa: PLC0415 - only the demo needs Envoy and the demo's provider

    sys.exit(run_demo(once=once, console=Console(soft_wrap=not sys.stdout.isatty())))


async def _serve(file: Path, observer: Observer, workers: int | None) -> None:
    with making_what_stays():
        configuration = load(file, environ=os.environ)
    engine = find_engine(os.environ) if configuration.server.door is Door.FAST else None
    count = choose_workers(configuration, workers)
    if engine is not None or count > 1:
        await Supervisor(file, configuration, engine, workers=count, observer=observer).run()
        return
    await App(file, environ=os.environ, observer=observer, configuration=configuration).run()


def _load(file: Path) -> Configuration:
    try:
        return load(file, environ=os.environ)
    except ConfigError as error:
        _refuse(error)


def _refuse(error: ConfigError) -> NoReturn:
    print_problems(error)
    sys.exit(_BAD_CONFIG)


def _read(file: BinaryIO | None) -> bytes:
    try:
        return b"" if file is None else file.read(MAX_REQUEST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the request cannot be read: {(error.strerror or 'unreadable').lower()}") from None


def _read_token(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            token = opened.read(2 * MAX_TOKEN_BYTES).decode("ascii").strip()
    except OSError as error:
        raise click.UsageError(f"--token-file cannot be read: {(error.strerror or 'unreadable').lower()}") from None
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable() or len(token) > MAX_TOKEN_BYTES:
        raise click.UsageError(f"--token-file must hold one token, of at most {MAX_TOKEN_BYTES} characters")
    return token


def _match_port(listener: Listener) -> int | None:
    """Return the listener's port, None for a unix socket."""
    return None if listener.address.startswith("unix:") else int(listener.address.rpartition(":")[2])


def _parse_workloads(namespace: str, options: Mapping[str, str | None]) -> Workloads:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    for name, value in {"namespace": namespace, **options}.items():
        if value == "":
            raise click.UsageError(f"--{name} is empty: write a name, or leave it out")
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]}: name one of them, a policy takes no two")
    selector = options["selector"]
    try:
        labels = {} if selector is None else parse_labels(selector)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return Workloads(namespace=namespace, labels=labels, gateway=options["gateway"], service=options["waypoint-for"])


def _spell_hosts(configuration: Configuration) -> tuple[str, ...]:
    """Return the hosts to write, none where only every request leaves nothing out."""
    try:
        return spell_hosts(configuration.policy)
    except ValueError as error:
        click.echo(f"# --hosts: {error}, so the policy asks about every request")
        return ()


def _no_port(file: Path) -> ConfigError:
    text = "port 0 is chosen anew at each start: write the port that the proxy is to call"
    return ConfigError(ConfigProblem(message=text, file=str(file), path="server.grpc"))


def _proxy_tls(listener: Listener, options: Mapping[str, str | None]) -> ProxyTls | None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if listener.tls is None:
        if given:
            raise click.UsageError(f"`{listener.address}` under `server.grpc` has no `tls`: leave out {given[0]}")
        return None
    mutual = listener.tls.client_ca_file is not None
    if not mutual and {"--client-cert", "--client-key"}.intersection(given):
        raise click.UsageError("the service asks for no client certificate: leave it out, or set `client_ca_file`")
    return ProxyTls(
        server_name=options["server_name"] or read_server_name(listener.tls.cert_file) or FILL_IN_NAME,
        ca_file=options["ca_file"] or f"{FILL_IN}/ca.pem",
        client_cert_file=(options["client_cert"] or f"{FILL_IN}/client.pem") if mutual else None,
        client_key_file=(options["client_key"] or f"{FILL_IN}/client.key") if mutual else None,
    )
