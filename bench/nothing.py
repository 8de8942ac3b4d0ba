"""Servers that decide nothing, one behind each door: they parse the same CheckRequest and give back the same bytes.

What a server of the same kind costs before anything is checked, so that the difference is ours.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final

import grpc
from starlette.types import Receive, Scope, Send

from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz.servers.frames import render_frame

ANSWER: Final = "BENCH_ANSWER"
"""The environment variable that names the file with the answer's bytes."""

_START: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/grpc")],
    "trailers": True,
}
_END: Final = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")], "more_trailers": False}


def _read_answer() -> bytes:
    return Path(os.environ[ANSWER]).read_bytes()


class Nothing:
    """The same behind the fast door."""

    def __init__(self) -> None:
        self._body: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] == "lifespan":
            answer = _read_answer()
            self._body = {"type": "http.response.body", "body": render_frame(answer), "more_body": False}
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        CheckRequest.FromString(body[5:])
        await send(_START)
        await send(self._body)
        await send(_END)


APPLICATION: Final = Nothing()


async def main(port: int) -> None:
    """Serve with grpcio."""
    answer = _read_answer()

    async def check(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        del context
        CheckRequest.FromString(raw)
        return answer

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(check)
    service = "envoy.service.auth.v3.Authorization"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Check": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
