"""The gRPC door: sockets, certificates, limits, health, deadlines and drain, each seen by a real client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, PingAckReceived

from authz.app import App
from authz.model import ConfigError
from authz.observe import Observer
from authz.servers.check import SERVICE
from tests.fakes import HANG, fake_provider, json_answer
from tests.servers.service import LOOPBACK, RULES, ask, check_request, running
from tests.tls import Authority

CLOSED = RULES.replace("allow: anyone", "allow: nobody")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_unix_socket(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/authz.sock"
    for _ in range(2):  # a file that is left over does not stand in the way
        async with running(tmp_path, server=f'grpc: [{{address: "{address}"}}]\n  http: null'):
            async with grpc.aio.insecure_channel(address) as channel:
                assert (await ask(channel)).status.code == 0
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(address.removeprefix("unix:"))


async def test_a_file_in_the_place_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("precious")
    taken = tmp_path / "taken.sock"
    cases = ((file, "no socket"), (file / "authz.sock", "not a directory"), (taken, "another process listens"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(taken))
        other.listen()
        for address, why in cases:
            with pytest.raises(ConfigError, match=why):
                async with running(tmp_path, server=f'grpc: [{{address: "unix:{address}"}}]\n  http: null'):
                    pass
        assert taken.is_socket()
    assert file.read_text() == "precious"


async def test_tls_and_a_renewed_certificate(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    cert, key = authority.issue("server")
    tls = f'grpc: [{{address: "127.0.0.1:0", tls: {{cert_file: {cert}, key_file: {key}}}}}]\n  http: null'

    async def works(root: Path) -> bool:
        credentials = grpc.ssl_channel_credentials(root.read_bytes())
        async with grpc.aio.secure_channel(service.address, credentials) as channel:
            try:
                return bool((await ask(channel, timeout_s=3)).status.code == 0)
            except grpc.aio.AioRpcError:
                return False

    async with running(tmp_path, server=tls) as service:
        assert await works(authority.file)
        assert not await works(other.file)
        for new, old in zip(other.issue("renewed"), (cert, key), strict=True):
            shutil.move(new, old)
        assert await works(other.file)
        assert not await works(authority.file)
        key.unlink()
        assert await works(other.file), "the last good certificate stays in use"


async def test_mutual_tls(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = authority.issue("server")
    files = f"cert_file: {cert}, key_file: {key}, client_ca_file: {authority.file}"
    tls = f'grpc: [{{address: "127.0.0.1:0", tls: {{{files}}}}}]\n  http: null'
    authority_pem = authority.file.read_bytes()
    async with running(tmp_path, server=tls) as service:

        async def works(issuer: Authority | None) -> bool:
            pair: tuple[bytes | None, bytes | None] = (None, None)
            if issuer is not None:
                client = issuer.issue("client")
                pair = client[1].read_bytes(), client[0].read_bytes()
            credentials = grpc.ssl_channel_credentials(authority_pem, *pair)
            async with grpc.aio.secure_channel(service.address, credentials) as channel:
                try:
                    return bool((await ask(channel, timeout_s=3)).status.code == 0)
                except grpc.aio.AioRpcError:
                    return False

        assert await works(authority)
        assert not await works(stranger)
        assert not await works(None)
        # The file that says whose callers count is read again too.
        shutil.copy(stranger.file, authority.file)
        assert await works(stranger)
        assert not await works(authority)


async def test_an_oversized_check_is_an_answer(tmp_path: Path) -> None:
    async with running(tmp_path, server="max_request_bytes: 4096") as service:
        async with grpc.aio.insecure_channel(service.address) as channel:
            assert (await ask(channel, check_request(x="a" * 3_000))).status.code == 0
            for size in (4_096, 8_000_000):
                options = [("grpc.max_send_message_length", -1)]
                async with grpc.aio.insecure_channel(service.address, options=options) as wide:
                    denied = await ask(wide, check_request(x="a" * size))
                assert (denied.status.code, denied.status.message) == (3, "request_too_large")
                assert denied.denied_response.status.code == 400


async def test_headers_that_a_proxy_copies_into_its_call_are_no_failure(tmp_path: Path) -> None:
    async with running(tmp_path, CLOSED) as service, grpc.aio.insecure_channel(service.address) as channel:
        for size in (100, 8_192, 16_384, 60_000, 500_000):
            denied = await ask(channel, metadata=(("tracestate", "a" * size),))
            assert (denied.status.message, denied.denied_response.status.code) == ("nobody", 403)


PROVIDED = """
version: 1
providers:
  shop:
    issuer: https://sso.example.com
    audiences: [a]
    keys: {{jwks_url: "{url}/jwks"}}
    introspection: {{client_id: c, client_secret: "${{env:S}}", endpoint: "{url}/introspect"}}
rules:
  - {{name: shop, hosts: [a.example], paths: ["/**"], tokens_from: shop, require: any_token}}
"""


async def test_checks_over_the_limit_are_answered_and_not_refused_by_the_transport(tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.3
        rules = PROVIDED.format(url=idp.url)
        async with running(tmp_path, rules, server="max_inflight: 3", environ={"S": "s"}) as service:
            async with grpc.aio.insecure_channel(service.address) as channel:
                messages = [check_request(authorization=f"Bearer t{n}") for n in range(10)]
                answers = await asyncio.gather(*(ask(channel, its) for its in messages))
                reasons = sorted(its.status.message for its in answers)
                assert reasons == ["overloaded"] * 7 + ["token_inactive"] * 3
                assert {its.denied_response.status.code for its in answers} == {401, 503}
            lines = [line for line in service.lines if line["reason"] == "overloaded"]
            assert {(line["id"], line["host"], line["path"]) for line in lines} == {("", "a.example", "/x")}


@pytest.mark.parametrize(("deadline_ms", "caller_s"), [(200, 5.0), (5_000, 0.5)])
async def test_the_answer_comes_before_the_caller_gives_up(deadline_ms: int, caller_s: float, tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = HANG
        rules = PROVIDED.format(url=idp.url)
        server = f"deadline_ms: {deadline_ms}"
        async with running(tmp_path, rules, server=server, environ={"S": "s"}) as service:
            async with grpc.aio.insecure_channel(service.address) as channel:
                answer = await ask(channel, check_request(authorization="Bearer t"), timeout_s=caller_s)
                assert (answer.status.message, answer.denied_response.status.code) == ("deadline", 503)


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


async def test_health_follows_the_service(tmp_path: Path) -> None:
    async with running(tmp_path) as service, grpc.aio.insecure_channel(service.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        seen = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await seen.read()).status == SERVING
        await service.app.grpc.set_serving(serving=False)
        assert (await seen.read()).status == NOT_SERVING
        await service.app.grpc.set_serving(serving=True)
        assert (await seen.read()).status == SERVING
        drained = asyncio.create_task(service.app.grpc.drain())
        assert (await seen.read()).status == NOT_SERVING
        # Checks are answered on until the callers have gone.
        assert (await ask(channel)).status.code == 0
        seen.cancel()
        await drained


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


@contextlib.asynccontextmanager
async def counted(port: int) -> AsyncIterator[tuple[str, list[int]]]:
    """Pass connections on to a port, and note each."""
    seen: list[int] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(len(seen))
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()


async def test_a_connection_grows_old_without_a_lost_check(tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.4
        server = "max_connection_age_s: 1\n  max_connection_age_grace_s: 5"
        rules = PROVIDED.format(url=idp.url)
        async with running(tmp_path, rules, server=server, environ={"S": "s"}) as service:
            async with counted(service.app.grpc.ports[0]) as (address, connections):
                async with grpc.aio.insecure_channel(address) as channel:
                    until = asyncio.get_running_loop().time() + 3

                    async def call(caller: int) -> int:
                        number = 0
                        while asyncio.get_running_loop().time() < until:
                            token = f"Bearer t{caller}-{number}"
                            answer = await ask(channel, check_request(authorization=token))
                            assert answer.status.message == "token_inactive"
                            number += 1
                        return number

                    answered = await asyncio.gather(*(call(caller) for caller in range(20)))
                assert min(answered) >= 3
                assert len(connections) >= 3, "each lived a second, with checks under way at its end"


async def test_a_proxy_may_ping_an_idle_connection_and_is_told_the_limit(tmp_path: Path) -> None:
    async with running(tmp_path, server="max_concurrent_streams: 77") as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.app.grpc.ports[0])
        caller = H2Connection()
        caller.initiate_connection()
        seen: list[object] = []
        for number in range(20):
            caller.ping(number.to_bytes(8, "big"))
            writer.write(caller.data_to_send())
            seen += caller.receive_data(await asyncio.wait_for(reader.read(65_536), 5))
            await asyncio.sleep(0.1)
        writer.close()
        assert not [its for its in seen if isinstance(its, ConnectionTerminated)], "pings are no abuse"
        assert len([its for its in seen if isinstance(its, PingAckReceived)]) >= 19
        assert caller.remote_settings.max_concurrent_streams == 77


async def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        file = tmp_path / "second.yaml"
        for server in (
            f'grpc: [{{address: "{first.address}"}}]\n  http: null',
            f'grpc: [{{address: "127.0.0.1:0"}}]\n  http: "{first.http.removeprefix("http://")}"',
        ):
            file.write_text(f"{RULES}\nserver:\n  {server}\n")
            second = App(file, environ={}, observer=Observer(stream=sys.stdout))
            with pytest.raises(ConfigError, match="cannot listen on"):
                await second.start()
            await second.stop(at_once=True)


def test_sigterm_drains_and_ends_with_0(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"{RULES}\nserver:\n  {LOOPBACK}\n  drain_s: 1\n")
    command = [sys.executable, "-m", "authz", "serve", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "policy in force" in line
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "draining" in log
    assert "stopped" in log


async def test_sigterm_loses_no_check_that_is_under_way(tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.7
        file, address = tmp_path / "rules.yaml", f"unix:{tmp_path}/authz.sock"
        server = f'grpc: [{{address: "{address}"}}]\n  http: null'
        file.write_text(f"{PROVIDED.format(url=idp.url)}\nserver:\n  {server}\n")
        command = [sys.executable, "-m", "authz", "serve", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"S": "s"})
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                async with asyncio.timeout(30):
                    while not Path(address.removeprefix("unix:")).exists():
                        await asyncio.sleep(0.02)
                async with asyncio.timeout(30):
                    while (await ask(channel, check_request("/warm", "other.example"))).status.message != "no_rule":
                        await asyncio.sleep(0.02)
                messages = [check_request(authorization=f"Bearer t{number}") for number in range(30)]
                under_way = [asyncio.create_task(ask(channel, its)) for its in messages]
                async with asyncio.timeout(30):
                    while idp.count("/introspect") < 30:
                        await asyncio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                answers = await asyncio.gather(*under_way)
                assert {its.status.message for its in answers} == {"token_inactive"}
            await asyncio.to_thread(process.communicate, timeout=30)
            assert process.returncode == 0
        finally:
            process.kill()
            process.communicate()


def test_a_bad_file_opens_no_socket_and_ends_with_2(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("version: 1\nrules: []\n")
    command = [sys.executable, "-m", "authz", "serve", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"{file}:2: rules: an empty list never means anything" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_log_that_nobody_reads_stalls_no_check(tmp_path: Path) -> None:
    file, address = tmp_path / "rules.yaml", f"unix:{tmp_path}/authz.sock"
    server = f'grpc: [{{address: "{address}"}}]\n  http: null\n  drain_s: 0'
    file.write_text(f"{RULES}\nserver:\n  {server}\n")
    command = [sys.executable, "-m", "authz", "serve", str(file)]
    # Both pipes hold 64 KiB, which a few hundred lines fill.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            call = ask(channel, timeout_s=30)
            async with asyncio.timeout(30):
                while not Path(address.removeprefix("unix:")).exists():
                    await asyncio.sleep(0.02)
            assert (await call).status.code == 0
            for _ in range(600):
                assert (await ask(channel, timeout_s=5)).status.code == 0
    finally:
        process.kill()
        process.communicate()
