"""Every way to load a checkpoint keeps the same promises.

What no superblock vouches for is proven before a byte of it is used; what cannot be used is passed
over with a reason, whatever the reason is; live tensors hold what one checkpoint says.
"""

from __future__ import annotations

import ctypes as c
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import numpy as np
import pccheck
import pccheck.numpy
import pccheck.torch as pcc
import pytest
import torch
from pccheck._core import native
from pccheck._core.reader import Reader
from writers import run_with_bad_sector

ROOT = Path(__file__).resolve().parents[3]
BIN = ROOT / "build" / "bin"
MIB = 1 << 20
SIZES = {"retain": 2, "chunk": MIB, "capacity": 8 * MIB}


def state(step: int) -> dict[str, torch.Tensor]:
    """Two tensors of two chunks each."""
    return {name: torch.full((1 << 19,), step + value) for name, value in (("A", 0.0), ("B", 0.5))}


def superblock_places(path: Path) -> list[int]:
    size = path.stat().st_size
    return [4096, 8192, size - 12288, size - 8192]


def spoil(path: Path, value: float) -> None:
    """Overwrites the last page that is full of a value."""
    content = path.read_bytes()
    place = content.rfind(np.full(1024, value, np.float32).tobytes())
    assert place > 0
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"\xaa" * 4096)


@pytest.fixture
def unproven(path: Path) -> Path:
    """Step 10 is durable, step 20 complete but not anchored, and the last chunk of it is rotten."""
    with pcc.Checkpointer(path, **SIZES) as checkpointer:
        checkpointer.save(10, s=state(10), rng=False).wait()
    old = path.read_bytes()
    with pcc.Checkpointer(path) as checkpointer:
        checkpointer.save(20, s=state(20), rng=False).wait()
    with open(path, "r+b") as file:
        for place in superblock_places(path):
            file.seek(place)
            file.write(old[place : place + 4096])
    spoil(path, 20.5)
    return path


def select_by_hand(path: Path) -> float:
    """As a C program does that lists, selects, and loads the first bytes of the first tensor."""
    with Reader(path) as reader:
        for info in reader.list():
            reader.select(info.sequence)
            try:
                manifest, start = reader.manifest()
                target = np.empty(4, np.uint8)
                offset = start + manifest["s.A"]["data_offsets"][0]
                reader.read([(offset, 4, target.ctypes.data)])
                return float(target.view(np.float32)[0])
            except pccheck.Corrupt:
                continue
    raise AssertionError("nothing was loaded")


def fill_partly(path: Path) -> float:
    live = {"A": torch.zeros(1 << 19)}
    pcc.load_into(path, strict=False, s=live)
    return float(live["A"][0])


WAYS: dict[str, Callable[[Path], float]] = {
    "load": lambda path: float(pcc.load(path)["s"]["A"][0]),
    "load_tensor": lambda path: float(pcc.load_tensor(path, "s.A")[0]),
    "load_tensor of NumPy": lambda path: float(pccheck.load_tensor(path, "s.A")[0]),
    "lazy": lambda path: float(pcc.load(path, lazy=True)["s"]["A"][:1][0]),
    "select": select_by_hand,
    "load_into": fill_partly,
}


@pytest.mark.parametrize("way", WAYS)
def test_an_unproven_checkpoint_is_proven_first(unproven: Path, way: str) -> None:
    assert WAYS[way](unproven) == 10


def test_types_and_shapes_alone_are_those_of_a_proven_checkpoint(unproven: Path) -> None:
    with Reader(unproven) as reader:
        assert reader.select_newest().step == 10
    found = pcc.load(unproven, map_location="meta")["s"]["A"]
    assert found.is_meta and found.shape == (1 << 19,)


def test_what_opening_rejected_no_resume_loads(unproven: Path) -> None:
    """Also one that asks only for what is intact."""
    live = {"A": torch.zeros(1 << 19)}
    with pcc.Checkpointer(unproven) as checkpointer:
        assert checkpointer.resume(s=live, rng=False, strict=False) == 11
        assert live["A"][0] == 10
        checkpointer.save(11, s=live, rng=False).wait()
    assert pcc.load(unproven)["s"]["A"][0] == 10


def test_tools_show_what_is_left(unproven: Path) -> None:
    with Reader(unproven, is_forensic=True) as reader:
        reader.select(2)
        manifest, start = reader.manifest()
        target = np.empty(4, np.uint8)
        reader.read([(start + manifest["s.A"]["data_offsets"][0], 4, target.ctypes.data)])
        assert target.view(np.float32)[0] == 20
    found = run("pcextract", unproven, "-o", "-", "--format", "raw", "--tensor", "s.A")
    assert found.returncode == 4 and "falling back to step 10" in found.stderr.decode()
    assert np.frombuffer(found.stdout[:4], np.float32)[0] == 10


# -- live tensors


def anchored_and_rotten(path: Path, newer: dict[str, Any], older: dict[str, Any]) -> None:
    """The newest checkpoint is anchored, and its last chunk is rotten."""
    with pcc.Checkpointer(path, **SIZES) as checkpointer:
        checkpointer.save(10, s=older, rng=False).wait()
        checkpointer.save(20, s=newer, rng=False).wait()
    spoil(path, 20.5)


def test_a_partial_resume_leaves_nothing_of_a_rejected_checkpoint(path: Path) -> None:
    """The older checkpoint has no 'A' to put in its place."""
    anchored_and_rotten(path, state(20), {"B": state(10)["B"]})
    live = {"A": torch.zeros(1 << 19), "B": torch.zeros(1 << 19)}
    info = pcc.load_into(path, strict=False, s=live)
    assert info.step == 10
    assert live["A"].unique().tolist() == [0] and live["B"].unique().tolist() == [10.5]


@pytest.mark.parametrize("kind", [pcc, pccheck.numpy])
def test_a_strict_load_is_of_one_checkpoint(path: Path, kind: Any) -> None:
    anchored_and_rotten(path, state(20), state(10))
    live: Any = {"A": torch.zeros(1 << 19), "B": torch.zeros(1 << 19)}
    if kind is pccheck.numpy:
        path.unlink()
        with kind.Checkpointer(path, **SIZES) as checkpointer:
            for step in (10, 20):
                arrays = {name: value.numpy() for name, value in state(step).items()}
                checkpointer.save(step, s=arrays, rng=False).wait()
        spoil(path, 20.5)
        live = {name: value.numpy() for name, value in live.items()}
    assert kind.load_into(path, s=live).step == 10
    assert set(np.asarray(live["A"]).tolist()) == {10}
    assert set(np.asarray(live["B"]).tolist()) == {10.5}


def test_an_older_one_that_does_not_fit_says_what_it_left(path: Path) -> None:
    """A strict request reads once, so that a newer one may have been at work before."""
    anchored_and_rotten(path, state(20), {"B": state(10)["B"]})
    live = {"A": torch.zeros(1 << 19), "B": torch.zeros(1 << 19)}
    with pytest.raises(pccheck.Corrupt, match="step 20 is damaged.*step 10 does not fit") as caught:
        pcc.load_into(path, s=live)
    assert "unspecified values" in str(caught.value)


# -- what costs one checkpoint


RESUME = """
import sys, torch, pccheck.torch as pcc
live = {name: torch.zeros(1 << 19) for name in "AB"}
print(pcc.load_into(sys.argv[1], s=live).step, live["A"][0].item(), live["B"][0].item())
with pcc.Checkpointer(sys.argv[1]) as checkpointer:
    print(checkpointer.resume(s=live, rng=False))
"""


def test_one_unreadable_sector_costs_one_checkpoint(path: Path, tmp_path: Path) -> None:
    with pcc.Checkpointer(path, **SIZES) as checkpointer:
        for step in (10, 20):
            checkpointer.save(step, s=state(step), rng=False).wait()
    done = run_with_bad_sector(RESUME, path, np.full(1024, 20.5, np.float32).tobytes(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["10 10.0 10.5", "11"]
    assert "step 20" in done.stderr and "Input/output error" in done.stderr


def payload(value: int) -> bytes:
    return images.safetensors([("x", "I64", [20000], np.full(20000, value).tobytes())])


def test_a_manifest_of_another_length_costs_one_checkpoint(path: Path) -> None:
    """Else every tensor comes back shifted, with digests that match."""
    images.write(path, [payload(1), payload(2)], manifest_shift=8)
    assert set(pccheck.load_tensor(path, "x").tolist()) == {1}
    assert set(pccheck.load(path)["x"].tolist()) == {1}


def test_rotten_opaque_bytes_cost_one_checkpoint(path: Path) -> None:
    images.write(path, [payload(1), payload(2)], is_opaque=True)
    with pytest.raises(pccheck.InvalidArgument, match="opaque"):
        pccheck.load(path)
    content = bytearray(path.read_bytes())
    content[content.rfind(np.full(1000, 2).tobytes())] ^= 1
    path.write_bytes(content)
    assert set(pccheck.load(path)["x"].tolist()) == {1}


def test_two_slots_with_one_sequence_are_both_tried(path: Path) -> None:
    """Only damage makes them; the one that opens the list is rotten."""
    images.write(path, [payload(1), payload(2)])
    twin = images.slot_with_sequence(path, source=0, sequence=2)
    path.write_bytes(twin)
    assert set(pccheck.load(path)["x"].tolist()) == {2}
    content = bytearray(twin)
    content[content.rfind(np.full(1000, 2).tobytes())] ^= 1
    path.write_bytes(content)
    assert set(pccheck.load(path)["x"].tolist()) == {1}


@pytest.mark.parametrize("dtype, count", [("F4", 2), ("F6_E2M3", 4), ("C64", 1)])
def test_a_type_without_arrays_is_no_damage(path: Path, dtype: str, count: int) -> None:
    size = {"F4": 1, "F6_E2M3": 3, "C64": 8}[dtype]
    whole = np.arange(3, dtype=np.int64).tobytes()
    newer = images.safetensors([("odd", dtype, [count], bytes(size)), ("x", "I64", [3], whole)])
    images.write(path, [payload(1), newer])
    for module in (pccheck, pcc):
        assert module.load_tensor(path, "x").tolist() == [0, 1, 2]
        for call in (lambda m=module: m.load(path), lambda m=module: m.load_tensor(path, "odd")):
            with pytest.raises(pccheck.UnsupportedState, match=f"'odd' has the type {dtype}"):
                call()
    done = run(BIN / "pcinspect", "tensors", path, "--step", "20")
    assert done.returncode == 0 and b"odd" in done.stdout


def test_a_document_of_a_newer_version_is_no_damage(path: Path) -> None:
    metadata = {"pccheck.state": '{"version":99,"state":{}}'}
    newer = images.safetensors([("x", "U8", [1], b"\1")], metadata)
    images.write(path, [payload(1), newer])
    with pytest.raises(pccheck.UnsupportedState, match="version 99"):
        pccheck.load(path)


def test_a_lost_end_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Everything is there, but nothing can be written before it is restored."""
    trained(path)
    os.truncate(path, path.stat().st_size - 4096)
    live = model(0)
    assert pcc.load_into(path, model=live).step == 20 and live.weight[0, 0] == 20
    assert "the end of the file is missing; pcfsck -y restores it" in caplog.text
    done = run(BIN / "pcfsck", "--verify", "full", path)
    assert done.returncode == 4 and b"PCK-I013" in done.stdout
    with pytest.raises(pccheck.Corrupt, match="pcfsck -y"):
        pcc.Checkpointer(path)
    assert run(BIN / "pcfsck", "-y", path).returncode == 1
    with pcc.Checkpointer(path) as checkpointer:
        assert checkpointer.resume(model=live, rng=False) == 21


# -- beside a fast writer


FAST_WRITER = """
import sys, numpy as np, pccheck
sizes = {"in_flight": 1, "capacity": "1 MiB", "chunk": "64 KiB", "retain": int(sys.argv[2])}
with pccheck.Checkpointer(sys.argv[1], **sizes) as ckpt:
    step = 0
    while True:
        ckpt.save(step, {"x": np.full(8192, step)}).wait()
        if step == 10: print("ready", flush=True)
        step += 1
"""


@pytest.fixture
def busy(
    run_child: Callable[..., subprocess.Popen[str]], request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A file in memory that a writer takes slot after slot of, as fast as it can."""
    path = Path("/dev/shm") / f"pccheck-busy-{os.getpid()}.pcc"
    path.unlink(missing_ok=True)
    child = run_child(FAST_WRITER, path, getattr(request, "param", 1))
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    yield path
    assert child.poll() is None
    child.kill()
    child.wait()
    path.unlink()


@pytest.mark.parametrize(
    "command",
    [
        [BIN / "pcextract", "FILE", "-o", "OUT.safetensors"],
        [BIN / "pcextract", "FILE", "--list"],
        [BIN / "pcinspect", "tensors", "FILE", "--stats"],
        [BIN / "pcinspect", "chunks", "FILE", "--verify"],
        [BIN / "pcfsck", "--verify", "full", "FILE"],
        [sys.executable, "-m", "pccheck", "convert", "FILE", "-o", "OUT.safetensors", "--force"],
    ],
    ids=lambda command: " ".join([Path(command[0]).name, *map(str, command[1:3])]),
)
def test_a_slot_that_was_taken_is_not_damaged(
    busy: Path, tmp_path: Path, command: list[Any]
) -> None:
    for _ in range(5 if command[0] == sys.executable else 20):
        words = [
            str(word).replace("FILE", str(busy)).replace("OUT", str(tmp_path / "out"))
            for word in command
        ]
        done = run(*words)
        text = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 0, text
        assert "is damaged" not in text


@pytest.mark.parametrize("busy", [2], indirect=True)
def test_two_checkpoints_are_compared_beside_a_fast_writer(busy: Path) -> None:
    for _ in range(20):
        done = run(BIN / "pcinspect", "diff", busy)
        # With status 1 it says that they differ.
        assert done.returncode == 1, done.stderr


def test_loads_beside_a_fast_writer_never_fail(busy: Path) -> None:
    for _ in range(200):
        values = set(pccheck.load(busy)["x"].tolist())
        assert len(values) == 1


# -- asking for a step, and for parts


def trained(path: Path) -> None:
    with pcc.Checkpointer(path, **SIZES) as checkpointer:
        for step in (10, 20):
            checkpointer.save(step, model=model(step), rng=False).wait()


def model(value: float) -> torch.nn.Module:
    made = torch.nn.Linear(4, 4)
    with torch.no_grad():
        made.weight.fill_(value)
    return made


def test_resume_goes_on_from_a_step(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(path)
    live = model(0)
    with caplog.at_level(logging.INFO, "pccheck"), pcc.Checkpointer(path) as checkpointer:
        assert checkpointer.resume(model=live, rng=False, step=10) == 11
        assert live.weight[0, 0] == 10
        with pytest.raises(pccheck.NoCheckpoint, match="no checkpoint of step 11"):
            checkpointer.resume(model=live, step=11)
        assert checkpointer.resume(model=live, rng=False) == 21
    lines = [record.message for record in caplog.records if record.levelno == logging.INFO]
    assert any(line.startswith(f"{path}: resumed step 10, saved 0:00:0") for line in lines)


def test_a_new_file_has_no_step_to_resume(path: Path) -> None:
    with pcc.Checkpointer(path) as checkpointer, pytest.raises(pccheck.NoCheckpoint):
        checkpointer.resume(model=model(0), step=3)


def test_the_line_says_what_was_passed_over(
    unproven: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = {"A": torch.zeros(1 << 19), "B": torch.zeros(1 << 19)}
    with caplog.at_level(logging.INFO, "pccheck"):
        assert pcc.load_into(unproven, s=live).step == 10
    line = caplog.records[-1].message
    assert "loaded step 10" in line and "passed over step 20 in slot 1" in line


def test_parts_are_loaded_beside_a_writer(path: Path) -> None:
    trained(path)
    with pcc.Checkpointer(path):
        live = model(0)
        assert pcc.load_into(path, model=live).step == 20
        assert live.weight[0, 0] == 20
        assert pcc.load_into(path, 10, model=live).step == 10
        assert live.weight[0, 0] == 10


@pytest.mark.parametrize("strict", [True, False])
def test_what_fills_nothing_is_an_error(path: Path, strict: bool) -> None:
    trained(path)
    live = model(0)
    for parts in ({"modle": live}, {"model": torch.nn.ModuleDict({"inner": live})}):
        with pytest.raises(pccheck.StateMismatch, match="no tensor fits"):
            pcc.load_into(path, strict=strict, **parts)
    for into in ({"modle": live}, {"state": {"model": live}}, live):
        with pytest.raises(pccheck.InvalidArgument, match="into= holds nothing"):
            pcc.load(path, into=into)
    with pytest.raises(pccheck.InvalidArgument, match="no parts"):
        pcc.load_into(path)
    assert live.weight[0, 0] == 0


def test_a_step_beyond_the_format_is_refused(path: Path) -> None:
    trained(path)
    for step in (-1, 1 << 64):
        with pytest.raises(pccheck.InvalidArgument, match="expected 0 to"):
            pcc.load(path, step)


# -- the C functions


def test_a_search_in_c(unproven: Path) -> None:
    library = native.library()
    with Reader(unproven) as reader:
        info, error = native.CheckpointInfo(), native.Error()
        handle = reader._reader
        reason = native.Error(code=native.CORRUPT, slot=-1, byte_offset=-1, message=b"mine")
        status = library.pcc_reader_select_next(
            handle, c.byref(reason), c.byref(info), c.byref(error)
        )
        assert status == 1 and b"no search is under way" in error.message
        status = library.pcc_reader_select_newest(handle, None, c.byref(info), c.byref(error))
        assert (status, info.step) == (0, 10)
        assert [item["step"] for item in reader.rejections()] == [20]
        status = library.pcc_reader_select_next(
            handle, c.byref(reason), c.byref(info), c.byref(error)
        )
        assert status == native.CORRUPT and b"mine" in error.message
        assert [item["step"] for item in reader.rejections()] == [20, 10]


def run(*command: Any) -> subprocess.CompletedProcess[bytes]:
    words = [str(BIN / command[0]) if command[0] == "pcextract" else str(command[0])]
    words += map(str, command[1:])
    return subprocess.run(words, capture_output=True, timeout=60)
