"""torch.distributed.checkpoint on checkpoint files: whole, sharded, resharded, damaged, killed."""

from __future__ import annotations

import copy
import logging
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import flip_byte_of, pattern
from ranks import run_jobs
from torch.distributed.checkpoint.api import CheckpointException

import pccheck
from pccheck.dcp import StorageReader, StorageWriter

CHILD = Path(__file__).with_name("dcp_child.py")

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def trained() -> dict[str, Any]:
    """A state of every kind that DCP knows without processes."""
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 30)).sum().backward()
    optimizer.step()
    tied = torch.randn(6)
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 5,
        "list": [1, "a", torch.ones(3, dtype=torch.bfloat16)], "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5), "complex": torch.randn(2, dtype=torch.complex64),
        "transposed": torch.randn(4, 6).T, "tied": {"a": tied, "b": tied[2:5]},
        "größe 𝄞\n": torch.arange(4),
    }  # fmt: skip


def emptied(state: Any) -> Any:
    """The same nest with other values."""
    state = copy.deepcopy(state)

    def empty(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.zero_()
        if isinstance(value, dict):
            return type(value)((key, empty(item)) for key, item in value.items())
        if isinstance(value, list):
            return [empty(item) for item in value]
        return type(value)()

    return empty(state)


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, item in expected.items():
            assert_same(found[key], item, f"{where}.{key}")
    elif isinstance(expected, list):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    else:
        assert found == expected, where


def save(path: Path, step: int, state: dict[str, Any], **options: Any) -> None:
    with StorageWriter(path, **options) as writer:
        dcp.save(state, checkpoint_id=step, storage_writer=writer)


def test_a_state_comes_back(path: Path) -> None:
    state = trained()
    with StorageWriter(path) as writer:
        dcp.save(emptied(state), checkpoint_id="3", storage_writer=writer)
        dcp.save(state, checkpoint_id=4, storage_writer=writer)
        assert writer.checkpointer.stats()["durable_count"] == 2
    found = emptied(state)
    addresses = found["model"]["weight"].data_ptr()
    reader = StorageReader(path)
    dcp.load(found, storage_reader=reader)
    assert_same(found, state)
    assert reader.step == 4 and found["model"]["weight"].data_ptr() == addresses
    dcp.load(found, checkpoint_id=3, storage_reader=reader)
    assert_same(found, emptied(state))
    # What was saved is an ordinary checkpoint.
    weight = pccheck.load_tensor(path, "state.model.weight", 4)
    assert torch.equal(torch.from_numpy(weight), state["model"]["weight"])


def test_a_save_in_the_background_ends_as_durable(path: Path) -> None:
    state = {"a": torch.arange(1 << 16)}
    with StorageWriter(path) as writer:
        for step in (1, 2, 3):
            future = dcp.async_save(state, checkpoint_id=step, storage_writer=writer)
            state["a"] += 1  # the state was copied
            future.result(timeout=60)
            assert pccheck.checkpoints(path)[0].step == step
            assert pccheck.checkpoints(path)[0].is_anchored
    found = {"a": torch.zeros(1 << 16, dtype=torch.int64)}
    dcp.load(found, storage_reader=StorageReader(path))
    assert torch.equal(found["a"], torch.arange(1 << 16) + 2)


def test_a_part_is_read_alone(path: Path) -> None:
    def read_count() -> int:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"])

    large = torch.arange(8 << 20)  # 64 MiB, and 4 MiB a chunk
    save(path, 1, {"large": large, "small": torch.arange(10)})
    found = {"small": torch.zeros(10, dtype=torch.int64)}
    before = read_count()
    dcp.load(found, storage_reader=StorageReader(path, verify=False))
    assert torch.equal(found["small"], torch.arange(10))
    assert read_count() - before < 16 << 20


class Kept:
    """A stateful object, as DCP knows them."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "values": torch.full((3,), float(self.value))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]
        assert state["values"].tolist() == [float(self.value)] * 3


def test_stateful_objects_take_their_state(path: Path) -> None:
    save(path, 1, {"kept": Kept(7)})
    kept = Kept(1)
    dcp.load({"kept": kept}, storage_reader=StorageReader(path))
    assert kept.value == 7


# -- damage


def damaged_file(path: Path) -> dict[str, torch.Tensor]:
    """Steps 1 and 2, the second of which has a wrong byte."""
    with StorageWriter(path) as writer:
        for step in (1, 2):
            state = {"data": torch.from_numpy(pattern(step))}
            dcp.save(state, checkpoint_id=step, storage_writer=writer)
    flip_byte_of(path, 2)
    return {"data": torch.zeros(1 << 18, dtype=torch.int64)}


def test_an_older_one_is_taken_when_the_newest_is_damaged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = damaged_file(path)
    reader = StorageReader(path)
    with caplog.at_level(logging.WARNING, "pccheck"):
        dcp.load(found, storage_reader=reader)
    assert reader.step == 1 and torch.equal(found["data"], torch.from_numpy(pattern(1)))
    assert "the checkpoint of step 2 cannot be used" in caplog.text
    assert "trying step 1" in caplog.text


@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_step_that_was_asked_for_is_an_error(path: Path, verify: bool) -> None:
    found = damaged_file(path)
    with pytest.raises(CheckpointException, match="chunk 0 has digest"):
        dcp.load(found, storage_reader=StorageReader(path, 2, verify=verify))


def test_nothing_whole_is_left(path: Path) -> None:
    found = damaged_file(path)
    flip_byte_of(path, 1)
    with pytest.raises(CheckpointException, match="no checkpoint can be loaded .*run pcfsck"):
        dcp.load(found, storage_reader=StorageReader(path))


# -- misuse


def test_what_is_no_step_is_refused(path: Path) -> None:
    writer = StorageWriter(path)
    with pytest.raises(CheckpointException, match="give it the step"):
        dcp.save({"a": torch.zeros(1)}, storage_writer=writer)
    with pytest.raises(CheckpointException, match="named by its step"):
        dcp.save({"a": torch.zeros(1)}, checkpoint_id="run/1", storage_writer=writer)
    assert not path.exists()
    with pytest.raises(pccheck.InvalidArgument, match="on_busy is 'skip'"):
        StorageWriter(path, on_busy="skip")
    for options in ({"on_sigterm": "save"}, {"policy": 2}, {"on_busy": "fail"}):
        with pytest.raises(pccheck.InvalidArgument, match=f"{next(iter(options))} cannot be used"):
            StorageWriter(f"{path.parent}/run/", **options)
    for kind in (StorageWriter, StorageReader):
        with pytest.raises(pccheck.InvalidArgument, match="puts no rank into a path"):
            kind(path.with_name("rank{rank}.pcc"))
    assert StorageWriter.validate_checkpoint_id(7) and StorageReader.validate_checkpoint_id("7")
    assert not StorageReader.validate_checkpoint_id("a/b")


def test_a_folder_of_one_process(path: Path) -> None:
    folder = f"{path.parent}/run/"
    assert StorageReader(folder).steps() == StorageReader(path).steps() == []
    for step in (1, 2):
        with StorageWriter(folder) as writer:
            dcp.save({"a": torch.full((2,), step)}, checkpoint_id=step, storage_writer=writer)
    found, reader = {"a": torch.zeros(2, dtype=torch.int64)}, StorageReader(Path(folder))
    assert reader.steps() == [2, 1]
    dcp.load(found, checkpoint_id=1, storage_reader=reader)
    assert found["a"].tolist() == [1, 1]
    with pytest.raises(CheckpointException, match="step 3 is not durable on all ranks"):
        dcp.load(found, checkpoint_id=3, storage_reader=reader)


def test_what_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(CheckpointException, match="run.pcc"):
        dcp.load({"a": torch.zeros(1)}, storage_reader=StorageReader(path))
    save(path, 1, {"a": torch.zeros(2)})
    with pytest.raises(CheckpointException, match=r"run.pcc: step 9 is not .*: 1\)"):
        dcp.load({"a": torch.zeros(2)}, checkpoint_id=9, storage_reader=StorageReader(path))
    with pytest.raises(CheckpointException, match="Missing key in checkpoint state_dict: b"):
        dcp.load({"b": torch.zeros(2)}, storage_reader=StorageReader(path))
    with pytest.raises(CheckpointException, match="Size mismatch"):
        dcp.load({"a": torch.zeros(3)}, storage_reader=StorageReader(path))


def test_a_file_of_another_kind_is_told_apart(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"a": 1}).wait()
    with pytest.raises(CheckpointException, match="not saved by torch.distributed.checkpoint"):
        dcp.load({"a": torch.zeros(1)}, storage_reader=StorageReader(path))


def test_two_writers_are_told_apart(path: Path) -> None:
    with StorageWriter(path) as writer:
        dcp.save({"a": torch.zeros(1)}, checkpoint_id=1, storage_writer=writer)
        with pytest.raises(CheckpointException, match="Locked"):
            save(path, 2, {"a": torch.zeros(1)})


# -- several processes


def test_another_number_of_ranks_loads_the_same(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "save:2", "load:2")
    files = [tmp_path / "run" / f"rank-0000{rank}-of-00002.pcc" for rank in (0, 1)]
    assert sorted((tmp_path / "run").iterdir()) == files
    # Each holds its shards only.
    shards = [pccheck.load(file)["state"] for file in files]
    shapes = [
        [value.shape for key, value in shard.items() if key.startswith("model.0.weight[")]
        for shard in shards
    ]
    assert shapes == [[(4, 6)], [(3, 6)]]
    # A rank whose newest is damaged costs all ranks that step.
    content = files[0].read_bytes()
    needle = shards[0]["model.0.weight[0,0]"].tobytes()
    assert content.count(needle) == 1
    damaged = bytearray(content)
    damaged[damaged.find(needle) + 5] ^= 1
    files[0].write_bytes(damaged)
    run_jobs(CHILD, tmp_path, "load:2", EXPECTED_STEP="4")
    files[0].write_bytes(content)
    # Three ranks go on from there, and one from those; two would go on from the three, too.
    run_jobs(CHILD, tmp_path, "go_on:3", "load:1", "load:2")


# -- killed

TRAINING = """
import sys, warnings, torch, torch.distributed.checkpoint as dcp
from pccheck.dcp import StorageReader, StorageWriter
warnings.simplefilter("ignore")
path, steps = sys.argv[1], int(sys.argv[2])
torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.2), torch.nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters())
def step():
    optimizer.zero_grad()
    loss = model(torch.randn(8, 64)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()
def state():
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state()}
first = 0
if sys.argv[3] == "resume":
    # The optimizer's state has to be there to be filled.
    step()
    found, reader = state(), StorageReader(path)
    dcp.load(found, storage_reader=reader)
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    torch.set_rng_state(found["rng"])
    first = reader.step + 1
with StorageWriter(path) as writer:
    for number in range(first, steps):
        loss = step()
        print(number, loss, flush=True)
        dcp.async_save(state(), checkpoint_id=number, storage_writer=writer).result()
"""


def test_a_killed_run_goes_on_with_the_same_losses(
    tmp_path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    whole, _ = run_child(TRAINING, tmp_path / "whole.pcc", 30, "start").communicate(timeout=120)
    expected = dict(line.split() for line in whole.splitlines())
    assert len(expected) == 30
    path = tmp_path / "killed.pcc"
    child = run_child(TRAINING, path, 30, "start")
    assert child.stdout is not None
    seen = [child.stdout.readline().split() for _ in range(12)]
    time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    rest, errors = run_child(TRAINING, path, 30, "resume").communicate(timeout=120)
    losses = dict(seen) | dict(line.split() for line in rest.splitlines())
    assert losses == expected, errors
