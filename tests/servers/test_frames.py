"""gRPC's frames and timeouts, whole, cut anywhere and in any pieces."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.servers.frames import Code, FrameReader, RpcError, parse_timeout, render_frame

MAX_BYTES = 1_000


def read_all(pieces: list[bytes], *, encoding: bytes = b"identity") -> list[bytes]:
    reader = FrameReader(max_bytes=MAX_BYTES, encoding=encoding)
    found: list[bytes] = []
    for piece in pieces:
        message = reader.feed(piece)
        while message is not None:
            found.append(message)
            message = reader.feed(b"")
    assert reader.is_empty is (b"".join(map(render_frame, found)) == b"".join(pieces))
    return found


@given(st.lists(st.binary(max_size=60), max_size=5), st.lists(st.integers(0, 400), max_size=8))
def test_messages_come_out_as_they_went_in_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    body = b"".join(map(render_frame, messages))
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[start:end] for start, end in pairwise(edges)]
    assert read_all(pieces) == messages


def test_a_message_cut_at_any_byte_is_none() -> None:
    body = render_frame(b"message")
    for end in range(len(body)):
        reader = FrameReader(max_bytes=MAX_BYTES)
        assert reader.feed(body[:end]) is None
        assert reader.is_empty is (end == 0)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_nothing_else_than_an_rpc_error_comes_of_junk(pieces: list[bytes]) -> None:
    reader = FrameReader(max_bytes=MAX_BYTES)
    with contextlib.suppress(RpcError):
        for piece in pieces:
            reader.feed(piece)


@pytest.mark.parametrize(
    ("encoding", "flags", "code"),
    [
        (b"identity", 1, Code.INTERNAL),
        (b"gzip", 1, Code.UNIMPLEMENTED),
        (b"gzip", 2, Code.INTERNAL),
        (b"identity", 255, Code.INTERNAL),
    ],
)
def test_flags_other_than_none_are_refused(encoding: bytes, flags: int, code: Code) -> None:
    for pieces in ([bytes([flags]) + render_frame(b"x")[1:]], [bytes([flags]), b"\0\0\0\1x"]):
        with pytest.raises(RpcError) as caught:
            read_all(pieces, encoding=encoding)
        assert caught.value.code is code


def test_a_named_encoding_alone_is_no_reason_to_refuse() -> None:
    assert read_all([render_frame(b"x")], encoding=b"gzip") == [b"x"]


def test_the_size_is_judged_by_the_prefix() -> None:
    assert read_all([render_frame(b"a" * MAX_BYTES)]) == [b"a" * MAX_BYTES]
    with pytest.raises(RpcError) as caught:
        FrameReader(max_bytes=MAX_BYTES).feed(render_frame(b"a" * (MAX_BYTES + 1))[:5])
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"2H", 7_200.0),
        (b"3M", 180.0),
        (b"10S", 10.0),
        (b"1500m", 1.5),
        (b"99999999u", 99.999999),
        (b"5n", 5e-9),
        (b"0m", 0.0),
        (b"123456789S", 123_456_789.0),
    ],
)
def test_timeouts_in_every_unit(text: bytes, seconds: float) -> None:
    assert parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [b"", b"S", b"1", b"1s", b"-1S", b"+1S", b"1.5S", b" 1S", b"1S ", b"1SS", b"1S\n", b"\xd9\xa1S", b"1" * 19 + b"S"],
)
def test_other_timeouts_are_an_error(text: bytes) -> None:
    with pytest.raises(RpcError) as caught:
        parse_timeout(text)
    assert caught.value.code is Code.INTERNAL


@given(st.binary(max_size=24))
def test_nothing_else_than_an_rpc_error_comes_of_any_timeout(text: bytes) -> None:
    with contextlib.suppress(RpcError):
        assert parse_timeout(text) >= 0
