"""What health checkers are told, for the doors that have no gRPC library to keep it (``grpc.health.v1``)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from grpc_health.v1 import health_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthBoard:
    """One status for each name, and news of changes. Belongs to one event loop."""

    def __init__(self, names: Iterable[str]) -> None:
        self._statuses = dict.fromkeys(names, NOT_SERVING)
        self._changed = asyncio.Event()
        self._closed = False

    def find(self, name: str) -> int | None:
        """Return the status of a service, None for one that is not here."""
        status: int | None = self._statuses.get(name)
        return status

    def set_all(self, *, serving: bool) -> None:
        """Tell everybody."""
        self._statuses = dict.fromkeys(self._statuses, SERVING if serving else NOT_SERVING)
        self._tell()

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        self._tell()

    async def wait_for_news(self, timeout_s: float) -> bool:
        """Wait for a change, at most ``timeout_s``; False once watches are to end."""
        if not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
        return not self._closed

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
