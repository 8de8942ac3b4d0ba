"""A reader who stalls never stalls whoever writes; what is lost is counted."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from pathlib import Path

from authz.lines import MAX_LINES, LineQueue


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_arrive_in_order() -> None:
    stream = io.StringIO()
    lines = LineQueue(stream)
    for number in range(1_000):
        assert lines.write(f"{number}\n") == len(f"{number}\n")
    lines.flush()
    lines.close()
    assert stream.getvalue() == "".join(f"{number}\n" for number in range(1_000))
    assert lines.lost == 0


def test_a_line_is_written_without_a_further_one() -> None:
    stream = io.StringIO()
    lines = LineQueue(stream)
    for text in ("one", "two"):
        lines.write(text)
        until = time.monotonic() + 5
        while text not in stream.getvalue():
            assert time.monotonic() < until
            time.sleep(0.005)
    lines.close()


def test_a_full_pipe_makes_nobody_wait() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    lines = LineQueue(stream)
    began = time.monotonic()
    while lines.lost < 10 and time.monotonic() - began < 20:
        lines.write("x" * 99 + "\n")
    assert lines.lost == 10, f"{MAX_LINES} lines wait at the most"
    began = time.monotonic()
    lines.close(wait_s=0.05)
    assert time.monotonic() - began < 2, "nor does it keep a service from ending"
    os.close(reading)
    lines.close()
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    os.close(reading)
    lines = LineQueue(stream)
    lines.write("nobody reads this")
    lines.close()
    assert lines.lost == 1
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_terminal_is_known() -> None:
    assert LineQueue(Terminal()).isatty()
    assert not LineQueue(io.StringIO()).isatty()


def test_lines_of_several_writers_stay_whole_where_they_take_turns(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    reading, writing = os.pipe()
    read: list[bytes] = []
    with os.fdopen(reading, "rb") as pipe:
        reader = threading.Thread(target=lambda: read.extend(pipe))
        reader.start()
        # Each has the lock open for itself, as processes have.
        with contextlib.ExitStack() as files:
            locks = [files.enter_context((tmp_path / "lock").open("rb")) for _ in range(4)]
            streams = [files.enter_context(os.fdopen(os.dup(writing), "w")) for _ in locks]
            writers = [LineQueue(stream, lock=lock) for stream, lock in zip(streams, locks, strict=True)]
            os.close(writing)
            for _ in range(100):
                for name, lines in zip("abcd", writers, strict=True):
                    lines.write(name * 9_000 + "\n")
            for lines in writers:
                lines.close(wait_s=10)
        reader.join(10)
    assert sorted(read) == sorted(name * 9_000 + b"\n" for name in (b"a", b"b", b"c", b"d") for _ in range(100))
