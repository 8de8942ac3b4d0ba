"""What only the portable door shows; what holds behind every door is in ``test_doors``."""

from __future__ import annotations

from pathlib import Path

import grpc

from tests.servers.service import ask, check_request, running


async def test_a_bug_of_ours_is_a_deny_and_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        snapshot = service.app.gate.snapshot
        assert snapshot is not None
        service.app.gate._snapshot = object()  # type: ignore[assignment]  # what must never happen
        async with grpc.aio.insecure_channel(service.address) as channel:
            answer = await ask(channel, check_request(authorization="Bearer hidden-token"))
        assert (answer.status.message, answer.denied_response.status.code) == ("internal", 500)
        assert b"authz_internal_errors_total 1.0" in service.app._observer.render_metrics()
        assert "AttributeError" in service.log.getvalue()
        assert "hidden-token" not in service.log.getvalue()
        service.app.gate.swap(snapshot)
