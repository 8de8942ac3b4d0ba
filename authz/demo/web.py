"""The demo's other two servers: an upstream that tells what it saw, and the live stream of decisions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MAX_BEHIND: Final = 256
"""Lines that a reader of the stream may be behind; then the oldest are lost to it."""


async def _echo(request: Request) -> Response:
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers.raw]
    raw_path = request.scope["raw_path"].decode("latin-1")
    query = request.scope["query_string"].decode("latin-1")
    body = (await request.body()).decode("utf-8", "replace")
    return JSONResponse(
        {"method": request.method, "path": raw_path, "query": query, "headers": headers, "body": body},
        headers={"x-upstream": "echo"},
    )


_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]

ECHO: Final = Starlette(routes=[Route("/{rest:path}", _echo, methods=_METHODS)])
"""Answers every request with what arrived, in JSON."""


class DecisionStream:
    """Keeps decision lines for whoever reads ``/decisions`` (one JSON object a line)."""

    def __init__(self) -> None:
        self.last = ""
        self._readers: set[asyncio.Queue[str]] = set()
        self.app = Starlette(routes=[Route("/decisions", self._serve)])

    def push(self, line: str) -> None:
        """Take one line."""
        self.last = line
        for reader in self._readers:
            if reader.full():
                reader.get_nowait()
            reader.put_nowait(line)

    async def _serve(self, _: Request) -> Response:
        return StreamingResponse(self._lines(), media_type="application/x-ndjson")

    async def _lines(self) -> AsyncIterator[str]:
        reader: asyncio.Queue[str] = asyncio.Queue(MAX_BEHIND)
        self._readers.add(reader)
        try:
            while True:
                yield await reader.get() + "\n"
        finally:
            self._readers.discard(reader)
