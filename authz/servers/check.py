"""Checks, whatever the door: bytes of a ``CheckRequest`` in, bytes of a ``CheckResponse`` out, always.

Invariant VERDICTS-ARE-ANSWERS: what can be judged is judged inside the handler and leaves as a ``CheckResponse``; with
``failure_mode_allow`` an Envoy would take an RPC error for an allow. So each door's own limits lie above anything that
an Envoy sends, and size, load and time are ours to refuse. What only the transport can refuse (a message over
TRANSPORT_MAX_BYTES, a broken HTTP/2 frame) stays an RPC error: ``failure_mode_allow: false`` covers it.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import perf_counter_ns
from typing import Final

from authz.config.settings import ServerSettings
from authz.core.answers import Refusal, render_deny
from authz.gate import Gate
from authz.model import Decision, Deny, Reason, Rejected
from authz.observe import Observer
from authz.pb.envoy.service.auth.v3 import external_auth_pb2
from authz.servers.envoy import describe_check, parse_check, render_check

SERVICE: Final = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"].full_name

TRANSPORT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Above any ``with_request_body.max_request_bytes`` that Envoy's own buffers allow in a shipped configuration."""

MAX_DESCRIBED_BYTES: Final = 4 * 1024 * 1024
"""A larger CheckRequest is refused without a look at whose it was."""

MARGIN_S: Final = 0.020
MARGIN_SHARE: Final = 0.10
"""We answer this much before the caller gives up: an answer that comes too late is a fail-open for some callers."""

IDLE_BEFORE_STOP_S: Final = 1.0

_INTERNAL: Final[bytes] = render_check(render_deny(Refusal(reason=Reason.INTERNAL)))


class CheckHandler:
    """Answers checks, whatever happens; counts those under way."""

    def __init__(self, gate: Gate, settings: ServerSettings, observer: Observer) -> None:
        self._gate = gate
        self._settings = settings
        self._observer = observer
        self.in_flight = 0
        self.last_s = 0.0

    async def check(self, raw: bytes, left_s: float | None) -> bytes:
        """Answer one serialized ``CheckRequest``. ``left_s`` is what is left of the caller's patience, if it is known.

        Belongs to the event loop in which the service was started.
        """
        received_ns = perf_counter_ns()
        self.last_s = asyncio.get_running_loop().time()
        self.in_flight += 1
        try:
            decision = await self._decide(raw, left_s, received_ns)
            return render_check(decision)
        except Exception as error:  # noqa: BLE001 - the one place where all that is left becomes a Deny
            # The transport's last line, the only one of its kind: our own bug must not become an RPC error.
            with contextlib.suppress(Exception):  # what failed may fail again
                self._observer.internal_error(error)
                decision = self._refuse(Reason.INTERNAL, raw, received_ns)
                return render_check(decision)
            return _INTERNAL
        finally:
            self.in_flight -= 1

    async def wait_until_quiet(self, idle_s: float = IDLE_BEFORE_STOP_S) -> None:
        """Wait until the callers have gone: nothing under way, nothing new for ``idle_s``; at most ``drain_s``."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while loop.time() - began_s < self._settings.drain_s:
            quiet_s = loop.time() - max(self.last_s, began_s)
            if self.in_flight == 0 and quiet_s >= min(idle_s, self._settings.drain_s):
                break
            await asyncio.sleep(0.05)

    async def _decide(self, raw: bytes, left_s: float | None, received_ns: int) -> Decision:
        if self.in_flight > self._settings.max_inflight:
            return self._refuse(Reason.OVERLOADED, raw, received_ns)
        if len(raw) > self._settings.max_request_bytes:
            detail = f"a CheckRequest of {len(raw)} bytes, at most {self._settings.max_request_bytes} are read"
            return self._refuse(Reason.REQUEST_TOO_LARGE, raw, received_ns, detail)
        try:
            request = parse_check(raw)
        except Rejected as rejected:
            return self._refuse(rejected.reason, raw, received_ns, rejected.detail)
        budget_s = self._settings.deadline_ms / 1_000
        if left_s is not None:
            budget_s = min(budget_s, left_s - max(MARGIN_S, left_s * MARGIN_SHARE))
        return await self._gate.check(request, received_ns=received_ns, deadline_s=self.last_s + budget_s)

    def _refuse(self, reason: Reason, raw: bytes, received_ns: int, detail: str = "") -> Deny:
        seen = describe_check(raw) if len(raw) <= MAX_DESCRIBED_BYTES else None
        return self._gate.refuse(reason, detail=detail, request=seen, received_ns=received_ns)
