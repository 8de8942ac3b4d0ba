"""What only the portable door shows; what holds behind every door is in ``test_doors``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from tests.fakes import fake_provider, json_answer
from tests.servers.service import PROVIDED, ask, check_request, running


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


async def test_checks_under_way_finish_while_draining(tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.5
        rules = PROVIDED.format(url=idp.url)
        async with running(tmp_path, rules, environ={"S": "s"}) as service:
            async with grpc.aio.insecure_channel(service.address) as channel:
                under_way = asyncio.create_task(ask(channel, check_request(authorization="Bearer t")))
                await asyncio.sleep(0.1)
                drained = asyncio.create_task(service.app.grpc.drain())
                assert (await under_way).status.message == "token_inactive"
                await drained
                with pytest.raises(grpc.aio.AioRpcError):
                    await ask(channel, timeout_s=1)
