"""Both doors conform, and servers that do not are found: each case through a real grpcurl."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz.servers.check import SERVICE
from tests.conformance.grpcurl import ROOT, Caller, NotRunError, Target, find_grpcurl
from tests.conformance.load import FOLDER, Case, Expect, load_cases
from tests.conformance.report import Result
from tests.conformance.run import run_cases
from tests.parts import lacking
from tests.servers.service import serving, told
from tests.tls import Authority

pytestmark = [pytest.mark.e2e, pytest.mark.process]

CASES = load_cases()
RULES = (FOLDER / "rules.yaml").read_text().partition("\nserver:")[0] + "\n"
NOWHERE = "127.0.0.1:19999"


@pytest.fixture(autouse=True)
def program() -> str:
    try:
        return find_grpcurl()
    except NotRunError as error:
        lacking("grpcurl", str(error))


@contextlib.asynccontextmanager
async def silent_port() -> AsyncIterator[str]:
    """Open a port that takes connections and says nothing."""
    over = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await over.wait()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        server.close()


async def hold_to(
    address: str,
    cases: Sequence[Case],
    folder: Path,
    *,
    reasons: bool = True,
    options: tuple[str, ...] = ("-plaintext",),
) -> list[Result]:
    def run() -> list[Result]:
        caller = Caller(find_grpcurl(), Target(address=address, options=options), folder)
        return run_cases(caller, cases, reasons=reasons)

    return await asyncio.to_thread(run)


def name(case: Case) -> str:
    return f"{case.group}: {case.name}"


def problems(results: Sequence[Result]) -> dict[str, list[str]]:
    return {name(its.case): [problem.text for problem in its.problems] for its in results if its.problems}


def command(address: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the suite as its users do, with a pipe for a terminal."""
    words = [sys.executable, "-m", "tests.conformance.run", address, *options]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


async def test_every_case_holds_behind_every_door(door: str, tmp_path: Path) -> None:
    async with silent_port() as silent, serving(door, tmp_path, RULES.replace(NOWHERE, silent)) as service:
        results = await hold_to(service.address, CASES, tmp_path)
        assert problems(results) == {}
        lines = await told(service, len(CASES))
        assert "deadline" in {line.get("reason") for line in lines}, "the silent issuer was waited for"


async def test_the_command_says_what_holds_and_what_does_not(tmp_path: Path) -> None:
    # Another tenant's rule than the suite wants: the cases of that rule fail, and no others.
    broken = RULES.replace('"claims.tenant == host.tenant"', '"claims.tenant != host.tenant"')
    groups = ("--group", "hosts", "--group", "tcp")
    async with serving("grpcio", tmp_path, broken) as service:
        done = await asyncio.to_thread(command, service.address, *groups)
        assert done.returncode == 1, done.stderr
        document = await asyncio.to_thread(command, service.address, *groups, "--json", "--reasons")
        fine = await asyncio.to_thread(command, service.address, "--group", "tcp", "--schema", "files")
        assert fine.returncode == 0, fine.stdout + fine.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{service.address}, asked by the target's own, by reflection"
    assert [line for line in lines if line.startswith("NO")] == [
        f"NO hosts: {its} [RFC 9110 §7.2]" for its in ("a tenant on its own host", "a tenant on another's host")
    ]
    assert "   a deny 403 (condition_false) instead of an allow [RFC 9110 §7.2]" in lines
    assert "ok hosts: a plain name [envoy/service/auth/v3/attribute_context.proto, HttpRequest.host]" in lines
    assert lines[-1].startswith("61 of 63 cases")
    facts = json.loads(document.stdout)
    assert (document.returncode, facts["failed"], facts["passed"]) == (1, 2, 61)
    assert {case["name"] for case in facts["cases"] if case["problems"]} == {
        "a tenant on its own host",
        "a tenant on another's host",
    }
    assert all(case["from"] and case["says"] for case in facts["cases"])
    assert "this repository's proto files" in fine.stdout


def test_a_suite_that_cannot_be_asked_is_no_failure_of_the_server() -> None:
    for arguments, why in (
        (("127.0.0.1:1",), "`127.0.0.1:1` cannot be reached: start the server there first"),
        (("127.0.0.1:1", "--group", "hots"), "there is no group `hots`: write one of verdicts, headers"),
    ):
        done = command(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr


async def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    chosen = [case for case in CASES if case.group in {"verdicts", "methods", "deadlines"}]
    turned = {"allow": Expect(verdict="deny"), "deny": Expect(verdict="allow")}
    wrong = [replace(case, expect=turned[case.expect.verdict]) for case in chosen]
    async with serving("grpcio", tmp_path, RULES) as service:
        results = await hold_to(service.address, wrong, tmp_path)
    for result in results:
        texts = [problem.text for problem in result.problems]
        assert len(texts) == 1, result.case.name
        assert "instead of" in texts[0]
        assert result.problems[0].origin == result.case.origin


async def test_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    tls = f'grpc: [{{address: "127.0.0.1:0", tls: {{cert_file: {cert}, key_file: {key}}}}}]\n  http: null'
    some = [case for case in CASES if case.group == "methods"]
    async with serving("grpcio", tmp_path, RULES, server=tls) as service:
        results = await hold_to(service.address, some, tmp_path, options=("-cacert", str(authority.file)))
        assert problems(results) == {}
        other = Authority(tmp_path, "other").file
        with pytest.raises(NotRunError, match=r"cannot be reached.*certificate"):
            await hold_to(service.address, some, tmp_path, options=("-cacert", str(other)))


# --- servers that do not conform ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def answering(answer: Callable[[], CheckResponse] | grpc.StatusCode) -> AsyncIterator[str]:
    """Serve one answer to whatever is asked, by a server without reflection and with gRPC's own limits."""

    async def check(_: CheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> CheckResponse:
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "no")
        return answer()

    method = grpc.unary_unary_rpc_method_handler(
        check, request_deserializer=CheckRequest.FromString, response_serializer=CheckResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Check": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def yes() -> CheckResponse:
    found = CheckResponse()
    found.status.SetInParent()
    found.ok_response.SetInParent()
    return found


def careful_yes() -> CheckResponse:
    found = yes()
    found.ok_response.headers_to_remove.extend(["x-user", "x-email", "x-roles", "x-tenant"])
    return found


def no() -> CheckResponse:
    found = CheckResponse()
    found.status.code = 7
    found.denied_response.status.code = 403  # type: ignore[assignment]  # an open enum
    return found


# Cheap ones, and those that only such a server answers with an error.
SOME = [case for case in CASES if case.group != "oversized"][::4]
UNSAID = "`status` is not there, and an empty one is an allow: say it"
LET_IN = "an allow instead of a deny"


async def test_a_server_that_answers_nothing_lets_everybody_in_and_is_found(tmp_path: Path) -> None:
    async with answering(CheckResponse) as address:
        results = await hold_to(address, SOME, tmp_path, reasons=False)
    for result in results:
        texts = [problem.text for problem in result.problems]
        readable = result.case.schema == "target" or result.case.expect.verdict == "allow"
        if not readable and texts[0].startswith("no answer but an RPC error"):
            continue  # what its library cannot read
        assert UNSAID in texts, result.case.name
        assert (LET_IN in texts) is (result.case.expect.verdict == "deny"), result.case.name
    assert sum(LET_IN in problem.text for result in results for problem in result.problems) > len(SOME) / 2


async def test_a_server_that_says_yes_fails_where_a_deny_or_a_header_is_meant(tmp_path: Path) -> None:
    plain = [case for case in SOME if case.schema == "target" and case.group in {"verdicts", "hosts", "targets"}]
    async with answering(yes) as address:
        careless = await hold_to(address, plain, tmp_path, reasons=False)
    for result in careless:
        texts = [problem.text for problem in result.problems]
        assert "`x-user` is neither overwritten nor removed: a client could set it" in texts
        assert UNSAID not in texts
    async with answering(careful_yes) as address:
        careful = await hold_to(address, plain, tmp_path, reasons=False)
    passed = {name(result.case) for result in careful if not result.problems}
    asks_more = ("sets", "removes", "keeps", "adds")
    assert passed == {
        name(case)
        for case in plain
        if case.expect.verdict == "allow" and not any(getattr(case.expect, its) for its in asks_more)
    }
    assert passed


async def test_a_server_that_says_no_fails_where_an_allow_or_another_status_is_meant(tmp_path: Path) -> None:
    plain = [case for case in SOME if case.schema == "target" and case.group in {"hosts", "targets", "methods", "tcp"}]
    async with answering(no) as address:
        results = await hold_to(address, plain, tmp_path, reasons=False)
    passed = {name(result.case) for result in results if not result.problems}
    assert passed == {
        name(case) for case in plain if case.expect.verdict == "deny" and case.expect.status in {403, None}
    }
    assert passed


async def test_a_server_that_answers_with_errors_fails_everywhere(tmp_path: Path) -> None:
    some = [case for case in CASES if case.group in {"methods", "tcp"}]
    async with answering(grpc.StatusCode.PERMISSION_DENIED) as address:
        results = await hold_to(address, some, tmp_path, reasons=False)
    text = "no answer but an RPC error (PermissionDenied: no): a proxy that fails open lets the request in"
    assert all([problem.text for problem in result.problems] == [text] for result in results)


async def test_a_server_with_the_transports_own_limits_is_found(tmp_path: Path) -> None:
    """Four megabytes are gRPC's limit if nobody says otherwise, and its refusal is an error."""
    some = [case for case in CASES if case.group == "oversized"]
    async with answering(no) as address:
        results = await hold_to(address, some, tmp_path, reasons=False)
    found = problems(results)
    for which in ("more than gRPC takes if nobody says otherwise", "a body of sixteen megabytes"):
        (text,) = found[f"oversized: {which}"]
        assert text.startswith("no answer but an RPC error (ResourceExhausted")
    assert not any("RPC error" in text for text in found["oversized: a question of a little more than a mebibyte"])
