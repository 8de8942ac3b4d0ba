"""Stands between a proxy and the service, passes bytes on, and keeps what was asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc

from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from tests.servers.service import CHECK


@dataclass(frozen=True, slots=True)
class Asked:
    """One check: the message, and how long the proxy would have waited."""

    message: CheckRequest
    patience_s: float | None


class Recorder:
    """Can hold answers back (``delay_s``) and be away (``stop``, then ``start`` at the same port)."""

    def __init__(self, target: str) -> None:
        self.asked: list[Asked] = []
        self.answered = 0
        self.delay_s = 0.0
        self.port = 0
        self._target = target

    async def start(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._target)
        self._forward = self._channel.unary_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service, _, method = CHECK.strip("/").partition("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(self._pass_on)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)
        await self._channel.close(None)

    async def _pass_on(self, message: bytes, context: Any) -> bytes:
        patience_s = context.time_remaining()
        self.asked.append(Asked(CheckRequest.FromString(message), patience_s))
        await asyncio.sleep(self.delay_s)
        answer: bytes = await self._forward(message, timeout=patience_s)
        self.answered += 1
        return answer
