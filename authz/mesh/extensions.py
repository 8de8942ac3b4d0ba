"""Extension providers, and the way from the proxies to their service."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from authz.config import Configuration
from authz.mesh.facts import Extension, Scope, parse_duration_s
from authz.mesh.objects import MESH_CONFIG, MeshObject, as_items, as_mapping, as_text, as_texts
from authz.mesh.survey import Survey, find_keys, report
from authz.mesh.traps import MeshFinding, Trap
from authz.pb.envoy.type.v3.http_status_pb2 import StatusCode

STATUSES: Final = frozenset(StatusCode.values())
"""What Envoy knows as a status."""

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_GRPC: Final = frozenset({"grpc", "http2", "kubernetes.io/h2c"})


def check_extensions(survey: Survey) -> Iterator[MeshFinding]:
    """Find what is wrong with the ext_authz providers."""
    counts = Counter(_identify(its) for its in survey.extensions)
    missing: set[str] = set()
    for extension in survey.extensions:
        yield from _check_form(extension, twice=counts[_identify(extension)] > 1)
        yield from _check_outage(extension)
        if not extension.grpc:
            yield report(Trap.HTTP_PROVIDER, extension, (), "it is of type `envoyExtAuthzHttp`")
        if survey.rules is not None and extension.name == survey.ours:
            yield from _check_limits(survey.rules, extension)
        service = find_service(survey, extension)
        if service is not None:
            yield from _check_service(survey, extension, service)
        elif extension.host and extension.host not in missing:
            missing.add(extension.host)
            text = f"the Service or ServiceEntry of `{extension.host}`: its port is not judged"
            yield report(Trap.NOT_GIVEN, extension, ("service",), text)
        yield from _check_sidecars(survey, extension)


def _identify(extension: Extension) -> tuple[str, str, int]:
    """Return its name, and which meshConfig it stands in: two of them are two meshes, or two ways to write one."""
    return extension.name, extension.mesh_config.file, extension.mesh_config.line()


def _check_form(extension: Extension, *, twice: bool) -> Iterator[MeshFinding]:
    settings = extension.settings
    wrong: list[tuple[str, str]] = []
    if not _NAME.fullmatch(extension.name):
        wrong.append(("", f"`{extension.name}` is no name: lower case letters, digits and `-`, at most 63"))
    if twice:
        wrong.append(("", "another provider has the same name"))
    if not as_text(settings.get("service")):
        wrong.append(("service", "no `service`: write the host of this service"))
    if not extension.port:
        wrong.append(("port", "no `port`: write the number of the Service's port"))
    timeout = settings.get("timeout")
    if timeout is not None and parse_duration_s(timeout) is None:
        wrong.append(("timeout", f"`{timeout}` is no duration: write one such as `1.25s`"))
    status = settings.get("statusOnError")
    if status is not None and not (isinstance(status, str) and status.isdecimal() and int(status) in STATUSES):
        wrong.append(("statusOnError", f'`{status}` is no status that Envoy knows: write a text such as `"503"`'))
    fail_open = settings.get("failOpen")
    if fail_open is not None and not isinstance(fail_open, bool):
        wrong.append(("failOpen", f"`{fail_open}` is neither `true` nor `false`"))
    for key, text in wrong:
        yield report(Trap.PROVIDER_INVALID, extension, (key,) if key else (), text)


def _check_outage(extension: Extension) -> Iterator[MeshFinding]:
    settings = extension.settings
    if settings.get("timeout") is None:
        yield report(Trap.TIMEOUT_MISSING, extension, (), "no `timeout`")
    if settings.get("statusOnError") is None:
        yield report(Trap.STATUS_ON_ERROR_MISSING, extension, (), "no `statusOnError`")
    if settings.get("failOpen") is True:
        yield report(Trap.FAIL_OPEN, extension, ("failOpen",), "`failOpen: true`")


def _check_limits(rules: Configuration, extension: Extension) -> Iterator[MeshFinding]:
    server = rules.server
    timeout_s = parse_duration_s(extension.settings.get("timeout"))
    if timeout_s is not None and timeout_s * 1_000 < server.deadline_ms:
        text = f"`timeout` is {timeout_s:g} s, `server.deadline_ms` is {server.deadline_ms}"
        yield report(Trap.TIMEOUT_BELOW_DEADLINE, extension, ("timeout",), text)
    body = as_mapping(extension.settings.get("includeRequestBodyInCheck"))
    size = body.get("maxRequestBytes")
    if isinstance(size, int) and size >= server.max_request_bytes:
        text = f"`maxRequestBytes` is {size}, `server.max_request_bytes` is {server.max_request_bytes}"
        yield report(Trap.BODY_OVER_LIMIT, extension, ("includeRequestBodyInCheck", "maxRequestBytes"), text)


def find_service(survey: Survey, extension: Extension) -> MeshObject | None:
    """Return the Service or ServiceEntry of a provider, as far as it was given."""
    labels = extension.host.split(".")
    if labels[2:3] == ["svc"]:
        found = survey.mesh.named("Service", labels[1], labels[0])
        if found is not None:
            return found
    entries = survey.mesh.of("ServiceEntry")
    return next((its for its in entries if extension.host in as_texts(its.spec.get("hosts"))), None)


def _check_service(survey: Survey, extension: Extension, service: MeshObject) -> Iterator[MeshFinding]:
    if not extension.port:
        return
    ports = [as_mapping(item) for item in as_items(service.spec.get("ports"))]
    key = "port" if service.kind == "Service" else "number"
    at = next((at for at, port in enumerate(ports) if port.get(key) == extension.port), None)
    if at is None:
        text = f"{service} has no port {extension.port}"
        yield report(Trap.SERVICE_PORT_MISSING, extension, ("port",), text)
    elif extension.grpc and not is_grpc(ports[at]) and not _is_upgraded(survey, extension):
        text = f"port {extension.port}, which provider `{extension.name}` calls, is not declared as gRPC"
        yield report(Trap.SERVICE_PORT_NOT_GRPC, service, ("spec", "ports", at), text)


def read_protocol(port: Any) -> str:
    """Return what Istio takes a port for, lower case: ``appProtocol``, ``protocol`` of a ServiceEntry, or the name."""
    its = as_mapping(port)
    said = as_text(its.get("appProtocol")) or (as_text(its.get("protocol")) if "number" in its else "")
    name = (said or as_text(its.get("name"))).lower()
    return name if name in _GRPC or name.startswith("grpc-web") else name.partition("-")[0]


def is_grpc(port: Any) -> bool:
    """Say whether Istio calls a port with HTTP/2."""
    protocol = read_protocol(port)
    return protocol in _GRPC or protocol.startswith("grpc-web")


def _is_upgraded(survey: Survey, extension: Extension) -> bool:
    """Say whether a setting makes HTTP/1.1 ports HTTP/2."""
    hosts = {extension.host, extension.host.partition(".")[0]}
    rules = [its.body for its in survey.mesh.of("DestinationRule") if its.spec.get("host") in hosts]
    configs = [its.body for its in survey.mesh.of(MESH_CONFIG)]
    return "UPGRADE" in find_keys([*rules, *configs], "h2UpgradePolicy")


def _check_sidecars(survey: Survey, extension: Extension) -> Iterator[MeshFinding]:
    """Find Sidecars that hide the provider from workloads which a policy of it selects. Gateways have none."""
    told: set[tuple[str, str]] = set()
    for policy in survey.policies:
        if policy.provider != extension.name or policy.scope.targets or policy.scope.is_gateways:
            continue
        for sidecar in _sidecars_of(survey, policy.scope):
            name = (sidecar.namespace, sidecar.name)
            if name not in told and as_items(sidecar.spec.get("egress")) and not _reaches(sidecar, extension):
                told.add(name)
                text = f"no host is `{extension.namespace or '*'}/{extension.host}`, which {policy} asks"
                yield report(Trap.SIDECAR_EGRESS_HIDES_PROVIDER, sidecar, ("spec", "egress"), text)


def _sidecars_of(survey: Survey, scope: Scope) -> list[MeshObject]:
    """Return the Sidecars that hold for a scope: one with labels, else its namespace's, else the mesh's."""
    names = [*survey.sidecars] if scope.everywhere else dict.fromkeys((survey.mesh.root_namespace, scope.namespace))
    known = [pair for name in names for pair in survey.sidecars.get(name, ())]
    meeting = [(its, own) for its, own in known if own.meets(scope)]
    exact = [its for its, own in meeting if own.labels and own.covers(scope)]
    near = [its for its, own in meeting if scope.everywhere or own.namespace == scope.namespace]
    return exact or near or [its for its, _ in meeting]


def _reaches(sidecar: MeshObject, extension: Extension) -> bool:
    for item in map(as_mapping, as_items(sidecar.spec.get("egress"))):
        port = as_mapping(item.get("port")).get("number")
        if port not in (None, 0, extension.port):
            continue
        hosts = [text.partition("/") for text in as_texts(item.get("hosts"))]
        if any(
            _names(space.lstrip("~") or "*", name, sidecar, extension) for space, _, name in hosts if space[:1] == "~"
        ):
            continue
        if any(_names(space, name, sidecar, extension) for space, _, name in hosts if space[:1] != "~"):
            return True
    return False


def _names(space: str, name: str, sidecar: MeshObject, extension: Extension) -> bool:
    wanted = sidecar.namespace if space == "." else space
    if wanted != "*" and extension.namespace and wanted != extension.namespace:
        return False
    return name == extension.host or (name.startswith("*") and extension.host.endswith(name[1:]))
