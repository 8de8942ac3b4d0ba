"""A JSON object of which no two readers disagree."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.strictjson import parse_object
from authz.model import Reason, Rejected


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"{}", {}),
        (b' {"a": [1, -2, 0.5, 1e3, true, false, null, "x"]} ', {"a": [1, -2, 0.5, 1000.0, True, False, None, "x"]}),
        (b'{"a": {"b": 1}, "b": {"b": 2}}', {"a": {"b": 1}, "b": {"b": 2}}),
        (b'{"n": 18446744073709551615}', {"n": 2**64 - 1}),
        (b'{"n": -99999999999999999999}', {"n": -(10**20) + 1}),
        (b'{"n": 1e308}', {"n": 1e308}),
        (b'{"s": "\\ud83d\\ude00 \\u0000"}', {"s": "\U0001f600 \0"}),
        ('{"s": "\U0001f600\u00e9"}'.encode(), {"s": "\U0001f600\u00e9"}),
    ],
)
def test_an_object_is_read(raw: bytes, value: object) -> None:
    assert parse_object(raw, reason=Reason.JWT_PAYLOAD) == value


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="array"),
        pytest.param(b'"a"', id="text"),
        pytest.param(b"null", id="null"),
        pytest.param(b"7", id="number"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"{}{}", id="two objects"),
        pytest.param(b"{} x", id="trailing junk"),
        pytest.param(b"{'a': 1}", id="single quotes"),
        pytest.param(b'{"a": 1,}', id="trailing comma"),
        pytest.param(b'{"a": 01}', id="leading zero"),
        pytest.param(b'{"a": "\n"}', id="bare control character"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', id="byte order mark"),
        pytest.param(b'{"a": "\xff"}', id="not utf-8"),
        pytest.param(b'{"a": "\xed\xa0\x80"}', id="surrogate in utf-8"),
        pytest.param(b'{"a": "\xc0\xaf"}', id="overlong utf-8"),
        pytest.param('{"a": 1}'.encode("utf-16"), id="utf-16"),
        pytest.param(b'{"a": 1, "a": 1}', id="member twice"),
        pytest.param(b'{"a": {"b": 1, "\\u0062": 2}}', id="member twice inside, spelled in two ways"),
        pytest.param(b'{"a": NaN}', id="nan"),
        pytest.param(b'{"a": Infinity}', id="infinity"),
        pytest.param(b'{"a": -Infinity}', id="minus infinity"),
        pytest.param(b'{"a": 1e999}', id="infinity as a number"),
        pytest.param(b'{"a": -1e999}', id="minus infinity as a number"),
        pytest.param(b'{"a": ' + b"1" * 22 + b"}", id="integer too long"),
        pytest.param(b'{"a": ' + b"1" * 5_000 + b"}", id="integer far too long"),
        pytest.param(b'{"a": "\\ud800"}', id="lone high surrogate"),
        pytest.param(b'{"a": ["\\udc00"]}', id="lone low surrogate"),
        pytest.param(b'{"\\ud800": 1}', id="lone surrogate as a name"),
    ],
)
def test_everything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        parse_object(raw, reason=Reason.JWT_HEADER)
    assert caught.value.reason is Reason.JWT_HEADER


def test_depth_is_bounded_at_the_limit() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a": ' * (depth - 1) + b"{}" + b"}" * (depth - 1)

    assert parse_object(nested(32), reason=Reason.JWT_PAYLOAD)
    with pytest.raises(Rejected) as caught:
        parse_object(nested(33), reason=Reason.JWT_PAYLOAD)
    assert caught.value.reason is Reason.JWT_PAYLOAD
    assert parse_object(b'{"a": [1]}', reason=Reason.JWT_PAYLOAD, max_depth=2)
    with pytest.raises(Rejected):
        parse_object(b'{"a": [[1]]}', reason=Reason.JWT_PAYLOAD, max_depth=2)
    with pytest.raises(Rejected):
        parse_object(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", reason=Reason.JWT_PAYLOAD)


def test_many_containers_are_not_deep() -> None:
    assert len(parse_object(b'{"a": [' + b"{}," * 99 + b"{}]}", reason=Reason.JWT_PAYLOAD)["a"]) == 100


def test_every_cut_of_an_object_is_refused() -> None:
    raw = '{"sub": "\u00e9", "aud": ["a", "b"], "exp": 1.5e3, "x": {"y": null, "z": true}}'.encode()
    parse_object(raw, reason=Reason.JWT_PAYLOAD)
    for length in range(len(raw)):
        with pytest.raises(Rejected):
            parse_object(raw[:length], reason=Reason.JWT_PAYLOAD)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), _JSON, max_size=4))
def test_what_python_writes_is_read_back(value: dict[str, object]) -> None:
    assert parse_object(json.dumps(value).encode(), reason=Reason.JWT_PAYLOAD) == value


@given(st.binary(max_size=64) | st.text(alphabet='{}[]":,\\u0d8 e19-.NaIfinty\t', max_size=32).map(str.encode))
def test_only_rejected_escapes(raw: bytes) -> None:
    try:
        value = parse_object(raw, reason=Reason.JWT_PAYLOAD)
    except Rejected:
        return
    assert isinstance(value, dict)
