"""What only the portable door shows; what holds behind every door is in ``test_doors``."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from authz import __version__
from authz.app import App
from authz.model import ConfigError
from authz.observe import Observer
from tests.fakes import fake_provider, json_answer
from tests.servers.service import LOOPBACK, PROVIDED, RULES, ask, check_request, running

pytestmark = pytest.mark.process


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


async def test_the_log_says_where_it_listens(tmp_path: Path) -> None:
    unix = f"unix:{tmp_path}/authz.sock"
    server = f'grpc: [{{address: "[::1]:0"}}, {{address: "{unix}"}}]\n  http: 127.0.0.1:0'
    async with running(tmp_path, server=server) as service:
        line = json.loads(service.log.getvalue().splitlines()[0])
        assert line["event"] == "listening"
        assert line["grpc"] == [f"[::1]:{service.app.grpc.ports[0]}", unix]
        assert line["http"] == service.http.removeprefix("http://")
        assert service.app.grpc.ports[0] != 0
    async with running(tmp_path, server=f'grpc: [{{address: "{unix}"}}]\n  http: null') as service:
        line = json.loads(service.log.getvalue().splitlines()[0])
        assert (line["grpc"], line["http"]) == ([unix], None)


async def test_a_folder_where_no_socket_can_be_is_told(tmp_path: Path) -> None:
    for path, words in (
        ("/proc/authz.sock", "may this user write to its folder"),
        (f"{tmp_path}/none/authz.sock", f"the folder `{tmp_path}/none` is missing: make it first"),
    ):
        with pytest.raises(ConfigError, match=words):
            async with running(tmp_path, server=f'grpc: [{{address: "unix:{path}"}}]\n  http: null'):
                pass


async def test_what_never_listened_neither_drains_nor_stops(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        file = tmp_path / "second.yaml"
        file.write_text(f'{RULES}\nserver:\n  grpc: [{{address: "{first.address}"}}]\n  http: null\n')
        second = App(file, environ={}, observer=Observer(stream=sys.stdout))
        told = len(first.log.getvalue())
        with pytest.raises(ConfigError, match="cannot listen on"):
            await second.start()
        await second.stop(at_once=True)
        assert first.log.getvalue()[told:] == ""


def test_the_first_line_of_the_log_is_where_it_listens(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"{RULES}\nserver:\n  {LOOPBACK}\n  drain_s: 1\n")
    command = [sys.executable, "-m", "authz", "serve", "--workers", "1", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        listening = json.loads(process.stderr.readline())
        assert listening["event"] == "listening"
        assert listening["version"] == __version__
        for address in (*listening["grpc"], listening["http"]):
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=5):
                pass
        assert "policy in force" in process.stderr.readline()
    finally:
        process.kill()
        process.communicate()
