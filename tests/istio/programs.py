"""istiod, and Envoys that are configured by it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import yaml

from authz.demo.proxy import EnvoyProcess, end_process
from tests.istio.certificates import SecretServer
from tests.istio.cluster import Object
from tests.istio.files import load

if TYPE_CHECKING:
    from tests.istio.mesh import Mesh

READY_S: Final = 60.0
API_PORT: Final = 16443
# An Envoy as published lacks Istio's own filters; the rest is work of istiod's that nothing here needs.
_ISTIOD: Final = {
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "PILOT_CERT_PROVIDER": "none",
    "ENABLE_CA_SERVER": "false",
    "INJECT_ENABLED": "false",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
    "ENABLE_LEADER_ELECTION": "false",
    "PILOT_DEBOUNCE_AFTER": "20ms",
    "SHARED_MESH_CONFIG": "plumbing",
}


async def start_istiod(mesh: Mesh, program: Path, parts: contextlib.AsyncExitStack) -> None:
    """Start it on the stand-in cluster, and wait until it is ready."""
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://{mesh.istiod}:{API_PORT}"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "none"}}],
        "users": [{"name": "none", "user": {}}],
    }
    (mesh.folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    environ = {name: its for name, its in os.environ.items() if not name.startswith("KUBERNETES_")}
    flags = load("several-providers/values.yaml")[0]["pilot"]["env"]
    addresses = [
        f"--{name}Addr={mesh.istiod}:{port}" for name, port in (("grpc", 15010), ("http", 8080), ("monitoring", 15014))
    ]
    log = parts.enter_context((mesh.folder / "istiod.log").open("wb"))
    process = await asyncio.create_subprocess_exec(
        *(str(program), "discovery", "--registries=Kubernetes", "--kubeconfig", "kubeconfig", *addresses),
        *("--httpsAddr=", "--secureGRPCAddr=", "--ctrlz_address", mesh.istiod, "--ctrlz_port", "9876"),
        cwd=mesh.folder,
        env=environ | _ISTIOD | flags,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    parts.push_async_callback(end_process, process, 5.0)
    async with aiohttp.ClientSession() as session, asyncio.timeout(READY_S):
        while True:
            if process.returncode is not None:
                raise RuntimeError((mesh.folder / "istiod.log").read_text()[-4_000:])
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://{mesh.istiod}:8080/ready") as response:
                    if response.ok:
                        return
            await asyncio.sleep(0.05)


async def start_proxy(
    mesh: Mesh,
    parts: contextlib.AsyncExitStack,
    name: str,
    workload: tuple[str, str],
    address: str,
    labels: Mapping[str, str],
) -> None:
    """Start a pod's proxy; its service account is called as the workload is."""
    account, where = workload
    secret_server = SecretServer(mesh.trust, f"cluster.local/ns/{where}/sa/{account}")
    await secret_server.start()
    parts.push_async_callback(secret_server.stop)
    folder = mesh.folder / name
    folder.mkdir()
    metadata = {
        "NAMESPACE": where,
        "SERVICE_ACCOUNT": account,
        "CLUSTER_ID": "Kubernetes",
        "ISTIO_VERSION": "1.31.0",
        "INTERCEPTION_MODE": "NONE",
        "LABELS": dict(labels),
    }
    kind = "router" if name == "gateway" else "sidecar"
    node = {
        "id": f"{kind}~{address}~{account}-0.{where}~{where}.svc.cluster.local",
        "cluster": f"{account}.{where}",
        "metadata": metadata,
    }
    proxy = EnvoyProcess(yaml.safe_dump(_bootstrap(node, mesh.istiod, secret_server.port)), folder)
    parts.push_async_callback(proxy.stop)
    await proxy.start("--drain-time-s", "0", "--drain-strategy", "immediate")
    mesh.proxies[name] = proxy


def _bootstrap(node: Object, istiod: str, secrets_port: int) -> Object:
    ads = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    sources = [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]
    return {
        "node": node,
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": sources,
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {
            "clusters": [_grpc_cluster("xds-grpc", istiod, 15010), _grpc_cluster("sds-grpc", "127.0.0.1", secrets_port)]
        },
    }


def _grpc_cluster(name: str, address: str, port: int) -> Object:
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    endpoint = {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            kind: {"@type": f"type.googleapis.com/{kind}", "explicit_http_config": {"http2_protocol_options": {}}}
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
