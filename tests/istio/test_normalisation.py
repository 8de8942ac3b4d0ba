"""What Istio does not even ask about, in each mode of `pathNormalization`; and that whole hosts close all of it."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.istio.cluster import Object
from tests.istio.files import load
from tests.istio.mesh import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_500)]

MODES = ("NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES")
CORPUS = (
    *("//orders/7", "/orders//7", "/%2forders/7", "/orders%2f7", "/orders%2F7", "/public/../orders/7"),
    *("/public/%2e%2e/orders/7", "/public/..%2forders/7", "/public/%2e%2e%2forders/7", "/public%2f..%2forders/7"),
    *("/public/..;/orders/7", "/public/.;/../orders/7", "/public\\..\\orders/7", "/public/%5c../orders/7"),
    *("/public/%252e%252e/orders/7", "/orders/7;x=.css", "/orders/7%00.css", "/ORDERS/7", "/orders/%37"),
)
"""Ways to write `/orders/7`, or something that some upstream takes for it."""


def mode(name: str) -> Object:
    shipped: Object = yaml.safe_load(load("mesh-config/configmap.yaml")[0]["data"]["mesh"])
    return {**shipped, "pathNormalization": {"normalization": name}}


@pytest.mark.parametrize("name", MODES)
def test_with_whole_hosts_no_spelling_passes_unasked(mesh: Mesh, name: str) -> None:
    with mesh.configured(mode(name)), mesh.applied(*load("policies/gateway.yaml")):
        for path in CORPUS:
            before = mesh.count()
            answer = mesh.get(path)
            if answer.status_code == 200:  # then the workload got what the rule for public pages is for
                assert re.fullmatch("/public(/[a-z0-9]+)+", answer.json()["path"]), path
            else:
                assert answer.status_code in {400, 401, 403}, (path, answer.status_code)
            # Envoy itself refuses some: then nobody need be asked.
            assert mesh.count() == before + 1 or answer.status_code == 400, path
        assert mesh.get("/public/news").status_code == 200


TRAPS = {  # under which modes a spelling is not asked about
    ("paths", "//orders/7"): {"NONE", "BASE"},
    ("paths", "/%2forders/7"): {"NONE", "BASE", "MERGE_SLASHES"},
    ("paths", "/public/../orders/7"): {"NONE"},
    ("notPaths", "/public/..%2forders/7"): {"NONE", "BASE", "MERGE_SLASHES"},
    ("notPaths", "/public/%2e%2e/orders/7"): {"NONE"},
    ("notPaths", "/public/../orders/7"): {"NONE"},
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("key", ["paths", "notPaths"])
def test_lists_of_paths_leave_ways_around(mesh: Mesh, name: str, key: str) -> None:
    policy = load("policies/gateway.yaml")[0]
    policy["spec"]["rules"] = [{"to": [{"operation": {key: ["/orders/*"] if key == "paths" else ["/public/*"]}}]}]
    with mesh.configured(mode(name)), mesh.applied(policy):
        for (trap, path), modes in TRAPS.items():
            if trap == key:
                before = mesh.count()
                passed = mesh.get(path).status_code == 200
                assert (passed, mesh.count() - before) == ((True, 0) if name in modes else (False, 1)), path
        assert mesh.get("/orders/7").status_code == 401
