"""What once went wrong with DCP: each of these lost data, hung, or ran what a file said."""

from __future__ import annotations

import io
import logging
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import flip_byte_of, pattern
from ranks import run_jobs
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

import pccheck
from pccheck.dcp import NotTrusted, StorageReader, StorageWriter

CHILD = Path(__file__).with_name("dcp_faults_child.py")

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.mark.parametrize(
    "jobs",
    [
        "names:2 one_rank_cannot_read:2 one_rank_sees_damage:2 one_rank_is_given_another_step:2",
        "two_attempts:2 one_rank_fails:2", "groups:3 alone:2", "in_a_process:2 at_the_same_time:2",
    ],
)  # fmt: skip
def test_ranks(tmp_path: Path, jobs: str) -> None:
    run_jobs(CHILD, tmp_path, *jobs.split())


def test_a_rank_that_is_killed_in_a_save_costs_that_save(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_jobs(CHILD, tmp_path, "kill:2")
    run_jobs(CHILD, tmp_path, "after_the_kill:2", "after_the_kill:1")


def save(path: Path, step: int, state: dict[str, Any], **options: Any) -> None:
    with StorageWriter(path, **options) as writer:
        dcp.save(state, checkpoint_id=step, storage_writer=writer)


def read_count() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.parametrize("name", [*pccheck.errors.__all__, "NotTrusted"])
def test_an_error_reaches_other_ranks(name: str) -> None:
    """DCP sends errors as pickles; one that cannot be read leaves the others waiting."""
    kind = getattr(pccheck.errors, name, NotTrusted)
    options: dict[str, Any] = {"step": 3, "names": ["w"]} if name == "StateChanged" else {}
    if name in ("IncompleteShards", "RanksMissing", "RankFailed", "VoidCheckpoint"):
        options = {"ranks": [1, 3]}
    error = kind("what happened", **options)
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind and str(found) == "what happened"
    assert vars(found) == vars(error)


# -- reading each chunk once


def many_tensors(count: int, width: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {f"layer{number:03}": torch.randn(width, 64) for number in range(count)}


@pytest.mark.parametrize(
    "live",
    [
        pytest.param(lambda tensor: torch.zeros_like(tensor), id="in place"),
        pytest.param(lambda tensor: torch.zeros_like(tensor).double(), id="another type"),
        pytest.param(lambda tensor: torch.zeros_like(tensor.T.contiguous()).T, id="transposed"),
    ],
)
def test_a_load_reads_each_chunk_once(
    path: Path, live: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    state = many_tensors(300, 1100)  # 84 MB, 15 tensors a chunk
    save(path, 1, {**state, "object": ("a", 1)})
    payload = sum(tensor.nbytes for tensor in state.values())
    found: dict[str, Any] = {key: live(tensor) for key, tensor in state.items()}
    found["object"] = None
    before = read_count()
    dcp.load(found, storage_reader=StorageReader(path))
    # Chunks with the manifest and with objects are read a second time.
    assert read_count() - before < payload + (13 << 20)
    assert found.pop("object") == ("a", 1)
    for key, tensor in state.items():
        assert torch.equal(found[key].float(), tensor), key


def test_a_tensor_larger_than_the_buffer_is_read_in_rows(path: Path) -> None:
    state = {"a": torch.randn(3, 5000, 3000), "b": torch.randn(1, 7)}
    save(path, 1, state)
    found = {key: torch.zeros(tensor.shape).double() for key, tensor in state.items()}
    before = read_count()
    dcp.load(found, storage_reader=StorageReader(path))
    assert read_count() - before < 180_000_000 + (13 << 20)
    for key, tensor in state.items():
        assert torch.equal(found[key].float(), tensor), key


def test_live_tensors_that_are_tied_take_one_saved_tensor_whole(path: Path) -> None:
    save(path, 1, {"a": torch.full((1 << 20,), 1.0), "b": torch.full((1 << 20,), 2.0)})
    tied = torch.zeros(1 << 20)
    dcp.load({"a": tied, "b": tied}, storage_reader=StorageReader(path))
    assert bool((tied == 2.0).all())
    shifted = torch.zeros((1 << 20) + 8)
    views = {"a": shifted[:-8], "b": shifted[8:]}
    dcp.load(views, storage_reader=StorageReader(path))
    assert set(shifted.unique().tolist()) <= {1.0, 2.0}


# -- falling back


def test_damage_that_a_load_meets_costs_one_step(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StorageWriter(path, retain=2) as writer:
        for step in (1, 2):
            state = {
                "front": torch.full((1 << 19,), step),
                "data": torch.from_numpy(pattern(step)), "tail": torch.zeros(1 << 20),
                "note": {"step": step, "t": (step,)},
            }  # fmt: skip
            dcp.save(state, checkpoint_id=step, storage_writer=writer)
    flip_byte_of(path, 2)
    reader = StorageReader(path, verify=False)
    found = {
        "front": torch.zeros(1 << 19, dtype=torch.int64),
        "data": torch.zeros(1 << 18, dtype=torch.int64), "tail": torch.ones(1 << 20),
        "note": {"step": 0, "t": ()},
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, "pccheck"):
        dcp.load(found, storage_reader=reader)
    assert reader.step == 1 and bool((found["front"] == 1).all())
    assert torch.equal(found["data"], torch.from_numpy(pattern(1)))
    assert found["note"] == {"step": 1, "t": (1,)}
    assert "step 2 cannot be used" in caplog.text and "trying step 1" in caplog.text
    flip_byte_of(path, 1)
    with pytest.raises(CheckpointException, match="hold unspecified values now"):
        dcp.load(found, storage_reader=reader)


def test_an_older_step_of_another_shape_is_not_loaded_by_the_same_plan(path: Path) -> None:
    with StorageWriter(path, retain=2) as writer:
        front = torch.zeros(1 << 19, dtype=torch.int64)
        state = {"front": front, "data": torch.from_numpy(pattern(1)), "old": torch.ones(1)}
        dcp.save(state, checkpoint_id=1, storage_writer=writer)
        state = {"front": front, "data": torch.from_numpy(pattern(2))}
        dcp.save(state, checkpoint_id=2, storage_writer=writer)
    flip_byte_of(path, 2)
    found = {"front": front, "data": torch.zeros(1 << 18, dtype=torch.int64)}
    with pytest.raises(CheckpointException, match="load it with checkpoint_id=1"):
        dcp.load(found, storage_reader=StorageReader(path))
    dcp.load(found, checkpoint_id=1, storage_reader=StorageReader(path))
    assert torch.equal(found["data"], torch.from_numpy(pattern(1)))


# -- ids


def test_an_id_is_that_of_one_load(path: Path) -> None:
    with StorageWriter(path, retain=2) as writer:
        for step in (1, 2):
            state = {"a": torch.full((2,), float(step))}
            dcp.save(state, checkpoint_id=step, storage_writer=writer)
        with pytest.raises(CheckpointException, match="give it the step"):
            dcp.save(state, storage_writer=writer)
    reader = StorageReader(path)
    for step, wanted in ((1, 1), (None, 2), (1, 1), (None, 2)):
        dcp.load(state, checkpoint_id=step, storage_reader=reader)
        assert reader.step == wanted and state["a"].tolist() == [float(wanted)] * 2
    with pytest.raises(CheckpointException, match="step 9 is not"):
        dcp.load(state, checkpoint_id=9, storage_reader=reader)
    dcp.load(state, storage_reader=reader)
    assert reader.step == 2
    fixed = StorageReader(path, step=1)
    for step, wanted in ((2, 2), (None, 1)):
        dcp.load(state, checkpoint_id=step, storage_reader=fixed)
        assert fixed.step == wanted


def test_a_restarted_run_may_go_back(path: Path) -> None:
    state = {"a": torch.ones(2)}
    with StorageWriter(path, retain=2) as writer:
        for step in (5, 10):
            dcp.save(state, checkpoint_id=step, storage_writer=writer)
    reader = StorageReader(path)
    dcp.load(state, checkpoint_id=5, storage_reader=reader)
    with StorageWriter(path, retain=2) as writer:
        dcp.save(state, checkpoint_id=6, storage_writer=writer)
        with pytest.raises(CheckpointException, match="below step 6"):
            dcp.save(state, checkpoint_id=4, storage_writer=writer)
        writer.checkpointer.rewind(3)
        dcp.save(state, checkpoint_id=4, storage_writer=writer)
    dcp.load(state, storage_reader=reader)
    assert reader.step == 4
    assert not StorageWriter.validate_checkpoint_id(True)


class Slow(DefaultSavePlanner):
    """Plans when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def create_local_plan(self) -> Any:
        self.begun.set()
        assert self.may_go_on.wait(60)
        return super().create_local_plan()


def test_saves_that_overlap_keep_apart(path: Path) -> None:
    planner = Slow()
    with StorageWriter(path, retain=2) as writer:
        futures = [
            dcp.async_save(
                {"a": torch.full((4,), float(step))}, checkpoint_id=step, storage_writer=writer,
                planner=planner if step == 1 else None,
            )
            for step in (1, 2)
        ]  # fmt: skip
        assert planner.begun.wait(60)
        # The second one comes as far as it can.
        threading.Event().wait(1)
        planner.may_go_on.set()
        for future in futures:
            future.result(timeout=60)
    for step in (1, 2):
        found = {"a": torch.zeros(4)}
        dcp.load(found, checkpoint_id=step, storage_reader=StorageReader(path))
        assert found["a"].tolist() == [float(step)] * 4


# -- names


def test_an_old_file_that_lost_a_tensor_is_refused(path: Path) -> None:
    """As two tensors of one name were once stored."""
    row = {"offsets": [0], "sizes": [2], "size": [2], "requires_grad": False}
    layout = {
        "version": 1, "planner": {"w": ("w",), "w[0]": ("w[0]",)}, "world_size": 1,
        "items": [{"fqn": "w", "key": "w[0]", **row}, {"fqn": "w[0]", "key": "w[0]", **row}],
    }  # fmt: skip
    with pccheck.torch.Checkpointer(path) as writer:
        parts = {"state": {"w[0]": torch.ones(2)}, "objects": {}, "dcp": layout}
        writer.save(1, rng=False, **parts).wait()
    with pytest.raises(CheckpointException, match=r"'w' and 'w\[0\]' under the one name"):
        dcp.load({"w": torch.zeros(2)}, storage_reader=StorageReader(path))
    layout["items"][1]["key"] = "other"
    with pccheck.torch.Checkpointer(path) as writer:
        parts["state"]["other"] = torch.full((2,), 5.0)
        writer.save(2, rng=False, **parts).wait()
    found = {"w": torch.zeros(2), "w[0]": torch.zeros(2)}
    dcp.load(found, storage_reader=StorageReader(path))
    assert found["w"].tolist() == [1.0, 1.0] and found["w[0]"].tolist() == [5.0, 5.0]


def test_a_plan_that_cannot_be_loaded_is_refused(path: Path) -> None:
    class Cutting(DefaultSavePlanner):
        def transform_object(self, item: Any, value: Any) -> Any:
            value = super().transform_object(item, value)
            return value[:1] if isinstance(value, torch.Tensor) else value

    with StorageWriter(path) as writer, pytest.raises(CheckpointException, match="its plan says"):
        dcp.save({"a": torch.ones(3)}, checkpoint_id=1, storage_writer=writer, planner=Cutting())
    assert not path.exists()
    with StorageWriter(path) as writer, pytest.raises(CheckpointException, match="to_dense"):
        dcp.save({"a": torch.eye(3).to_sparse()}, checkpoint_id=1, storage_writer=writer)


# -- trust


class Harm:
    """What runs a program when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_what_a_file_pickled_is_not_run(path: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    state = {"a": torch.ones(3), "o": {"harm": Harm(mark)}}
    save(path, 1, state)
    found = {"a": torch.zeros(3), "o": {"harm": None}}
    with pytest.raises(CheckpointException) as caught:
        dcp.load(found, storage_reader=StorageReader(path))
    for text in ("'o.harm' of step 1", "posix.mkdir", "StorageReader(trust=True)"):
        assert text in str(caught.value)
    assert not mark.exists() and found["a"].tolist() == [0.0] * 3
    dcp.load(found, storage_reader=StorageReader(path, trust=True))
    assert mark.exists() and found["a"].tolist() == [1.0] * 3


class Raw(DefaultSavePlanner):
    """Stores bytes that no torch.save wrote."""

    def transform_object(self, write_item: Any, object: Any) -> Any:
        return io.BytesIO(object) if isinstance(object, bytes) else object


class Unpickling(DefaultLoadPlanner):
    """Reads what it is given as plain pickles."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = pickle.load(value)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_bytes_that_a_planner_reads_itself_need_trust(
    path: Path, tmp_path: Path, protocol: int
) -> None:
    mark = tmp_path / "mark"
    content = pickle.dumps(Harm(mark), protocol)
    with StorageWriter(path) as writer:
        dcp.save({"o": content}, checkpoint_id=1, storage_writer=writer, planner=Raw())
    found = {"o": b""}
    with pytest.raises(CheckpointException, match=r"StorageReader\(trust=True\)"):
        dcp.load(found, storage_reader=StorageReader(path), planner=Unpickling())
    assert not mark.exists()
    reader = StorageReader(path, trust=True)
    dcp.load(found, storage_reader=reader, planner=Unpickling())
    assert mark.exists()


def test_plain_values_need_no_trust(path: Path) -> None:
    state = {
        "tuple": (1, 2.5, None, True, "text", b"bytes", 1 + 2j), "set": {1, 2},
        "array": np.arange(3), "number": np.float32(1.5), "range": range(3),
        "frozen": frozenset([1]), "type": torch.bfloat16, "nested": {"list": [{"a": (1,)}]},
        "random": torch.get_rng_state(), "pair": (torch.ones(2), torch.zeros(1)),
    }  # fmt: skip
    stream = io.BytesIO(b"as torch's own tests do")
    save(path, 1, {**state, "stream": stream})
    found = {
        key: torch.zeros_like(value) if isinstance(value, torch.Tensor) else None
        for key, value in state.items() if key != "nested"
    }  # fmt: skip
    found |= {"nested": {"list": [{"a": None}]}, "stream": None}
    dcp.load(found, storage_reader=StorageReader(path))
    assert found.pop("stream").getvalue() == stream.getvalue()
    assert found.pop("array").tolist() == state.pop("array").tolist()
    pair, expected = found.pop("pair"), state.pop("pair")
    assert all(map(torch.equal, pair, expected))
    assert torch.equal(found.pop("random"), state.pop("random"))
    assert found == state
