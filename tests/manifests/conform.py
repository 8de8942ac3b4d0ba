"""Whether objects are what the API server takes, strictly: by kubeconform and the schemas in this folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

from tests.gotools import find_tool
from tests.manifests.render import read_objects

SCHEMAS: Final = Path(__file__).parent / "schemas"
KUBERNETES: Final = ("1.30.0", "1.37.0")
"""The oldest that will do, and the newest that there are schemas of."""

_FILE: Final = "{{ .Group }}/{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json"


def check_objects(text: str) -> list[str]:
    """Return what is wrong with the objects of a stream of YAML documents; a kind without a schema is wrong too."""
    return sorted({problem for version in KUBERNETES for problem in _check(text, version)})


def _check(text: str, version: str) -> list[str]:
    command = [str(find_tool("kubeconform")), "-strict", "-verbose", "-output", "json", "-kubernetes-version", version]
    command += ["-schema-location", f"{SCHEMAS}/{{{{ .NormalizedKubernetesVersion }}}}/{_FILE}"]
    command += ["-schema-location", f"{SCHEMAS}/custom/{_FILE}", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
    found = json.loads(done.stdout)["resources"]
    assert len(found) == len(read_objects(text)), done.stdout + done.stderr
    return [f"{its['kind']} {its['name']}: {its['msg']}" for its in found if its["status"] != "statusValid"]
