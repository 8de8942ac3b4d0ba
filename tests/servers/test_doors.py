"""What holds behind every door: sockets, certificates, limits, health, deadlines, drain and reload, seen by clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, PingAckReceived

from authz.servers.check import SERVICE
from tests.fakes import HANG, Signer, fake_provider, json_answer, jwks
from tests.servers.service import PROVIDED, RULES, ask, check_request, render_server, serving, told
from tests.tls import Authority

CLOSED = RULES.replace("allow: anyone", "allow: nobody")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


pytestmark = pytest.mark.process


async def until(true: Callable[[], Awaitable[bool]], *, seconds: float = 8) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.05)


async def refusal(door: str, folder: Path, server: str) -> str:
    """Return why `authz serve` does not start."""
    file = folder / "refused.yaml"
    file.write_text(f"{RULES}\nserver:\n  {render_server(door, server)}\n")
    command = [sys.executable, "-m", "authz", "serve", str(file)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


async def test_a_unix_socket(door: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/authz.sock"
    with socket.socket(socket.AF_UNIX) as left_over:  # which does not stand in the way
        left_over.bind(address.removeprefix("unix:"))
    async with serving(door, tmp_path, server=f'grpc: [{{address: "{address}"}}]\n  http: null'):
        async with grpc.aio.insecure_channel(address) as channel:
            assert (await ask(channel)).status.code == 0


async def test_a_file_in_the_place_of_a_socket_is_left_alone(door: str, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("precious")
    taken = tmp_path / "taken.sock"
    cases = ((taken, "another process listens"), (file, "no socket"), (file / "authz.sock", "not a directory"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(taken))
        other.listen()
        for address, why in cases[: 1 if door == "fast" else 3]:  # the same look at it
            assert why in await refusal(door, tmp_path, f'grpc: [{{address: "unix:{address}"}}]\n  http: null')
        assert taken.is_socket()
    assert file.read_text() == "precious"


async def test_an_address_that_is_taken_is_told(door: str, tmp_path: Path) -> None:
    async with serving(door, tmp_path) as first:
        for server in (
            f'grpc: [{{address: "{first.address}"}}]\n  http: null',
            f'grpc: [{{address: "127.0.0.1:0"}}]\n  http: "{first.http.removeprefix("http://")}"',
        ):
            assert "cannot listen on" in await refusal(door, tmp_path, server)


def trusting(root: Path, pair: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    own = (None, None) if pair is None else (pair[1].read_bytes(), pair[0].read_bytes())
    return grpc.ssl_channel_credentials(root.read_bytes(), *own)


async def works(address: str, credentials: grpc.ChannelCredentials) -> bool:
    async with grpc.aio.secure_channel(address, credentials) as channel:
        try:
            return bool((await ask(channel, timeout_s=2)).status.code == 0)
        except grpc.aio.AioRpcError:
            return False


async def test_tls_and_a_renewed_certificate(door: str, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    cert, key = authority.issue("server")
    tls = f'grpc: [{{address: "127.0.0.1:0", tls: {{cert_file: {cert}, key_file: {key}}}}}]\n  http: null'
    async with serving(door, tmp_path, server=tls) as service:
        assert await works(service.address, trusting(authority.file))
        assert not await works(service.address, trusting(other.file))
        for new, old in zip(other.issue("renewed"), (cert, key), strict=True):
            shutil.move(new, old)
        await until(lambda: works(service.address, trusting(other.file)))
        assert not await works(service.address, trusting(authority.file))
        key.unlink()
        await asyncio.sleep(0.5)
        assert await works(service.address, trusting(other.file)), "the last good certificate stays in use"


async def test_mutual_tls(door: str, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = authority.issue("server")
    files = f"cert_file: {cert}, key_file: {key}, client_ca_file: {authority.file}"
    tls = f'grpc: [{{address: "127.0.0.1:0", tls: {{{files}}}}}]\n  http: null'
    root = tmp_path / "root.pem"
    shutil.copy(authority.file, root)
    ours, theirs = (trusting(root, its.issue(f"client-{n}")) for n, its in enumerate((authority, stranger)))
    async with serving(door, tmp_path, server=tls) as service:
        assert await works(service.address, ours)
        assert not await works(service.address, theirs)
        assert not await works(service.address, trusting(root))
        # The file that says whose callers count is read again too.
        shutil.copy(stranger.file, authority.file)
        await until(lambda: works(service.address, theirs))
        assert not await works(service.address, ours)


async def test_several_addresses_with_and_without_tls_are_one_service(door: str, tmp_path: Path) -> None:
    cert, key = Authority(tmp_path).issue("server")
    secure = f'{{address: "localhost:0", tls: {{cert_file: {cert}, key_file: {key}}}}}'
    plain, other = (f'{{address: "{host}:0"}}' for host in ("127.0.0.1", "127.0.0.2"))
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        rules = PROVIDED.format(url=idp.url)
        server = f"grpc: [{plain}, {secure}, {other}]\n  http: null"
        async with serving(door, tmp_path, rules, server=server, environ={"S": "s"}) as service:
            channels = [
                grpc.aio.insecure_channel(service.addresses[0]),
                grpc.aio.secure_channel(service.addresses[1], trusting(tmp_path / "ca.pem")),
                grpc.aio.insecure_channel(service.addresses[2]),
            ]
            # One cache: the token is asked about once, whichever way it came.
            for channel in [*channels, *channels]:
                async with contextlib.AsyncExitStack():
                    denied = await ask(channel, check_request(authorization="Bearer t"))
                    assert denied.status.message == "token_inactive"
                    health = health_pb2_grpc.HealthStub(channel)
                    assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
            watch = health_pb2_grpc.HealthStub(channels[1]).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            for channel in channels:
                await channel.close(None)
        assert idp.count("/introspect") == 1


async def test_an_oversized_check_is_an_answer(door: str, tmp_path: Path) -> None:
    async with serving(door, tmp_path, server="max_request_bytes: 4096") as service:
        async with grpc.aio.insecure_channel(service.address) as channel:
            assert (await ask(channel, check_request(x="a" * 3_000))).status.code == 0
            for size in (4_096, 8_000_000, 60_000_000):
                options = [("grpc.max_send_message_length", -1)]
                async with grpc.aio.insecure_channel(service.address, options=options) as wide:
                    denied = await ask(wide, check_request(x="a" * size))
                assert (denied.status.code, denied.status.message) == (3, "request_too_large")
                assert denied.denied_response.status.code == 400
            # Only what no Envoy sends is the transport's to refuse.
            async with grpc.aio.insecure_channel(service.address, options=options) as wide:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask(wide, check_request(x="a" * 68_000_000))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await ask(channel)).status.code == 0


async def test_headers_that_a_proxy_copies_into_its_call_are_no_failure(door: str, tmp_path: Path) -> None:
    async with serving(door, tmp_path, CLOSED) as service, grpc.aio.insecure_channel(service.address) as channel:
        for size in (100, 8_192, 16_384, 60_000, 500_000):
            denied = await ask(channel, metadata=(("tracestate", "a" * size),))
            assert (denied.status.message, denied.denied_response.status.code) == ("nobody", 403)
        many = tuple((f"x-{number}", "a") for number in range(1_000))
        assert (await ask(channel, metadata=many)).status.message == "nobody"


async def test_checks_over_the_limit_are_answered_and_not_refused_by_the_transport(door: str, tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.3
        rules = PROVIDED.format(url=idp.url)
        async with serving(door, tmp_path, rules, server="max_inflight: 3", environ={"S": "s"}) as service:
            async with grpc.aio.insecure_channel(service.address) as channel:
                messages = [check_request(authorization=f"Bearer t{n}") for n in range(10)]
                answers = await asyncio.gather(*(ask(channel, its) for its in messages))
                reasons = sorted(its.status.message for its in answers)
                assert reasons == ["overloaded"] * 7 + ["token_inactive"] * 3
                assert {its.denied_response.status.code for its in answers} == {401, 503}
            lines = [line for line in await told(service, 10) if line["reason"] == "overloaded"]
            assert {(line["id"], line["host"], line["path"]) for line in lines} == {("", "a.example", "/x")}


@pytest.mark.parametrize(("deadline_ms", "caller_s"), [(200, 5.0), (5_000, 0.5)])
async def test_the_answer_comes_before_the_caller_gives_up(
    door: str, deadline_ms: int, caller_s: float, tmp_path: Path
) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = HANG
        rules = PROVIDED.format(url=idp.url)
        server = f"deadline_ms: {deadline_ms}"
        async with serving(door, tmp_path, rules, server=server, environ={"S": "s"}) as service:
            async with grpc.aio.insecure_channel(service.address) as channel:
                answer = await ask(channel, check_request(authorization="Bearer t"), timeout_s=caller_s)
                assert (answer.status.message, answer.denied_response.status.code) == ("deadline", 503)


async def test_callers_who_vanish_leave_nothing_behind(door: str, tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.3
        rules = PROVIDED.format(url=idp.url)
        async with serving(door, tmp_path, rules, server="max_inflight: 20", environ={"S": "s"}) as service:
            for turn in range(3):
                channel = grpc.aio.insecure_channel(service.address, options=[("grpc.use_local_subchannel_pool", 1)])
                calls = [
                    asyncio.create_task(ask(channel, check_request(authorization=f"Bearer {turn}-{n}")))
                    for n in range(15)
                ]
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                assert (await watch.read()).status == SERVING
                await asyncio.sleep(0.1)
                for call in calls if turn else ():
                    call.cancel()
                await channel.close(None)
                await asyncio.gather(*calls, return_exceptions=True)
            # Had they stayed, there were no room for one more.
            async with grpc.aio.insecure_channel(service.address) as channel:
                await asyncio.sleep(0.4)
                answers = await asyncio.gather(
                    *(ask(channel, check_request(authorization=f"Bearer t{n}")) for n in range(20))
                )
                assert {its.status.message for its in answers} == {"token_inactive"}


async def test_a_caller_who_sends_half_a_message_stalls_nobody(door: str, tmp_path: Path) -> None:
    async with serving(door, tmp_path) as service:
        _, writer = await asyncio.open_connection("127.0.0.1", int(service.address.rpartition(":")[2]))
        caller = H2Connection()
        caller.initiate_connection()
        for stream in range(1, 100, 2):
            fields = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", f"/{SERVICE}/Check")]
            caller.send_headers(stream, [*fields, ("te", "trailers"), ("content-type", "application/grpc")])
            caller.send_data(stream, b"\0\0\0\0\x09half")
        writer.write(caller.data_to_send())
        await writer.drain()
        async with grpc.aio.insecure_channel(service.address) as channel:
            assert (await ask(channel, timeout_s=2)).status.code == 0
        writer.close()


async def test_health_follows_the_service(door: str, tmp_path: Path) -> None:
    async with serving(door, tmp_path, server="drain_s: 5") as service:
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", SERVICE):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(service="other"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            unknown = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
            assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            unknown.cancel()
            seen = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await seen.read()).status == SERVING
            drained = service.drain()
            assert (await seen.read()).status == NOT_SERVING
            # Checks are answered on until the callers have gone.
            assert (await ask(channel)).status.code == 0
            seen.cancel()
            await drained


async def test_callers_who_never_pause_lose_no_check_to_the_end(door: str, tmp_path: Path) -> None:
    failures: list[str] = []
    answered = 0
    async with serving(door, tmp_path, server="drain_s: 1") as service:
        ended = asyncio.Event()

        async def call() -> None:
            nonlocal answered
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(service.address, options=options) as channel:
                while not ended.is_set():
                    try:
                        assert (await ask(channel, timeout_s=5)).status.code == 0
                        answered += 1
                    except grpc.aio.AioRpcError as error:
                        failures.append(f"{error.code()} {error.details()}")
                        await asyncio.sleep(0.05)

        callers = [asyncio.create_task(call()) for _ in range(4)]
        await asyncio.sleep(0.5)
        await service.drain()
        ended.set()
        await asyncio.gather(*callers)
    assert answered > 50
    # No connection is made any more; none is cut with a check on it. grpcio itself turns away what reaches it while it
    # stops, once for each connection at most.
    turned_away = [text for text in failures if "failed to connect" not in text]
    assert [text for text in turned_away if door == "fast" or "CANCELLED" not in text] == []
    assert len(turned_away) <= 4


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


async def test_a_connection_grows_old_without_a_lost_check(door: str, tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.4
        server = "max_connection_age_s: 1\n  max_connection_age_grace_s: 5"
        rules = PROVIDED.format(url=idp.url)
        async with serving(door, tmp_path, rules, server=server, environ={"S": "s"}) as service:
            async with counted(int(service.address.rpartition(":")[2])) as (address, connections):
                async with grpc.aio.insecure_channel(address) as channel:
                    end_s = asyncio.get_running_loop().time() + 3

                    async def call(caller: int) -> int:
                        number = 0
                        while asyncio.get_running_loop().time() < end_s:
                            token = f"Bearer t{caller}-{number}"
                            answer = await ask(channel, check_request(authorization=token))
                            assert answer.status.message == "token_inactive"
                            number += 1
                        return number

                    answered = await asyncio.gather(*(call(caller) for caller in range(20)))
                assert min(answered) >= 3
                assert len(connections) >= 3, "each lived a second, with checks under way at its end"


async def test_a_proxy_may_ping_an_idle_connection_and_is_told_the_limit(door: str, tmp_path: Path) -> None:
    async with serving(door, tmp_path, server="max_concurrent_streams: 77") as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(service.address.rpartition(":")[2]))
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


async def test_a_changed_file_is_put_in_force_and_a_bad_one_is_not(door: str, tmp_path: Path) -> None:
    async with serving(door, tmp_path) as service, httpx.AsyncClient(trust_env=False) as client:
        text = service.rules.read_text()

        async def said() -> str:
            async with grpc.aio.insecure_channel(service.address) as channel:
                return (await ask(channel)).status.message or "allow"

        async def ready() -> dict[str, object]:
            found: dict[str, object] = (await client.get(f"{service.http}/readyz")).json()
            return found

        async def is_refused() -> bool:
            return "is none of" in str((await ready())["last_reload_error"])

        async def is_closed() -> bool:
            return await said() == "nobody"

        assert await said() == "allow"
        service.rules.write_text(text.replace("allow: anyone", "allow: nobody"))
        await until(is_closed)
        assert (await ready())["generation"] == 2
        service.rules.write_text(text.replace("allow: anyone", "allow: everyone"))
        await until(is_refused)
        assert await said() == "nobody"
        assert (await ready())["ready"]
        metrics = (await client.get(f"{service.http}/metrics")).text
        assert "authz_last_reload_successful 0.0" in metrics
        assert "authz_policy_generation 2.0" in metrics
        assert 'authz_decisions_total{decision="deny",reason="nobody",rule="public"}' in metrics
        assert (await client.get(f"{service.http}/healthz")).text == "ok\n"


async def test_a_provider_that_is_down_then_up(door: str, tmp_path: Path) -> None:
    signer = Signer()
    claims = {"iss": "https://sso.example.com", "aud": "a", "exp": 4_000_000_000, "sub": "me"}
    async with fake_provider() as idp, httpx.AsyncClient(trust_env=False) as client:
        rules = PROVIDED.format(url=idp.url).replace('jwks"}}', 'jwks", min_refetch: 100ms}}')
        async with serving(door, tmp_path, rules, environ={"S": "s"}) as service:
            ready = (await client.get(f"{service.http}/readyz")).json()
            assert ready["ready"]
            assert not ready["providers"][0]["healthy"]
            async with grpc.aio.insecure_channel(service.address) as channel:
                message = check_request(authorization=f"Bearer {signer.sign(claims)}")
                assert (await ask(channel, message)).denied_response.status.code == 503
                idp.answers["/jwks"] = jwks(signer)

                async def is_let_in() -> bool:
                    return bool((await ask(channel, message)).status.code == 0)

                await until(is_let_in, seconds=40)
                idp.answers["/jwks"] = HANG
                assert await is_let_in(), "the last good keys stay"


async def test_sigterm_loses_no_check_that_is_under_way_and_ends_with_0(door: str, tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.7
        file, address = tmp_path / "rules.yaml", f"unix:{tmp_path}/authz.sock"
        server = f'grpc: [{{address: "{address}"}}]\n  http: null\n  drain_s: 20'
        rules = PROVIDED.format(url=idp.url)
        file.write_text(f"{rules}\nserver:\n  {render_server(door, server)}\n")
        command = [sys.executable, "-m", "authz", "serve", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"S": "s"})
        try:
            async with grpc.aio.insecure_channel(address) as channel:

                async def is_up() -> bool:
                    try:
                        answer = await ask(channel, check_request("/warm", "other.example"))
                    except grpc.aio.AioRpcError:
                        return False
                    return bool(answer.status.message == "no_rule")

                await until(is_up, seconds=30)
                messages = [check_request(authorization=f"Bearer t{number}") for number in range(30)]
                under_way = [asyncio.create_task(ask(channel, its)) for its in messages]
                async with asyncio.timeout(30):
                    while idp.count("/introspect") < 30:
                        await asyncio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                answers = await asyncio.gather(*under_way)
                assert {its.status.message for its in answers} == {"token_inactive"}
            _, log = await asyncio.to_thread(process.communicate, timeout=30)
            assert process.returncode == 0
            assert b"draining" in log
            assert b"stopped" in log
        finally:
            process.kill()
            process.communicate()


async def test_a_bad_file_opens_no_socket_and_ends_with_2(door: str, tmp_path: Path) -> None:
    text = await refusal(door, tmp_path, "max_inflight: many")
    assert f"{tmp_path}/refused.yaml:" in text
    assert "server.max_inflight" in text


async def test_a_log_that_nobody_reads_stalls_no_check(door: str, tmp_path: Path) -> None:
    file, address = tmp_path / "rules.yaml", f"unix:{tmp_path}/authz.sock"
    server = f'grpc: [{{address: "{address}"}}]\n  http: null'
    file.write_text(f"{RULES}\nserver:\n  {render_server(door, server)}\n")
    command = [sys.executable, "-m", "authz", "serve", str(file)]
    # Both pipes hold 64 KiB, which a few hundred lines fill.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        async with grpc.aio.insecure_channel(address) as channel:

            async def is_up() -> bool:
                try:
                    return bool((await ask(channel)).status.code == 0)
                except grpc.aio.AioRpcError:
                    return False

            await until(is_up, seconds=30)
            for _ in range(600):
                assert (await ask(channel, timeout_s=5)).status.code == 0
    finally:
        process.terminate()
        await asyncio.sleep(0.5)
        process.kill()
        process.communicate()
