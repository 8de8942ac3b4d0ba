"""The whole check: a clean mesh has no findings, every trap is planted somewhere, and nothing malformed ends it."""

from __future__ import annotations

import copy
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.mesh.check import check_mesh
from authz.mesh.objects import KINDS, read_objects
from authz.mesh.traps import TRAPS, Severity, Trap
from tests.mesh import (
    test_asked,
    test_authorizer,
    test_extensions,
    test_refused,
    test_selection,
    test_surroundings,
    test_tokens,
)
from tests.mesh.planting import (
    CLEAN,
    CLOSED,
    EARLY,
    EXT_AUTHZ,
    FILTERS,
    HERE,
    INGRESS,
    MESH_CONFIG,
    MUTUAL,
    OWN,
    PATCH,
    REFUSED,
    RULES,
    TAKEN_OUT,
    WAYPOINT,
    check,
    envoy_filter,
    replace,
    run,
)

CASES = {
    f"{module.__name__.rpartition('test_')[2]}: {name}": case
    for module in (
        test_asked,
        test_authorizer,
        test_extensions,
        test_refused,
        test_selection,
        test_surroundings,
        test_tokens,
    )
    for name, case in module.CASES.items()
}


ROOT_FOLDER = Path(__file__).parents[2]
MISSING = {
    "the Service": (OWN, ["not_given"]),
    "the meshConfig": ("kind: ConfigMap", ["not_given"]),
    "the policies": ("action: CUSTOM", ["not_given"]),
    "the routes": ("kind: HTTPRoute", ["not_given"]),
    "the workloads": ("kind: Deployment", ["not_given"]),
    "what has no bearing": ("kind: Sidecar", []),
}


@pytest.mark.parametrize("name", CASES)
def test_a_planted_trap_is_found_at_its_line_and_alone(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    mesh = replace(case.part, case.planted)
    line = next(number for number, text in enumerate(mesh.split("\n"), 1) if HERE in text)
    assert sorted(check(mesh, case.rules, tmp_path)) == sorted((trap.value, line) for trap in case.traps)


@pytest.mark.parametrize("name", CASES)
def test_its_nearest_clean_twin_has_no_findings(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    assert case.twin != case.part
    assert check(replace(case.part, case.twin), case.rules, tmp_path) == []


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


@pytest.mark.parametrize("rules", [None, RULES], ids=["alone", "with rules"])
def test_a_clean_mesh_has_no_findings(rules: str | None, tmp_path: Path) -> None:
    assert check(CLEAN, rules, tmp_path) == []


@pytest.mark.parametrize("name", MISSING)
def test_what_could_not_be_judged_is_a_note(name: str, tmp_path: Path) -> None:
    text, expected = MISSING[name]
    mesh = "---\n".join(part for part in CLEAN.split("---\n") if text not in part)
    assert [found for found, _ in check(mesh, None, tmp_path)] == expected


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


def test_the_work_grows_with_the_mesh_and_not_with_its_square() -> None:
    few, twice, more = (count_calls(number) for number in (20, 40, 80))
    assert more - twice < 2.6 * (twice - few)


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
