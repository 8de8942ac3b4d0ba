"""Lines for a log, written by a thread of their own: a reader who stalls must never stall a check.

A check that waited for a full pipe would outlast its caller's deadline, and some callers take that for an allow. So a
line is handed over and forgotten; where the reader is too far behind, or gone, lines are lost and counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import IO, Final, TextIO

MAX_LINES: Final = 16_384
"""Lines that may wait: some ten megabytes."""

BATCH_S: Final = 0.01
"""How long lines are gathered, so that a busy service makes few system calls."""


class LineQueue:
    """Takes text as a stream does and writes it to ``stream`` in order, never waiting for it."""

    def __init__(self, stream: TextIO, *, lock: IO[bytes] | None = None) -> None:
        """Take turns by the file ``lock`` with other processes that write to the same stream, so that lines stay whole.

        A pipe takes more than 4 KiB in pieces (pipe(7), PIPE_BUF), and those of several writers would mix.
        """
        self._stream = stream
        self._lock = lock
        self._waiting: deque[str] = deque()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="log lines", daemon=True)
        self._thread.start()
        self.lost = 0
        """Pieces of text that nobody will read: too many were waiting, or the stream is gone."""

    def write(self, text: str) -> int:
        """Hand over a piece of text."""
        if len(self._waiting) >= MAX_LINES:
            self.lost += 1
        else:
            self._waiting.append(text)
            if not self._wake.is_set():
                self._wake.set()
        return len(text)

    def flush(self) -> None:
        """Do nothing: what was handed over is on its way."""

    def isatty(self) -> bool:
        """Say whether eyes read it."""
        return self._stream.isatty()

    def close(self, *, wait_s: float = 2.0) -> None:
        """Write what is waiting, for as long as ``wait_s`` allows."""
        self._closed = True
        self._wake.set()
        self._thread.join(wait_s)

    def _write_all(self) -> None:
        while not (self._closed and not self._waiting):
            self._wake.wait()
            self._wake.clear()
            if not self._closed:
                time.sleep(BATCH_S)
            pieces: list[str] = []
            while self._waiting:
                pieces.append(self._waiting.popleft())
            try:
                with self._alone():
                    self._stream.write("".join(pieces))
                    self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more, or the stream is closed
                self.lost += len(pieces)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._lock is None:
            yield
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
