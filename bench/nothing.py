"""A gRPC server that does nothing: what any check costs before anything is checked."""

from __future__ import annotations

import asyncio
import sys

import grpc

ALLOW = b"\n\x00\x1a\x00"
"""A CheckResponse with an empty status and an empty ok_response: only to have the size of one."""


async def main(port: int) -> None:
    """Answer every check with the same bytes."""

    async def check(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        del raw, context
        return ALLOW

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(check)
    service = "envoy.service.auth.v3.Authorization"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Check": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
