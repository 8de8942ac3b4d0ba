"""What a CUSTOM policy leaves out: requests that nobody asks this service about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from authz.core.hosts import HostKind
from authz.mesh.facts import GATEWAY_API, is_waypoint, read_normalization
from authz.mesh.policies import CustomPolicy, Way, asks_about_any, matches_host
from authz.mesh.ports import NOT_HTTP, find_ports
from authz.mesh.routes import find_wildcard
from authz.mesh.survey import Survey, find_early_removals, find_refused_headers, report
from authz.mesh.traps import MeshFinding, Trap

BEST: Final = "DECODE_AND_MERGE_SLASHES"

_WITHIN_A_HOST: Final = ("paths", "notPaths", "methods", "notMethods", "ports", "notPorts", "when", "from")
_CLIENTS_CHOICE: Final = ("request.headers", "connection.sni")
_SAMPLE: Final = "any-other"


def check_asked(survey: Survey) -> Iterator[MeshFinding]:
    """Find what is never asked about."""
    for policy in survey.policies:
        ways = survey.narrow_ways(policy)
        for way in ways:
            yield from _check_paths(survey, policy, way)
            yield from _check_methods(policy, way)
            yield from _check_conditions(policy, way)
            yield from _check_ports(survey, policy, way)
            yield from _check_hosts(survey, policy, way)
        yield from _check_identity(survey, policy, ways)
    yield from _check_rules(survey)


def _check_paths(survey: Survey, policy: CustomPolicy, way: Way) -> Iterator[MeshFinding]:
    said = read_normalization(survey.mesh)
    asked = list(way.lists.get("paths", ()))
    templates = [its for its in asked if "{*}" in its or "{**}" in its]
    if templates:
        text = f"`paths` has `{templates[0]}`: not asked about is `{_fill(templates[0], '[7]')}`"
        yield report(Trap.PATH_TEMPLATE_BYPASS, policy.its, (*way.loc, "paths"), text)
    spared = [its for its in way.lists.get("notPaths", ()) if "*" in its]
    patterns = asked or [its for its in spared if not its.startswith("*")]
    if said not in (None, BEST) and patterns:
        name = "paths" if asked else "notPaths"
        shown = "not set, which is BASE" if said == "DEFAULT" else said
        examples = _respell(patterns[0], said) if asked else [f"{_folder(patterns[0])}..%2forders"]
        text = f"`{name}` has `{patterns[0]}`, and `pathNormalization` is {shown}: not asked about is " + " or ".join(
            f"`{example}`" for example in examples
        )
        yield report(Trap.PATH_NORMALIZATION_BASE, policy.its, (*way.loc, name), text)
    if spared:
        first = spared[0]
        if first.startswith("*"):
            example = f"/orders/7;{first[1:]}"
        else:
            example = _folder(first) + ("..%2forders" if said not in (None, BEST) else "..;/orders")
        text = (
            f"`notPaths` has `{first}`: not asked about is `{example}`, which some servers read as a path of `/orders`"
        )
        yield report(Trap.NOT_PATHS_BYPASS, policy.its, (*way.loc, "notPaths"), text)


def _respell(pattern: str, said: str) -> list[str]:
    """Return spellings of a path that the pattern matches, which it does not match."""
    path = _fill(pattern, "x")
    if pattern.startswith("*"):
        return [f"/x%2f{pattern[1:].lstrip('/')}"]
    encoded = f"/%2f{path[1:]}"
    if said == "MERGE_SLASHES":
        return [encoded]
    return ([f"/.{path}"] if said == "NONE" else []) + [f"/{path}", encoded]


def _folder(pattern: str) -> str:
    return _fill(pattern, "x").rpartition("/")[0] + "/"


def _fill(pattern: str, text: str) -> str:
    return pattern.replace("{**}", text).replace("{*}", text).replace("*", text)


def _check_methods(policy: CustomPolicy, way: Way) -> Iterator[MeshFinding]:
    for name in ("methods", "notMethods"):
        methods = way.lists.get(name, ())
        if methods:
            what = "any other method is" if name == "methods" else "these are"
            text = f"`{name}: [{', '.join(methods)}]`: {what} not asked about"
            yield report(Trap.METHODS_NOT_ASKED, policy.its, (*way.loc, name), text)


def _check_conditions(policy: CustomPolicy, way: Way) -> Iterator[MeshFinding]:
    for key, loc in way.conditions:
        if key.startswith(_CLIENTS_CHOICE):
            yield report(Trap.ASKED_BY_HEADER, policy.its, loc, f"`when` looks at `{key}`, which the client writes")
        else:
            yield report(Trap.CALLERS_NOT_ASKED, policy.its, loc, f"`when` looks at `{key}`")
    if way.sources:
        yield report(Trap.CALLERS_NOT_ASKED, policy.its, (*way.loc[:3], "from"), "`from` narrows it")


def _check_ports(survey: Survey, policy: CustomPolicy, way: Way) -> Iterator[MeshFinding]:
    for name in ("ports", "notPorts"):
        if name in way.lists:
            text = f"`{name}: [{', '.join(way.lists[name])}]`"
            yield report(Trap.PORTS_NOT_ASKED, policy.its, (*way.loc, name), text)
            listening = find_ports(survey, policy.scope)
            if listening and not any(way.takes_port(its) for its, _ in listening):
                known = ", ".join(str(its) for its in sorted({its for its, _ in listening}))
                text += f", and the selected workloads listen on {known}"
                yield report(Trap.PORTS_MATCH_NOTHING, policy.its, (*way.loc, name), text)


def _check_hosts(survey: Survey, policy: CustomPolicy, way: Way) -> Iterator[MeshFinding]:
    name = next((name for name in ("hosts", "notHosts") if name in way.lists), None)
    if name is None:
        return
    where = _find_no_gateway(survey, policy)
    if where:
        text = f"`{name}: [{', '.join(way.lists[name])}]` holds at {where}"
        yield report(Trap.HOST_CHOSEN_BY_CLIENT, policy.its, (*way.loc, name), text)
        return
    if not _is_told(survey, policy):
        text = f"what {policy} holds for: whether it is a gateway, which routes by host"
        yield report(Trap.NOT_GIVEN, policy.its, (*way.loc, name), text)
    wildcard = find_wildcard(survey, policy.scope)
    if wildcard:
        text = f"`{name}: [{', '.join(way.lists[name])}]`, and {wildcard} leads every other host past it"
        yield report(Trap.HOST_CHOSEN_BY_CLIENT, policy.its, (*way.loc, name), text)
        return
    known = [its for other in survey.around(policy) for its in other.ways if "hosts" in its.lists]
    missing = [
        host
        for pattern in way.lists.get("hosts", ())
        for host in _other_spellings(pattern)
        if not any(matches_host(its, host) for other in known for its in other.lists["hosts"])
    ]
    if missing:
        text = f"not asked about is `Host: {missing[0]}`" + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
        yield report(Trap.HOST_PORT_NOT_ASKED, policy.its, (*way.loc, "hosts"), text)


def _other_spellings(pattern: str) -> list[str]:
    """Return hosts that a gateway routes as it routes those of the pattern: without a port, and with one."""
    if pattern.endswith("*"):
        return [pattern[:-2]] if pattern.endswith(":*") else []
    name, colon, port = pattern.rpartition(":")
    bare = name if colon and port.isdecimal() and not name.endswith(":") else pattern
    bare = _SAMPLE + bare[1:] if bare.startswith("*") else bare
    return [bare, f"{bare}:80"]


def _find_no_gateway(survey: Survey, policy: CustomPolicy) -> str:
    """Return what a policy surely applies to that is no gateway, or an empty text."""
    for kind, name in sorted(policy.scope.targets):
        target = survey.mesh.named("Gateway", policy.scope.namespace, name, GATEWAY_API) if kind == "Gateway" else None
        if (target is not None and is_waypoint(target)) or kind in ("Service", "ServiceEntry"):
            return f"the waypoint of {kind} {name}"
    if policy.scope.is_gateways:
        return ""
    return next((str(its.its) for its in survey.selected(policy.scope) if not its.gateway and its.injected), "")


def _is_told(survey: Survey, policy: CustomPolicy) -> bool:
    """Say whether the objects that tell a gateway from other workloads were given."""
    targets = policy.scope.targets
    if targets:
        where = policy.scope.namespace
        return all(kind != "Gateway" or survey.mesh.named(kind, where, its, GATEWAY_API) for kind, its in targets)
    return policy.scope.is_gateways or bool(survey.selected(policy.scope))


def _check_identity(survey: Survey, policy: CustomPolicy, ways: list[Way]) -> Iterator[MeshFinding]:
    """Find the first way that leaves identity headers of requests within a host as their client sent them."""
    names = survey.identity_headers
    if names == () or (names is not None and policy.provider != survey.ours):
        return
    for way in ways:
        by = [name for name in _WITHIN_A_HOST if name in way.narrowed and not _is_whole(survey, policy, way, name)]
        what = _find_passing(survey, policy, way)
        if by and what:
            loc = (*way.loc, by[0]) if by[0] in way.lists else (*way.loc[:3], by[0])  # `spec.rules[0]`
            text = (
                f"requests that {', '.join(f'`{name}`' for name in by)} leaves out keep {what} as the client sent them"
            )
            yield report(Trap.IDENTITY_HEADERS_PASS, policy.its, loc, text)
            return


def _is_whole(survey: Survey, policy: CustomPolicy, way: Way, name: str) -> bool:
    """Say whether a list of ports leaves out none that may speak HTTP, as far as the Services tell."""
    if name not in ("ports", "notPorts"):
        return False
    listening = find_ports(survey, policy.scope)
    ways = [
        way,
        *(its for other in survey.around(policy) for its in other.ways if its.narrowed <= {"ports", "notPorts"}),
    ]
    return bool(listening) and all(
        any(its.takes_port(port) for its in ways) for port, protocol in listening if protocol not in NOT_HTTP
    )


def _find_passing(survey: Survey, policy: CustomPolicy, way: Way) -> str:
    """Name the identity headers that neither an EnvoyFilter removes nor a DENY policy refuses where nobody is asked."""
    handled = find_early_removals(survey.mesh, policy.scope)
    if way.rank == 1:
        handled |= find_refused_headers(survey.mesh, policy.scope, way.lists["notPaths"])
    if survey.identity_headers is None:
        return "" if handled else "identity headers"
    return ", ".join(f"`{name}`" for name in survey.identity_headers if name not in handled)


def _check_rules(survey: Survey) -> Iterator[MeshFinding]:
    """Find hosts of the rules file that no policy of ours asks about."""
    ours = [policy for policy in survey.policies if policy.provider == survey.ours]
    if survey.rules is None or not ours:
        return
    named = [("rule", its) for its in survey.rules.policy.rules] + [
        ("guard", its) for its in survey.rules.policy.guards
    ]
    for word, rule in named:
        for pattern in rule.hosts:
            if pattern.kind is HostKind.EVERYWHERE:
                continue
            host = pattern.name if pattern.kind is HostKind.EXACT else f"{_SAMPLE}.{pattern.name}"
            if not asks_about_any(ours, f"[{host}]" if ":" in host else host):
                yield MeshFinding(
                    trap=Trap.HOST_OF_RULE_NOT_ASKED,
                    place=f"{word} `{rule.name}`",
                    file=survey.rules_file,
                    line=rule.line,
                    text=f"no CUSTOM policy of provider `{survey.ours}` asks about `{pattern}`",
                )
