"""Checkpoints of other formats, and how they are compared: by every bit."""

from __future__ import annotations

import io
import json
import math
import os
import random
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from pccheck_program import main

#: NaNs of every kind, both zeros, the smallest number.
ODD_FLOATS = [0x7FC12345, 0xFFC00001, 0x7F800001, 0x80000000, 0x00000001, 0x7F800000]


@dataclass
class Made:
    """What a command printed, and what it said."""

    stdout: str
    stderr: str


def run(*arguments: object, status: int = 0) -> Made:
    """Runs a command of ``python -m pccheck`` in this process, which has torch by now."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        found = main([str(argument) for argument in arguments])
    out, said = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    assert found == status, (found, out[-500:], said[-2000:])
    return Made(out, said)


def tried(*arguments: object) -> str:
    """Runs a command that may well refuse, with one line; returns that line."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        found = main([str(argument) for argument in arguments])
    said: str = streams[1].buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert found in (0, 4, 8, 16) and (said.startswith("pccheck: ") or not found), (found, said)
    return said


def bits(dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """A tensor of arbitrary bits."""
    size = math.prod(shape) * dtype.itemsize
    generator = torch.Generator().manual_seed(size + len(str(dtype)))
    memory = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), generator=generator)
    return memory.to(torch.uint8).view(dtype).view(tuple(shape))


def odd_floats() -> torch.Tensor:
    """Floats whose bits a conversion would change."""
    return torch.tensor(np.array(ODD_FLOATS, "<u4").view("<i4")).view(torch.float32)


def tensors() -> dict[str, torch.Tensor]:
    """Every type that safetensors has, and the shapes that are seldom."""
    names = [
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
        "uint16", "uint32", "uint64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    ]  # fmt: skip
    made = {name: bits(getattr(torch, name), (3, 5)) for name in names}
    return {
        **made, "odd": odd_floats(), "scalar": torch.tensor(-0.0), "empty": torch.zeros(4, 0, 2),
        "ünï\u202ecode\x1b[31m": torch.arange(3.0), "large": torch.randn(700, 300),
    }  # fmt: skip


def words(tensor: torch.Tensor) -> bytes:
    """A tensor's values as bytes."""
    dense = tensor.detach().contiguous()
    return bytes(dense.reshape(-1).untyped_storage())[
        dense.storage_offset() * dense.itemsize :][: dense.nbytes]  # fmt: skip


def same(found: Any, expected: Any) -> None:
    """Compares nests: types, the order of keys, every bit of tensors and arrays."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert words(found) == words(expected)
        return
    assert type(found) is type(expected), (type(found), type(expected))
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(found)
    else:
        assert found == expected and repr(found) == repr(expected)


def torch_state() -> dict[str, Any]:
    """A training state as people save it, with all that is hard to keep."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 30)).square().mean().backward()
    optimizer.step()
    base = torch.arange(40.0)
    types = [
        value for value in vars(torch).values()
        if isinstance(value, torch.dtype) and str(value) in (
            "torch.complex32", "torch.complex64", "torch.complex128", "torch.bfloat16",
            "torch.float8_e4m3fn", "torch.float8_e5m2", "torch.float8_e4m3fnuz", "torch.uint16",
        )
    ]  # fmt: skip
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "types": {str(dtype): bits(dtype, (3, 4)) for dtype in types},
        "odd": odd_floats(), "scalar": torch.tensor(-0.0), "empty": torch.zeros(0, 7),
        "tied": [base, base], "overlapping": [base[2:20], base[10:30].view(4, 5)],
        "numbers": [1, -(2**70), 1e308, math.inf, math.nan, -0.0, True, None, "é\n"],
        "keys": {1: "one", "$odd": b"\x00\xff", "tuple": (1, (2, ()))},
        "transposed": torch.arange(12.0).view(3, 4).t(),
        "size": torch.Size([2, 3]), "dtype": torch.bfloat16,
    }  # fmt: skip


def hugging_face(folder: Path, weights: str = "safetensors", step: int = 500) -> Path:
    """What the trainer of transformers leaves behind; ``weights`` may end in ``-sharded``."""
    folder.mkdir()
    torch.manual_seed(step)
    model = torch.nn.Sequential(torch.nn.Linear(60, 40), torch.nn.Linear(40, 9)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    model(torch.randn(4, 60).bfloat16()).square().mean().backward()
    optimizer.step()
    state = dict(model.state_dict())
    kind, _, sharded = weights.partition("-")
    name, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")

    def save(part: dict[str, torch.Tensor], path: Path) -> None:
        if kind == "safetensors":
            save_file(part, path, metadata={"format": "pt"})
        else:
            torch.save(part, path)

    if sharded:
        keys = list(state)
        weight_map = {}
        for number, part in enumerate((keys[:2], keys[2:]), 1):
            file = f"{name}-0000{number}-of-00002.{suffix}"
            save({key: state[key] for key in part}, folder / file)
            weight_map.update(dict.fromkeys(part, file))
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{name}.{suffix}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    else:
        save(state, folder / f"{name}.{suffix}")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    torch.save(
        {
            "python": random.getstate(), "numpy": np.random.get_state(),
            "cpu": torch.random.get_rng_state(),
        },
        folder / "rng_state.pth",
    )  # fmt: skip
    (folder / "trainer_state.json").write_text(f'{{\n  "global_step": {step}, "x": 1e-05\n}}\n')
    (folder / "config.json").write_text("{}")
    (folder / "empty.txt").write_text("")
    # A pickle that would run a program: kept, and never opened.
    (folder / "training_args.bin").write_bytes(Evil.pickled())
    return folder


class Evil:
    """An object whose pickle runs a program."""

    def __reduce__(self) -> Any:
        return os.system, ("touch evil-was-here",)

    @classmethod
    def pickled(cls) -> bytes:
        """As torch.save writes it."""
        stream = io.BytesIO()
        torch.save({"x": torch.ones(3), "evil": cls()}, stream)
        return stream.getvalue()


def dcp_directory(folder: Path, state: dict[str, Any]) -> Path:
    """What torch.distributed.checkpoint writes."""
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a directory."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip
