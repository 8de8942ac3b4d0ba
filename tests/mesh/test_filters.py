"""EnvoyFilters that take the filter out, or open it, are found; their nearest twins are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mesh.planting import CLEAN, EXT_AUTHZ, FILTERS, PATCH, ROUTER, TAKEN_OUT, TYPE, check, envoy_filter

STRUCT = "type.googleapis.com/xds.type.v3.TypedStruct"


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
