"""What pcinspect computes from tensors, against NumPy and PyTorch."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import numpy as np
import pytest
import reader
import torch
from conftest import ROOT

TOOL = ROOT / "build" / "bin" / "pcinspect"

SAFETENSORS_TYPES = set(
    "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16"
    " BF16 I32 U32 F32 C64 F64 I64 U64".split()
)

# F4: sign, two bits of exponent, one of mantissa; F6: two and three, or three and two.
F4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def inspect(*arguments: object, status: int = 0) -> dict[str, Any]:
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")
    run = subprocess.run(
        [TOOL, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == status, run.stderr + run.stdout
    return json.loads(run.stdout)


def expected(values: np.ndarray) -> dict[str, Any]:
    """The statistics of real numbers in double precision."""
    finite = values[np.isfinite(values)]
    return {
        "element_count": values.size,
        "missing_element_count": 0,
        "finite_count": finite.size,
        "nan_count": int(np.isnan(values).sum()),
        "infinity_count": int(np.isinf(values).sum()),
        "zero_count": int((values == 0).sum()),
        "minimum": finite.min() if finite.size else None,
        "maximum": finite.max() if finite.size else None,
        "mean": finite.mean() if finite.size else None,
        "standard_deviation": finite.std() if finite.size else None,
    }


def check(found: dict[str, Any], wanted: dict[str, Any], name: str) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if value is None or key.endswith("count") or key in ("minimum", "maximum"):
            assert found[key] == value, (name, key)
        else:
            scale = max(abs(float(wanted["minimum"])), abs(float(wanted["maximum"])))
            assert math.isclose(found[key], value, rel_tol=1e-12, abs_tol=1e-13 * scale), (
                name,
                key,
                found[key],
                value,
            )


def small_floats(bits: int, exponent: int, mantissa: int, bias: int) -> list[float]:
    """The values of a type without NaN and infinity, by its definition."""
    values = []
    for pattern in range(1 << bits):
        fraction = pattern & (1 << mantissa) - 1
        power = pattern >> mantissa & (1 << exponent) - 1
        value = fraction / 2**mantissa * 2.0 ** (1 - bias)
        if power:
            value = (1 + fraction / 2**mantissa) * 2.0 ** (power - bias)
        values.append(-value if pattern >> (bits - 1) else value)
    return values


def unpack(content: bytes, bits: int) -> np.ndarray:
    stream = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
    return stream.reshape(-1, bits) @ (1 << np.arange(bits))


def every_type(generator: np.random.Generator) -> Iterator[tuple[str, str, bytes, np.ndarray]]:
    """Name, dtype, bytes and the values as doubles, with all that is special in the type."""
    count = 40_000
    base = generator.normal(size=count) * 10 ** generator.uniform(-3, 3, size=count)
    base[generator.integers(0, count, 500)] = 0
    special = base.copy()
    for value in (np.nan, np.inf, -np.inf, 5e-324, -1e-40, -0.0):
        special[generator.integers(0, count, 7)] = value
    for dtype, numpy_type in (("F64", np.float64), ("F32", np.float32), ("F16", np.float16)):
        with np.errstate(over="ignore"):
            array = special.astype(numpy_type)
        yield dtype, dtype, array.tobytes(), array.astype(np.float64)
    # Every pattern of a half: normal, denormal, infinite and not a number.
    patterns = np.arange(65536, dtype=np.uint16)
    yield "F16.all", "F16", patterns.tobytes(), patterns.view(np.float16).astype(np.float64)
    brain = torch.from_numpy(patterns.view(np.int16).copy()).view(torch.bfloat16)
    yield "BF16.all", "BF16", patterns.tobytes(), brain.double().numpy()
    halves = torch.from_numpy(special).bfloat16()
    yield "BF16", "BF16", halves.view(torch.uint8).numpy().tobytes(), halves.double().numpy()
    octets = np.tile(np.arange(256, dtype=np.uint8), 300)
    for dtype, kind in (
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("F8_E4M3FNUZ", torch.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", torch.float8_e5m2fnuz),
        ("F8_E8M0", torch.float8_e8m0fnu),
    ):
        values = torch.from_numpy(octets.copy()).view(kind).float().double().numpy()
        if dtype == "F8_E8M0":
            # 2 to the power of -127 is a denormal number in single precision, which is exact.
            values = np.where(octets == 255, np.nan, 2.0 ** (octets.astype(np.float64) - 127))
        yield dtype, dtype, octets.tobytes(), values
    noise = generator.integers(0, 256, 30_000, dtype=np.uint8).tobytes()
    f4 = np.array(F4 + [-value for value in F4])
    yield "F4", "F4", noise, f4[unpack(noise, 4)]
    for dtype, shape in (("F6_E2M3", (2, 3, 1)), ("F6_E3M2", (3, 2, 3))):
        yield dtype, dtype, noise, np.array(small_floats(6, *shape))[unpack(noise, 6)]
    yield "BOOL", "BOOL", (np.frombuffer(noise, np.uint8) & 1).tobytes(), unpack(noise, 8) & 1
    for dtype, numpy_type in (
        ("U8", np.uint8), ("I8", np.int8), ("U16", np.uint16), ("I16", np.int16),
        ("U32", np.uint32), ("I32", np.int32), ("U64", np.uint64), ("I64", np.int64),
    ):
        limits = np.iinfo(numpy_type)
        array = generator.integers(limits.min, limits.max, 20_000, numpy_type, endpoint=True)
        array[:3] = limits.min, limits.max, 0
        yield dtype, dtype, array.tobytes(), array
    with np.errstate(over="ignore"):
        pairs = np.stack([special, generator.permutation(special)], axis=1).astype(np.float32)
    parts = pairs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        absolute = np.sqrt((parts**2).sum(axis=1))
    absolute[np.isnan(parts).any(axis=1)] = np.nan
    yield "C64", "C64", pairs.tobytes(), absolute
    yield "empty", "F32", b"", np.array([], np.float64)
    yield "only NaN", "F32", np.full(9, np.nan, np.float32).tobytes(), np.full(9, np.nan)


@pytest.fixture(scope="module")
def cases() -> list[tuple[str, str, bytes, np.ndarray]]:
    return list(every_type(np.random.default_rng(7)))


@pytest.mark.parametrize(("shift", "compress"), [(0, False), (0, True), (5, True)])
def test_statistics_are_those_of_numpy(
    path: Path, cases: list[tuple[str, str, bytes, np.ndarray]], shift: int, compress: bool
) -> None:
    """With a shift, elements of every width lie in two chunks."""
    tensors = [(name, dtype, [values.size], content) for name, dtype, content, values in cases]
    images.write(path, [images.safetensors(tensors, shift=shift)], compress)
    found = inspect("tensors", "--stats", path)["tensors"]
    assert [tensor["name"] for tensor in found] == [name for name, *_ in cases]
    for tensor, (name, dtype, _, values) in zip(found, cases, strict=True):
        assert tensor["dtype"] == dtype and tensor["damage"] is None
        check(tensor["statistics"], expected(values), name)
    assert {dtype for _, dtype, *_ in cases} == SAFETENSORS_TYPES


def test_what_is_left_of_a_damaged_tensor(path: Path) -> None:
    values = np.random.default_rng(1).normal(size=50_000)
    whole = np.arange(1000, dtype=np.int32)
    tensors = [
        ("a", "F64", [50, 1000], values.tobytes()),
        ("b", "I32", [1000], whole.tobytes()),
    ]
    images.write(path, [images.safetensors(tensors)])
    content = bytearray(path.read_bytes())
    # In the second chunk, which holds bytes 61440 to 126976 of the first tensor.
    content[content.index(values[10_000:10_004].tobytes())] ^= 1
    path.write_bytes(content)
    a, b = inspect("tensors", "--stats", path, status=4)["tensors"]
    assert a["statistics"] is None and a["damaged_chunks"] == [1] and "digest" in a["damage"]
    check(b["statistics"], expected(whole), "b")
    a, _ = inspect("tensors", "--stats", "--salvage", path, status=4)["tensors"]
    left = np.concatenate([values[: 61440 // 8], values[126976 // 8 :]])
    wanted = expected(left) | {"missing_element_count": 50_000 - left.size}
    check(a["statistics"], wanted, "a")


STATE = {"pccheck.state": '{"a": [1, {"b": 2}], "c": "x"}', "k": "1"}
OTHER_STATE = {"pccheck.state": '{"a": [1, {"b": 3}], "c": "x", "d": null}', "l": "1"}


@pytest.mark.parametrize("shift", [0, 3])
def test_differences_are_those_of_numpy(path: Path, shift: int) -> None:
    generator = np.random.default_rng(3)
    a = generator.normal(size=(300, 200)).astype(np.float32)
    b = a.copy()
    b[generator.integers(1, 300, 50), generator.integers(0, 200, 50)] += 0.25
    a[0, 2] = 0
    b[0, :3] = np.nan, np.inf, -0.0
    a[0, 3:5] = b[0, 3:5] = np.nan
    i = np.array([2**62, -5, 7], dtype=np.int64)
    z = np.array([1 + 2j, 3 - 1j], dtype=np.complex64)
    same = generator.normal(size=30_000)
    first = [
        ("same", "F64", [30_000], same.tobytes()),
        ("w", "F32", [300, 200], a.tobytes()),
        ("i", "I64", [3], i.tobytes()),
        ("z", "C64", [2], z.tobytes()),
        ("gone", "U8", [4], b"abcd"),
        ("type", "F32", [1], b"\0\0\x80?"),
        ("shape", "U8", [2, 2], b"abcd"),
    ]
    second = [
        ("w", "F32", [300, 200], b.tobytes()),
        ("i", "I64", [3], (i + np.array([1, 0, 0])).tobytes()),
        ("z", "C64", [2], (z + np.array([3 + 4j, 0], dtype=np.complex64)).tobytes()),
        ("new", "U8", [4], b"abcd"),
        ("type", "U8", [4], b"abcd"),
        ("shape", "U8", [4], b"abce"),
        ("same", "F64", [30_000], same.tobytes()),
    ]
    payloads = [
        images.safetensors(first, STATE), images.safetensors(second, OTHER_STATE, shift=shift)
    ]
    images.write(path, payloads)
    report = inspect("diff", path, "--slots", 0, 1, status=1)
    tensors = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert {name: tensor["change"] for name, tensor in tensors.items()} == {
        "gone": "removed", "new": "added", "type": "retyped", "shape": "reshaped",
        "w": "changed", "i": "changed", "z": "changed",
    }
    assert report["tensor_counts"]["same"] == 1 and not report["is_identical"]
    w = tensors["w"]
    is_changed = a.view(np.uint32) != b.view(np.uint32)
    assert w["compared_element_count"] == a.size
    assert w["changed_element_count"] == is_changed.sum()
    finite = np.isfinite(a) & np.isfinite(b)
    assert w["changed_not_finite_count"] == (is_changed & ~finite).sum() == 2
    x, y = a.astype(np.float64)[finite], b.astype(np.float64)[finite]
    assert w["maximum_absolute_difference"] == np.abs(y - x).max()
    norm = np.linalg.norm(y - x) / np.linalg.norm(x)
    assert math.isclose(w["relative_l2_difference"], norm, rel_tol=1e-9)
    assert tensors["i"]["maximum_absolute_difference"] == 1
    assert tensors["i"]["changed_element_count"] == 1
    assert tensors["z"]["maximum_absolute_difference"] == 5
    assert tensors["shape"]["changed_element_count"] == 1
    metadata = {item["name"]: (item["first"], item["second"]) for item in report["metadata"]}
    assert metadata == {
        "pccheck.state.a[1].b": ("2", "3"), "pccheck.state.d": (None, "null"),
        "k": ("1", None), "l": (None, "1"),
    }
    images.write(path, [payloads[0], payloads[0]])
    report = inspect("diff", path)
    assert report["is_identical"] and not report["is_different"] and report["tensors"] == []


def test_hand_made_images_are_sound(path: Path) -> None:
    payload = images.safetensors([("x", "U8", [4], b"abcd")])
    images.write(path, [payload, payload])
    with reader.Reader(path) as independent:
        assert [slot.step for slot in independent.candidates()] == [20, 10]
    fields = inspect("hexdump", path, "slot", 1, "--annotate")["groups"][0]["fields"]
    assert all(field["is_right"] is not False for field in fields)
