"""Loading goes straight into the caller's memory, and reads no more than it needs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import flip_byte_of, pattern
from torch import nn

import pccheck
import pccheck.dcp
import pccheck.numpy
import pccheck.torch
from pccheck.torch import TorchMemory

BIN = Path(__file__).resolve().parents[3] / "build" / "bin"

MIB = 1 << 20


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Byte counts of the fresh memory that loading asks for."""
    counts: list[int] = []
    original = TorchMemory.allocate

    def allocate(self: TorchMemory, byte_count: int) -> tuple[Any, int]:
        counts.append(byte_count)
        return original(self, byte_count)

    monkeypatch.setattr(TorchMemory, "allocate", allocate)
    return counts


def trained(seed: int = 1, width: int = 64) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with tied weights and buffers, and an optimizer that has stepped."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, width))
    model[2].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, width)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def state_bytes(*objects: Any) -> list[bytes]:
    """The bytes of every tensor in the states of some objects, in order."""
    found: list[bytes] = []

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)

    for value in objects:
        walk(value.state_dict())
    return found


# -- where it goes


def test_resume_fills_live_tensors_without_allocating(path: Path, allocated: list[int]) -> None:
    model, optimizer = trained()
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(3, model=model, optimizer=optimizer, rng=False).wait()
        expected = state_bytes(model, optimizer)
        other, other_optimizer = trained(seed=2)
        assert state_bytes(other, other_optimizer) != expected
        live = [*other.state_dict().values()]
        live += [
            item for state in other_optimizer.state.values() for item in state.values()
        ]
        addresses = [tensor.data_ptr() for tensor in live]
        assert checkpointer.resume(model=other, optimizer=other_optimizer, rng=False) == 4
    assert state_bytes(other, other_optimizer) == expected
    assert allocated == []
    assert [tensor.data_ptr() for tensor in live] == addresses
    after = [item for state in other_optimizer.state.values() for item in state.values()]
    # The very tensors, not copies that took their place.
    assert {id(tensor) for tensor in after} <= {id(tensor) for tensor in live}
    assert other[2].weight is other[0].weight


def test_a_fresh_optimizer_takes_over_what_was_loaded(path: Path, allocated: list[int]) -> None:
    model, optimizer = trained()
    made: list[int] = []
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(3, model=model, optimizer=optimizer, rng=False).wait()
        torch.manual_seed(9)
        other, _ = trained(seed=9)
        fresh = torch.optim.AdamW(other.parameters(), lr=1e-2)
        original = TorchMemory.allocate

        def allocate(self: TorchMemory, byte_count: int) -> tuple[Any, int]:
            memory, address = original(self, byte_count)
            made.append(address)
            return memory, address

        TorchMemory.allocate = allocate  # type: ignore[method-assign]
        try:
            checkpointer.resume(model=other, optimizer=fresh, rng=False)
        finally:
            TorchMemory.allocate = original  # type: ignore[method-assign]
    assert state_bytes(other, fresh) == state_bytes(model, optimizer)
    moments = [item for state in fresh.state.values() for item in state.values()]
    assert len(moments) == len(allocated) > 0
    assert {tensor.data_ptr() for tensor in moments} == set(made)


def test_what_does_not_fit_is_allocated_and_still_right(path: Path, allocated: list[int]) -> None:
    saved = {
        "plain": torch.arange(12.0).view(3, 4),
        "strided": torch.arange(12.0).view(3, 4) + 1,
        "narrow": torch.arange(12.0).view(3, 4) + 2,
        "complex": torch.randn(5, dtype=torch.complex64),
        "conjugate": torch.randn(5, dtype=torch.complex64),
        "array": np.arange(6.0),
        "reversed": np.arange(6.0) + 1,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
    }
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state=saved, rng=False).wait()
        live: dict[str, Any] = {
            "plain": torch.zeros(3, 4),
            "strided": torch.zeros(4, 3).T,
            "narrow": torch.zeros(3, 4, dtype=torch.float64),
            "complex": torch.zeros(5, dtype=torch.complex64),
            "conjugate": torch.zeros(5, dtype=torch.complex64).conj(),
            "array": np.zeros(6),
            "reversed": np.zeros(6)[::-1],
            "scalar": torch.tensor(0.0),
            "empty": torch.empty(0, 3),
        }
        targets = dict(live)
        checkpointer.resume(state=live, rng=False)
    for key, value in saved.items():
        assert live[key] is targets[key], key
        assert np.array_equal(np.asarray(live[key].tolist()), np.asarray(value.tolist())), key
    # One buffer for strided, narrow and conjugate; the reversed array; nothing for the empty one.
    assert sorted(count for count in allocated if count) == [48, 3 * 64]


def test_tensors_that_share_storage(path: Path, allocated: list[int]) -> None:
    flat = torch.arange(100.0)
    halves = {"first": flat[:50], "second": flat[50:], "all": flat}
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state=halves, rng=False).wait()
        live_flat = torch.zeros(100)
        live = {"first": live_flat[:50], "second": live_flat[50:], "all": live_flat}
        kept = dict(live)
        checkpointer.resume(state=live, rng=False)
        assert all(live[key] is kept[key] for key in kept)
        assert torch.equal(live_flat, flat)
        # What overlaps was stored once, and goes in place as one.
        assert [count for count in allocated if count] == []

        # Saved apart, tied now: the last one wins, and no mixture of both.
        checkpointer.save(2, state={"a": torch.zeros(100), "b": torch.ones(100)}, rng=False)
        tied = torch.full((100,), 7.0)
        checkpointer.resume(state={"a": tied, "b": tied}, rng=False)
        assert torch.equal(tied, torch.ones(100))


def test_a_load_waits_for_what_is_in_flight(path: Path) -> None:
    # Staged long before it is durable: all of it fits into the pool.
    with pccheck.torch.Checkpointer(path, pool="256 MiB", writer_workers=1) as checkpointer:
        for step in range(1, 6):
            checkpointer.save(step, state={"x": torch.full((64 * MIB,), float(step))}, rng=False)
            state = checkpointer.load(None if step % 2 else step)
            assert state["state"]["x"][0] == step


def test_a_state_in_flight_is_not_overwritten_before_it_is_copied(path: Path) -> None:
    live = {"x": torch.full((16 * MIB,), 1.0)}
    with pccheck.torch.Checkpointer(path, pool="16 MiB") as checkpointer:
        checkpointer.save(1, state=live, rng=False).wait()
        live["x"].fill_(2)
        module = nn.Module()
        module.x = nn.Parameter(live["x"])
        handle = checkpointer.save(2, module=module, rng=False)
        checkpointer.load(1, into={"state": live})
        assert live["x"].max() == 1
        handle.wait()
        assert checkpointer.load(2)["module"]["x"].min() == 2


def dcp_load(path: Path, target: torch.Tensor) -> None:
    dcp.load({"x": target}, storage_reader=pccheck.dcp.StorageReader(path))


def lazy_load(path: Path, target: torch.Tensor) -> None:
    pccheck.torch.load(path, lazy=True)["x"].load(into=target)


@pytest.mark.parametrize("load", [lazy_load, dcp_load])
def test_what_others_load_waits_for_a_save_too(
    path: Path, tmp_path: Path, load: Callable[[Path, torch.Tensor], None]
) -> None:
    other = tmp_path / "other.pcc"
    saved = {"x": torch.full((16 * MIB,), 1.0)}
    if load is lazy_load:
        with pccheck.torch.Checkpointer(other) as checkpointer:
            checkpointer.save(1, **saved, rng=False).wait()
    else:
        with pccheck.dcp.StorageWriter(other) as writer:
            dcp.save(saved, storage_writer=writer, checkpoint_id=1)
    module = nn.Module()
    module.x = nn.Parameter(torch.rand(16 * MIB) + 2)
    before = module.x.detach().clone()
    # Its one worker compresses what compresses badly, so that the pool is full for long.
    options: dict[str, Any] = {"pool": "16 MiB", "codec": "zstd", "writer_workers": 1}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        checkpointer.save(1, module=module, rng=False).wait()
        handle = checkpointer.save(2, module=module, rng=False)
        load(other, module.x.detach())
        assert module.x.max() == 1
        handle.wait()
        assert torch.equal(checkpointer.load(2)["module"]["x"], before)


def test_load_into(path: Path) -> None:
    state = {"w": pattern(1), "list": [pattern(2), 3], "tuple": (np.arange(3.0),)}
    into = {"w": np.zeros_like(pattern(1)), "list": [np.zeros(3)], "tuple": (np.zeros(3),), "x": 1}
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state).wait()
        for load in (checkpointer.load, lambda **options: pccheck.load(path, **options)):
            loaded = load(into=into)
            assert loaded["w"] is into["w"] and np.array_equal(into["w"], pattern(1))
            assert loaded["tuple"][0] is into["tuple"][0]
            assert np.array_equal(loaded["list"][0], pattern(2)) and loaded["list"][1] == 3
            # Another shape: allocated, and the caller's array is left alone.
            assert not into["list"][0].any()
            into["w"][:] = 0
        read_only = np.zeros_like(pattern(1))
        read_only.flags.writeable = False
        assert np.array_equal(checkpointer.load(into={"w": read_only})["w"], pattern(1))
        assert not read_only.any()


def test_parts_that_are_not_asked_for_are_not_loaded(path: Path, allocated: list[int]) -> None:
    model, optimizer = trained()
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=model, optimizer=optimizer).wait()
        checkpointer.resume(model=model, rng=False)
        assert allocated == []
        before = state_bytes(model)
        missing = r"missing from the checkpoint \(1\)\n    other\n"
        with pytest.raises(pccheck.StateMismatch, match=missing):
            checkpointer.resume(model=model, other={})
        assert state_bytes(model) == before


# -- damage


def test_damage_falls_back_into_the_same_memory(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The manifest is in the first chunk, and what will be damaged in a later one.
    ahead = np.zeros(1 << 15, np.int64)
    with pccheck.numpy.Checkpointer(path, retain=2, chunk="64 KiB") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, ahead=ahead, x=pattern(step), rng=False).wait()
    x = np.zeros_like(pattern(1))
    with pccheck.numpy.Checkpointer(path) as checkpointer:
        flip_byte_of(path, 2)
        with caplog.at_level(logging.WARNING, "pccheck"):
            assert checkpointer.resume(x=x, rng=False) == 2
        assert np.array_equal(x, pattern(1))
        assert "step 2" in caplog.text and "trying step 1" in caplog.text
        flip_byte_of(path, 1)
        with pytest.raises(pccheck.Corrupt, match="filled in place hold unspecified values"):
            checkpointer.resume(x=x, rng=False)
        with pytest.raises(pccheck.Corrupt) as caught:
            checkpointer.load()
        assert "in place" not in str(caught.value)

def test_what_a_writer_leaves_half_written_is_no_damage(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A slot that no superblock names may be torn, until a clean close says that none is."""
    with pccheck.numpy.Checkpointer(path, in_flight=1) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, x=pattern(step), rng=False).wait()
        listed = [BIN / "pcinspect", "slots", path, "--json"]
        slots = json.loads(subprocess.check_output(listed))["slots"]
        unnamed = next(slot for slot in slots if slot["reason"] == "older")
        with open(path, "r+b") as file:
            file.seek(unnamed["header_offset"] + 4096)
            file.write(bytes(48))
        assert np.array_equal(pccheck.load(path)["x"], pattern(2))
        assert not caplog.records
    assert np.array_equal(pccheck.load(path)["x"], pattern(2))
    assert f"slot {unnamed['slot']} is table-damaged" in caplog.text


# -- what it costs

_PEAK = """
import re, sys
import torch
import pccheck.torch

def status(field):
    text = open("/proc/self/status").read()
    return int(re.search(field + r":\\s+(\\d+) kB", text)[1]) * 1024

path, planted = sys.argv[1], sys.argv[2] == "planted"
torch.set_num_threads(1)
model = torch.nn.ModuleList(torch.nn.Linear(4096, 4096, bias=False) for _ in range(8))
with torch.no_grad():
    for index, layer in enumerate(model):
        layer.weight.fill_(index + 1)
with pccheck.torch.Checkpointer(path, pool="16 MiB") as checkpointer:
    checkpointer.save(1, model=model).wait()
    with torch.no_grad():
        for layer in model:
            layer.weight.zero_()
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    if planted:
        pccheck.torch.TorchMemory.place = lambda *arguments: None
    assert checkpointer.resume(model=model) == 2
    growth = status("VmHWM") - before
    assert all((layer.weight == i + 1).all() for i, layer in enumerate(model))
    print(growth, sum(p.nbytes for p in model.parameters()))
"""


def _resume_growth(path: Path, how: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), how], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    growth, byte_count = map(int, result.stdout.split())
    assert byte_count == 512 * MIB
    return growth


def test_resume_into_a_live_model_takes_no_second_copy(path: Path) -> None:
    growth = _resume_growth(path, "as it is")
    assert growth < 64 * MIB, f"resume took {growth / MIB:.0f} MiB more"


def test_the_bound_on_memory_notices_a_second_copy(path: Path) -> None:
    assert _resume_growth(path, "planted") > 64 * MIB


def _read_byte_count(action: Callable[[], object]) -> int:
    """Bytes that this process asked the kernel for while it did something."""

    def count() -> int:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"])

    before = count()
    action()
    return count() - before


@pytest.mark.parametrize("module", [pccheck, pccheck.torch], ids=["numpy", "torch"])
def test_one_tensor_reads_only_its_chunks(path: Path, module: Any) -> None:
    state = {f"x{index}": pattern(index, 1 << 20) for index in range(12)}
    with pccheck.Checkpointer(path, chunk="1 MiB", retain=2) as checkpointer:
        checkpointer.save(1, state).wait()
        checkpointer.save(2, {"other": np.zeros(3)}).wait()
    found: list[Any] = []
    into = np.zeros(1 << 20, np.int64)
    read = _read_byte_count(lambda: found.append(module.load_tensor(path, "x7", 1, into=into)))
    assert found[0] is into and np.array_equal(into, state["x7"])
    # 8 MiB, the chunk that it begins in or ends in besides, and the metadata.
    assert 8 * MIB <= read <= 11 * MIB, read
    everything = _read_byte_count(lambda: module.load(path, 1))
    assert everything >= 96 * MIB
    assert np.array_equal(np.asarray(module.load_tensor(path, "x3", 1)), state["x3"])
    with pytest.raises(pccheck.CheckpointError, match="'x99' is not in the checkpoint, which"):
        module.load_tensor(path, "x99", 1)


def test_one_torch_tensor(path: Path) -> None:
    model, optimizer = trained()
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=model, optimizer=optimizer).wait()
    into = torch.zeros(64, 64)
    weight = pccheck.torch.load_tensor(path, "model.0.weight", into=into)
    assert weight is into and torch.equal(weight, model[0].weight)
    moment = pccheck.torch.load_tensor(path, "optimizer.state.0.exp_avg")
    assert torch.equal(moment, optimizer.state[model[0].weight]["exp_avg"])


def test_a_load_beside_a_quick_writer_finds_one(caplog: pytest.LogCaptureFixture) -> None:
    """In memory, a writer takes the newest slot again before a reader has pinned it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "run.pcc"
        is_over = threading.Event()

        def write() -> None:
            with pccheck.Checkpointer(path, in_flight=1, capacity="1 MiB") as checkpointer:
                step = 0
                while not is_over.is_set():
                    step += 1
                    checkpointer.save(step, {"x": np.full(10_000, step), "step": step})

        writer = threading.Thread(target=write)
        writer.start()
        try:
            while not (path.exists() and pccheck.checkpoints(path)):
                time.sleep(0.01)
            newest = 0
            for _ in range(3000):
                state = pccheck.load(path)
                assert (state["x"] == state["step"]).all() and state["step"] >= newest
                newest = state["step"]
        finally:
            is_over.set()
            writer.join()
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert newest > 20 and not told
