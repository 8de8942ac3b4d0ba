"""What a CUSTOM policy leaves out is found, and what it does not leave out is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from authz.mesh.traps import Trap
from tests.mesh.planting import (
    CLEAN,
    CUSTOM_ORDERS,
    EARLY,
    HERE,
    INGRESS,
    ORDERS,
    PORT,
    REFUSED,
    ROOT,
    ROUTED,
    RULES,
    WAYPOINT,
    Case,
    asking,
    check,
    merged,
    orders,
    replace,
    run,
    span,
)

HOSTS = '            hosts: ["shop.example.com", "shop.example.com:*"]\n'
WHOLE = "    - {}\n"
METHODS = "[{to: [{operation: {methods: [GET]}}]}]"
IDENTITY = Trap.IDENTITY_HEADERS_PASS
NORMALIZATIONS = {
    "NONE": {"/./orders/x", "//orders/x", "/%2forders/x"},
    "BASE": {"//orders/x", "/%2forders/x"},
    "DEFAULT": {"//orders/x", "/%2forders/x"},
    "MERGE_SLASHES": {"/%2forders/x"},
    "DECODE_AND_MERGE_SLASHES": set(),
}


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
    "a waypoint's policy, which no policy of its namespace outdoes": Case(
        part=ROUTED,
        planted=ROUTED + WAYPOINT + asking("edge", "", name="all")
        + asking("edge", "targetRefs: [{kind: Gateway, name: way}]", rules=f"{METHODS} {HERE}"),
        twin=ROUTED + WAYPOINT.replace("-waypoint", "") + asking("edge", "", name="all")
        + asking("edge", "targetRefs: [{kind: Gateway, name: way}]", rules=METHODS),
        traps=(IDENTITY, Trap.METHODS_NOT_ASKED),
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
}  # fmt: skip


def test_of_several_mesh_configs_the_worst_counts(tmp_path: Path) -> None:
    mesh = replace(ROOT, merged("DECODE_AND_MERGE_SLASHES")).replace(ORDERS, orders('paths: ["/orders/*"]'))
    other = "---\nkind: ConfigMap\nmetadata: {name: istio-canary, namespace: istio-system}\ndata: {mesh: 'a: b'}\n"
    base = Trap.PATH_NORMALIZATION_BASE.value
    assert base not in {found for found, _ in check(mesh, None, tmp_path)}
    assert base in {found for found, _ in check(mesh + other, None, tmp_path)}
    assert base not in {found for found, _ in check(mesh + other.replace("-system", "-settings"), None, tmp_path)}


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


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_what_is_not_asked_about_depends_on_the_normalisation(normalization: str) -> None:
    mesh = replace(ORDERS, orders('paths: ["/orders/*"]')).replace(ROOT, merged(normalization))
    findings = json.loads(run("-", "--json", stdin=mesh).stdout)["findings"]
    texts = [its["text"] for its in findings if its["finding"] == "path_normalization_base"]
    told = {part for text in texts for part in text.split("`") if part.startswith("/") and "*" not in part}
    assert told == NORMALIZATIONS[normalization]


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


def test_ports_that_are_asked_about_in_several_ways_leave_nothing_out(tmp_path: Path) -> None:
    mesh = replace(PORT, PORT + "    - {name: http-admin, port: 81}\n")
    for second, traps in (("81", {"ports_not_asked"}), ("80", {"ports_not_asked", "identity_headers_pass"})):
        ports = orders('ports: ["80"]', more=f"    - to: [{{operation: {{ports: ['{second}']}}}}]\n")
        assert {found for found, _ in check(mesh.replace(ORDERS, ports), None, tmp_path)} == traps
