"""What ``authz istio-check`` knows to look for: each trap with what it does and what to write instead.

``docs/istio.md`` has its table from here. The slugs are stable: people grep for them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


class Severity(enum.StrEnum):
    """What a finding means: somebody may get in, good requests fail, or it is worth knowing."""

    OPEN = "open"
    OUTAGE = "outage"
    NOTE = "note"


class Trap(enum.StrEnum):
    """The stable slugs, in the order of the table."""

    # Somebody may get in.
    PATH_NORMALIZATION_BASE = "path_normalization_base"
    NOT_PATHS_BYPASS = "not_paths_bypass"
    METHODS_NOT_ASKED = "methods_not_asked"
    ASKED_BY_HEADER = "asked_by_header"
    CALLERS_NOT_ASKED = "callers_not_asked"
    PATH_TEMPLATE_BYPASS = "path_template_bypass"
    PORTS_MATCH_NOTHING = "ports_match_nothing"
    SELECTS_NOTHING = "selects_nothing"
    HOST_PORT_NOT_ASKED = "host_port_not_asked"
    HOST_CHOSEN_BY_CLIENT = "host_chosen_by_client"
    IDENTITY_HEADERS_PASS = "identity_headers_pass"  # noqa: S105 - a slug
    HOST_OF_RULE_NOT_ASKED = "host_of_rule_not_asked"
    FAIL_OPEN = "fail_open"
    CUSTOM_REFUSED = "custom_refused"
    CLAIMS_OVERRIDE_IDENTITY = "claims_override_identity"
    TOKEN_FORWARDED = "token_forwarded"  # noqa: S105 - a slug
    HEADERS_HIDDEN = "headers_hidden"
    FILTER_AFTER_ROUTER = "filter_after_router"
    FILTER_DISABLED = "filter_disabled"
    FILTER_NOT_ON_PORT = "filter_not_on_port"
    SHADOW_MODE = "shadow_mode"
    # Good requests fail.
    TIMEOUT_MISSING = "timeout_missing"
    STATUS_ON_ERROR_MISSING = "status_on_error_missing"
    PROVIDER_INVALID = "provider_invalid"
    UNKNOWN_PROVIDER = "unknown_provider"
    SEVERAL_PROVIDERS = "several_providers"
    CUSTOM_DRY_RUN = "custom_dry_run"
    SERVICE_PORT_MISSING = "service_port_missing"
    SERVICE_PORT_NOT_GRPC = "service_port_not_grpc"
    SIDECAR_EGRESS_HIDES_PROVIDER = "sidecar_egress_hides_provider"
    BODY_OVER_LIMIT = "body_over_limit"
    AUTHORIZER_ASKS_ITSELF = "authorizer_asks_itself"
    MTLS_WITHOUT_SIDECAR = "mtls_without_sidecar"
    FILTER_AUTHORITY_MISSING = "filter_authority_missing"
    # Worth knowing.
    TIMEOUT_BELOW_DEADLINE = "timeout_below_deadline"
    FILTER_TIMEOUT_MISSING = "filter_timeout_missing"
    HTTP_PROVIDER = "http_provider"
    PORTS_NOT_ASKED = "ports_not_asked"
    TCP_PORTS_ASKED = "tcp_ports_asked"
    TOKEN_READ_AFTER = "token_read_after"  # noqa: S105 - a slug
    TOKEN_STRIPPED = "token_stripped"  # noqa: S105 - a slug
    ROUTE_CACHE_CLEARED = "route_cache_cleared"
    SELECTOR_IGNORED = "selector_ignored"
    AUTHORIZER_OPEN = "authorizer_open"
    NOT_GIVEN = "not_given"


@dataclass(frozen=True, slots=True)
class TrapText:
    """One sentence each, lower case, without a period; ``remedy`` says what to write instead."""

    severity: Severity
    meaning: str
    remedy: str


_WHOLE_HOSTS: Final = "ask about whole hosts (`rules: [{}]`) and let the rules file judge paths, methods and headers"

TRAPS: Final[Mapping[Trap, TrapText]] = MappingProxyType(
    {
        Trap.PATH_NORMALIZATION_BASE: TrapText(
            Severity.OPEN,
            "a CUSTOM policy matches paths, and the mesh does not bring `//` or `%2f` into one spelling before: "
            "`//orders` or `/orders%2f7` is not asked about",
            f"{_WHOLE_HOSTS}; `pathNormalization: {{normalization: DECODE_AND_MERGE_SLASHES}}` is the lesser way",
        ),
        Trap.NOT_PATHS_BYPASS: TrapText(
            Severity.OPEN,
            "`notPaths` with a wildcard: whatever can be spelled so that it fits is never asked about",
            "leave `notPaths` out, and give the rules file a rule `allow: anyone` for such paths",
        ),
        Trap.METHODS_NOT_ASKED: TrapText(
            Severity.OPEN,
            "`methods` or `notMethods`: other methods are never asked about, and many servers take HEAD for GET",
            f"leave them out: {_WHOLE_HOSTS}",
        ),
        Trap.ASKED_BY_HEADER: TrapText(
            Severity.OPEN,
            "`when` looks at a request header or at the SNI: the client chooses whether it is asked about",
            f"leave `when` out: {_WHOLE_HOSTS}",
        ),
        Trap.CALLERS_NOT_ASKED: TrapText(
            Severity.OPEN,
            "`from` or `when` chooses whom it asks about: whoever comes from elsewhere is never asked about",
            f"leave them out: {_WHOLE_HOSTS}",
        ),
        Trap.PATH_TEMPLATE_BYPASS: TrapText(
            Severity.OPEN,
            "`{*}` and `{**}` in `paths` do not stand for every character: `/orders/[7]` is never asked about",
            _WHOLE_HOSTS,
        ),
        Trap.PORTS_MATCH_NOTHING: TrapText(
            Severity.OPEN,
            "`ports` or `notPorts` leave out every port on which the selected workloads listen: nothing is asked",
            "leave them out, or write the container's port (`targetPort`), not the Service's",
        ),
        Trap.SELECTS_NOTHING: TrapText(
            Severity.OPEN,
            "the CUSTOM policy applies to none of the workloads or Gateways, or to pods without a proxy: nothing is "
            "asked",
            "write the labels of the pods, or the Gateway's name, in a policy of their own namespace, and have the "
            "sidecar injected",
        ),
        Trap.HOST_PORT_NOT_ASKED: TrapText(
            Severity.OPEN,
            "`hosts` without the same host with a port: `Host: shop.example.com:80` is routed alike, and nobody asks",
            'list `"shop.example.com:*"` beside `shop.example.com`; for `"*.example.com"` that cannot be written: '
            "use `rules: [{}]`",
        ),
        Trap.HOST_CHOSEN_BY_CLIENT: TrapText(
            Severity.OPEN,
            "`hosts` or `notHosts` at a sidecar or waypoint, which pass every Host on, or at a gateway that routes "
            "every host (`*`): the client chooses whether it is asked about",
            "use `rules: [{}]` there; hosts are for gateways that route by them",
        ),
        Trap.IDENTITY_HEADERS_PASS: TrapText(
            Severity.OPEN,
            "what a CUSTOM policy leaves out reaches the workload with the identity headers that the client sent",
            f"{_WHOLE_HOSTS}; or remove these names before all filters (`early_header_mutation_extensions`)",
        ),
        Trap.HOST_OF_RULE_NOT_ASKED: TrapText(
            Severity.OPEN,
            "the rules file judges a host that no CUSTOM policy asks about (with `--rules`)",
            "add the host and `host:*`, or use `rules: [{}]`; `authz istio-config --hosts` writes them",
        ),
        Trap.FAIL_OPEN: TrapText(
            Severity.OPEN,
            "`failOpen` or `failure_mode_allow`: whenever no answer comes, everything passes",
            "set it to `false`",
        ),
        Trap.CUSTOM_REFUSED: TrapText(
            Severity.OPEN,
            "istiod refuses the CUSTOM policy, or it never matches: nothing is asked",
            "write what is named; who may call is for a DENY or ALLOW policy beside it, or for the rules file",
        ),
        Trap.CLAIMS_OVERRIDE_IDENTITY: TrapText(
            Severity.OPEN,
            "a RequestAuthentication writes an identity header of the rules file (with `--rules`): it runs after this "
            "service and removes or replaces the value",
            "leave `outputClaimToHeaders` and `outputPayloadToHeader` to other names",
        ),
        Trap.TOKEN_FORWARDED: TrapText(
            Severity.OPEN,
            "a RequestAuthentication forwards a token from a place that no rule takes tokens from, though rules remove "
            "or replace `authorization` (with `--rules`)",
            "leave `forwardOriginalToken` out, or name the place under `token_in`",
        ),
        Trap.HEADERS_HIDDEN: TrapText(
            Severity.OPEN,
            "`allowed_headers` or `disallowed_headers`: what this service does not see it neither judges nor removes",
            "leave them out",
        ),
        Trap.FILTER_AFTER_ROUTER: TrapText(
            Severity.OPEN,
            "the EnvoyFilter puts ext_authz behind the router: Envoy refuses that, and goes on without it",
            "write `operation: INSERT_BEFORE` with the router as `subFilter`, or `INSERT_FIRST`",
        ),
        Trap.FILTER_DISABLED: TrapText(
            Severity.OPEN,
            "an EnvoyFilter takes ext_authz out, on routes, for a share of the requests or for all: they are not asked "
            "about",
            "leave the filter and the routes alone, and give the rules file a rule `allow: anyone` for such paths",
        ),
        Trap.FILTER_NOT_ON_PORT: TrapText(
            Severity.OPEN,
            "an EnvoyFilter puts ext_authz among the HTTP filters, and a port of these workloads is not declared as "
            "HTTP: a line break before the request makes Envoy take the connection for TCP, where nobody asks",
            "write `appProtocol: http` (or what it is), or use a CUSTOM policy, which asks about TCP too",
        ),
        Trap.SHADOW_MODE: TrapText(
            Severity.OPEN,
            "`shadow_mode: true`: nobody is denied, and a denied request keeps the identity headers that it came with",
            "leave it out once the figures are as wanted",
        ),
        Trap.TIMEOUT_MISSING: TrapText(
            Severity.OUTAGE,
            "no `timeout`: Istio waits 600 s for an answer, so a stalled service holds every request",
            "write `timeout: 1.25s`, as `authz istio-config` prints it",
        ),
        Trap.STATUS_ON_ERROR_MISSING: TrapText(
            Severity.OUTAGE,
            "no `statusOnError` or `status_on_error`: an outage of this service reads as 403, a denial",
            'write `statusOnError: "503"`, in an EnvoyFilter `status_on_error: {code: ServiceUnavailable}`',
        ),
        Trap.PROVIDER_INVALID: TrapText(
            Severity.OUTAGE,
            "istiod cannot use the extension provider: what its policies match is denied (RBAC 403), and where a value "
            "has the wrong type the whole meshConfig is passed over",
            "write what is named",
        ),
        Trap.UNKNOWN_PROVIDER: TrapText(
            Severity.OUTAGE,
            "a CUSTOM policy names an extension provider that meshConfig does not define: what it matches is denied "
            "(RBAC 403)",
            "write the provider's name as under `extensionProviders`",
        ),
        Trap.SEVERAL_PROVIDERS: TrapText(
            Severity.OUTAGE,
            "CUSTOM policies of several providers on one workload: what they match is denied (RBAC 403)",
            "set `PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS=true` on istiod (1.30 or later), or keep to one",
        ),
        Trap.CUSTOM_DRY_RUN: TrapText(
            Severity.OUTAGE,
            "`istio.io/dry-run` on a CUSTOM policy: istiod refuses it, and where validation is off everything that it "
            "matches is denied",
            "there is no dry run for CUSTOM: use Envoy's `shadow_mode`, as docs/istio.md shows",
        ),
        Trap.SERVICE_PORT_MISSING: TrapText(
            Severity.OUTAGE,
            "the provider's service has no such port: every checked request fails",
            "write the number of the Service's port, not the container's",
        ),
        Trap.SERVICE_PORT_NOT_GRPC: TrapText(
            Severity.OUTAGE,
            "the provider's port is not declared as gRPC: it is called with HTTP/1.1 and every checked request fails",
            "write `appProtocol: grpc`, or begin the port's name with `grpc-`",
        ),
        Trap.SIDECAR_EGRESS_HIDES_PROVIDER: TrapText(
            Severity.OUTAGE,
            "a Sidecar's egress leaves the provider's host out: every checked request of its workloads fails",
            "add `NAMESPACE/HOST` of the provider to `egress[].hosts`",
        ),
        Trap.BODY_OVER_LIMIT: TrapText(
            Severity.OUTAGE,
            "`includeRequestBodyInCheck` sends more than this service reads (with `--rules`): such requests are denied",
            "lower `maxRequestBytes`, or raise `server.max_request_bytes` above it",
        ),
        Trap.AUTHORIZER_ASKS_ITSELF: TrapText(
            Severity.OUTAGE,
            "a CUSTOM policy selects the pods of this service, which have a sidecar: each check asks for a check",
            "give the policy a `selector`, or this service a namespace that the policy does not cover",
        ),
        Trap.MTLS_WITHOUT_SIDECAR: TrapText(
            Severity.OUTAGE,
            "a DestinationRule with `ISTIO_MUTUAL` for this service, whose pods have no sidecar that answers it: every "
            "checked request fails",
            "have the sidecar injected, or leave `tls` out",
        ),
        Trap.FILTER_AUTHORITY_MISSING: TrapText(
            Severity.OUTAGE,
            "`envoy_grpc` with a cluster of Istio and without `authority`: `|` is no valid one",
            "write `authority:` with the host",
        ),
        Trap.TIMEOUT_BELOW_DEADLINE: TrapText(
            Severity.NOTE,
            "the proxy waits less than a check may take (with `--rules`): the service answers within the proxy's time, "
            "so `server.deadline_ms` never counts",
            "raise `timeout`, or lower `server.deadline_ms`",
        ),
        Trap.FILTER_TIMEOUT_MISSING: TrapText(
            Severity.NOTE,
            "an EnvoyFilter's ext_authz without `grpc_service.timeout`: Envoy waits 200 ms, which a token that must be "
            "asked about can take",
            "write `timeout: 1.25s` under `grpc_service`",
        ),
        Trap.HTTP_PROVIDER: TrapText(
            Severity.NOTE,
            "`envoyExtAuthzHttp`: only listed headers reach the authorizer and the workload; the others are neither "
            "judged nor removed",
            "write `envoyExtAuthzGrpc`, which has no such lists",
        ),
        Trap.PORTS_NOT_ASKED: TrapText(
            Severity.NOTE,
            "`ports` or `notPorts`: what comes in by other ports is never asked about",
            "leave them out, unless nothing else listens",
        ),
        Trap.TCP_PORTS_ASKED: TrapText(
            Severity.NOTE,
            "a selected workload has a port that is not HTTP: its connections are asked about too, and denied",
            "name the HTTP ports under `to.operation.ports`, and make sure that no other one speaks HTTP",
        ),
        Trap.TOKEN_READ_AFTER: TrapText(
            Severity.NOTE,
            "a RequestAuthentication reads `authorization`, which rules remove or replace (with `--rules`): it runs "
            "after this service, so it finds no token or judges the new one",
            "keep `authorization` where an ALLOW or DENY policy looks at `request.auth`",
        ),
        Trap.TOKEN_STRIPPED: TrapText(
            Severity.NOTE,
            "a RequestAuthentication without `forwardOriginalToken` takes the token away after this service kept it",
            "set `forwardOriginalToken: true` where the workload needs the token",
        ),
        Trap.ROUTE_CACHE_CLEARED: TrapText(
            Severity.NOTE,
            "`clear_route_cache: true`: the route is chosen anew after the check, so another than was checked may be",
            "leave it out unless routes depend on headers that this service sets",
        ),
        Trap.SELECTOR_IGNORED: TrapText(
            Severity.NOTE,
            "a CUSTOM policy without `targetRefs` in a namespace of ambient mode: waypoints do not look at `selector`, "
            "and ztunnel does not ask",
            "write `targetRefs` with the Service, as `authz istio-config --waypoint-for SERVICE` does",
        ),
        Trap.AUTHORIZER_OPEN: TrapText(
            Severity.NOTE,
            "nothing keeps the port of this service to the proxies: who reaches it may ask what passes",
            "add a NetworkPolicy for the proxies' namespaces; where the pods have a sidecar a PeerAuthentication "
            "STRICT and an ALLOW policy in its namespace do it too",
        ),
        Trap.NOT_GIVEN: TrapText(
            Severity.NOTE,
            "an object that a judgement needs was not among the files",
            "give it too: `kubectl get … -A -o yaml | authz istio-check -`",
        ),
    }
)
"""Every trap. A trap without a row cannot be found: a test holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshFinding:
    """One trap in one object. ``text`` says what was found there; the trap's row says what it does."""

    trap: Trap
    place: str
    file: str
    line: int
    text: str

    @property
    def severity(self) -> Severity:
        """What it means."""
        return TRAPS[self.trap].severity
