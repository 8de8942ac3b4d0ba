"""A ready configuration: what Istio's mesh needs to ask this service.

Each setting that bears on safety says why. Nothing here is read by the service itself. Invariant NOTHING-FALLS-OUT:
whatever a rule, a guard or a ``cors`` part could judge is matched by the written policy; so no path is ever written,
and hosts only where every spelling that the rules take for one can be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from authz.core.hosts import HostKind
from authz.core.policy import Policy
from authz.envoy_config import render_duration
from authz.proxy_tls import ProxyTls, is_ip, note_gaps

PROVIDER: Final = "authz"
"""The extension provider's name in the mesh."""

_HEAD: Final = """\
# 1. meshConfig (`istioctl install --set`, the Helm chart's `meshConfig`, or the configmap `istio`)
# 2. which workloads ask: an AuthorizationPolicy with action CUSTOM, in the namespace of the workloads
#  rules                        no paths, ever: what they leave out is never checked, and paths have many spellings
#  failOpen: false              no answer from authz is a deny
#  timeout                      is 600 s in Istio if not said
"""

_ALL_HEAD: Final = """\
#  rules: [{}]                  every request
"""

_HOSTS_HEAD: Final = """\
#  hosts                        those of the rules file, in every spelling; other hosts are never checked, so this is
#                               for gateways, which route by host: to a sidecar a client may name any host
"""

_TLS_HEAD: Final = """\
# 3. how those workloads call authz: a DestinationRule with TLS, in their namespace
#  the files                    are read by their proxies: mount them there
"""

_LABEL: Final = re.compile(
    r"((?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)"
    r"=([A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workloads:
    """Which workloads ask: at most one of the three; without any, all of the namespace."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    gateway: str | None = None
    service: str | None = None


def parse_labels(text: str) -> dict[str, str]:
    """Read ``app=orders,tier=web``.

    Raises:
        ValueError: with a message for the user.

    """
    found = [_LABEL.fullmatch(part.strip()) for part in text.split(",")]
    labels = {its[1]: its[2] for its in found if its is not None}
    if len(labels) != len(found):
        raise ValueError(f"{text!a} is no selector: write labels such as app=orders,tier=web")
    return labels


def spell_hosts(policy: Policy) -> tuple[str, ...]:
    """Return every spelling of the policy's hosts as an AuthorizationPolicy knows them; the rules do not mind the case.

    Raises:
        ValueError: with the reason why some host cannot be written so that no request for it falls out.

    """
    keys = dict.fromkeys(key for index in (policy.tables, policy.guard_tables, policy.cors) for key, _ in index.items())
    for kind, name in keys:
        if kind is HostKind.EVERYWHERE:
            raise ValueError("some rule or guard is for `everywhere`")
        if kind is not HostKind.EXACT:
            raise ValueError(f"`*.{name}` with a port cannot be written in Istio")
        if ":" in name:
            raise ValueError(f"`[{name}]` has many spellings")
    names = sorted(name for _, name in keys)
    return tuple(spelling for name in names for spelling in (name, f"{name}:*", f"{name}.", f"{name}.:*"))


def render_istio_config(
    *,
    service: str,
    port: int,
    workloads: Workloads,
    timeout_ms: int,
    tls: ProxyTls | None = None,
    hosts: tuple[str, ...] = (),
) -> str:
    """Return the extension provider, an AuthorizationPolicy that sends requests to it, and what TLS needs.

    Every request of the workloads is sent, or with ``hosts`` every one for these.
    """
    mesh = {
        "meshConfig": {
            "extensionProviders": [
                {
                    "name": PROVIDER,
                    "envoyExtAuthzGrpc": {
                        "service": service,
                        "port": port,
                        "timeout": render_duration(timeout_ms),
                        "failOpen": False,
                        "statusOnError": "503",
                    },
                }
            ]
        }
    }
    documents = [mesh, _policy(workloads, hosts)]
    head = _HEAD + (_HOSTS_HEAD if hosts else _ALL_HEAD)
    if tls is not None:
        documents.append(_destination_rule(service, port, workloads.namespace, tls))
        head += _TLS_HEAD
    return head + note_gaps(yaml.safe_dump_all(documents, sort_keys=False, width=120))


def _policy(workloads: Workloads, hosts: tuple[str, ...]) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    if workloads.labels:
        spec["selector"] = {"matchLabels": dict(workloads.labels)}
    elif workloads.gateway is not None:
        spec["targetRefs"] = [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": workloads.gateway}]
    elif workloads.service is not None:
        spec["targetRefs"] = [{"group": "", "kind": "Service", "name": workloads.service}]
    rules = [{"to": [{"operation": {"hosts": list(hosts)}}]}] if hosts else [{}]
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "authz", "namespace": workloads.namespace},
        "spec": spec | {"action": "CUSTOM", "provider": {"name": PROVIDER}, "rules": rules},
    }


def _destination_rule(service: str, port: int, namespace: str, tls: ProxyTls) -> dict[str, Any]:
    settings: dict[str, Any] = {"mode": "SIMPLE", "caCertificates": tls.ca_file, "subjectAltNames": [tls.server_name]}
    if not is_ip(tls.server_name):
        settings["sni"] = tls.server_name
    if tls.client_cert_file is not None:
        pair = {"clientCertificate": tls.client_cert_file, "privateKey": tls.client_key_file}
        settings |= {"mode": "MUTUAL"} | pair
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "authz", "namespace": namespace},
        # Of this port only: metrics and health on the other are not over TLS.
        "spec": {
            "host": service,
            "trafficPolicy": {"portLevelSettings": [{"port": {"number": port}, "tls": settings}]},
        },
    }
