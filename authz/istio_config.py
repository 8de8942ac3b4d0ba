"""A ready configuration: what Istio's mesh needs to ask this service.

Each setting that bears on safety says why. Nothing here is read by the service itself.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from authz.envoy_config import render_duration
from authz.proxy_tls import ProxyTls, is_ip, note_gaps

_HEAD: Final = """\
# 1. meshConfig (`istioctl install --set`, the Helm chart's `meshConfig`, or the configmap `istio`)
# 2. which workloads ask: an AuthorizationPolicy with action CUSTOM, in the namespace of the workloads
#  rules: [{}]                  every request: what a narrower list leaves out is never checked
#  failOpen: false              no answer from authz is a deny
#  timeout                      is 600 s in Istio if not said
"""

_TLS_HEAD: Final = """\
# 3. how those workloads call authz: a DestinationRule with TLS, in their namespace
#  the files                    are read by their proxies: mount them there
"""


def render_istio_config(
    *, service: str, port: int, namespace: str, timeout_ms: int, tls: ProxyTls | None = None
) -> str:
    """Return the extension provider, an AuthorizationPolicy that sends every request to it, and what TLS needs."""
    mesh = {
        "meshConfig": {
            "extensionProviders": [
                {
                    "name": "authz",
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
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "authz", "namespace": namespace},
        "spec": {"action": "CUSTOM", "provider": {"name": "authz"}, "rules": [{}]},
    }
    documents = [mesh, policy] if tls is None else [mesh, policy, _destination_rule(service, port, namespace, tls)]
    head = _HEAD if tls is None else _HEAD + _TLS_HEAD
    return head + note_gaps(yaml.safe_dump_all(documents, sort_keys=False, width=120))


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
