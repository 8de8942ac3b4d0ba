"""A stand-in for a Kubernetes API server: what istiod lists, watches and writes, in memory, on loopback.

It judges nothing: whatever is put in is served. Custom resources are served in whichever version they are asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

Object = dict[str, Any]
Resource = tuple[str, str]
"""The API group, and the plural of the kind."""

_ISTIO: Final = {
    "security.istio.io": ("AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"),
    "networking.istio.io": (
        *("DestinationRule", "EnvoyFilter", "Gateway", "ProxyConfig", "ServiceEntry", "Sidecar", "VirtualService"),
        *("WorkloadEntry", "WorkloadGroup"),
    ),
    "telemetry.istio.io": ("Telemetry",),
    "extensions.istio.io": ("WasmPlugin",),
    "gateway.networking.k8s.io": ("GatewayClass", "Gateway", "HTTPRoute", "ReferenceGrant"),
}
_BUNDLE: Final = {
    "gateway.networking.k8s.io/bundle-version": "v1.4.0",
    "gateway.networking.k8s.io/channel": "standard",
}
_MADE: Final = "2026-01-01T00:00:00Z"


class Cluster:
    """The objects, and who watches them. All methods are for the loop's thread."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[tuple[str, str], Object]] = {}
        self._watchers: list[tuple[Resource, asyncio.Queue[tuple[str, Object]]]] = []
        self._version = 1
        self.app = web.Application(client_max_size=16 * 1_048_576)
        self.app.router.add_route("*", "/{path:.*}", self._answer)
        for group, kinds in _ISTIO.items():
            for kind in kinds:
                self.put(_definition(group, kind))

    def put(self, *objects: Object) -> None:
        """Add objects, or replace those of the same name."""
        for given in objects:
            resource, name = _resource(given), _name(given)
            known = self._objects.setdefault(resource, {})
            before = known.get(name)
            known[name] = made = self._complete(given, before)
            self._tell(resource, "ADDED" if before is None else "MODIFIED", made)

    def get(self, its: Object) -> Object | None:
        """Return the object of this kind and name as it is now, None if there is none."""
        return self._objects.get(_resource(its), {}).get(_name(its))

    def remove(self, *objects: Object) -> None:
        """Take objects away; what is not there is no error."""
        for given in objects:
            resource = _resource(given)
            gone = self._objects.get(resource, {}).pop(_name(given), None)
            if gone is not None:
                self._version += 1
                gone["metadata"]["resourceVersion"] = str(self._version)
                self._tell(resource, "DELETED", gone)

    def _complete(self, given: Object, before: Object | None) -> Object:
        self._version += 1
        metadata = {"creationTimestamp": _MADE, **given.get("metadata", {})}
        uid = f"00000000-0000-0000-0000-{self._version:012d}" if before is None else before["metadata"]["uid"]
        generation = 1 if before is None else before["metadata"]["generation"] + 1
        metadata |= {"uid": uid, "resourceVersion": str(self._version), "generation": generation}
        return {**given, "metadata": metadata}

    def _tell(self, resource: Resource, event: str, its: Object) -> None:
        for watched, queue in self._watchers:
            if watched == resource:
                queue.put_nowait((event, its))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if parts == ["version"]:
            return web.json_response({"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        group, rest = ("", parts[2:]) if parts[0] == "api" else ("".join(parts[1:2]), parts[3:])
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        if not rest:
            return _discovery(parts)
        resource = group, rest[0]
        if request.method != "GET":
            return await self._write(request, resource, namespace, rest[1] if len(rest) > 1 else "")
        if len(rest) > 1:
            found = self._objects.get(resource, {}).get((namespace, rest[1]))
            return _status(404, "NotFound") if found is None else web.json_response(found)
        query = dict(parse_qsl(request.query_string))
        chosen = _Choice(namespace, query.get("fieldSelector", ""), request.headers.get("accept", ""))
        if query.get("watch") in {"1", "true"}:
            # Who asks for a list by way of a watch falls back to a list.
            return (
                _status(422, "Invalid")
                if "sendInitialEvents" in query
                else await self._watch(request, resource, chosen)
            )
        items = [chosen.render(its) for its in self._objects.get(resource, {}).values() if chosen.covers(its)]
        kind = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"} if chosen.metadata_only else {}
        return web.json_response({**kind, "metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _watch(self, request: web.Request, resource: Resource, chosen: _Choice) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        queue: asyncio.Queue[tuple[str, Object]] = asyncio.Queue()
        watcher = resource, queue
        self._watchers.append(watcher)
        try:
            await response.prepare(request)
            while True:
                event, its = await queue.get()
                if chosen.covers(its):
                    line = json.dumps({"type": event, "object": chosen.render(its)})
                    await response.write(line.encode() + b"\n")
        except ConnectionError:
            return response
        except asyncio.CancelledError:  # the server is ending
            return response
        finally:
            self._watchers.remove(watcher)

    async def _write(self, request: web.Request, resource: Resource, namespace: str, name: str) -> web.Response:
        """Take what istiod writes: leases and its own ConfigMaps; a status is read and forgotten."""
        known = self._objects.get(resource, {})
        if request.method == "PATCH":
            found = known.get((namespace, name))
            return _status(404, "NotFound") if found is None else web.json_response(found)
        try:
            given = await request.json()
        except ValueError:
            return _status(415, "UnsupportedMediaType")
        if request.path.endswith("/status"):
            return web.json_response(given)
        given.setdefault("metadata", {}).setdefault("namespace", namespace)
        before = known.get(_name(given))
        made = self._complete(given, before)
        self._objects.setdefault(resource, {})[_name(given)] = made
        self._tell(resource, "ADDED" if before is None else "MODIFIED", made)
        return web.json_response(made, status=201 if request.method == "POST" else 200)


class _Choice:
    """What of a resource is wanted, and how much of each."""

    def __init__(self, namespace: str, fields: str, accept: str) -> None:
        self._namespace = namespace
        terms: Mapping[str, str] = dict(its.partition("=")[::2] for its in fields.split(",") if its)
        self._name = terms.get("metadata.name")
        self.metadata_only = "PartialObjectMetadata" in accept

    def covers(self, its: Object) -> bool:
        namespace, name = _name(its)
        return self._namespace in {"", namespace} and self._name in {None, name}

    def render(self, its: Object) -> Object:
        if not self.metadata_only:
            return its
        return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": its["metadata"]}


def _resource(its: Object) -> Resource:
    return its["apiVersion"].rpartition("/")[0], _plural(its["kind"])


def _plural(kind: str) -> str:
    lower = kind.lower()
    if lower == "endpoints":
        return lower
    if lower.endswith(("y", "s")) and not lower.endswith("ay"):
        return f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}es"
    return f"{lower}s"


def _name(its: Object) -> tuple[str, str]:
    metadata = its["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _definition(group: str, kind: str) -> Object:
    metadata: Object = {"name": f"{_plural(kind)}.{group}"}
    if group.startswith("gateway."):
        metadata["annotations"] = _BUNDLE
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": metadata}


def _discovery(parts: Iterable[str]) -> web.Response:
    match list(parts):
        case ["api"]:
            return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
        case ["apis"]:
            return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
        case ["api" | "apis", *version]:
            found = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "/".join(version), "resources": []}
            return web.json_response(found)
    return _status(404, "NotFound")


def _status(code: int, reason: str) -> web.Response:
    found = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason}
    return web.json_response({**found, "code": code}, status=code)
