"""Each trap planted in a clean mesh is found, at its line and alone; its nearest clean twin is not."""

from __future__ import annotations

import copy
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.cli import main
from authz.mesh.check import check_mesh
from authz.mesh.objects import KINDS, MAX_BYTES, read_objects
from authz.mesh.policies import includes_pattern, matches_host
from authz.mesh.traps import TRAPS, Severity, Trap

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
ROOT_FOLDER = Path(__file__).parent.parent
ORDERS = "  rules:\n    - {}\n"
HOSTS = '            hosts: ["shop.example.com", "shop.example.com:*"]\n'
TIMEOUT = "          timeout: 1.25s\n"
STATUS = '          statusOnError: "503"\n'
GRPC_PORT = "    - {name: grpc-authz, port: 9001, appProtocol: grpc}\n"
EGRESS = '    - hosts: ["./*", "istio-system/*", "authz/authz.authz.svc.cluster.local"]\n'
JWT = "      forwardOriginalToken: true\n"
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
WHOLE = "    - {}\n"
NAME = "gateway.networking.k8s.io/gateway-name"
METHODS = "[{to: [{operation: {methods: [GET]}}]}]"
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
PROTO_NAMES = """extension_providers:
      - name: authz
        envoy_ext_authz_grpc:
          service: authz.authz.svc.cluster.local
          port: 9001
          timeout: 1.25s
          fail_open: {fail_open}
          status_on_error: "503"
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


IDENTITY = Trap.IDENTITY_HEADERS_PASS
CASES = {
    "paths under the default normalisation": Case(
        part=ORDERS,
        planted=orders(f'paths: ["/orders/*"] {HERE}'),
        twin=orders('paths: ["/*"]'),
        traps=(IDENTITY, Trap.PATH_NORMALIZATION_BASE),
    ),
    "exact paths": Case(
        part=ORDERS,
        planted=orders(f"paths: [/orders] {HERE}"),
        twin=orders('paths: ["{**}", "*"]'),
        traps=(IDENTITY, Trap.PATH_NORMALIZATION_BASE),
    ),
    "notPaths with a prefix": Case(
        part=ORDERS,
        planted=orders(f'notPaths: ["/public/*"] {HERE}'),
        twin=orders('notPaths: ["/public/*"]', more=WHOLE),
        traps=(IDENTITY, Trap.PATH_NORMALIZATION_BASE, Trap.NOT_PATHS_BYPASS),
    ),
    "notPaths with a suffix, whatever the normalisation": Case(
        part=ORDERS,
        planted=orders(f'notPaths: ["*.css"] {HERE}'),
        twin=orders('notPaths: ["*.css"]', more=WHOLE),
        traps=(IDENTITY, Trap.NOT_PATHS_BYPASS),
    ),
    "exact notPaths leave the client's identity headers": Case(
        part=ORDERS,
        planted=orders(f"notPaths: [/healthz] {HERE}"),
        twin=orders("notPaths: [/healthz]", more=WHOLE),
        traps=(IDENTITY,),
    ),
    "methods": Case(
        part=ORDERS,
        planted=orders(f"methods: [GET, POST] {HERE}"),
        twin=orders('methods: ["*"]'),
        traps=(IDENTITY, Trap.METHODS_NOT_ASKED),
    ),
    "notMethods": Case(
        part=ORDERS,
        planted=orders(f"notMethods: [OPTIONS] {HERE}"),
        twin=orders("notMethods: [OPTIONS]", more=WHOLE),
        traps=(IDENTITY, Trap.METHODS_NOT_ASKED),
    ),
    "a narrow rule beside a whole one leaves nothing out": Case(
        part=ORDERS,
        planted=orders(f"methods: [GET] {HERE}"),
        twin=orders("methods: [GET]", more="    - {}\n"),
        traps=(IDENTITY, Trap.METHODS_NOT_ASKED),
    ),
    "a rule narrow within a host beside one for the whole host": Case(
        part=HOSTS,
        planted=HOSTS + f"            methods: [GET] {HERE}\n",
        twin=HOSTS + "            methods: [GET]\n        - operation:\n" + HOSTS,
        traps=(IDENTITY, Trap.METHODS_NOT_ASKED),
    ),
    "a condition on a header": Case(
        part=ORDERS,
        planted=f"  rules:\n    - when: [{{key: 'request.headers[x-a]', values: ['1']}}] {HERE}\n",
        twin="  rules:\n    - when: [{key: 'request.headers[x-a]', values: ['1']}]\n" + WHOLE,
        traps=(IDENTITY, Trap.ASKED_BY_HEADER),
    ),
    "a condition on the SNI": Case(
        part=ORDERS,
        planted=f"  rules:\n    - when: [{{key: connection.sni, values: [a]}}] {HERE}\n",
        twin="  rules:\n    - when: [{key: connection.sni, values: [a]}]\n" + WHOLE,
        traps=(IDENTITY, Trap.ASKED_BY_HEADER),
    ),
    "addresses": Case(
        part=ORDERS,
        planted=f"  rules:\n    - from: [{{source: {{ipBlocks: [10.0.0.0/8]}}}}] {HERE}\n",
        twin="  rules:\n    - from: [{source: {ipBlocks: [10.0.0.0/8]}}]\n    - {}\n",
        traps=(IDENTITY, Trap.CALLERS_NOT_ASKED),
    ),
    "addresses in a condition, where no header is of an identity": Case(
        part=ORDERS,
        planted=f"  rules:\n    - when: [{{key: source.ip, values: [10.0.0.0/8]}}] {HERE}\n",
        twin="  rules:\n    - when: [{key: source.ip, values: [10.0.0.0/8]}]\n    - {}\n",
        traps=(Trap.CALLERS_NOT_ASKED,),
        rules=RULES.replace("identity_headers: {", "# {"),
    ),
    "a template that does not stand for every character": Case(
        part=ORDERS,
        planted=orders(f'paths: ["/{{**}}"] {HERE}'),
        twin=orders('paths: ["/{**}", "/*"]'),
        traps=(IDENTITY, Trap.PATH_NORMALIZATION_BASE, Trap.PATH_TEMPLATE_BYPASS),
    ),
    "a template, however paths are normalised": Case(
        part=span(ROOT, ORDERS),
        planted=span(ROOT, ORDERS).replace(ROOT, merged("DECODE_AND_MERGE_SLASHES"))
        .replace(ORDERS, orders(f'paths: ["/{{**}}"] {HERE}')),
        twin=span(ROOT, ORDERS).replace(ROOT, merged("DECODE_AND_MERGE_SLASHES"))
        .replace(ORDERS, orders('paths: ["/*"]')),
        traps=(IDENTITY, Trap.PATH_TEMPLATE_BYPASS),
    ),
    "a path by its end": Case(
        part=ORDERS,
        planted=orders(f'paths: ["*/orders"] {HERE}'),
        twin=orders('paths: ["*/orders", "*"]'),
        traps=(IDENTITY, Trap.PATH_NORMALIZATION_BASE),
    ),
    "one of two ports": Case(
        part=span(PORT, ORDERS),
        planted=span(PORT, ORDERS).replace(PORT, PORT + "    - {name: http-admin, port: 81}\n")
        .replace(ORDERS, orders(f'ports: ["80"] {HERE}')),
        twin=span(PORT, ORDERS).replace(PORT, PORT + "    - {name: http-admin, port: 81}\n"),
        traps=(IDENTITY, Trap.PORTS_NOT_ASKED),
    ),
    "every port that may speak HTTP": Case(
        part=ORDERS,
        planted=orders(f'ports: ["80"] {HERE}'),
        twin=orders('ports: ["80"]', more=WHOLE),
        traps=(Trap.PORTS_NOT_ASKED,),
    ),
    "the Service's port instead of the container's": Case(
        part=span(PORT, ORDERS),
        planted=span(PORT, ORDERS).replace("port: 80}", "port: 80, targetPort: 8080}")
        .replace(ORDERS, orders(f'ports: ["80"] {HERE}')),
        twin=span(PORT, ORDERS).replace("port: 80}", "port: 80, targetPort: 8080}"),
        traps=(IDENTITY, Trap.PORTS_NOT_ASKED, Trap.PORTS_MATCH_NOTHING),
    ),
    "a gateway that routes every host": Case(
        part=span(HOSTS, ROUTED),
        planted=span(HOSTS, ROUTED).replace(':*"]', f':*"] {HERE}').replace(ROUTED, ""),
        twin=span(HOSTS, ROUTED).replace("[shop.example.com]", "[shop.example.com, other.example.com]"),
        traps=(Trap.HOST_CHOSEN_BY_CLIENT,),
    ),
    "a VirtualService for every host": Case(
        part=ROUTED,
        planted=ROUTED + INGRESS.format(host='"*"', here=HERE),
        twin=ROUTED + INGRESS.format(host="shop.example.com", here=""),
        traps=(Trap.HOST_CHOSEN_BY_CLIENT,),
    ),
    "labels that no pod has": Case(
        part=ROUTED,
        planted=ROUTED + GATEWAY_POD + asking("istio-ingress", f"selector: {{matchLabels: {{istio: ingress}}}} {HERE}"),
        twin=ROUTED + GATEWAY_POD + asking("istio-ingress", "selector: {matchLabels: {istio: ingressgateway}}"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "pods of another namespace": Case(
        part=ROUTED,
        planted=ROUTED + GATEWAY_POD + asking("shop", f"selector: {{matchLabels: {{istio: ingressgateway}}}} {HERE}"),
        twin=ROUTED + GATEWAY_POD + asking("istio-system", "selector: {matchLabels: {istio: ingressgateway}}"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a workload's labels that no pod has": Case(
        part=ROUTED,
        planted=ROUTED + asking("shop", f"selector: {{matchLabels: {{app: order}}}} {HERE}"),
        twin=ROUTED + asking("unknown", "selector: {matchLabels: {app: order}}"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a gateway's labels, where istiod makes its pods": Case(
        part=ROUTED,
        planted=ROUTED + GATEWAY_POD + asking("istio-ingress", f"selector: {{matchLabels: {{{NAME}: publik}}}} {HERE}"),
        twin=ROUTED + GATEWAY_POD + asking("istio-ingress", f"selector: {{matchLabels: {{{NAME}: public}}}}"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a Gateway that is not there": Case(
        part=ROUTED,
        planted=ROUTED + asking("istio-ingress", f"targetRefs: [{{kind: Gateway, name: other}}] {HERE}"),
        twin=ROUTED + asking("istio-ingress", "targetRefs: [{kind: Gateway, name: public}]"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a Service that is not there": Case(
        part=ROUTED,
        planted=ROUTED + asking("shop", f"targetRefs: [{{kind: Service, name: order}}] {HERE}"),
        twin=ROUTED + asking("shop", "targetRefs: [{kind: Service, name: orders}]"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "pods without a sidecar": Case(
        part=span(SHOP, SPEC),
        planted=span(SHOP, SPEC).replace("istio-injection: enabled", "team: shop", 1)
        .replace("{app: orders}}\n  action", f"{{app: orders}}}} {HERE}\n  action"),
        twin=span(SHOP, SPEC).replace("istio-injection: enabled", "istio.io/rev: stable", 1),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a waypoint's policy, which no policy of its namespace outdoes": Case(
        part=ROUTED,
        planted=ROUTED + WAYPOINT + asking("edge", "", name="all")
        + asking("edge", "targetRefs: [{kind: Gateway, name: way}]", rules=f"{METHODS} {HERE}"),
        twin=ROUTED + WAYPOINT.replace("-waypoint", "") + asking("edge", "", name="all")
        + asking("edge", "targetRefs: [{kind: Gateway, name: way}]", rules=METHODS),
        traps=(IDENTITY, Trap.METHODS_NOT_ASKED),
    ),
    "a meshConfig whose keys have the protocol's own names": Case(
        part=span("extensionProviders:", STATUS),
        planted=PROTO_NAMES.format(fail_open=f"on {HERE}"),
        twin=PROTO_NAMES.format(fail_open="off"),
        traps=(Trap.FAIL_OPEN,),
    ),
    "a text for a boolean": Case(
        part="          failOpen: false\n",
        planted=f'          failOpen: "no" {HERE}\n',
        twin="          failOpen: no\n",
        traps=(Trap.PROVIDER_INVALID,),
    ),
    "a host without its ports": Case(
        part=HOSTS,
        planted=f"            hosts: [shop.example.com] {HERE}\n",
        twin="            hosts: [SHOP.example.com, 'shop.EXAMPLE.com:*']\n",
        traps=(Trap.HOST_PORT_NOT_ASKED,),
    ),
    "a host with its ports only": Case(
        part=HOSTS,
        planted=f"            hosts: ['shop.example.com:*'] {HERE}\n",
        twin="            hosts: ['shop.example.com*']\n",
        traps=(Trap.HOST_PORT_NOT_ASKED,),
    ),
    "a suffix, which never covers a port": Case(
        part=HOSTS,
        planted=f"            hosts: ['*.example.com'] {HERE}\n",
        twin="            hosts: ['*']\n",
        traps=(Trap.HOST_PORT_NOT_ASKED,),
    ),
    "hosts at a sidecar": Case(
        part=ORDERS,
        planted=orders(f'hosts: ["a.example", "a.example:*"] {HERE}'),
        twin=orders('hosts: ["*"]'),
        traps=(Trap.HOST_CHOSEN_BY_CLIENT,),
    ),
    "notHosts at a sidecar": Case(
        part=ORDERS,
        planted=orders(f"notHosts: [a.example] {HERE}"),
        twin=orders("notHosts: [a.example]", more=WHOLE),
        traps=(Trap.HOST_CHOSEN_BY_CLIENT,),
    ),
    "hosts at a waypoint": Case(
        part=span("targetRefs:", HOSTS),
        planted=span("targetRefs:", HOSTS)
        .replace("kind: Gateway, name: public", "kind: Service, name: orders")
        .replace(':*"]', f':*"] {HERE}'),
        twin=span("targetRefs:", HOSTS).replace("kind: Gateway, name: public", "kind: Service, name: orders")
        .replace(':*"]', ':*", "*"]'),
        traps=(Trap.HOST_CHOSEN_BY_CLIENT,),
    ),
    "hosts at the Gateway of a waypoint": Case(
        part=span("            hosts:", "gatewayClassName: istio"),
        planted=span("            hosts:", "gatewayClassName: istio").replace(':*"]', f':*"] {HERE}') + "-waypoint",
        twin=span("            hosts:", "gatewayClassName: istio") + "-other",
        traps=(Trap.HOST_CHOSEN_BY_CLIENT,),
    ),
    "failOpen": Case(
        part="          failOpen: false\n",
        planted=f"          failOpen: true {HERE}\n",
        twin="",
        traps=(Trap.FAIL_OPEN,),
    ),
    "no rules": Case(
        part=ORDERS, planted=f"  rules: [] {HERE}\n", twin="  rules: [{}]\n", traps=(Trap.CUSTOM_REFUSED,)
    ),
    "a field that CUSTOM does not know": Case(
        part=ORDERS,
        planted=f"  rules:\n    - {{}}\n    - from: [{{source: {{principals: [a]}}}}] {HERE}\n",
        twin="  rules:\n    - {}\n    - from: [{source: {ipBlocks: [10.0.0.0/8]}}]\n",
        traps=(Trap.CUSTOM_REFUSED,),
    ),
    "a negated field that CUSTOM does not know": Case(
        part=ORDERS,
        planted=f"  rules:\n    - {{}}\n    - from: [{{source: {{notRequestPrincipals: [a]}}}}] {HERE}\n",
        twin="  rules:\n    - {}\n    - from: [{source: {notIpBlocks: [10.0.0.0/8]}}]\n",
        traps=(Trap.CUSTOM_REFUSED,),
    ),
    "a condition that CUSTOM does not know": Case(
        part=ORDERS,
        planted=f"  rules:\n    - {{}}\n    - when: [{{key: 'request.auth.claims[a]', values: [b]}}] {HERE}\n",
        twin="  rules:\n    - {}\n    - when: [{key: 'request.headers[a]', values: [b]}]\n",
        traps=(Trap.CUSTOM_REFUSED,),
    ),
    "no provider's name": Case(
        part="  action: CUSTOM\n  provider: {name: authz}\n  rules:\n    - {}\n",
        planted=f"  action: CUSTOM\n  provider: {{}} {HERE}\n  rules:\n    - {{}}\n",
        twin="  action: CUSTOM\n  provider: {name: 'authz'}\n  rules:\n    - {}\n",
        traps=(Trap.CUSTOM_REFUSED,),
    ),
    "a claim written over an identity header": Case(
        part=JWT,
        planted=JWT + f"      outputClaimToHeaders: [{{header: X_User, claim: sub}}] {HERE}\n",
        twin=JWT + "      outputClaimToHeaders: [{header: x-other, claim: sub}]\n",
        traps=(Trap.CLAIMS_OVERRIDE_IDENTITY,),
        rules=RULES,
    ),
    "the payload written over an identity header": Case(
        part=JWT,
        planted=JWT + f"      outputPayloadToHeader: x-roles {HERE}\n",
        twin=JWT + "      outputPayloadToHeader: x-payload\n",
        traps=(Trap.CLAIMS_OVERRIDE_IDENTITY,),
        rules=RULES,
    ),
    "a token forwarded from a place of its own": Case(
        part=JWT,
        planted=f"      forwardOriginalToken: true {HERE}\n      fromHeaders: [{{name: x-jwt}}]\n",
        twin="      fromHeaders: [{name: x-jwt}]\n",
        traps=(Trap.TOKEN_FORWARDED,),
        rules=RULES.replace("require: any_token", "require: any_token, authorization: remove"),
    ),
    "a token forwarded from a place that is looked at if none is said": Case(
        part="    - issuer: https://sso.example.com/realms/shop\n" + JWT,
        planted=f"    - {{issuer: 'https://sso.example.com', forwardOriginalToken: true}} {HERE}\n",
        twin="    - issuer: https://sso.example.com\n      fromParams: [access_token]\n",
        traps=(Trap.TOKEN_READ_AFTER, Trap.TOKEN_FORWARDED),
        rules=RULES.replace("require: any_token", 'require: any_token, authorization: {replace: "Basic {sub}"}'),
    ),
    "a token forwarded from a place that a rule takes it from": Case(
        part=JWT,
        planted=f"      forwardOriginalToken: true {HERE}\n      fromHeaders: [{{name: x-jwt}}]\n",
        twin="      forwardOriginalToken: true\n      fromHeaders: [{name: X-Token}]\n",
        traps=(Trap.TOKEN_FORWARDED,),
        rules=RULES.replace("any_token", "any_token, authorization: remove, token_in: [{header: x-token}]"),
    ),
    "a token read where a rule removed it": Case(
        part="    - issuer: https://sso.example.com/realms/shop\n" + JWT,
        planted=f"    - issuer: https://sso.example.com/realms/shop {HERE}\n",
        twin="    - issuer: https://sso.example.com/realms/shop\n      fromCookies: [jwt]\n",
        traps=(Trap.TOKEN_READ_AFTER,),
        rules=RULES.replace("require: any_token", "require: any_token, authorization: remove"),
    ),
    "a token that is stripped": Case(
        part="    - issuer: https://sso.example.com/realms/shop\n" + JWT,
        planted=f"    - issuer: https://sso.example.com/realms/shop {HERE}\n",
        twin="    - issuer: https://sso.example.com/realms/shop\n      fromParams: [jwt]\n",
        traps=(Trap.TOKEN_STRIPPED,),
        rules=RULES,
    ),
    "no timeout": Case(
        part="      - name: authz\n        envoyExtAuthzGrpc:\n          service: authz.authz.svc.cluster.local\n"
        "          port: 9001\n" + TIMEOUT,
        planted=f"      - name: authz\n        envoyExtAuthzGrpc: {HERE}\n"
        "          service: authz.authz.svc.cluster.local\n          port: 9001\n",
        twin="      - name: authz\n        envoyExtAuthzGrpc:\n          service: authz.authz.svc.cluster.local\n"
        '          port: "9001"\n          timeout: 2s\n',
        traps=(Trap.TIMEOUT_MISSING,),
    ),
    "no statusOnError": Case(
        part="        envoyExtAuthzGrpc:\n          service: authz.authz.svc.cluster.local\n          port: 9001\n"
        + TIMEOUT + "          failOpen: false\n" + STATUS,
        planted=f"        envoyExtAuthzGrpc: {HERE}\n          service: authz.authz.svc.cluster.local\n"
        "          port: 9001\n" + TIMEOUT,
        twin="        envoyExtAuthzGrpc:\n          service: authz/authz.authz.svc.cluster.local\n"
        "          port: 9001\n" + TIMEOUT + STATUS,
        traps=(Trap.STATUS_ON_ERROR_MISSING,),
    ),
    "a status that Envoy does not know": Case(
        part=STATUS,
        planted=f'          statusOnError: "599" {HERE}\n',
        twin='          statusOnError: "500"\n',
        traps=(Trap.PROVIDER_INVALID,),
    ),
    "a duration that meshConfig does not know": Case(
        part=TIMEOUT,
        planted=f"          timeout: 1.25 {HERE}\n",
        twin="          timeout: 1m0.5s\n",
        traps=(Trap.PROVIDER_INVALID,),
    ),
    "a name that istiod refuses": Case(
        part=STATUS,
        planted=STATUS + OTHER.replace("other", "Other").replace("Grpc:", f"Grpc: {HERE}"),
        twin=STATUS + OTHER,
        traps=(Trap.PROVIDER_INVALID,),
    ),
    "two policies of two providers on one workload": Case(
        part=span(STATUS, ORDERS),
        planted=span(STATUS, ORDERS).replace(STATUS, STATUS + OTHER)
        + "---\nkind: AuthorizationPolicy\nmetadata: {name: second, namespace: shop}\n"
        f"spec:\n  action: CUSTOM\n  provider: {{name: other}} {HERE}\n  rules: [{{}}]\n",
        twin=span(STATUS, ORDERS).replace(STATUS, STATUS + OTHER).replace('"false"', '"true"')
        + "---\nkind: AuthorizationPolicy\nmetadata: {name: second, namespace: shop}\n"
        "spec:\n  action: CUSTOM\n  provider: {name: other}\n  rules: [{}]\n",
        traps=(Trap.SEVERAL_PROVIDERS,),
    ),
    "a provider that is not there": Case(
        part="  action: CUSTOM\n  provider: {name: authz}\n  rules:\n    - {}\n",
        planted=f"  action: CUSTOM\n  provider: {{name: auth}} {HERE}\n  rules:\n    - {{}}\n",
        twin="  action: CUSTOM\n  provider: {name: authz}\n  rules: [{}]\n",
        traps=(Trap.UNKNOWN_PROVIDER,),
    ),
    "a dry run": Case(
        part=CUSTOM_ORDERS,
        planted="metadata:\n  name: orders\n  namespace: shop\n  annotations:\n"
        f'    istio.io/dry-run: "true" {HERE}\n' + SPEC,
        twin='metadata:\n  name: orders\n  namespace: shop\n  annotations:\n    other: "true"\n' + SPEC,
        traps=(Trap.CUSTOM_DRY_RUN,),
    ),
    "a port that the service does not have": Case(
        part="          port: 9001\n",
        planted=f"          port: 9003 {HERE}\n",
        twin="          port: 9001 # the service's\n",
        traps=(Trap.SERVICE_PORT_MISSING,),
    ),
    "a port that says nothing": Case(
        part=GRPC_PORT,
        planted=f"    - {{name: checks, port: 9001}} {HERE}\n",
        twin="    - {name: grpc-checks, port: 9001}\n",
        traps=(Trap.SERVICE_PORT_NOT_GRPC,),
    ),
    "a port whose appProtocol overrules its name": Case(
        part=GRPC_PORT,
        planted=f"    - {{name: grpc, port: 9001, appProtocol: http}} {HERE}\n",
        twin="    - {name: http, port: 9001, appProtocol: kubernetes.io/h2c}\n",
        traps=(Trap.SERVICE_PORT_NOT_GRPC,),
    ),
    "a Sidecar that hides the provider": Case(
        part="  egress:\n" + EGRESS,
        planted=f'  egress: {HERE}\n    - hosts: ["./*", "istio-system/*"]\n',
        twin='  egress:\n    - hosts: ["./*", "authz/*.svc.cluster.local"]\n',
        traps=(Trap.SIDECAR_EGRESS_HIDES_PROVIDER,),
    ),
    "a Sidecar that excludes the provider": Case(
        part="  egress:\n" + EGRESS,
        planted=f'  egress: {HERE}\n    - hosts: ["*/*", "~authz/*"]\n',
        twin='  egress:\n    - hosts: ["*/*", "~other/*"]\n',
        traps=(Trap.SIDECAR_EGRESS_HIDES_PROVIDER,),
    ),
    "a Sidecar for other ports": Case(
        part="  egress:\n" + EGRESS,
        planted=f'  egress: {HERE}\n    - {{port: {{number: 80}}, hosts: ["*/*"]}}\n',
        twin='  egress:\n    - {port: {number: 9001}, hosts: ["*/*"]}\n',
        traps=(Trap.SIDECAR_EGRESS_HIDES_PROVIDER,),
    ),
    "bodies that are not read": Case(
        part=STATUS,
        planted=STATUS + f"          includeRequestBodyInCheck: {{maxRequestBytes: 1048576}} {HERE}\n",
        twin=STATUS + "          includeRequestBodyInCheck: {maxRequestBytes: 8192}\n",
        traps=(Trap.BODY_OVER_LIMIT,),
        rules=RULES,
    ),
    "a timeout below the deadline": Case(
        part=TIMEOUT,
        planted=f"          timeout: 999ms {HERE}\n",
        twin="          timeout: 1000ms\n",
        traps=(Trap.TIMEOUT_BELOW_DEADLINE,),
        rules=RULES,
    ),
    "a policy of the whole mesh that covers this service": Case(
        part=CUSTOM_ORDERS,
        planted=f"metadata: {{name: orders, namespace: istio-system}}\nspec: {HERE}\n  action: CUSTOM\n",
        twin="metadata: {name: orders, namespace: istio-system}\n" + SPEC,
        traps=(Trap.AUTHORIZER_ASKS_ITSELF,),
    ),
    "a port that is not HTTP": Case(
        part="    - {name: http, port: 80}\n",
        planted=f"    - {{name: http, port: 80}}\n    - {{name: tcp-raft, port: 81}} {HERE}\n",
        twin="    - {name: http, port: 80}\n    - {name: http-raft, port: 81}\n",
        traps=(Trap.TCP_PORTS_ASKED,),
    ),
    "an ambient namespace": Case(
        part=span(SHOP, SPEC),
        planted=span(SHOP, SPEC)
        .replace("istio-injection: enabled", "istio.io/dataplane-mode: ambient", 1)
        .replace(SPEC, SPEC.replace("spec:", f"spec: {HERE}")),
        twin=span(SHOP, SPEC).replace("enabled}", "enabled, istio.io/dataplane-mode: none}", 1),
        traps=(Trap.SELECTOR_IGNORED,),
    ),
    "callers without mTLS": Case(
        part=span(OWN, "mode: STRICT"),
        planted=span(OWN, "mode: STRICT")
        .replace("namespace: authz}", f"namespace: authz}} {HERE}", 1)
        .replace("STRICT", "PERMISSIVE"),
        twin=span(OWN, "mode: STRICT")
        .replace("name: strict, namespace: authz", "name: strict, namespace: istio-system"),
        traps=(Trap.AUTHORIZER_OPEN,),
    ),
    "callers whom nothing names": Case(
        part=span(OWN, "name: callers, namespace: authz}\n"),
        planted=span(OWN, "name: callers, namespace: authz}\n")
        .replace("namespace: authz}", f"namespace: authz}} {HERE}", 1)
        .replace("name: callers, namespace: authz", "name: callers, namespace: other"),
        twin=span(OWN, "name: callers, namespace: authz}\n").replace(
            "callers, namespace: authz", "callers, namespace: istio-system"
        ),
        traps=(Trap.AUTHORIZER_OPEN,),
    ),
}  # fmt: skip
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


@pytest.mark.parametrize("rules", [None, RULES], ids=["alone", "with rules"])
def test_a_clean_mesh_has_no_findings(rules: str | None, tmp_path: Path) -> None:
    assert check(CLEAN, rules, tmp_path) == []


@pytest.mark.parametrize("name", CASES)
def test_a_planted_trap_is_found_at_its_line_and_alone(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    mesh = replace(case.part, case.planted)
    line = next(number for number, text in enumerate(mesh.split("\n"), 1) if HERE in text)
    assert sorted(check(mesh, case.rules, tmp_path)) == sorted((trap.value, line) for trap in case.traps)


@pytest.mark.parametrize("name", CASES)
def test_its_nearest_clean_twin_has_no_findings(name: str, tmp_path: Path) -> None:
    assert CASES[name].twin != CASES[name].part, "that is the clean mesh itself"
    assert check(replace(CASES[name].part, CASES[name].twin), CASES[name].rules, tmp_path) == []


@pytest.mark.parametrize("setting", FILTERS)
def test_a_filter_that_opens_something_is_found_and_its_twin_is_not(setting: str, tmp_path: Path) -> None:
    twin, trap = FILTERS[setting]
    assert [found for found, _ in check(CLEAN + envoy_filter(setting), None, tmp_path)] == [trap.value]
    assert check(CLEAN + envoy_filter(twin), None, tmp_path) == []


@pytest.mark.parametrize("operation", ["ADD", "INSERT_AFTER"])
def test_a_filter_behind_the_router_is_never_reached(operation: str, tmp_path: Path) -> None:
    mesh = CLEAN + envoy_filter("encode_raw_headers: true", operation)
    assert [found for found, _ in check(mesh, None, tmp_path)] == ["filter_after_router"]
    assert check(mesh.replace(operation, "INSERT_FIRST"), None, tmp_path) == []


def test_a_filter_without_a_status_reads_as_a_denial(tmp_path: Path) -> None:
    mesh = CLEAN + envoy_filter("encode_raw_headers: true")
    status = "            status_on_error: {code: ServiceUnavailable}\n"
    assert [found for found, _ in check(mesh.replace(status, ""), None, tmp_path)] == ["status_on_error_missing"]
    merged = mesh.replace(status, "").replace("INSERT_BEFORE", "MERGE")  # what is not said may stand in the other part
    assert check(merged, None, tmp_path) == []


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
STRUCT = "type.googleapis.com/xds.type.v3.TypedStruct"
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


@pytest.mark.parametrize("name", TAKEN_OUT)
def test_a_filter_that_is_taken_out_is_found(name: str, tmp_path: Path) -> None:
    planted, twin = (CLEAN + PATCH.format(kind="HTTP_FILTER", chosen=EXT_AUTHZ, patch=text) for text in TAKEN_OUT[name])
    assert [found for found, _ in check(planted, None, tmp_path)] == ["filter_disabled"]
    assert check(twin, None, tmp_path) == []
    others = planted.replace(f"{{name: {EXT_AUTHZ}}}}}}}", f"{{name: {ROUTER}}}}}}}")
    assert ("filter_disabled" in {its for its, _ in check(others, None, tmp_path)}) is (name[0] in "fd")


@pytest.mark.parametrize("setting", ["failure_mode_allow: true", "failureModeAllow: yes"])
def test_settings_in_a_struct_are_read(setting: str, tmp_path: Path) -> None:
    inner = f"{{status_on_error: {{code: ServiceUnavailable}}, {setting}}}"
    config = f"{{'@type': {STRUCT}, type_url: {TYPE}, value: {inner}}}"
    patch = f"{{operation: INSERT_FIRST, value: {{name: any, typed_config: {config}}}}}"
    mesh = CLEAN + PATCH.format(kind="HTTP_FILTER", chosen=ROUTER, patch=patch)
    assert [found for found, _ in check(mesh, None, tmp_path)] == ["fail_open"]
    assert check(mesh.replace(setting, "failure_mode_allow: off"), None, tmp_path) == []


def test_a_filter_after_no_other_stands_behind_the_router(tmp_path: Path) -> None:
    mesh = CLEAN + envoy_filter("encode_raw_headers: true", "INSERT_AFTER")
    named = "subFilter: {name: envoy.filters.http.router}"
    assert [found for found, _ in check(mesh.replace(f", {named}", ""), None, tmp_path)] == ["filter_after_router"]
    assert check(mesh.replace(named, "subFilter: {name: envoy.filters.http.jwt_authn}"), None, tmp_path) == []


@pytest.mark.parametrize(
    "config", ["{disabled: true}", "{'@type': FilterConfig, config: {'@type': PerRoute, disabled: yes}}"]
)
def test_settings_of_routes_are_read_at_any_depth(config: str, tmp_path: Path) -> None:
    value = f"{{routes: [{{typed_per_filter_config: {{{EXT_AUTHZ}: {config}}}}}]}}"
    mesh = CLEAN + PATCH.format(kind="VIRTUAL_HOST", chosen="a", patch=f"{{operation: MERGE, value: {value}}}")
    assert [found for found, _ in check(mesh, None, tmp_path)] == ["filter_disabled"]
    assert check(mesh.replace("disabled: ", "other: "), None, tmp_path) == []


@pytest.mark.parametrize("port", ["{name: web, port: 80}", "{name: tcp-web, port: 80}"])
def test_a_filter_on_a_port_that_is_not_declared_as_http_is_passed_by(port: str, tmp_path: Path) -> None:
    own = "---\n".join(part for part in CLEAN.split("---\n") if CUSTOM_ORDERS not in part)
    mesh = own.replace(PORT, f"    - {port} {HERE}\n") + envoy_filter("encode_raw_headers: true")
    line = next(number for number, text in enumerate(mesh.split("\n"), 1) if HERE in text)
    assert check(mesh, None, tmp_path) == [("filter_not_on_port", line)]
    for twin in (
        own.replace(PORT, "    - {name: web, port: 80, appProtocol: http}\n")
        + envoy_filter("encode_raw_headers: true"),
        own.replace(PORT, f"    - {port}\n") + envoy_filter("encode_raw_headers: true", "MERGE"),
    ):
        assert check(twin, None, tmp_path) == []


BARE = "metadata: {name: authz, labels: {istio-injection: enabled}}"
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


def test_where_the_pods_have_no_sidecar_nothing_of_istio_keeps_callers_away(tmp_path: Path) -> None:
    assert check(CLEAN, None, tmp_path) == []
    bare = replace(BARE, BARE.replace("enabled", "disabled"))
    assert [found for found, _ in check(bare, None, tmp_path)] == ["authorizer_open"]
    assert check(bare + CLOSED, None, tmp_path) == []
    for change in (("a: b", ""), ("9002", "9001"), ("name: authz}}\n", "name: other}}\n")):
        opened = CLOSED.replace("{matchLabels: {a: b}}", "{}") if change[0] == "a: b" else CLOSED.replace(*change)
        assert [found for found, _ in check(bare + opened, None, tmp_path)] == ["authorizer_open"]


def test_pods_without_a_sidecar_do_not_answer_mutual_tls(tmp_path: Path) -> None:
    bare = replace(BARE, BARE.replace("enabled", "disabled")) + CLOSED
    assert [found for found, _ in check(bare + MUTUAL, None, tmp_path)] == ["mtls_without_sidecar"]
    for twin in (
        CLEAN + MUTUAL,
        bare + MUTUAL.replace("ISTIO_MUTUAL", "SIMPLE"),
        bare + MUTUAL.replace("9001", "9002"),
    ):
        assert check(twin, None, tmp_path) == []


@pytest.mark.parametrize("said", ["true", "True", "yes", "Yes", "on", "ON", "y"])
@pytest.mark.parametrize("key", ["failOpen", "fail_open"])
def test_booleans_and_keys_are_read_as_istiod_reads_them(key: str, said: str, tmp_path: Path) -> None:
    assert [found for found, _ in check(replace("failOpen: false", f"{key}: {said}"), None, tmp_path)] == ["fail_open"]
    assert check(replace("failOpen: false", f"{key}: off"), None, tmp_path) == []


def test_of_several_mesh_configs_the_worst_counts(tmp_path: Path) -> None:
    mesh = replace(ROOT, merged("DECODE_AND_MERGE_SLASHES")).replace(ORDERS, orders('paths: ["/orders/*"]'))
    other = "---\nkind: ConfigMap\nmetadata: {name: istio-canary, namespace: istio-system}\ndata: {mesh: 'a: b'}\n"
    base = Trap.PATH_NORMALIZATION_BASE.value
    assert base not in {found for found, _ in check(mesh, None, tmp_path)}
    assert base in {found for found, _ in check(mesh + other, None, tmp_path)}
    assert base not in {found for found, _ in check(mesh + other.replace("-system", "-settings"), None, tmp_path)}


def test_routes_that_leave_the_filter_out_are_found(tmp_path: Path) -> None:
    text = """---
kind: EnvoyFilter
metadata: {name: off, namespace: shop}
spec:
  configPatches:
    - applyTo: HTTP_ROUTE
      patch: {operation: MERGE, value: {typed_per_filter_config: {envoy.filters.http.ext_authz: {disabled: true}}}}
"""
    assert [found for found, _ in check(CLEAN + text, None, tmp_path)] == ["filter_disabled"]
    assert check(CLEAN + text.replace("true", "false"), None, tmp_path) == []


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


def test_identity_headers_that_are_removed_before_do_not_pass(tmp_path: Path) -> None:
    mesh = replace(ORDERS, orders("methods: [GET]"))
    traps = {Trap.IDENTITY_HEADERS_PASS.value, Trap.METHODS_NOT_ASKED.value}
    assert {found for found, _ in check(mesh, RULES, tmp_path)} == traps
    for other in (
        EARLY.replace(", {remove: X-Roles}", ""),
        EARLY.replace(", {remove: x.user}", ""),
        EARLY.replace("istio-system", "istio-ingress"),
    ):
        assert {found for found, _ in check(mesh + other, RULES, tmp_path)} == traps
    assert {found for found, _ in check(mesh + EARLY, RULES, tmp_path)} == {Trap.METHODS_NOT_ASKED.value}


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


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("", ""), []),
        (("[/healthz]", "[/other]"), ["identity_headers_pass"]),
        (("x-roles", "x-other"), ["identity_headers_pass"]),
        (("x.user", "x-other"), ["identity_headers_pass"]),
        (('["*"]', "[root]"), ["identity_headers_pass"]),
        (("    - when", "    - from: [{source: {namespaces: [a]}}]\n      when"), ["identity_headers_pass"]),
        (("namespace: shop", "namespace: other"), ["identity_headers_pass"]),
        (("DENY", "AUDIT"), ["identity_headers_pass"]),
        (("{name: no", '{annotations: {istio.io/dry-run: "true"}, name: no'), ["identity_headers_pass"]),
        (("{name: no", '{annotations: {istio.io/dry-run: "false"}, name: no'), []),
        (('values: ["*"]', 'values: ["*"], notValues: ["mallory"]'), ["identity_headers_pass"]),
    ],
)
def test_one_path_may_be_left_out_where_a_deny_refuses_identity_there(
    change: tuple[str, str], found: list[str], tmp_path: Path
) -> None:
    mesh = replace(ORDERS, orders("notPaths: [/healthz]", more="    - to: [{operation: {notMethods: [GET]}}]\n"))
    assert [its for its, _ in check(mesh + REFUSED.replace(*change), RULES, tmp_path)] == found
    assert [its for its, _ in check(mesh, RULES, tmp_path)] == ["identity_headers_pass"]


def test_without_identity_headers_none_passes(tmp_path: Path) -> None:
    mesh, rules = replace(ORDERS, orders("methods: [GET]")), RULES.replace("identity_headers: {", "# {")
    assert [found for found, _ in check(mesh, rules, tmp_path)] == [Trap.METHODS_NOT_ASKED.value]


def test_a_host_of_a_rule_that_no_policy_asks_about_is_found_in_the_rules_file(tmp_path: Path) -> None:
    """A policy for all hosts, as that of `orders`, leaves none out."""
    gateway_only = "---\n".join(part for part in CLEAN.split("---\n") if CUSTOM_ORDERS not in part)
    for hosts, expected in (
        ("[shop.example.com]", []),
        ("[other.example.com]", [("host_of_rule_not_asked", 6)]),
        ('["*.example.com"]', [("host_of_rule_not_asked", 6)]),
        ('["[::1]"]', [("host_of_rule_not_asked", 6)]),
    ):
        rules = RULES.replace("[shop.example.com]", hosts)
        assert check(gateway_only, rules, tmp_path) == expected
        assert check(CLEAN, rules, tmp_path) == []


def test_a_host_that_only_a_guard_names_is_asked_about_too(tmp_path: Path) -> None:
    gateway_only = "---\n".join(part for part in CLEAN.split("---\n") if CUSTOM_ORDERS not in part)
    guard = "guards:\n  - {name: admin, hosts: [admin.example.com], paths: [/**], require: {roles: admin}}\n"
    assert check(gateway_only, RULES + guard, tmp_path) == [("host_of_rule_not_asked", 9)]
    assert check(gateway_only, RULES + guard.replace("admin.example", "shop.example"), tmp_path) == []
    assert check(CLEAN, RULES + guard, tmp_path) == []


NORMALIZATIONS = {
    "NONE": {"/./orders/x", "//orders/x", "/%2forders/x"},
    "BASE": {"//orders/x", "/%2forders/x"},
    "DEFAULT": {"//orders/x", "/%2forders/x"},
    "MERGE_SLASHES": {"/%2forders/x"},
    "DECODE_AND_MERGE_SLASHES": set(),
}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_what_is_not_asked_about_depends_on_the_normalisation(normalization: str) -> None:
    mesh = replace(ORDERS, orders('paths: ["/orders/*"]')).replace(ROOT, merged(normalization))
    findings = json.loads(run("-", "--json", stdin=mesh).stdout)["findings"]
    texts = [its["text"] for its in findings if its["finding"] == "path_normalization_base"]
    told = {part for text in texts for part in text.split("`") if part.startswith("/") and "*" not in part}
    assert told == NORMALIZATIONS[normalization]


MISSING = {
    "the Service": (OWN, ["not_given"]),
    "the meshConfig": ("kind: ConfigMap", ["not_given"]),
    "the policies": ("action: CUSTOM", ["not_given"]),
    "the routes": ("kind: HTTPRoute", ["not_given"]),
    "the workloads": ("kind: Deployment", ["not_given"]),
    "what has no bearing": ("kind: Sidecar", []),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_could_not_be_judged_is_a_note(name: str, tmp_path: Path) -> None:
    text, expected = MISSING[name]
    mesh = "---\n".join(part for part in CLEAN.split("---\n") if text not in part)
    assert [found for found, _ in check(mesh, None, tmp_path)] == expected


def test_the_flag_of_istiod_may_be_unknown(tmp_path: Path) -> None:
    case = CASES["two policies of two providers on one workload"]
    mesh = replace(case.part, case.planted)
    unknown = "---\n".join(part for part in mesh.split("---\n") if "name: istiod" not in part)
    assert [found for found, _ in check(unknown, None, tmp_path)] == ["not_given"]


MESH_CONFIG = {
    "extensionProviders": [
        {"name": "a", "envoyExtAuthzGrpc": {"service": "a.b", "port": 1, "timeout": "1s", "failOpen": True}}
    ]
}


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "IstioOperator", "spec": {"meshConfig": MESH_CONFIG}},
        {"kind": "Istio", "spec": {"values": {"meshConfig": MESH_CONFIG}}},
        {"kind": "ConfigMap", "metadata": {"name": "istio-canary"}, "data": {"mesh": yaml.safe_dump(MESH_CONFIG)}},
        {"meshConfig": MESH_CONFIG},
        MESH_CONFIG,
    ],
    ids=["IstioOperator", "Istio", "ConfigMap", "Helm values", "alone"],
)
def test_a_mesh_config_is_found_wherever_it_stands(value: object, tmp_path: Path) -> None:
    found = [its for its, _ in check(yaml.safe_dump(value), None, tmp_path)]
    assert sorted(found) == ["fail_open", "not_given", "not_given", "status_on_error_missing"]


def test_a_name_that_two_providers_have_is_found_at_both(tmp_path: Path) -> None:
    found = check(replace(STATUS, STATUS + OTHER + OTHER), None, tmp_path)
    assert [its for its, _ in found] == ["provider_invalid", "provider_invalid"]
    assert check(replace(STATUS, STATUS + OTHER + OTHER.replace("other", "more")), None, tmp_path) == []


def test_one_mesh_config_written_in_two_ways_is_no_provider_twice(tmp_path: Path) -> None:
    text = yaml.safe_dump({"meshConfig": MESH_CONFIG}) + "---\n" + yaml.safe_dump(MESH_CONFIG)
    found = [its for its, _ in check(text, None, tmp_path)]
    assert "provider_invalid" not in found
    assert found.count("not_given") == 2, "the service and the policies, once each"


def test_a_list_and_a_folder_are_read_as_their_items(tmp_path: Path) -> None:
    items = list(yaml.safe_load_all(replace(ORDERS, orders("methods: [GET]"))))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "all.json").write_text(json.dumps({"kind": "List", "items": items}))
    (tmp_path / "notes.txt").write_text("not: [read")
    done = run(str(tmp_path), "--json")
    assert {its["finding"] for its in json.loads(done.stdout)["findings"]} == {
        "methods_not_asked",
        "identity_headers_pass",
    }
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid yaml"),
        ("kind: A\nkind: B\n", "written twice"),
        ("a: b\n", "holds no object"),
        ("", "holds no object"),
        ("kind: ConfigMap\nmetadata: {name: istio}\ndata:\n  mesh: |\n    a: 1\n    b: [\n", "not valid yaml"),
        ("meshConfig:\n  rootNamespace: a\n  root_namespace: b\n", "-:3: key `root_namespace` is written twice"),
    ],
)
def test_what_cannot_be_read_is_said_and_is_exit_code_2(text: str, message: str) -> None:
    done = run("-", stdin=text)
    assert done.exit_code == 2
    assert message in done.stderr
    assert run("-", stdin="kind: A\n").exit_code == 0


def test_problems_inside_a_config_map_have_the_lines_of_the_file() -> None:
    text = "kind: ConfigMap\nmetadata: {name: istio}\ndata:\n  mesh: |\n    a: 1\n    b: [}\n"
    assert "-:6: not valid yaml" in run("-", stdin=text).stderr


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_text("kind: A\n#" + "x" * (MAX_BYTES - 9))
    assert run(str(file)).exit_code == 0
    file.write_text("kind: A\n#" + "x" * (MAX_BYTES - 8))
    assert "larger than" in run(str(file)).stderr


def test_lines_for_people_say_what_to_write_instead() -> None:
    done = run("-", stdin=replace("failOpen: false", "failOpen: true"))
    first, last = done.stdout.splitlines()
    assert first.startswith("-:14: open fail_open extensionProvider authz: `failOpen: true`; instead: ")
    assert last == "17 objects: 1 open"


def test_a_bad_rules_file_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("version: 2\n")
    done = run("-", "--rules", str(tmp_path / "rules.yaml"), stdin=CLEAN)
    assert done.exit_code == 2
    assert "version" in done.stderr


@pytest.mark.parametrize("trap", list(Trap))
def test_every_trap_is_explained_and_planted_somewhere(trap: Trap) -> None:
    assert TRAPS[trap].meaning
    assert TRAPS[trap].remedy
    planted = {its for case in CASES.values() for its in case.traps} | {its for _, its in FILTERS.values()}
    alone = {
        Trap.FILTER_NOT_ON_PORT,
        Trap.MTLS_WITHOUT_SIDECAR,
        Trap.FILTER_AFTER_ROUTER,
        Trap.FILTER_DISABLED,
        Trap.HOST_OF_RULE_NOT_ASKED,
        Trap.NOT_GIVEN,
    }
    assert trap in planted | alone | {Trap.HTTP_PROVIDER}


def test_severities_are_in_the_order_of_the_table() -> None:
    order = list(Severity)
    numbers = [order.index(TRAPS[trap].severity) for trap in Trap]
    assert numbers == sorted(numbers)


def test_figures_are_told_in_the_plural() -> None:
    done = run("-", stdin=yaml.safe_dump({"meshConfig": MESH_CONFIG}))
    assert done.stdout.splitlines()[-1] == "2 objects: 1 open, 1 outage, 2 notes"


@pytest.mark.parametrize("page", ["docs/istio.md", "istio/README.md"])
def test_the_command_of_the_pages_asks_for_every_kind_that_is_looked_at(page: str) -> None:
    sources = "".join(path.read_text() for path in (ROOT_FOLDER / "authz" / "mesh").glob("*.py"))
    asked = set(re.findall(r'\b(?:of|named)\("(\w+)"', sources)) - {"IstioOperator", "Istio"}
    assert asked | {"StatefulSet", "DaemonSet", "Pod", "HTTPRoute", "GRPCRoute", "ConfigMap"} == set(KINDS)
    wanted = ",".join(name for names in KINDS.values() for name in names)
    assert f"kubectl get {wanted} " in (ROOT_FOLDER / page).read_text()


def count_calls(number: int) -> int:
    """Return how many functions are called to judge so many namespaces, each with all that there can be."""
    part = CLEAN.split("---\n")
    mine = [its for its in part if "namespace: shop" in its or "name: shop" in its]
    text = CLEAN + "".join(f"---\n{its}".replace("shop", f"shop{at}") for at in range(number) for its in mine)
    objects, problems = read_objects([Path("-")], io.BytesIO(text.encode()))
    assert not problems
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        check_mesh(objects)
    finally:
        sys.setprofile(None)
    return calls


def test_the_work_grows_with_the_mesh_and_not_with_its_square() -> None:
    few, twice, more = (count_calls(number) for number in (20, 40, 80))
    assert more - twice < 2.6 * (twice - few)


def test_aliases_of_all_texts_share_one_allowance() -> None:
    row = f"a: &a [{', '.join('x' * 1_000)}]\n"
    mesh = row + f"b: [{', '.join(['*a'] * 300)}]\n"  # 300,000 values
    one = yaml.safe_dump({"kind": "ConfigMap", "metadata": {"name": "istio"}, "data": {"mesh": mesh}})
    assert run("-", stdin="---\n".join([one] * 3)).exit_code == 0
    assert "write fewer aliases" in run("-", stdin="---\n".join([one] * 4)).stderr


def test_an_http_provider_is_a_note(tmp_path: Path) -> None:
    mesh = replace("envoyExtAuthzGrpc", "envoyExtAuthzHttp")
    assert [found for found, _ in check(mesh, None, tmp_path)] == ["http_provider"]


@pytest.mark.parametrize(
    ("pattern", "host", "matched"),
    [
        ("a.example", "A.EXAMPLE", True),
        ("a.example", "a.example:80", False),
        ("a.example:*", "a.example:80", True),
        ("a.example:*", "a.example", False),
        ("*.example", "a.Example", True),
        ("*.example", "a.example:80", False),
        ("*", "anything", True),
        ("*", "", False),
    ],
)
def test_hosts_are_matched_as_istio_does(pattern: str, host: str, *, matched: bool) -> None:
    assert matches_host(pattern, host) is matched


@pytest.mark.parametrize(
    ("outer", "inner", "included"),
    [
        ("*", "*.a", True),
        ("*.a", "*.b.a", True),
        ("*.b.a", "*.a", False),
        ("a*", "ab*", True),
        ("ab*", "a*", False),
        ("*.a", "x.a", True),
        ("*.a", "x.*", False),
        ("x.*", "*.a", False),
        ("A.b", "a.B", True),
    ],
)
def test_patterns_include_each_other_only_surely(outer: str, inner: str, *, included: bool) -> None:
    assert includes_pattern(outer, inner) is included


def test_whether_a_target_that_was_not_given_is_a_gateway_is_not_guessed(tmp_path: Path) -> None:
    """An object of the same name of Istio's own kind tells nothing about it."""
    hosts = span("targetRefs:", HOSTS)
    other = (
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: other, namespace: istio-ingress}\n"
    )
    clean = "---\n".join(part for part in CLEAN.split("---\n") if "kind: Gateway\n" not in part)
    for more in ("", other):
        mesh = clean.replace(hosts, hosts.replace("name: public", "name: other")) + more
        assert [its for its, _ in check(mesh, None, tmp_path)] == ["not_given"]


DOCUMENTS = list(
    yaml.safe_load_all(
        CLEAN
        + envoy_filter("grpc_service: {envoy_grpc: {cluster_name: a}}")
        + REFUSED
        + EARLY
        + INGRESS.format(host="a.example", here="")
        + WAYPOINT
        + MUTUAL
        + CLOSED
        + PATCH.format(kind="HTTP_FILTER", chosen=EXT_AUTHZ, patch=TAKEN_OUT["for a share"][0])
    )
)
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, "", "*", "x", 7, -1, True, 1.5, [], {}, [None], ["*"], [{}], [[]], {"name": 7}, {"a": [7]}]
)


def places(value: object, loc: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return where each value of a document stands."""
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [loc, *(inner for key, item in items for inner in places(item, (*loc, key)))][1 if not loc else 0 :]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_malformed_object_ends_the_check(data: st.DataObject) -> None:
    """Whatever stands in the place of a value: the others are still judged, and nothing but a finding comes of it."""
    documents = copy.deepcopy(DOCUMENTS)
    for _ in range(data.draw(st.integers(1, 3))):
        holder: Any = data.draw(st.sampled_from(documents))
        *path, last = data.draw(st.sampled_from(places(holder)))
        for step in path:
            holder = holder[step]
        holder[last] = copy.deepcopy(data.draw(JUNK))
    done = run("-", "--json", stdin=yaml.safe_dump_all(documents))
    assert done.exit_code in {0, 1, 2}
    assert {its["finding"] for its in json.loads(done.stdout)["findings"]} <= set(Trap)
