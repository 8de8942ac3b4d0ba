"""Programs of the Kubernetes world that tests run, built by Go from their published modules, once per machine.

A cold build of all of them takes some ten minutes on two cores, most of it Istio's control plane.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.parts import lacking

ISTIO: Final = "v0.0.0-20260827124520-eed52ebb66ad"
MODULES: Final = {
    "pilot-discovery": f"istio.io/istio/pilot/cmd/pilot-discovery@{ISTIO}",
    "istioctl": f"istio.io/istio/istioctl/cmd/istioctl@{ISTIO}",
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
    "kube-score": "github.com/zegl/kube-score/cmd/kube-score@v1.20.0",
    "kustomize": "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1",
}
BUILD_BUDGET_S: Final = 1_200
GO: Final = (1, 26)

_failed: Final[dict[str, str]] = {}
"""Why a program could not be built in this run: nobody tries again."""


def find_tool(name: str) -> Path:
    """Return a program's path, building it if no run has yet; skip or fail the test where Go is lacking."""
    folder = Path(os.environ.get("AUTHZ_TEST_CACHE") or Path.home() / ".cache" / "authz-tests") / "go"
    program = folder / MODULES[name].replace("/", "_") / name
    if program.is_file():
        return program
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None or read_go_version(go) < GO:
        lacking(name, f"it is built by Go {GO[0]}.{GO[1]} or later: https://go.dev/dl")
    if name in _failed:
        lacking(name, _failed[name])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.is_file():  # another run may have built it while this one waited
            try:
                _build(go, MODULES[name], program)
            except RuntimeError as error:
                _failed[name] = str(error)
                lacking(name, _failed[name])
    return program


def read_go_version(go: str) -> tuple[int, int]:
    """Return the version as far as it matters, 0.0 for what has none."""
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, timeout=60, check=False).stdout
    found = re.match(r"go([0-9]+)\.([0-9]+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _build(go: str, module: str, program: Path) -> None:
    """Install into a folder beside, then rename: a program is there whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="building-", dir=program.parent.parent) as made:
        environment = os.environ | {"GOBIN": made}
        log = Path(made) / "log"
        with log.open("wb") as output:
            child = subprocess.Popen([go, "install", module], stdout=output, stderr=output, env=environment)
            started = time.monotonic()
            try:
                while child.poll() is None and (elapsed_s := time.monotonic() - started) < BUILD_BUDGET_S:
                    try:
                        child.wait(timeout=15)
                    except subprocess.TimeoutExpired:
                        sys.stderr.write(f"{program.name}: go is at work ({elapsed_s + 15:.0f} s)\n")
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if child.returncode != 0:
            raise RuntimeError(f"{module} could not be built:\n{log.read_text(errors='replace')[-4000:]}")
        program.parent.mkdir(exist_ok=True)
        (Path(made) / program.name).rename(program)
