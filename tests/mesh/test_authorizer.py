"""The service's own pods: who may call them, and whether they can answer."""

from __future__ import annotations

from pathlib import Path

from authz.mesh.traps import Trap
from tests.mesh.planting import (
    CLEAN,
    CLOSED,
    CUSTOM_ORDERS,
    HERE,
    MUTUAL,
    OWN,
    SPEC,
    Case,
    check,
    replace,
    span,
)

BARE = "metadata: {name: authz, labels: {istio-injection: enabled}}"


CASES = {
    "a policy of the whole mesh that covers this service": Case(
        part=CUSTOM_ORDERS,
        planted=f"metadata: {{name: orders, namespace: istio-system}}\nspec: {HERE}\n  action: CUSTOM\n",
        twin="metadata: {name: orders, namespace: istio-system}\n" + SPEC,
        traps=(Trap.AUTHORIZER_ASKS_ITSELF,),
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
