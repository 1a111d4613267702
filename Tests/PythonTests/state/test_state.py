"""The state document: every value comes back as it was, or is refused by name."""

from __future__ import annotations

import array
import ctypes
import json
import math
import struct
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest

from pccheck import StateFormatError
from pccheck._state.memory import ArrayMemory
from pccheck._state.stored import StoredTensor
from pccheck.state import Decoder, Encoder, document_text, parse_document


def round_trip(value: Any) -> Any:
    encoder = Encoder()
    text = document_text(encoder.encode_state(value))
    assert text.isascii()
    tensors = {}
    for entry in encoder.entries:
        memory, address = ArrayMemory().allocate(entry.byte_count)
        ctypes.memmove(address, entry.address, entry.byte_count)
        tensors[entry.name] = StoredTensor(entry.name, entry.stored_dtype, entry.shape, memory)
    return Decoder(tensors).decode(parse_document(text))


def same(left: Any, right: Any) -> bool:
    """Equality that also compares types, the bits of floats, and the order of keys."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("<d", left) == struct.pack("<d", right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, c) and same(b, d)
            for (a, b), (c, d) in zip(left.items(), right.items(), strict=True)
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (np.ndarray, np.generic)):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    return bool(left == right)


ODD_NAN = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]

VALUES = [
    None, True, False, 0, -1, 2**53 - 1, 2**53, -(2**53), 10**5000, 1.5, -0.0, 5e-324, 1e308,
    1e16, math.inf, -math.inf, math.nan, ODD_NAN, "", "text", "\0 \ud800 \u2028 \U0001f40d", b"",
    b"\0\xff", b"x" * 5000, bytearray(b"abc"), bytearray(2000), 1 + 2j, complex(math.nan, -0.0),
    (), (1,), [], [1, [2, (3, [4])]], {}, {"a": 1}, {1: "a", "1": "b"}, {True: 2, False: 3},
    {"$dict": 1}, {"$tensor": "x", "a": 2}, {(1, ("a", None)): 1}, {None: 1, 2.5: 2, b"k": 3},
    {2**70: 1, math.inf: 2}, set(), {1, "a", (2, 3)}, frozenset({b"x"}), Counter("hello"),
    OrderedDict([("b", 1), ("a", 2)]), OrderedDict([(1, 2)]), np.float32(0.1), np.int64(-5),
    np.bool_(True), np.float64(math.nan), np.complex64(1j), np.datetime64("2020-01-01"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_value_comes_back_exactly(value: Any) -> None:
    result = round_trip({"key": value, "list": [value]})
    assert same(result["key"], value), result["key"]
    assert same(result["list"], [value])


DTYPES = [
    "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", ">i4",
    ">f8", ">c8", "M8[ns]", "m8[s]",
]  # fmt: skip


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (2, 0, 5)])
def test_array_comes_back_exactly(name: str, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(name)
    count = int(np.prod(shape))
    words = np.random.default_rng(7).integers(0, 2, count * dtype.itemsize, dtype=np.uint8)
    value = words.view(dtype).reshape(shape)
    assert same(round_trip({"x": value})["x"], value)


def test_strided_arrays_keep_their_values() -> None:
    base = np.arange(24.0).reshape(4, 6)
    state = {"transposed": base.T, "step": base[:, ::2], "reversed": base[::-1]}
    result = round_trip(state)
    for key, value in state.items():
        assert np.array_equal(result[key], value)
        assert result[key].flags.writeable


def test_an_array_in_two_places_is_stored_once() -> None:
    shared = np.arange(10)
    encoder = Encoder()
    encoder.encode_state({"a": shared, "b": [shared], "c": shared.copy()})
    assert [entry.name for entry in encoder.entries] == ["a", "c"]
    result = round_trip({"a": shared, "b": [shared], "c": shared.copy()})
    assert result["a"] is result["b"][0]
    assert result["c"] is not result["a"]


def test_buffers_become_arrays() -> None:
    result = round_trip({"a": array.array("f", [1, 2]), "b": memoryview(b"xyz")})
    assert same(result["a"], np.array([1, 2], np.float32))
    assert same(result["b"], np.frombuffer(b"xyz", np.uint8))


def test_metadata_attribute_of_ordered_dict_is_kept() -> None:
    state: Any = OrderedDict([("weight", np.zeros(2))])
    state._metadata = OrderedDict([("", {"version": 2})])
    assert same(round_trip(state)._metadata, state._metadata)


def test_names_are_paths_and_unique() -> None:
    encoder = Encoder()
    encoder.encode_state(
        {
            "optimizer": {"state": {0: {"exp_avg": np.zeros(1)}}},
            "a": {"b": np.zeros(1)},
            "a.b": np.ones(1),
            "__metadata__": np.ones(2),
            "nul\0\ud800": np.ones(3),
            "long" * 3000: np.ones(4),
        }
    )
    names = [entry.name for entry in encoder.entries]
    assert names[:4] == ["optimizer.state.0.exp_avg", "a.b", "a.b~2", "__metadata__~2"]
    assert all("\0" not in name and len(name.encode()) <= 4096 for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "object"),
        (lambda: 1, "function"),
        (defaultdict(lambda: 1), "defaultdict"),
        (np.array([object()]), "ndarray"),
        (np.array(["text"]), "ndarray"),
        (np.ma.masked_array([1], [True]), "MaskedArray"),
        (np.longdouble(1), "longdouble"),
        (type, "type"),
        (1j.conjugate, "builtin_function"),
    ],
)
def test_refusal_names_key_and_type(value: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=r"key 'outer\.inner\.1': .*" + kind):
        Encoder().encode_state({"outer": {"inner": [0, value]}})


def test_refusal_of_keys() -> None:
    with pytest.raises(TypeError, match="key 'outer': a dict key or set item of type object"):
        Encoder().encode_state({"outer": {object(): 1}})


def test_state_that_contains_itself_is_refused() -> None:
    state: dict[str, Any] = {}
    state["self"] = state
    with pytest.raises(ValueError, match="contains itself"):
        Encoder().encode_state(state)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not JSON"),
        ("[]", "has no 'state'"),
        ('{"version": 2, "state": 1}', "version 2; this package reads 1"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_broken_documents(text: str, message: str) -> None:
    with pytest.raises(StateFormatError, match=message):
        parse_document(text)


@pytest.mark.parametrize(
    "node",
    [
        {"$unknown": 1},
        {"$array": "missing"},
        {"$float": "x"},
        {"$int": []},
        {"$bytes": "%"},
        {"$scalar": "|O", "bytes": "AAAAAAAAAAA="},
        {"$scalar": "<f4", "bytes": "AA=="},
        {"$dict": [[1]]},
        {"$complex": [1]},
        {"$set": [[]]},
    ],
    ids=json.dumps,
)
def test_broken_nodes(node: Any) -> None:
    with pytest.raises(StateFormatError):
        Decoder({}).decode([node])
