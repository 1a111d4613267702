"""Promises of a load that are easily broken: mixtures, wrong reasons, silent nothings."""

from __future__ import annotations

import ctypes as c
import fcntl
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import images
import numpy as np
import pccheck
import pccheck.torch as pcc
import pytest
import torch
from pccheck._core import native
from pccheck._core.reader import Reader
from test_one_way_in import (
    BIN,
    SIZES,
    anchored_and_rotten,
    busy,
    payload,
    spoil,
    state,
)
from writers import run_with_bad_sector

__all__ = ["busy"]

COUNT = 1 << 19
F_OFD_SETLK = 37


# -- live tensors


def test_a_view_of_what_was_filled_is_no_proof_that_all_of_it_was(path: Path) -> None:
    """The older checkpoint fills half of the memory that the rejected one filled."""
    newer = {"a": torch.full((COUNT,), 20.0), "z": torch.full((COUNT,), 20.5)}
    older = {"b": torch.full((COUNT // 2,), 10.0), "z": torch.full((COUNT,), 10.5)}
    anchored_and_rotten(path, newer, older)
    base = torch.zeros(COUNT)
    live = {"s": {"a": base, "b": base[: COUNT // 2], "z": torch.zeros(COUNT)}}
    try:
        pcc.load(path, into=live)
    except pccheck.CheckpointError as error:
        assert "unspecified values" in str(error)
    else:
        assert 20 not in base.unique().tolist()


def test_an_optimizer_goes_back_to_before_its_first_step(path: Path) -> None:
    """``load_state_dict`` drops the moments that the older checkpoint does not have."""
    model = torch.nn.Linear(256, 256)
    optimizer = torch.optim.Adam(model.parameters())
    with pcc.Checkpointer(path, retain=2, chunk=1 << 16, capacity=8 << 20) as checkpointer:
        checkpointer.save(10, model=model, optimizer=optimizer, rng=False).wait()
        model(torch.ones(2, 256)).sum().backward()
        optimizer.step()
        for moments in optimizer.state.values():
            moments["exp_avg_sq"].fill_(9.25)
        checkpointer.save(20, model=model, optimizer=optimizer, rng=False).wait()
    spoil(path, 9.25)
    assert pcc.load_into(path, model=model, optimizer=optimizer).step == 10
    assert not optimizer.state


@pytest.mark.parametrize(
    "live",
    [
        {"model": torch.nn.Linear(5, 5)},
        {"model": {"weight": {"x": torch.zeros(4)}}},
        {"model": {"weight": torch.zeros(4, 4, dtype=torch.int64)}},
    ],
    ids=["shapes", "nesting", "type"],
)
def test_a_partial_load_that_fills_nothing_is_an_error(path: Path, live: dict[str, Any]) -> None:
    with pcc.Checkpointer(path, **SIZES) as checkpointer:
        checkpointer.save(10, model=torch.nn.Linear(4, 4), rng=False).wait()
    with pytest.raises(pccheck.StateMismatch):
        pcc.load_into(path, strict=False, **live)


def test_what_is_rounded_counts_as_loaded(path: Path) -> None:
    """A model in bfloat16 with a new head takes what fits of one in float32."""
    saved = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pcc.Checkpointer(path, **SIZES) as checkpointer:
        checkpointer.save(10, model=saved, scheduler={"epoch": 3}, rng=False).wait()
    live = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)).to(torch.bfloat16)
    assert pcc.load_into(path, strict=False, model=live).step == 10
    assert torch.equal(live[0].weight, saved[0].weight.to(torch.bfloat16))
    scheduler = {"epoch": 0}
    pcc.load_into(path, strict=False, scheduler=scheduler, ema=torch.nn.Linear(2, 2))
    assert scheduler == {"epoch": 3}


def test_an_error_of_torch_says_what_it_left(path: Path) -> None:
    """A live tensor that torch does not write, behind one that was filled already."""
    with pcc.Checkpointer(path, **SIZES) as checkpointer:
        checkpointer.save(10, s=state(10), rng=False).wait()
    with torch.inference_mode():
        frozen = torch.zeros(COUNT, dtype=torch.float64)
    live = {"A": torch.zeros(COUNT), "B": frozen}
    with pytest.raises(Exception) as caught:
        pcc.load_into(path, s=live)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert live["A"][0] == 0 or "unspecified values" in told


def test_a_load_into_says_what_the_older_one_does_not_fill(path: Path) -> None:
    """The older checkpoint has half of 'A', which goes into fresh memory."""
    older = {"A": torch.full((COUNT // 2,), 10.0), "B": torch.full((COUNT,), 10.5)}
    anchored_and_rotten(path, state(20), older)
    live = {"A": torch.zeros(COUNT), "B": torch.zeros(COUNT)}
    with pytest.raises(pccheck.CheckpointError, match="'s.A' has no value.*unspecified values"):
        pcc.load(path, into={"s": live})


def test_what_was_not_touched_is_not_said_to_be(path: Path) -> None:
    """The newer checkpoint is rejected for its manifest, before a byte of it is in place."""
    anchored_and_rotten(path, state(20), {"B": state(10)["B"]})
    content = bytearray(path.read_bytes())
    content[content.rfind(b'"__metadata__"')] ^= 1
    path.write_bytes(content)
    live = {"A": torch.zeros(COUNT), "B": torch.zeros(COUNT)}
    with pytest.raises(pccheck.StateMismatch, match="step 10") as caught:
        pcc.load_into(path, s=live)
    assert "unspecified" not in str(caught.value)
    assert live["A"].any() == live["B"].any() == torch.tensor(False)


# -- what speaks against a checkpoint, and what does not


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2"])
def test_a_type_of_torch_in_a_file_of_another_program_is_no_damage(
    path: Path, dtype: str
) -> None:
    """Such a file has no document. The checkpoint is intact, whoever can read it."""
    size = {"BF16": 2}.get(dtype, 1)
    newer = images.safetensors([("x", dtype, [3], bytes(3 * size))])
    images.write(path, [payload(1), newer])
    for module in (pccheck, pcc):
        try:
            loaded = module.load(path)
        except pccheck.UnsupportedState:
            continue
        assert len(loaded["x"]) == 3, "an older checkpoint was loaded"


def test_an_array_type_that_numpy_lacks_is_no_damage(path: Path) -> None:
    document = '{"version":1,"state":{"x":{"$array":"x","dtype":"float256"}}}'
    newer = images.safetensors([("x", "U8", [1], b"\1")], {"pccheck.state": document})
    images.write(path, [payload(1), newer])
    with pytest.raises(pccheck.UnsupportedState):
        pccheck.load(path)


def test_the_only_one_that_is_broken_is_named(path: Path) -> None:
    document = '{"version":1,"state":{"x":{"$int":"zz"}}}'
    images.write(path, [images.safetensors([], {"pccheck.state": document})])
    with pytest.raises(pccheck.StateFormatError) as caught:
        pccheck.load(path)
    assert str(path) in str(caught.value) and "step 10" in str(caught.value)


def test_a_load_of_all_ranks_takes_the_newest_not_the_highest_step(path: Path) -> None:
    """After going back, step 30 is of a course that was given up."""
    with pcc.Checkpointer(path, retain=3, chunk=1 << 20, capacity=8 << 20) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, s=state(step), rng=False).wait()
        checkpointer.load(10)
        checkpointer.save(11, s=state(11), rng=False).wait()
    assert pcc.load_full([path])["s"]["A"][0] == 11


def test_a_load_of_all_ranks_falls_back(tmp_path: Path) -> None:
    paths = [tmp_path / "0.pcc", tmp_path / "1.pcc"]
    for path in paths:
        anchored_and_rotten(path, state(20), state(10))
    assert pcc.load_full(paths)["s"]["A"][0] == 10


DCP_LOAD = """
import sys, torch, pccheck.dcp, torch.distributed.checkpoint as dcp
live = {name: torch.zeros(1 << 19) for name in "AB"}
dcp.load(live, storage_reader=pccheck.dcp.StorageReader(sys.argv[1]))
print(live["A"][0].item(), live["B"][0].item())
"""


def test_one_unreadable_sector_costs_one_checkpoint_of_dcp(path: Path, tmp_path: Path) -> None:
    import pccheck.dcp
    import torch.distributed.checkpoint as dcp

    for step in (10, 20):
        with pccheck.dcp.StorageWriter(path, **SIZES) as writer:
            dcp.save(state(step), storage_writer=writer, checkpoint_id=step)
    done = run_with_bad_sector(DCP_LOAD, path, np.full(1024, 20.5, np.float32).tobytes(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["10.0", "10.5"]


# -- beside a fast writer


def test_what_a_writer_has_in_hand_is_not_damaged(path: Path) -> None:
    """The newest is rotten, and the older one may be whole again in a moment."""
    anchored_and_rotten(path, state(20), state(10))
    holder = os.open(path, os.O_RDWR)
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 1024, 1, 0)
    fcntl.fcntl(holder, F_OFD_SETLK, lock)
    try:
        with pytest.raises(pccheck.Busy):
            pcc.load(path)
        command = [BIN / "pcextract", path, "-o", path.with_suffix(".safetensors")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 8, done.stderr
    finally:
        os.close(holder)


@pytest.mark.parametrize("more", [["--all"], ["--all", "--salvage"]], ids=" ".join)
def test_all_is_not_nothing(busy: Path, tmp_path: Path, more: list[str]) -> None:
    """A success without a single checkpoint is none: there is one at every moment."""
    for number in range(60):
        folder = tmp_path / str(number)
        done = subprocess.run(
            [BIN / "pcextract", busy, "-o", folder, *more], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert list(folder.glob("step-*.safetensors")), done.stderr


def test_a_salvage_starts_over(busy: Path, tmp_path: Path) -> None:
    for _ in range(60):
        done = subprocess.run(
            [BIN / "pcextract", busy, "-o", tmp_path / "out.safetensors", "--salvage"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_a_load_of_all_ranks_beside_a_fast_writer(busy: Path) -> None:
    for _ in range(300):
        assert len(set(pcc.load_full([busy])["x"].tolist())) == 1


def test_a_lazy_load_that_fails_pins_nothing(path: Path) -> None:
    """A notebook keeps the last error, and with it all that the frames held."""
    document = '{"version":1,"state":{"x":{"$future":1}}}'
    images.write(path, [images.safetensors([("x", "U8", [1], b"\1")], {"pccheck.state": document})])
    with pytest.raises(pccheck.UnsupportedState) as kept:
        pcc.load(path, lazy=True)
    inode = f":{path.stat().st_ino} "
    assert not [line for line in Path("/proc/locks").read_text().splitlines() if inode in line]
    assert kept.value


# -- the C functions


def call(name: str, *arguments: Any) -> tuple[int, str]:
    error = native.Error()
    status = getattr(native.library(), name)(*arguments, c.byref(error))
    return status, error.message.decode()


def reason(code: int) -> Any:
    return c.byref(native.Error(code=code, slot=-1, byte_offset=-1, message=b"mine"))


@pytest.fixture
def three(path: Path) -> Path:
    with pcc.Checkpointer(path, retain=3, chunk=1 << 20, capacity=8 << 20) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, s=state(step), rng=False).wait()
    return path


def test_a_reason_that_is_no_error_is_refused(three: Path) -> None:
    """With code 0, as in an error that no call has filled, it reports success."""
    with Reader(three) as reader:
        info = native.CheckpointInfo()
        call("pcc_reader_select_newest", reader._reader, None, c.byref(info))
        status, message = call("pcc_reader_select_next", reader._reader, reason(0), c.byref(info))
        assert status == pccheck.InvalidArgument.default_code, message


def test_a_search_that_failed_is_over(three: Path) -> None:
    with Reader(three) as reader:
        info = native.CheckpointInfo()
        options = native.LoadOptions(
            struct_size=c.sizeof(native.LoadOptions), has_step=1, step=999
        )
        handle = reader._reader
        assert call("pcc_reader_select_newest", handle, None, c.byref(info))[0] == 0
        assert call("pcc_reader_select_newest", handle, c.byref(options), c.byref(info))[0] == 7
        status, message = call("pcc_reader_select_next", handle, reason(8), c.byref(info))
        assert status != 0, f"it went on to step {info.step}, which nobody asked for"
        assert "no search is under way" in message


def test_a_selection_by_hand_ends_the_search(three: Path) -> None:
    """Else the next call blames the checkpoint that the search had found."""
    with Reader(three) as reader:
        info = native.CheckpointInfo()
        handle = reader._reader
        call("pcc_reader_select_newest", handle, None, c.byref(info))
        assert info.step == 30
        call("pcc_reader_select", handle, 1, c.byref(info))
        assert info.step == 10
        status, _ = call("pcc_reader_select_next", handle, reason(8), c.byref(info))
        assert status != 0
        assert 30 not in [item["step"] for item in reader.rejections()]
