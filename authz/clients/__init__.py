"""Everything that waits for an identity provider. What the modules here share: a clock, and a place to tell of events.

Invariants: LAST-GOOD (a failed fetch never replaces good data), NO-RAW-TOKENS, and a fetch belongs to everyone who
waits for it.
"""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The time: claims go by the wall clock, lifetimes of ours by one that never jumps."""

    def now_s(self) -> float:
        """Return seconds since 1970."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds since some fixed moment."""
        ...


class ProviderEvents(Protocol):
    """Where it is told what happened with a provider, for log and metrics."""

    def provider_event(self, provider: str, event: str, detail: str = "", seconds: float | None = None) -> None:
        """Note one event. ``detail`` is for the operator, where something needs them; ``seconds`` is how long it took.

        Neither ever holds a token or a secret. ``event`` is one of ``keys_fetched keys_failed keys_loaded
        key_file_failed keys_skipped discovery_failed introspected introspection_failed inactive_but_valid
        stale_evidence breaker_open breaker_closed tls_files_failed``.
        """
        ...
