"""Policies that istiod refuses are found, and what it takes is not."""

from __future__ import annotations

from pathlib import Path

from authz.mesh.traps import Trap
from tests.mesh.planting import (
    CUSTOM_ORDERS,
    HERE,
    ORDERS,
    OTHER,
    SPEC,
    STATUS,
    Case,
    check,
    replace,
    span,
)

CASES = {
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
}  # fmt: skip


def test_the_flag_of_istiod_may_be_unknown(tmp_path: Path) -> None:
    case = CASES["two policies of two providers on one workload"]
    mesh = replace(case.part, case.planted)
    unknown = "---\n".join(part for part in mesh.split("---\n") if "name: istiod" not in part)
    assert [found for found, _ in check(unknown, None, tmp_path)] == ["not_given"]
