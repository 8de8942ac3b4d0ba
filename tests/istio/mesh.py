"""A mesh on loopback: istiod itself, fed by a stand-in cluster, and real Envoys as gateway and sidecars.

Each pod has a loopback address of its own, so that manifests keep their ports. In a cluster the sidecars are reached
through rules of the kernel; here a ``Sidecar`` binds them to their pod's address. All traffic between proxies is
mutual TLS with certificates of a small authority.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import httpx
import yaml
from aiohttp import web

from authz.demo.idp import DemoProvider
from authz.demo.proxy import EnvoyProcess
from authz.demo.web import ECHO
from authz.servers.http import HttpServer
from tests.gotools import find_tool
from tests.istio.certificates import Trust
from tests.istio.cluster import Cluster, Object
from tests.istio.files import mesh_config
from tests.istio.programs import API_PORT, start_istiod, start_proxy
from tests.istio.recorder import Recorder
from tests.istio.workloads import deployment, expose, give_address, run_pod
from tests.istio.world import GATEWAY_LABELS, make_gateway_api, make_marker, make_routes, make_world, sidecar
from tests.servers.service import RunningProcess
from tests.threads import running

START_S: Final = 90.0
SETTLE_S: Final = 30.0
GATEWAY: Final = "cluster.local/ns/istio-ingress/sa/istio-ingressgateway"
_CALLS: Final = re.compile(
    r"outbound\|9001\|\|[a-z0-9-]+\.([a-z0-9-]+)\.svc\.cluster\.local;?\.upstream_rq_total: ([0-9]+)"
)

T = TypeVar("T")


class Mesh:
    """Everything started. The methods without ``async`` are for the test's thread."""

    def __init__(self, folder: Path, workload: tuple[str, str], manifests: str) -> None:
        """``workload`` is the name and the namespace of the application behind the gateway.

        ``manifests`` set the authorizer up, as rendered.
        """
        self.manifests = [its for its in yaml.safe_load_all(manifests) if its]
        self.folder = folder
        self.name, self.namespace = workload
        self.labels = {"app": self.name, "app.kubernetes.io/name": self.name}
        self.cluster = Cluster()
        self.provider = DemoProvider()
        self.trust = Trust()
        self.service: RunningProcess
        self.recorder: Recorder
        self.echo_port = self.tcp_port = 0
        network = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
        self.istiod, self.gateway, self.app, self.authz = (f"{network}.{number}" for number in (10, 11, 12, 13))
        self.proxies: dict[str, EnvoyProcess] = {}
        self._loop: asyncio.AbstractEventLoop
        self._generation = 0

    @property
    def base(self) -> str:
        """Where the gateway listens."""
        return f"http://{self.gateway}:8080"

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something in the mesh's own loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(SETTLE_S + 10)

    @contextlib.contextmanager
    def applied(self, *objects: Object, instead_of: Iterable[Object] = ()) -> Iterator[None]:
        """Apply objects for a while, and wait until every proxy has what istiod makes of them.

        They take the place of objects of the same kind and name, and of those named; what was there comes back.
        """
        gone = tuple(instead_of)
        before = [(its, self.cluster.get(its)) for its in (*objects, *gone)]
        self.call(self._change(put=objects, remove=gone))
        try:
            yield
        finally:
            back = tuple(known for _, known in before if known is not None)
            self.call(self._change(put=back, remove=tuple(its for its, known in before if known is None)))

    def configured(self, mesh: Object) -> contextlib.AbstractContextManager[None]:
        """Have another mesh configuration for a while."""
        return self.applied(mesh_config(mesh))

    def get(self, path: str, host: str = "shop.example.com", method: str = "GET", **headers: str) -> httpx.Response:
        """Ask the gateway on a connection of its own. The path is sent as it stands."""
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
        """Return why the last check was denied, by the service's own line; it takes a moment."""
        until = time.monotonic() + SETTLE_S
        while len(self.service.lines) < self.recorder.answered and time.monotonic() < until:
            time.sleep(0.005)
        found: str | None = self.service.lines[self.recorder.answered - 1].get("reason")
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

    def sidecar_of_app(self, egress: list[str]) -> Object:
        """Return what binds it, with these hosts as all that it knows."""
        ingress = [(self.app, 8080, "HTTP", self.echo_port), (self.app, 5432, "TCP", self.tcp_port)]
        return sidecar(self.namespace, {"app": self.name}, ingress, egress)

    def pod_of_app(self) -> Object:
        """Return the application's pod."""
        ports = {"http": 8080, "tcp": 5432}
        return run_pod(deployment(self.name, self.namespace, self.labels, ports, self.name), self.app)

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
        return self.routed_by(*make_gateway_api(self))

    def routed_by(self, *theirs: Object) -> contextlib.AbstractContextManager[None]:
        """Have the gateway's routes from these objects alone."""
        for its in theirs:
            for server in its["spec"].get("servers", ()):
                server["bind"] = self.gateway
        return self.applied(*theirs, instead_of=make_routes(self))

    async def _change(self, *, put: tuple[Object, ...] = (), remove: tuple[Object, ...] = ()) -> None:
        self.cluster.put(*put)
        self.cluster.remove(*remove)
        self._generation += 1
        self.cluster.put(make_marker(self._generation))
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
    with tempfile.TemporaryDirectory(prefix="mesh-") as name:
        mesh = Mesh(Path(name), workload, manifests)
        with running(lambda: _running(mesh, istiod, rules), START_S):
            yield mesh


@contextlib.asynccontextmanager
async def _running(mesh: Mesh, istiod: Path, rules: str) -> AsyncIterator[None]:
    mesh._loop = asyncio.get_running_loop()
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
        mesh.cluster.put(*make_world(mesh))
        api = web.AppRunner(mesh.cluster.app, shutdown_timeout=0.1)
        await api.setup()
        parts.push_async_callback(api.cleanup)
        site = web.TCPSite(api, mesh.istiod, API_PORT)
        await site.start()
        await start_istiod(mesh, istiod, parts)
        app = (mesh.name, mesh.namespace)
        await start_proxy(
            mesh, parts, "gateway", ("istio-ingressgateway", "istio-ingress"), mesh.gateway, GATEWAY_LABELS
        )
        await start_proxy(mesh, parts, "app", app, mesh.app, mesh.labels)
        labels = mesh.manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
        await start_proxy(mesh, parts, "authz", ("authz", "authz"), mesh.authz, labels)
        await mesh.settle()
        yield


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the first bytes, as a database would."""
    with contextlib.suppress(ConnectionError), contextlib.closing(writer):
        await reader.read(1_024)
        writer.write(b"hello")
        await writer.drain()
