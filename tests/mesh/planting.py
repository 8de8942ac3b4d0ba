"""A clean mesh, and how one trap at a time is planted in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from authz.cli import main
from authz.mesh.traps import Trap

CLEAN = (Path(__file__).parent / "mesh.yaml").read_text()
RULES = """
version: 1
providers: {sso: {preset: keycloak, issuer: "https://sso.example.com/realms/shop", audiences: [orders]}}
identity_headers: {x-user: "{sub}", x-roles: "{roles}"}
rules:
  - {name: orders, hosts: [shop.example.com], paths: ["/orders/**"], tokens_from: sso, require: any_token}
  - {name: health, hosts: everywhere, paths: [/healthz], allow: anyone}
"""

HERE = "# here"
ORDERS = "  rules:\n    - {}\n"
STATUS = '          statusOnError: "503"\n'

ROOT = "    rootNamespace: istio-system\n"
SHOP = "metadata: {name: shop, labels: {istio-injection: enabled}}\n"
SPEC = "spec:\n  selector: {matchLabels: {app: orders}}\n  action: CUSTOM\n"
CUSTOM_ORDERS = "metadata: {name: orders, namespace: shop}\n" + SPEC
OWN = "metadata: {name: authz, namespace: authz}\nspec:\n  selector"
OTHER = """      - name: other
        envoyExtAuthzGrpc:
          {service: authz.authz.svc.cluster.local, port: 9001, timeout: 1s, statusOnError: '503'}
"""

FILTER = """---
kind: EnvoyFilter
metadata: {{name: shadow, namespace: shop}}
spec:
  configPatches:
    - applyTo: HTTP_FILTER
      match: {{listener: {{filterChain: {{filter: {{name: hcm, subFilter: {{name: envoy.filters.http.router}}}}}}}}}}
      patch:
        operation: {operation}
        value:
          name: envoy.filters.http.ext_authz
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
            status_on_error: {{code: ServiceUnavailable}}
            {setting}
"""

PORT = "    - {name: http, port: 80}\n"
ROUTED = "  hostnames: [shop.example.com]\n"
GATEWAY_POD = """---
kind: Deployment
metadata: {name: ingressgateway, namespace: istio-ingress}
spec: {template: {metadata: {labels: {istio: ingressgateway}}}}
"""

INGRESS = (
    GATEWAY_POD.replace("{", "{{").replace("}", "}}")
    + """---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: all, namespace: istio-ingress}}
spec: {{selector: {{istio: ingressgateway}}, servers: [{{hosts: ["*"]}}]}}
---
kind: VirtualService
metadata: {{name: all, namespace: shop}}
spec: {{hosts: [{host}], gateways: [istio-ingress/all]}}
---
kind: AuthorizationPolicy
metadata: {{name: ingress, namespace: istio-ingress}}
spec:
  selector: {{matchLabels: {{istio: ingressgateway}}}}
  action: CUSTOM
  provider: {{name: authz}}
  rules: [{{to: [{{operation: {{hosts: ["shop.example.com", "shop.example.com:*"]}}}}]}}] {here}
"""
)

WAYPOINT = """---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: edge}
spec: {gatewayClassName: istio-waypoint}
"""


def asking(namespace: str, chosen: str, *, name: str = "more", rules: str = "[{}]") -> str:
    """Return one more CUSTOM policy."""
    head = f"---\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n"
    return (
        head
        + (f"  {chosen}\n" if chosen else "")
        + f"  action: CUSTOM\n  provider: {{name: authz}}\n  rules: {rules}\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is put in the place of which part of the clean mesh; ``twin`` is as near as can be, and clean."""

    part: str
    planted: str
    twin: str
    traps: tuple[Trap, ...]
    rules: str | None = None


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ["istio-check", *arguments], input=stdin, catch_exceptions=False)


def check(mesh: str, rules: str | None, folder: Path) -> list[tuple[str, int]]:
    options = []
    if rules is not None:
        (folder / "rules.yaml").write_text(rules)
        options = ["--rules", str(folder / "rules.yaml")]
    done = run("-", "--json", *options, stdin=mesh)
    found = json.loads(done.stdout)
    assert found["problems"] == []
    serious = any(its["severity"] != "note" for its in found["findings"])
    assert done.exit_code == int(serious)
    return [(its["finding"], its["line"]) for its in found["findings"]]


def replace(part: str, new: str) -> str:
    assert CLEAN.count(part) == 1, part
    return CLEAN.replace(part, new)


def span(first: str, last: str) -> str:
    """Return the part of the clean mesh from one text to another."""
    return CLEAN[CLEAN.index(first) : CLEAN.index(last, CLEAN.index(first)) + len(last)]


def orders(operation: str, *, more: str = "") -> str:
    """Return rules of the policy `orders`."""
    return f"  rules:\n    - to:\n        - operation:\n            {operation}\n{more}"


def envoy_filter(setting: str, operation: str = "INSERT_BEFORE") -> str:
    return FILTER.format(setting=setting, operation=operation)


def merged(normalization: str) -> str:
    return f"{ROOT}    pathNormalization: {{normalization: {normalization}}}\n"


FILTERS = {
    "failure_mode_allow: true": ("failure_mode_allow: false", Trap.FAIL_OPEN),
    "failureModeAllow: true": ("failureModeAllow: false", Trap.FAIL_OPEN),
    "shadow_mode: true": ("shadow_mode: false", Trap.SHADOW_MODE),
    "clear_route_cache: true": ("clear_route_cache: false", Trap.ROUTE_CACHE_CLEARED),
    "allowed_headers: {}": ("encode_raw_headers: true", Trap.HEADERS_HIDDEN),
    "disallowed_headers: {patterns: []}": ("encode_raw_headers: true", Trap.HEADERS_HIDDEN),
    "grpc_service: {timeout: 1s, envoy_grpc: {cluster_name: outbound|9001||a}}": (
        "grpc_service: {timeout: 1s, envoy_grpc: {cluster_name: outbound|9001||a, authority: a}}",
        Trap.FILTER_AUTHORITY_MISSING,
    ),
    "grpc_service: {envoy_grpc: {cluster_name: a}}": (
        "grpcService: {timeout: 1s, envoyGrpc: {clusterName: a}}",
        Trap.FILTER_TIMEOUT_MISSING,
    ),
}

PATCH = """---
kind: EnvoyFilter
metadata: {{name: patch, namespace: shop}}
spec:
  configPatches:
    - applyTo: {kind}
      match: {{listener: {{filterChain: {{filter: {{name: hcm, subFilter: {{name: {chosen}}}}}}}}}}}
      patch: {patch}
"""

EXT_AUTHZ, ROUTER = "envoy.filters.http.ext_authz", "envoy.filters.http.router"

TYPE = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
TAKEN_OUT = {
    "removed": ("{operation: REMOVE}", "{operation: MERGE, value: {name: envoy.filters.http.ext_authz}}"),
    "replaced": (
        "{operation: REPLACE, value: {name: envoy.filters.http.lua}}",
        f"{{operation: REPLACE, value: {{name: {EXT_AUTHZ}, typed_config: {{status_on_error: {{code: 503}}}}}}}}",
    ),
    "for a share": tuple(
        f"{{operation: MERGE, value: {{typed_config: {{'@type': {TYPE}, filter_enabled: {share}}}}}}}"
        for share in (
            "{default_value: {numerator: 9999, denominator: TEN_THOUSAND}}",
            "{defaultValue: {numerator: 100}}",
        )
    ),
    "disabled as a filter": tuple(
        f"{{operation: MERGE, value: {{name: {EXT_AUTHZ}, disabled: {said}}}}}" for said in ("yes", "off")
    ),
}

MUTUAL = """---
kind: DestinationRule
metadata: {name: authz, namespace: authz}
spec: {host: authz.authz.svc.cluster.local, trafficPolicy: {portLevelSettings: [
  {port: {number: 9001}, tls: {mode: ISTIO_MUTUAL}}]}}
"""

CLOSED = """---
kind: NetworkPolicy
metadata: {name: authz, namespace: authz}
spec:
  podSelector: {matchLabels: {app.kubernetes.io/name: authz}}
  ingress:
    - {from: [{namespaceSelector: {matchLabels: {a: b}}}], ports: [{port: 9001}]}
    - {ports: [{port: 9002}]}
"""

EARLY = """---
kind: EnvoyFilter
metadata: {name: wash, namespace: istio-system}
spec:
  configPatches:
    - applyTo: NETWORK_FILTER
      patch:
        value:
          typed_config:
            early_header_mutation_extensions:
              - typed_config: {mutations: [{remove: x-user}, {remove: x_user}, {remove: x.user}, {remove: X-Roles}]}
              - typed_config: {mutations: [{remove: x_roles}, {remove: x.roles}]}
"""

REFUSED = """---
kind: AuthorizationPolicy
metadata: {name: no-identity, namespace: shop}
spec:
  action: DENY
  rules:
    - to: [{operation: {paths: [/healthz]}}]
      when: [{key: "request.headers[x-user]", values: ["*"]}]
    - when: [{key: "request.headers[x_user]", values: ["*"]}]
    - when: [{key: "request.headers[x.user]", values: ["*"]}]
    - when: [{key: "request.headers[x-roles]", values: ["*"]}]
    - when: [{key: "request.headers[x_roles]", values: ["*"]}]
    - when: [{key: "request.headers[x.roles]", values: ["*"]}]
"""

MESH_CONFIG = {
    "extensionProviders": [
        {"name": "a", "envoyExtAuthzGrpc": {"service": "a.b", "port": 1, "timeout": "1s", "failOpen": True}}
    ]
}
