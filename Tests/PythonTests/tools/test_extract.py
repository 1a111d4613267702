"""Files that pcextract makes, opened by those whose formats they are: torch, NumPy, safetensors."""

from __future__ import annotations

import collections
import json
import math
import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_tools import TOOLS, run_tool

import pccheck
import pccheck.torch

TORCH_TYPES = sorted(
    {
        value
        for value in vars(torch).values()
        if isinstance(value, torch.dtype) and not str(value).startswith(("torch.q", "torch.bits"))
    }
    - {getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in range(1, 8)},
    key=str,
)

HOSTILE_NAMES = [
    "plain", "a/b", "/etc/passwd", "../../evil", "a/../../b", "..", ".", "", "a//b", "nul\0byte",
    "back\\slash", "C:drive", "per%cent", "x", "x.npy", "__pccheck__", "line\nfeed",
    "red\x1b[31m", "gewöhnlich-日本語-🎉", "flip\u202eped",
    "..\u002f\u0301combining", "l" * 4000,
]  # fmt: skip


def extract(path: Path, out: object, *options: object, status: int = 0) -> str:
    """Runs pcextract and returns what it said."""
    made = run_tool("pcextract", path, "-o", out, *options)
    assert made.returncode == status, made.stderr
    return made.stderr


def words(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor of any type."""
    return bytes(tensor.contiguous().reshape(-1).untyped_storage())[: tensor.nbytes]


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor with arbitrary bits."""
    size = math.prod(shape) * dtype.itemsize
    generator = torch.Generator().manual_seed(len(str(dtype)) + size)
    memory = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), generator=generator)
    return memory.to(torch.uint8).view(dtype).view(shape)


def same(found: Any, expected: Any) -> None:
    """Compares nests: types, order of keys, and the bits of tensors."""
    if isinstance(expected, torch.Tensor):
        assert type(found) is torch.Tensor
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.stride() == expected.contiguous().stride()
        assert words(found) == words(expected)
        return
    if isinstance(expected, np.ndarray):
        return same(found, torch.from_numpy(expected))
    if isinstance(expected, frozenset):
        expected = set(expected)
    if isinstance(expected, np.generic):
        expected = expected.item()
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
        assert vars(found) == vars(expected) if hasattr(expected, "_metadata") else True
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(found)
    else:
        assert found == expected and repr(found) == repr(expected)


def write_run(path: Path, steps: int = 3, **options: Any) -> torch.nn.Module:
    """A small training run: a model, its optimizer, a scheduler's plain state."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.BatchNorm1d(200))
    model[0].half_precision = torch.nn.Parameter(torch.randn(1000).bfloat16())
    optimizer = torch.optim.AdamW(model.parameters())
    with pccheck.torch.Checkpointer(path, retain=steps, chunk="64 KiB", **options) as ckpt:
        for step in range(steps):
            model(torch.randn(4, 300)).square().mean().backward()
            optimizer.step()
            ckpt.save(step, model=model, optimizer=optimizer, metadata=f"step {step}").wait()
    return model


# ---------------------------------------------------------------------------- torch


def test_torch_opens_every_type(path: Path) -> None:
    state: dict[str, Any] = {}
    for dtype in TORCH_TYPES:
        name = str(dtype).removeprefix("torch.")
        state[name] = {
            "matrix": tensor_of(dtype, (3, 5)),
            "scalar": tensor_of(dtype, ()),
            "empty": tensor_of(dtype, (4, 0, 2)),
        }
    with pccheck.torch.Checkpointer(path) as ckpt:
        ckpt.save(7, state=state).wait()
    out = path.with_name("all.pt")
    extract(path, out)
    expected = pccheck.torch.load(path)
    for mmap in (False, True):
        same(torch.load(out, weights_only=True, mmap=mmap), expected)
    assert {"float8_e4m3fn", "bfloat16", "complex32", "uint64"} <= set(state)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        for member in archive.infolist():
            local = 30 + int.from_bytes(out.read_bytes()[member.header_offset + 28 :][:2], "little")
            start = member.header_offset + local + len(member.filename)
            assert start % 64 == 0 and member.compress_type == zipfile.ZIP_STORED


def test_state_comes_back_as_it_was_nested(path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    ordered = collections.OrderedDict([("b", 1), ("a", [True, None])])
    ordered._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    state = {
        "ordered": ordered,
        "counter": collections.Counter("abca"),
        "keys": {1: "one", (2, "x"): 2.5, None: b"\x00\xff", False: -0.0, "$odd": "é\ud800\n"},
        "numbers": [0, -1, 255, 256, 65536, -(2**40), 2**53, -(2**200), 1e308, math.inf, math.nan],
        "complex": complex(1.5, -math.inf),
        "nothing": [(), [], {}, set(), frozenset(), b"", bytearray(b"abc"), ""],
        "sets": {3, "x", (1, 2)},
        "torch": [torch.Size([2, 3]), torch.float8_e5m2, torch.device("cuda", 1), torch.Size([])],
        "tied": [shared, shared],
        "scalar": [np.float32(0.1), np.int16(-3), np.float16(0.25), np.bool_(True)],
        "unsigned": np.uint64(2**63),
        "arrays": [np.arange(5), np.ones((2, 2), np.complex64)],
    }
    with pccheck.torch.Checkpointer(path) as ckpt:
        ckpt.save(1, rng=False, state=state).wait()
    out = path.with_name("state.pt")
    extract(path, out)
    found = torch.load(out, weights_only=True)
    expected = pccheck.torch.load(path)
    same(found, expected)
    assert found["state"]["tied"][0] is found["state"]["tied"][1]
    extract(path, out, "--flat")
    flat = torch.load(out, weights_only=True)
    assert set(flat) == {"state.tied.0", "state.arrays.0", "state.arrays.1"}


def test_torch_file_resumes_a_training(path: Path) -> None:
    write_run(path)
    out = path.with_name("model.pth")
    extract(path, out, "--step", 1)
    found = torch.load(out, weights_only=True)
    same(found, pccheck.torch.load(path, step=1))
    fresh = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.BatchNorm1d(200))
    fresh[0].half_precision = torch.nn.Parameter(torch.zeros(1000).bfloat16())
    fresh.load_state_dict(found["model"])
    optimizer = torch.optim.AdamW(fresh.parameters())
    optimizer.load_state_dict(found["optimizer"])
    extract(path, out, "--tensor", "model.*", "--exclude", "*.num_batches_tracked")
    part = torch.load(out, weights_only=True)
    assert "model.0.weight" in part and "model.1.num_batches_tracked" not in part
    same(part["model.0.weight"], pccheck.torch.load(path)["model"]["0.weight"])


# ---------------------------------------------------------------------------- NumPy


def test_numpy_opens_every_type(path: Path) -> None:
    state = {str(dtype).removeprefix("torch."): tensor_of(dtype, (3, 4)) for dtype in TORCH_TYPES}
    state["scalar"] = torch.tensor(3.5)
    state["empty"] = torch.zeros(0, 7)
    with pccheck.torch.Checkpointer(path) as ckpt:
        ckpt.save(7, rng=False, **state).wait()
    out = path.with_name("all.npz")
    extract(path, out)
    loaded = pccheck.torch.load(path)
    with np.load(out, allow_pickle=False) as archive:
        note = json.loads(bytes(archive["__pccheck__"]))
        assert note["step"] == 7 and "pccheck.state" in note["metadata"]
        stand_ins = {entry["name"] for entry in note["tensors"] if entry["is_bit_pattern"]}
        names = set(archive.files) - {"__pccheck__"}
        assert len(names) == len(note["tensors"])
        for key, tensor in loaded.items():
            assert archive[key].tobytes() == words(tensor), key
            if key in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
                assert key in stand_ins
                assert archive[key].dtype == (np.uint16 if key == "bfloat16" else np.uint8)
            elif key in ("float32", "int64", "bool", "float16", "scalar", "empty"):
                assert key not in stand_ins
                assert np.array_equal(archive[key], tensor.numpy(), equal_nan=True)
    with zipfile.ZipFile(out) as archive_file:
        assert archive_file.testzip() is None


def test_names_do_no_harm(path: Path, tmp_path: Path) -> None:
    state = {name: np.full(3, number) for number, name in enumerate(HOSTILE_NAMES)}
    with pccheck.Checkpointer(path) as ckpt:
        ckpt.save(1, state).wait()
    out = path.with_name("names.npz")
    extract(path, out)
    with np.load(out, allow_pickle=False) as archive:
        note = json.loads(bytes(archive["__pccheck__"]))
        keys = [entry["key"] for entry in note["tensors"]]
        assert len(set(keys)) == len(HOSTILE_NAMES)
        found = sorted(int(archive[key][0]) for key in keys)
        assert found == list(range(len(HOSTILE_NAMES)))
    with zipfile.ZipFile(out) as file:
        for name in file.namelist():
            parts = name.split("/")
            assert ".." not in parts and "." not in parts and not name.startswith("/")
            assert not set(name) & set("\0\\:\x1b\n\u202e"), name
    pt = path.with_name("names.pt")
    extract(path, pt)
    assert set(torch.load(pt, weights_only=True)) == set(HOSTILE_NAMES)
    extract(path, pt, "--flat")
    torch.load(pt, weights_only=True)


# ---------------------------------------------------------------------------- shards


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_follow_the_convention(path: Path, name: str) -> None:
    write_run(path)
    out = path.with_name(name)
    extract(path, out, "--shard-size", "100KB")
    index = json.loads(out.with_name(name + ".index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    stem, _, suffix = name.rpartition(".")
    count = len(files)
    assert count > 2
    assert files == [f"{stem}-{i + 1:05}-of-{count:05}.{suffix}" for i in range(count)]
    assert not out.exists()
    expected = path.with_name("whole.safetensors")
    extract(path, expected)
    whole = load_file(expected)
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for file in files:
        shard_path = out.with_name(file)
        if suffix == "safetensors":
            shard = load_file(shard_path)
            with safe_open(shard_path, "pt") as opened:
                assert opened.metadata()["format"] == "pt"
        else:
            shard = torch.load(shard_path, weights_only=True)
        assert shard.keys() == {key for key, value in index["weight_map"].items() if value == file}
        size = sum(tensor.nbytes for tensor in shard.values())
        assert size <= 100_000 or len(shard) == 1
        for key, tensor in shard.items():
            same(tensor, whole[key])
    extract(path, out, "--shard-size", "1GB")
    assert out.exists(), "what fits one file is one file"


def test_all_checkpoints_get_files(path: Path) -> None:
    write_run(path)
    directory = path.with_name("all")
    extract(path, directory, "--all", "--format", "pt")
    assert sorted(os.listdir(directory)) == ["step-0.pt", "step-1.pt", "step-2.pt"]
    for step in range(3):
        found = torch.load(directory / f"step-{step}.pt", weights_only=True)
        same(found, pccheck.torch.load(path, step=step))


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.safetensors", "a.raw"])
def test_standard_output_gets_the_same_bytes(path: Path, name: str) -> None:
    write_run(path, codec="planes-zstd")
    out = path.with_name(name)
    extract(path, out)
    command = [TOOLS / "pcextract", path, "-o", "-", "--format", out.suffix[1:]]
    made = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert made.stdout == out.read_bytes()


# ---------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_the_old_file(path: Path, number: signal.Signals) -> None:
    with pccheck.Checkpointer(path) as ckpt:
        ckpt.save(1, {"x": np.arange(48 << 17)}).wait()
    directory = path.with_name("out")
    directory.mkdir()
    out = directory / "model.npz"
    out.write_text("old")
    child = subprocess.Popen([TOOLS / "pcextract", path, "-o", out], stderr=subprocess.PIPE)
    while not any(".creating-" in name for name in os.listdir(directory)):
        assert child.poll() is None, "it ended before it was interrupted"
        time.sleep(0.001)
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 32)
    assert out.read_text() == "old"
    if number != signal.SIGKILL:
        assert os.listdir(directory) == ["model.npz"]


def test_a_full_disk_leaves_the_old_file(path: Path, small_disk: Path) -> None:
    with pccheck.Checkpointer(path) as ckpt:
        ckpt.save(1, {f"x{i}": np.arange(1 << 20) for i in range(4)}).wait()
    out = small_disk / "model.safetensors"
    out.write_text("old")
    for options in ([], ["--shard-size", "9MB"], ["--salvage", "--map", small_disk / "map"]):
        said = extract(path, out, *options, status=8)
        assert "No space left on device" in said
        assert os.listdir(small_disk) == ["model.safetensors"] and out.read_text() == "old"


def test_arrays_become_tensors_for_weights_only(path: Path, tmp_path: Path) -> None:
    state = {
        "array": np.arange(4, dtype=">i4"), "time": np.array(["2024-01-02"], "M8[D]"),
        "number": np.float32(0.5), "sets": frozenset([1]), "bytes": b"\x00\xff",
    }  # fmt: skip
    with pccheck.Checkpointer(path) as ckpt:
        ckpt.save(1, state).wait()
    assert run_tool("pcextract", path, "-o", tmp_path / "a.pt").returncode == 0
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert found["array"].tolist() == [0, 1, 2, 3] and found["number"] == 0.5
    assert found["sets"] == {1} and found["bytes"] == b"\x00\xff"
    assert found["time"].dtype == torch.int64


def test_pcextract_keeps_shared_storage(path: Path, tmp_path: Path) -> None:
    base = torch.arange(24.0)
    numbers = torch.arange(8, dtype=torch.int64)
    pairs = torch.arange(12.0).view(torch.complex64)
    state = {
        "rows": [base[2:14].view(3, 4), base[6:20], base[2:14].view(3, 4)],
        "types": (numbers, numbers.view(torch.int32), numbers.view(torch.bfloat16)),
        "complex": {"whole": pairs, "half": pairs[1:4]},
        "steps": [base[8:22:2], base[9:23]], "alone": torch.ones(3),
    }  # fmt: skip
    with pccheck.torch.Checkpointer(path) as ckpt:
        ckpt.save(1, rng=False, **state).wait()
    out = tmp_path / "shared.pt"
    made = run_tool("pcextract", path, "-o", out, "--json")
    assert json.loads(made.stdout)["checkpoints"][0]["state"] == "nested", made.stderr
    for mmap in (False, True):
        found = torch.load(out, weights_only=True, mmap=mmap)
        foreign.same(found, pccheck.torch.load(path))
        rows = found["rows"]
        assert rows[0] is rows[2]
        rows[0][1, 0] = -1.0
        assert rows[1][0] == -1.0 and found["steps"][0].stride() == (2,)
        found["types"][1][0] = 7
        assert found["types"][0][0] == 7
        found["complex"]["half"][0] = 9
        assert found["complex"]["whole"][1] == 9
