"""The level `restricted` of Kubernetes' Pod Security Standards, as far as a pod's specification can break it."""

from __future__ import annotations

from typing import Any, Final

VOLUMES: Final = frozenset(
    ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
)
SECCOMP: Final = ("RuntimeDefault", "Localhost")

Spec = dict[str, Any]


def find_violations(spec: Spec) -> list[str]:
    """Return what in a pod's specification the level refuses."""
    pod = spec.get("securityContext", {})
    found = [f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += [f"sysctl {its['name']}" for its in pod.get("sysctls", ())]
    for volume in spec.get("volumes", ()):
        found += [f"volume {volume['name']} is a {kind}" for kind in volume.keys() - VOLUMES - {"name"}]
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        found += [f"{container['name']}: {its}" for its in _judge(container, pod)]
    return found


def _judge(container: Spec, pod: Spec) -> list[str]:
    own = container.get("securityContext", {})
    both = pod | own
    capabilities = own.get("capabilities", {})
    confinement = both.get("seLinuxOptions") or both.get("appArmorProfile", {}).get("type") == "Unconfined"
    found = (
        ("has a host port", any("hostPort" in its for its in container.get("ports", ()))),
        ("is privileged", own.get("privileged")),
        ("may escalate its privileges", own.get("allowPrivilegeEscalation", True)),
        ("keeps capabilities", capabilities.get("drop") != ["ALL"]),
        ("adds capabilities", set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}),
        ("sees all of /proc", own.get("procMount", "Default") != "Default"),
        ("may run as root", both.get("runAsNonRoot") is not True),
        ("runs as root", both.get("runAsUser") == 0),
        ("may make any system call", both.get("seccompProfile", {}).get("type") not in SECCOMP),
        ("leaves its confinement", confinement),
    )
    return [text for text, is_so in found if is_so]
