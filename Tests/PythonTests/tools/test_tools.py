"""Files that the package writes, read by others: the independent reader, the tools, safetensors."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reader
import torch
from conftest import ROOT, flip_byte_of, pattern
from safetensors import safe_open
from safetensors.torch import load_file

import pccheck
import pccheck.torch

TOOLS = ROOT / "build" / "bin"


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    tool = TOOLS / name
    if not tool.exists():
        pytest.skip(f"{tool} is not built; run make tools")
    return subprocess.run(
        [tool, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def write_training_file(path: Path, **options: Any) -> torch.nn.Module:
    """Five steps of a small run, the last two retained."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Linear(200, 300))
    model[0].half_precision = torch.nn.Parameter(torch.randn(1000).bfloat16())
    optimizer = torch.optim.AdamW(model.parameters())
    with pccheck.torch.Checkpointer(path, retain=2, chunk="64 KiB", **options) as checkpointer:
        for step in range(5):
            model(torch.randn(4, 300)).square().mean().backward()
            optimizer.step()
            checkpointer.save(step, model=model, optimizer=optimizer, metadata=f"step {step}")
    return model


@pytest.mark.parametrize("codec", ["none", "zstd", "planes-zstd"])
def test_independent_reader_agrees(path: Path, codec: str) -> None:
    write_training_file(path, codec=codec)
    infos = pccheck.checkpoints(path)
    with reader.Reader(path) as independent:
        slots = independent.candidates()
        assert [(slot.index, slot.sequence, slot.step) for slot in slots] == [
            (info.slot, info.sequence, info.step) for info in infos
        ]
        for info, slot in zip(infos, slots, strict=True):
            checkpoint = independent.load(slot)
            assert checkpoint is not None, independent.problems
            assert len(checkpoint.payload) == info.payload_byte_count
            state = pccheck.torch.load(path, step=info.step)
            for name, tensor in state["model"].items():
                _, shape, stored = checkpoint.tensors[f"model.{name}"]
                assert tuple(shape) == tensor.shape
                assert stored == tensor.view(torch.uint8).numpy().tobytes()
            document = json.loads(checkpoint.metadata["pccheck.state"])
            assert document["version"] == 1
            assert checkpoint.metadata["format"] == "pt"


@pytest.mark.parametrize("codec", ["none", "planes-zstd"])
def test_extracted_file_is_read_by_safetensors(path: Path, codec: str) -> None:
    model = write_training_file(path, codec=codec)
    out = path.with_name("model.safetensors")
    made = run_tool("pcextract", path, "-o", out, "--tensor", "model.*")
    assert made.returncode == 0, made.stderr
    extracted = load_file(out)
    expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    assert extracted.keys() == expected.keys()
    for name, tensor in expected.items():
        assert extracted[name].dtype == tensor.dtype
        assert torch.equal(extracted[name], tensor)
    whole = path.with_name("whole.safetensors")
    assert run_tool("pcextract", path, "-o", whole).returncode == 0
    with safe_open(whole, "pt") as file:
        assert "optimizer.state.0.exp_avg" in list(file.keys())
        assert file.metadata()["format"] == "pt"


def test_tools_say_what_resume_does(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pccheck.Checkpointer(path, retain=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"x": pattern(step)}).wait()
    checked = run_tool("pcfsck", path)
    assert checked.returncode == 0 and "step 3" in checked.stdout, checked.stdout
    flip_byte_of(path, 3)
    checked = run_tool("pcfsck", "--verify", "full", "--json", path)
    assert checked.returncode == 4
    choice = json.loads(checked.stdout)["files"][0]["resume"]["choice"]
    with pccheck.Checkpointer(path) as checkpointer:
        next_step, state = checkpointer.resume()
        assert checkpointer.loaded is not None
        assert checkpointer.loaded.sequence == choice["sequence"]
    assert next_step - 1 == choice["step"] == 2 and np.array_equal(state["x"], pattern(2))
    assert "trying step 2" in caplog.text


def test_inspection_of_a_live_file(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(4, {"x": pattern(4)}).wait()
        shown = run_tool("pcinspect", "--json", path)
        assert shown.returncode == 0, shown.stderr
        json.loads(shown.stdout)
        checkpointer.save(5, {"x": pattern(5)}).wait()
    shown = run_tool("pcinspect", "tensors", path)
    assert shown.returncode == 0 and "x" in shown.stdout


def test_report_names_every_slot(path: Path) -> None:
    with pccheck.Checkpointer(path, in_flight=2, retain=1) as checkpointer:
        checkpointer.save(4, {"x": pattern(4)}).wait()
        slots = pccheck.report(path)["slots"]
    assert len(slots) == 3
    assert sorted(slot["reason"] for slot in slots) == ["anchored", "empty", "empty"]


def test_first_checkpoint_cut_short_is_no_damage(path: Path) -> None:
    """Complete in its slot but for a chunk, and named by no superblock: a crash before F1."""
    pccheck.Checkpointer(path, capacity="4M").close()
    empty = path.read_bytes()
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"x": pattern(1)}).wait()
    flip_byte_of(path, 1)
    head, tail = 4 * 4096, 3 * 4096
    path.write_bytes(empty[:head] + path.read_bytes()[head:-tail] + empty[-tail:])

    with pytest.raises(pccheck.NoCheckpoint, match="finished"):
        pccheck.load(path)
    for _ in range(2):
        assert run_tool("pcfsck", "--verify", "full", path).returncode == 0
        with pccheck.Checkpointer(path) as checkpointer:
            assert checkpointer.resume() == (0, None)
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"x": pattern(1)}).wait()
    assert (pccheck.load(path)["x"] == pattern(1)).all()
