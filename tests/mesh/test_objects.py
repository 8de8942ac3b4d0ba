"""Files are read as kubectl, Helm and istiod read them, with the lines of all that stands in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from authz.mesh.objects import MAX_BYTES
from tests.mesh.planting import MESH_CONFIG, ORDERS, check, orders, replace, run


@pytest.mark.parametrize("said", ["true", "True", "yes", "Yes", "on", "ON", "y"])
@pytest.mark.parametrize("key", ["failOpen", "fail_open"])
def test_booleans_and_keys_are_read_as_istiod_reads_them(key: str, said: str, tmp_path: Path) -> None:
    assert [found for found, _ in check(replace("failOpen: false", f"{key}: {said}"), None, tmp_path)] == ["fail_open"]
    assert check(replace("failOpen: false", f"{key}: off"), None, tmp_path) == []


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


def test_aliases_of_all_texts_share_one_allowance() -> None:
    row = f"a: &a [{', '.join('x' * 1_000)}]\n"
    mesh = row + f"b: [{', '.join(['*a'] * 300)}]\n"  # 300,000 values
    one = yaml.safe_dump({"kind": "ConfigMap", "metadata": {"name": "istio"}, "data": {"mesh": mesh}})
    assert run("-", stdin="---\n".join([one] * 3)).exit_code == 0
    assert "write fewer aliases" in run("-", stdin="---\n".join([one] * 4)).stderr
