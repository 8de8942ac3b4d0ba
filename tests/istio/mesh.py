"""A mesh on loopback: istiod itself, fed by a stand-in cluster, and real Envoys as gateway and sidecars.

Each pod has a loopback address of its own, so that manifests keep their ports. In a cluster the sidecars are reached
through rules of the kernel; here a ``Sidecar`` binds them to their pod's address. All traffic between proxies is
mutual TLS with certificates of a small authority.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import httpx
import yaml
from aiohttp import web

from authz.demo.idp import DemoProvider
from authz.demo.proxy import EnvoyProcess, end_process
from authz.demo.web import ECHO
from authz.servers.http import HttpServer
from tests.gotools import find_tool
from tests.istio.certificates import SecretServer, Trust
from tests.istio.cluster import Cluster, Object
from tests.istio.recorder import Recorder
from tests.istio.workloads import deployment, expose, give_address, namespace, run_pod, service
from tests.servers.service import RunningProcess

ROOT: Final = Path(__file__).parents[2]
START_S: Final = 90.0
SETTLE_S: Final = 30.0
GATEWAY: Final = "cluster.local/ns/istio-ingress/sa/istio-ingressgateway"
NAMESPACES: Final = ("istio-system", "istio-ingress", "authz", "authz-partners", "shop", "echoserver", "monitoring")
_PLUMBING: Final = {
    "rootNamespace": "istio-system",
    "trustDomain": "cluster.local",
    "ingressControllerMode": "OFF",
    "enableAutoMtls": True,
    "accessLogFile": "",
}
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

_GATEWAY: Final = {"istio": "ingressgateway", "gateway.networking.k8s.io/gateway-name": "public"}
_AUTHZ: Final = {"app.kubernetes.io/name": "authz"}
_CALLS: Final = re.compile(
    r"outbound\|9001\|\|[a-z0-9-]+\.([a-z0-9-]+)\.svc\.cluster\.local;?\.upstream_rq_total: ([0-9]+)"
)

T = TypeVar("T")


class Mesh:
    """Everything started. The methods without ``async`` are for the test's thread."""

    def __init__(
        self, folder: Path, loop: asyncio.AbstractEventLoop, workload: tuple[str, str], manifests: str
    ) -> None:
        """``workload`` is the name and the namespace of the application behind the gateway.

        ``manifests`` set the authorizer up, as rendered.
        """
        self.manifests = [its for its in yaml.safe_load_all(manifests) if its]
        self.folder = folder
        self.name, self.namespace = workload
        self.cluster = Cluster()
        self.provider = DemoProvider()
        self.trust = Trust()
        self.service: RunningProcess
        self.recorder: Recorder
        self.echo_port = self.tcp_port = 0
        network = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
        self.istiod, self.gateway, self.app, self.authz = (f"{network}.{number}" for number in (10, 11, 12, 13))
        self.proxies: dict[str, EnvoyProcess] = {}
        self._loop = loop
        self._generation = 0
        self._told = 0

    @property
    def base(self) -> str:
        """Where the gateway listens."""
        return f"http://{self.gateway}:8080"

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something in the mesh's own loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(SETTLE_S + 10)

    @contextlib.contextmanager
    def applied(self, *objects: Object) -> Iterator[None]:
        """Apply objects, wait until every proxy has what istiod makes of them, and take them away afterwards."""
        self.call(self._change(put=objects))
        try:
            yield
        finally:
            self.call(self._change(remove=objects))

    @contextlib.contextmanager
    def planted(self, *objects: Object) -> Iterator[None]:
        """Apply objects for a while in place of those of the same name; what was there comes back."""
        before = [its for its in map(self.cluster.get, objects) if its is not None]
        self.call(self._change(put=objects))
        try:
            yield
        finally:
            names = {(its["kind"], its["metadata"]["name"]) for its in before}
            new = tuple(its for its in objects if (its["kind"], its["metadata"]["name"]) not in names)
            self.call(self._change(put=tuple(before), remove=new))

    @contextlib.contextmanager
    def configured(self, mesh: Object) -> Iterator[None]:
        """Have another mesh configuration for a while."""
        self.call(self._change(put=(mesh_config(mesh),)))
        try:
            yield
        finally:
            self.call(self._change(put=(load("mesh-config/configmap.yaml")[0],)))

    def get(self, path: str, host: str = "shop.example.com", method: str = "GET", **headers: str) -> httpx.Response:
        """Ask the gateway on a connection of its own. The path is sent as it stands."""
        time.sleep(0.03)  # whatever was told of requests before is written by now
        self._told = len(self.service.lines)
        sent = {"host": host, **{name.replace("__", "-"): value for name, value in headers.items()}}
        with httpx.Client(trust_env=False, timeout=10) as client:
            return client.request(method, self.base, headers=sent, extensions={"target": path.encode()})

    def token(self, user: str, **claims: Any) -> str:
        """Return the value of a header `authorization`."""
        return f"Bearer {self.provider.mint(self.provider.claims(user) | claims)}"

    def count(self) -> int:
        """Return how many checks were asked so far."""
        return len(self.recorder.asked)

    def reason(self) -> str | None:
        """Return why the check of the last `get` was denied, by the service's own line; it takes a moment."""
        until = time.monotonic() + SETTLE_S
        while len(self.service.lines) <= self._told and time.monotonic() < until:
            time.sleep(0.005)
        assert len(self.service.lines) == self._told + 1
        found: str | None = self.service.lines[-1].get("reason")
        return found

    def calls(self) -> dict[str, int]:
        """Return how often the gateway called each authorizer, by the service's name."""
        url = f"{self.proxies['gateway'].admin}/stats?filter=outbound.9001.*upstream_rq_total"
        text = httpx.get(url, trust_env=False).text
        return {found[1]: int(found[2]) for found in _CALLS.finditer(text)}

    def clusters(self, proxy: str) -> str:
        """Return the names of the clusters that a proxy knows, one a line."""
        found = httpx.get(f"{self.proxies[proxy].admin}/config_dump?resource=dynamic_active_clusters", trust_env=False)
        return "\n".join(its["cluster"]["name"] for its in found.json().get("configs", []))

    def http_filters(self, proxy: str) -> list[str]:
        """Return the names of the HTTP filters of a proxy's first listener."""
        found = httpx.get(f"{self.proxies[proxy].admin}/config_dump?resource=dynamic_listeners", trust_env=False).json()
        managers = [
            its["typed_config"]["http_filters"]
            for listener in found["configs"]
            for chain in listener["active_state"]["listener"]["filter_chains"]
            for its in chain["filters"]
            if its["name"].endswith("http_connection_manager")
        ]
        return [its["name"] for its in managers[0]]

    @contextlib.contextmanager
    def replaced(self, its: Object) -> Iterator[None]:
        """Have another one in place of the sidecar of the application."""
        self.call(self._change(put=(its,)))
        try:
            yield
        finally:
            self.call(self._change(put=(self.sidecar_of_app(["authz/*"]),)))

    def sidecar_of_app(self, egress: list[str]) -> Object:
        """Return what binds it, with these hosts as all that it knows."""
        ingress = [(self.app, 8080, "HTTP", self.echo_port), (self.app, 5432, "TCP", self.tcp_port)]
        return sidecar(self.namespace, {"app": self.name}, ingress, egress)

    def pod_of_app(self) -> Object:
        """Return the application's pod."""
        ports = {"http": 8080, "tcp": 5432}
        return run_pod(deployment(self.name, self.namespace, {"app": self.name}, ports, self.name), self.app)

    def second_service(self) -> list[Object]:
        """Return a second authorizer in a namespace of its own, which the same pod plays."""
        authz = self.manifest("Service")
        authz = {**authz, "metadata": {**authz["metadata"], "namespace": "authz-partners"}}
        return [give_address(authz, 20), expose(authz, run_pod(self.manifest("Deployment"), self.authz))]

    def manifest(self, kind: str) -> Object:
        """Return the one object of its kind among the authorizer's manifests."""
        found: list[Object] = [its for its in self.manifests if its["kind"] == kind]
        assert len(found) == 1, kind
        return found[0]

    def routed_by_gateway_api(self) -> contextlib.AbstractContextManager[None]:
        """Have the gateway's routes from objects of the Gateway API."""
        return self.routed_by(*_gateway_api(self))

    @contextlib.contextmanager
    def routed_by(self, *theirs: Object) -> Iterator[None]:
        """Have the gateway's routes from these objects alone."""
        for its in theirs:
            for server in its["spec"].get("servers", ()):
                server["bind"] = self.gateway
        ours = _routes(self)
        self.call(self._change(put=theirs, remove=tuple(ours)))
        try:
            yield
        finally:
            self.call(self._change(put=tuple(ours), remove=theirs))

    async def _change(self, *, put: tuple[Object, ...] = (), remove: tuple[Object, ...] = ()) -> None:
        self.cluster.put(*put)
        self.cluster.remove(*remove)
        self._generation += 1
        self.cluster.put(_marker(self._generation))
        await self.settle()

    async def settle(self) -> None:
        """Wait until each listener of each proxy has the last marker and no older one is left.

        Raises:
            TimeoutError: if that does not come about; with what the last proxy said.

        """
        until = time.monotonic() + SETTLE_S
        async with aiohttp.ClientSession() as session:
            for name, proxy in self.proxies.items():
                while not _is_settled(found := await _listeners(session, proxy), self._generation):
                    if time.monotonic() > until:
                        raise TimeoutError(f"{name}: {json.dumps(found)[:4_000]}")
                    await asyncio.sleep(0.05)


def load(name: str, *comments: str) -> list[Object]:
    """Return the objects of a file of `istio/`, with these commented lines counted in."""
    text = (ROOT / "istio" / name).read_text()
    for comment in comments:
        assert text.count(comment) == 1, comment
        text = text.replace(comment, comment.removeprefix("# "))
    return [its for its in yaml.safe_load_all(text) if its]


def mesh_config(mesh: Object) -> Object:
    metadata = {"name": "istio", "namespace": "istio-system"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mesh": yaml.safe_dump(mesh)}}


def _marker(generation: int) -> Object:
    metadata = {"filter_metadata": {"marker": {"generation": str(generation)}}}
    patch = {"applyTo": "LISTENER", "match": {"context": "ANY"}}
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "marker", "namespace": "istio-system"},
        "spec": {"configPatches": [{**patch, "patch": {"operation": "MERGE", "value": {"metadata": metadata}}}]},
    }


async def _listeners(session: aiohttp.ClientSession, proxy: EnvoyProcess) -> list[Object]:
    async with session.get(f"{proxy.admin}/config_dump?resource=dynamic_listeners") as response:
        found: list[Object] = json.loads(await response.read()).get("configs", [])
        return found


def _is_settled(listeners: list[Object], generation: int) -> bool:
    return bool(listeners) and all(
        not {"warming_state", "draining_state", "error_state"} & its.keys()
        and _generation_of(its["active_state"]["listener"]) == str(generation)
        for its in listeners
    )


def _generation_of(listener: Object) -> str | None:
    marker: Mapping[str, str] = listener.get("metadata", {}).get("filter_metadata", {}).get("marker", {})
    return marker.get("generation")


@contextlib.contextmanager
def started(rules: str, manifests: str, workload: tuple[str, str] = ("orders", "shop")) -> Iterator[Mesh]:
    """Start a mesh whose authorizer has these rules, in a thread, and end it."""
    istiod = find_tool("pilot-discovery")
    ready, failed, stop = threading.Event(), [], asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="mesh-") as name, asyncio.Runner() as runner:
        loop = runner.get_loop()
        mesh = Mesh(Path(name), loop, workload, manifests)

        async def main() -> None:
            try:
                async with _running(mesh, istiod, rules):
                    ready.set()
                    await stop.wait()
            except BaseException as error:
                failed.append(error)
                raise
            finally:
                ready.set()

        def run() -> None:
            with contextlib.suppress(BaseException):
                runner.run(main())

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            if not ready.wait(START_S) or failed:
                raise RuntimeError(f"the mesh did not start: {failed}")
            yield mesh
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(START_S)


@contextlib.asynccontextmanager
async def _running(mesh: Mesh, istiod: Path, rules: str) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as parts:
        for server in (idp := HttpServer(mesh.provider.app, "127.0.0.1:0")), (echo := HttpServer(ECHO, "127.0.0.1:0")):
            await server.start()
            parts.push_async_callback(server.stop)
        mesh.provider.serve_at(idp.port)
        tcp = await asyncio.start_server(_greet, "127.0.0.1", 0)
        parts.callback(tcp.close)
        file = mesh.folder / "rules.yaml"
        file.write_text(rules)
        mesh.service = RunningProcess(file)
        parts.push_async_callback(mesh.service.stop)
        await mesh.service.start({"DEMO_ISSUER": mesh.provider.issuer})
        mesh.recorder = Recorder(mesh.service.address)
        await mesh.recorder.start()
        parts.push_async_callback(mesh.recorder.stop)
        mesh.echo_port, mesh.tcp_port = echo.port, tcp.sockets[0].getsockname()[1]
        mesh.cluster.put(*_world(mesh))
        api = web.AppRunner(mesh.cluster.app, shutdown_timeout=0.1)
        await api.setup()
        parts.push_async_callback(api.cleanup)
        site = web.TCPSite(api, mesh.istiod, 16443)
        await site.start()
        await _start_istiod(mesh, istiod, parts)
        app = (mesh.name, mesh.namespace)
        await _start_proxy(mesh, parts, "gateway", ("istio-ingressgateway", "istio-ingress"), mesh.gateway, _GATEWAY)
        await _start_proxy(mesh, parts, "app", app, mesh.app, {"app": mesh.name})
        labels = mesh.manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
        await _start_proxy(mesh, parts, "authz", ("authz", "authz"), mesh.authz, labels)
        await mesh.settle()
        yield


async def _start_proxy(
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


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the first bytes, as a database would."""
    with contextlib.suppress(ConnectionError), contextlib.closing(writer):
        await reader.read(1_024)
        writer.write(b"hello")
        await writer.drain()


async def _start_istiod(mesh: Mesh, program: Path, parts: contextlib.AsyncExitStack) -> None:
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://{mesh.istiod}:16443"}}],
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
    async with aiohttp.ClientSession() as session, asyncio.timeout(START_S):
        while True:
            if process.returncode is not None:
                raise RuntimeError((mesh.folder / "istiod.log").read_text()[-4_000:])
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://{mesh.istiod}:8080/ready") as response:
                    if response.ok:
                        return
            await asyncio.sleep(0.05)


def _world(mesh: Mesh) -> list[Object]:
    """Return what stands in the cluster before any policy: who runs, and how the authorizer is called and guarded."""
    http = {"name": "http", "port": 80, "targetPort": "http"}
    tcp = {"name": "tcp", "port": 5432, "targetPort": "tcp"}
    gateway = deployment("istio-ingressgateway", "istio-ingress", _GATEWAY, {"http": 8080}, "istio-ingressgateway")
    authz = mesh.manifest("Deployment")
    pods = [run_pod(gateway, mesh.gateway), mesh.pod_of_app(), run_pod(authz, mesh.authz)]
    services = [
        service("istio-ingressgateway", "istio-ingress", {"istio": "ingressgateway"}, [http]),
        service(mesh.name, mesh.namespace, {"app": mesh.name}, [http, tcp]),
        mesh.manifest("Service"),
    ]
    strict = istio_object(
        "security.istio.io/v1", "PeerAuthentication", "strict", mesh.namespace, {"mtls": {"mode": "STRICT"}}
    )
    return [
        *map(namespace, NAMESPACES),
        *load("mesh-config/configmap.yaml"),
        mesh_config(_PLUMBING) | {"metadata": {"name": "plumbing", "namespace": "istio-system"}},
        _marker(0),
        *(give_address(its, 10 + number) for number, its in enumerate(services)),
        *pods,
        *(expose(its, pod) for its, pod in zip(services, pods, strict=True)),
        *_routes(mesh),
        *(its for its in mesh.manifests if its["kind"] in {"Namespace", "ServiceAccount", "ConfigMap"}),
        strict,
        *load("authorizer/callers.yaml"),
        *load("authorizer/destination-rule.yaml"),
        mesh.sidecar_of_app(["authz/*"]),
        sidecar("authz", _AUTHZ, [(mesh.authz, 9001, "GRPC", mesh.recorder.port)], []),
    ]


def _routes(mesh: Mesh) -> list[Object]:
    server = {"bind": mesh.gateway, "port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    destination = {"host": f"{mesh.name}.{mesh.namespace}.svc.cluster.local", "port": {"number": 80}}
    spec = {"hosts": ["*"], "gateways": ["everything"], "http": [{"route": [{"destination": destination}]}]}
    return [
        istio_object(
            "networking.istio.io/v1",
            "Gateway",
            "everything",
            "istio-ingress",
            {"selector": {"istio": "ingressgateway"}, "servers": [server]},
        ),
        istio_object("networking.istio.io/v1", "VirtualService", "everything", "istio-ingress", spec),
    ]


def _gateway_api(mesh: Mesh) -> list[Object]:
    version = "gateway.networking.k8s.io/v1"
    listener = {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
    # A gateway that was deployed by hand: the address names its Service.
    address = {"type": "Hostname", "value": "istio-ingressgateway.istio-ingress.svc.cluster.local"}
    gateway = {"gatewayClassName": "istio", "addresses": [address], "listeners": [listener]}
    route = {
        "parentRefs": [{"name": "public", "namespace": "istio-ingress"}],
        "rules": [{"backendRefs": [{"name": "orders", "port": 80}]}],
    }
    # It knows no bind address: keep the listener on loopback.
    bind = {"address": {"socket_address": {"address": mesh.gateway, "port_value": 8080}}}
    patch = {"applyTo": "LISTENER", "match": {"context": "GATEWAY"}, "patch": {"operation": "MERGE", "value": bind}}
    filters = "networking.istio.io/v1alpha3"
    return [
        {
            "apiVersion": version,
            "kind": "GatewayClass",
            "metadata": {"name": "istio"},
            "spec": {"controllerName": "istio.io/gateway-controller"},
        },
        istio_object(version, "Gateway", "public", "istio-ingress", gateway),
        istio_object(version, "HTTPRoute", "orders", "shop", route),
        istio_object(filters, "EnvoyFilter", "loopback", "istio-ingress", {"configPatches": [patch]}),
    ]


def sidecar(where: str, labels: dict[str, str], ingress: list[tuple[str, int, str, int]], egress: list[str]) -> Object:
    """Return what binds a sidecar to its pod's address, and lets it know these hosts on the authorizer's port."""
    spec: Object = {
        "workloadSelector": {"labels": labels},
        "ingress": [
            {
                "bind": bind,
                "captureMode": "NONE",
                "defaultEndpoint": f"127.0.0.1:{port}",
                "port": {"number": number, "name": f"{protocol.lower()}-{number}", "protocol": protocol},
            }
            for bind, number, protocol, port in ingress
        ],
        "egress": [{"hosts": ["~/*"]}],
    }
    if egress:
        port = {"number": 9001, "name": "grpc-authz", "protocol": "GRPC"}
        spec["egress"] = [{"bind": ingress[0][0], "captureMode": "NONE", "hosts": egress, "port": port}]
    return istio_object("networking.istio.io/v1", "Sidecar", "here", where, spec)


def istio_object(version: str, kind: str, name: str, where: str, spec: Object) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": where}, "spec": spec}


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
