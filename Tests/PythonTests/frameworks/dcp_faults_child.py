"""What once went wrong with DCP in jobs of several ranks: see ranks.py for how it is run."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ranks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import pccheck
from pccheck.dcp import StorageReader, StorageWriter

FILES = "run/"


def sharded(world: int, values: torch.Tensor, dimension: int = 0) -> DTensor:
    """No rank talks to another for it, as saves in the background do."""
    mesh = init_device_mesh("cpu", (world,))
    return distribute_tensor(values, mesh, [Shard(dimension)], src_data_rank=None)


def refused(call: Callable[[], object], *texts: str) -> None:
    """The call ends on this rank, soon, with an error that says all of this."""
    began = time.monotonic()
    try:
        call()
    except (CheckpointException, pccheck.CheckpointError) as error:
        for text in texts:
            assert text in str(error), f"{text!r} is not in {error}"
    else:
        raise AssertionError(f"no error said {texts}")
    assert time.monotonic() - began < 30, "the other ranks were waited for"


def save(step: int, state: dict[str, Any], directory: str, **options: Any) -> None:
    with StorageWriter(os.path.join(directory, FILES), **options) as writer:
        dcp.save(state, checkpoint_id=step, storage_writer=writer)


# -- names


def names(rank: int, world: int, directory: str) -> None:
    """A sharded tensor beside ones that are called as its shards are stored."""
    whole = torch.arange(8.0)

    def state(factor: float) -> dict[str, Any]:
        others = {f"w[{place}]": torch.full((4,), 10.0 + place) for place in (0, 4)}
        objects = {"w[2]": ("an", "object")}
        return {"w": sharded(world, whole * factor), **others, **objects}

    save(1, state(1), directory)
    found = state(0)
    found["w[0]"].zero_()
    found["w[4]"].zero_()
    dcp.load(found, storage_reader=StorageReader(os.path.join(directory, FILES)))
    assert torch.equal(found["w"].full_tensor(), whole), found["w"]
    assert found["w[0]"].tolist() == [10.0] * 4 and found["w[4]"].tolist() == [14.0] * 4
    assert found["w[2]"] == ("an", "object")


# -- one rank fails


def one_rank_cannot_read(rank: int, world: int, directory: str) -> None:
    """A rank that finds no files: all ranks hear of it, and of which it was."""
    save(1, {"w": sharded(world, torch.arange(8.0))}, directory)
    for culprit in range(world):
        place = os.path.join(directory, "nowhere") if rank == culprit else directory
        state = {"w": sharded(world, torch.zeros(8))}
        reader = StorageReader(os.path.join(place, FILES))
        refused(
            lambda state=state, reader=reader: dcp.load(state, storage_reader=reader),
            f"(RANK {culprit})", "nowhere",
        )  # fmt: skip
        dist.barrier()


def one_rank_sees_damage(rank: int, world: int, directory: str) -> None:
    """A rank whose copy of a file is damaged: all ranks take the older step, or none does."""
    count = (1 << 20) + (1 << 16)  # more than a chunk in each file
    with StorageWriter(os.path.join(directory, FILES), retain=2) as writer:
        for step in (1, 2):
            torch.manual_seed(step)
            values = torch.rand(count, dtype=torch.float64)
            dcp.save({"w": sharded(world, values)}, checkpoint_id=step, storage_writer=writer)
    dist.barrier()
    place = directory
    if rank == 1:
        place = os.path.join(directory, "copies")
        shutil.copytree(os.path.join(directory, FILES), os.path.join(place, FILES))
        damage(os.path.join(place, FILES, "rank-00001-of-00002.pcc"), values[-8:])
    dist.barrier()
    for verify in (True, False):
        state = {"w": sharded(world, torch.zeros(count, dtype=torch.float64))}
        reader = StorageReader(os.path.join(place, FILES), verify=verify)
        if verify:
            dcp.load(state, storage_reader=reader)
            torch.manual_seed(1)
            expected = torch.rand(count, dtype=torch.float64)
            assert reader.step == 1 and torch.equal(state["w"].full_tensor(), expected)
        else:
            refused(
                lambda state=state, reader=reader: dcp.load(state, storage_reader=reader),
                "(RANK 1)", "step 2 cannot be loaded", "an older checkpoint_id",
            )  # fmt: skip
        dist.barrier()


def damage(path: str, value: torch.Tensor) -> None:
    """Changes a bit where the value is stored."""
    with open(path, "r+b") as file:
        content = file.read()
        places = content.count(value.numpy().tobytes())
        assert places == 1, places
        place = content.find(value.numpy().tobytes())
        file.seek(place)
        file.write(bytes([content[place] ^ 1]))


def one_rank_is_given_another_step(rank: int, world: int, directory: str) -> None:
    """Saves and loads of which the ranks have different ideas."""
    with StorageWriter(os.path.join(directory, FILES), retain=2) as writer:
        for step in (1, 2):
            state = {"w": sharded(world, torch.full((8,), float(step)))}
            dcp.save(state, checkpoint_id=step, storage_writer=writer)

        def save_differently() -> None:
            dcp.save(state, checkpoint_id=3 + rank, storage_writer=writer)

        refused(save_differently, "rank 1 saves step 4", "one checkpoint_id")
        refused(
            lambda: dcp.save(
                state, checkpoint_id="best" if rank else 3, storage_writer=writer
            ),
            "(RANK 1)", "'best'",
        )  # fmt: skip
    dist.barrier()
    reader = StorageReader(os.path.join(directory, FILES))
    refused(
        lambda: dcp.load(state, checkpoint_id=1 + rank, storage_reader=reader),
        "rank 1 finds step 2",
    )
    refused(
        lambda: dcp.load(state, checkpoint_id="best" if rank else 1, storage_reader=reader),
        "(RANK 1)", "'best'",
    )  # fmt: skip


def filled(world: int, value: float) -> dict[str, Any]:
    return {"w": sharded(world, torch.full((8,), value))}


def loaded(world: int, path: str, step: int | None = None) -> tuple[int | None, float]:
    """The step that all ranks load, and what it holds."""
    state, reader = filled(world, 0.0), StorageReader(path)
    dcp.load(state, checkpoint_id=step, storage_reader=reader)
    values = set(state["w"].full_tensor().tolist())
    assert len(values) == 1, values
    return reader.step, values.pop()


def two_attempts(rank: int, world: int, directory: str) -> None:
    """A step that two attempts hold is that of the newer one; a mixture is never loaded."""
    path = os.path.join(directory, FILES)
    own = os.path.join(path, f"rank-0000{rank}-of-00002.pcc")
    with StorageWriter(path, retain=3) as writer:
        for step in (1, 2, 3):
            dcp.save(filled(world, step), checkpoint_id=step, storage_writer=writer)
    dist.barrier()
    shutil.copy(own, os.path.join(directory, f"kept{rank}"))
    assert loaded(world, path) == (3, 3.0) and loaded(world, path, 2) == (2, 2.0)
    dist.barrier()
    with StorageWriter(path, retain=3) as writer:
        dcp.save(filled(world, 12), checkpoint_id=2, storage_writer=writer)
        assert loaded(world, path) == (2, 12.0) and loaded(world, path, 2) == (2, 12.0)
        # It would be lost behind step 2.
        refused(
            lambda: dcp.save(filled(world, 22), checkpoint_id=2, storage_writer=writer),
            "step 2 is not above step 2", "writer.checkpointer.rewind()",
        )  # fmt: skip
        writer.checkpointer.rewind(1)
        dcp.save(filled(world, 22), checkpoint_id=2, storage_writer=writer)
    dist.barrier()
    assert loaded(world, path) == (2, 22.0) and loaded(world, path, 2) == (2, 22.0)
    dist.barrier()
    # An old copy of one file has no part of the newest attempts.
    if rank == 0:
        shutil.copy(os.path.join(directory, "kept0"), own)
    dist.barrier()
    step, value = loaded(world, path)
    assert step == value
    dist.barrier()
    # With both of them, it is as it was.
    if rank == 1:
        shutil.copy(os.path.join(directory, "kept1"), own)
    dist.barrier()
    assert loaded(world, path) == (3, 3.0)


# -- one rank fails in a save


class Failing(dcp.DefaultSavePlanner):
    """A planner that fails on one rank, at the place that the test names."""

    def __init__(self, place: str | None, **options: Any) -> None:
        super().__init__(**options)
        self.place = place

    def fail(self, place: str) -> None:
        if place == self.place:
            raise ValueError(f"on purpose in {place}")

    def create_local_plan(self) -> Any:
        self.fail("create_local_plan")
        return super().create_local_plan()

    def finish_plan(self, new_plan: Any) -> Any:
        self.fail("finish_plan")
        return super().finish_plan(new_plan)

    def resolve_data(self, write_item: Any) -> Any:
        self.fail("resolve_data")
        return super().resolve_data(write_item)


def one_rank_fails(rank: int, world: int, directory: str) -> None:
    """Three saves in a row fail on a rank, wherever: the last good one stays, on all of them."""
    path = os.path.join(directory, FILES)
    with StorageWriter(path, in_flight=2, retain=1) as writer:

        def save(step: int, place: str | None = None, **options: Any) -> None:
            planner = Failing(place if rank == 1 else None, **options)
            dcp.save(
                filled(world, step), checkpoint_id=step, storage_writer=writer, planner=planner
            )

        save(1)
        for step in (2, 3, 4):
            refused(lambda step=step: save(step, "resolve_data"), "(RANK 1)", "in resolve_data")
            assert loaded(world, path) == (1, 1.0)
            dist.barrier()
        save(5)
        for step, place in ((6, "create_local_plan"), (7, "finish_plan")):
            refused(
                lambda step=step, place=place: save(step, place), "(RANK 1)", f"in {place}"
            )
            assert loaded(world, path) == (5, 5.0)
            dist.barrier()
        # One rank has step 7 already: together with what the other saves now it would be no
        # checkpoint.
        refused(lambda: save(7), "step 7 is not above step 7")
        assert loaded(world, path) == (5, 5.0)
        dist.barrier()
        save(8)
        assert loaded(world, path) == (8, 8.0)
        stats = writer.checkpointer.stats()["group"]
        assert (stats["void_count"], stats["undecided_count"]) == (5, 0), stats
        dist.barrier()
        # A plan that a planner has kept brings no word of the saves of others.
        for step in (9, 10):
            save(step, enable_plan_caching=True)
        refused(lambda: save(11, "finish_plan", enable_plan_caching=True), "in finish_plan")
        refused(lambda: save(11, enable_plan_caching=True), "step 11 is not above step 11")
        assert loaded(world, path) == (10, 10.0)
        dist.barrier()
    assert loaded(world, path) == (10, 10.0)
    dist.barrier()
    # Before the first save of a job the ranks meet, and one that does not come is named.
    with StorageWriter(path, retain=1, timeout=3) as writer:
        refused(lambda: save(12, "finish_plan"), "(RANK 1)", "rank 1 of 2 did not arrive in 3 s")


LARGE = 1 << 23


class Dying(dcp.DefaultSavePlanner):
    """Its process dies while the tensors are written."""

    def resolve_data(self, write_item: Any) -> Any:
        threading.Timer(0.004, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return super().resolve_data(write_item)


def kill(rank: int, world: int, directory: str) -> None:
    """A rank dies while it saves step 2, and the other one ends with an error."""
    path = os.path.join(directory, FILES)
    with StorageWriter(path) as writer:
        for step in (1, 2):
            state = {"w": sharded(world, torch.full((LARGE,), float(step)))}
            planner = Dying() if (rank, step) == (1, 2) else None
            dcp.save(state, checkpoint_id=step, storage_writer=writer, planner=planner)
        time.sleep(60)


def after_the_kill(rank: int, world: int, directory: str) -> None:
    """All ranks load one step, and go on."""
    path = os.path.join(directory, FILES)
    values, reader = sharded(world, torch.zeros(LARGE)), StorageReader(path)
    dcp.load({"w": values}, storage_reader=reader)
    found = set(values.full_tensor().tolist())
    steps: list[Any] = [None] * world
    dist.all_gather_object(steps, reader.step)
    assert len(set(steps)) == 1 and found == {float(steps[0])}
    # Another run of this task had gone on from step 1 or 2.
    assert steps[0] in ((1, 2) if world > 1 else (2, 3))
    step = steps[0] + 1
    with StorageWriter(path) as writer:
        dcp.save({"w": values.fill_(step)}, checkpoint_id=step, storage_writer=writer)
    dcp.load({"w": values}, storage_reader=reader)
    assert reader.step == step and bool((values.full_tensor() == step).all())


# -- parts of a job


def groups(rank: int, world: int, directory: str) -> None:
    """Saves by some of the ranks: what the writer knows of works, the rest is refused."""
    members = [1, 2]
    group = dist.new_group(members)
    mesh = init_device_mesh("cpu", (world,))
    values = torch.arange(12.0)
    if rank in members:
        state = {"w": values.clone(), "rank": 7, "own": torch.full((2,), 1.5)}
        plain = StorageWriter(os.path.join(directory, "plain/"))
        refused(
            lambda: dcp.save(state, checkpoint_id=1, storage_writer=plain, process_group=group),
            "process_group",
        )
        path = os.path.join(directory, "group/")
        with StorageWriter(path, process_group=group) as writer:
            dcp.save(state, checkpoint_id=1, storage_writer=writer, process_group=group)
        # What only all ranks together hold is no checkpoint of two of them.
        shards = {"w": distribute_tensor(values, mesh, [Shard(0)], src_data_rank=None)}
        with StorageWriter(path, process_group=group) as writer:
            refused(
                lambda: dcp.save(shards, checkpoint_id=2, storage_writer=writer,
                                 process_group=group),
                "key:w",
            )  # fmt: skip
    else:
        shards = {"w": distribute_tensor(values, mesh, [Shard(0)], src_data_rank=None)}
        try:
            StorageWriter(os.path.join(directory, "group/"), process_group=group)
        except (pccheck.InvalidArgument, ValueError) as error:
            assert "group" in str(error)
        else:
            raise AssertionError("a process outside of the group got a writer")
    dist.barrier()
    # The files are a whole checkpoint, for any number of ranks.
    found = {"w": torch.zeros(12), "rank": 0, "own": torch.zeros(2)}
    reader = StorageReader(os.path.join(directory, "group/"))
    dcp.load(found, storage_reader=reader)
    assert torch.equal(found["w"], values) and found["rank"] == 7 and found["own"][1] == 1.5
    assert not os.listdir(os.path.join(directory, "plain/"))


def alone(rank: int, world: int, directory: str) -> None:
    """Saves and loads without the other ranks."""
    state = {"own": torch.full((3,), float(rank)), "rank": rank}
    writer = StorageWriter(os.path.join(directory, FILES))
    refused(
        lambda: dcp.save(state, checkpoint_id=1, storage_writer=writer, no_dist=True), "no_dist"
    )
    path = os.path.join(directory, f"own{rank}/")
    with StorageWriter(path, no_dist=True) as own:
        dcp.save(state, checkpoint_id=1, storage_writer=own, no_dist=True)
        shards = {"w": sharded(world, torch.arange(8.0))}
        refused(
            lambda: dcp.save(shards, checkpoint_id=2, storage_writer=own, no_dist=True), "'w'"
        )
        refused(
            lambda: dcp.save(
                shards, checkpoint_id=3, storage_writer=own, use_collectives=False
            ),
            "use_collectives",
        )
    found = {"own": torch.zeros(3), "rank": -1}
    dcp.load(found, storage_reader=StorageReader(path), no_dist=True)
    assert found["rank"] == rank and found["own"].tolist() == [float(rank)] * 3
    dist.barrier()
    # What all ranks saved is read by one of them, while the others are elsewhere.
    save(1, {"w": sharded(world, torch.arange(8.0))}, directory)
    dist.barrier()
    if rank == world - 1:
        whole = {"w": torch.zeros(8)}
        reader = StorageReader(os.path.join(directory, FILES))
        dcp.load(whole, storage_reader=reader, no_dist=True)
        assert whole["w"].tolist() == list(range(8))
        # One file is a part of it, and is not taken for all.
        alone = StorageReader(os.path.join(directory, FILES, "rank-00000-of-00002.pcc"))
        refused(
            lambda: dcp.load(whole, storage_reader=alone, no_dist=True),
            f"one of {world} processes",
        )


# -- in the background


def in_a_process(rank: int, world: int, directory: str) -> None:
    """Saves in another process, several times, and after a save in this one."""
    mesh = init_device_mesh("cpu", (world,))
    writer = StorageWriter(os.path.join(directory, FILES), retain=2)

    def start(step: int) -> Any:
        state = {"w": sharded(world, torch.full((8,), float(step))), "note": {"step": step}}
        return dcp.async_save(
            state, checkpoint_id=step, storage_writer=writer,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        )  # fmt: skip

    for step in (1, 2, 3):
        start(step).result(timeout=100)
        dist.barrier()
        state = {"w": distribute_tensor(torch.zeros(8), mesh, [Replicate()]), "note": {"step": 0}}
        reader = StorageReader(os.path.join(directory, FILES))
        dcp.load(state, storage_reader=reader)
        assert reader.step == step and state["note"]["step"] == step
        assert state["w"].to_local().tolist() == [float(step)] * 8
        dist.barrier()
    with StorageWriter(os.path.join(directory, "here/")) as writer:  # noqa: F811
        dcp.save({"w": torch.zeros(2)}, checkpoint_id=1, storage_writer=writer)
        refused(lambda: start(2).result(timeout=100), "is open in this process", "THREAD")


def at_the_same_time(rank: int, world: int, directory: str) -> None:
    """Saves that overlap: each holds its own content."""
    path = os.path.join(directory, FILES)
    with StorageWriter(path, in_flight=2, retain=4) as writer:
        states = {
            step: {"w": sharded(world, torch.full((1 << 16,), float(step)))} for step in (1, 2, 3)
        }
        futures = {}
        for step, state in states.items():
            futures[step] = dcp.async_save(state, checkpoint_id=step, storage_writer=writer)
        for future in futures.values():
            future.result(timeout=100)
    dist.barrier()
    for step in futures:
        state = {"w": sharded(world, torch.zeros(1 << 16))}
        dcp.load(state, checkpoint_id=step, storage_reader=StorageReader(path))
        assert bool((state["w"].full_tensor() == step).all())
        dist.barrier()


def in_folder(task: ranks.Task) -> ranks.Task:
    """The task, in a folder of its own."""

    def run(rank: int, world: int, directory: str) -> None:
        folder = os.path.join(directory, task.__name__.removeprefix("after_the_"))
        os.makedirs(folder, exist_ok=True)
        task(rank, world, folder)

    return run


if __name__ == "__main__":
    ranks.main(
        {
            task.__name__: in_folder(task)
            for task in (
                names, one_rank_cannot_read, one_rank_sees_damage, one_rank_is_given_another_step,
                two_attempts, one_rank_fails, kill, after_the_kill, groups, alone,
                in_a_process, at_the_same_time,
            )
        }
    )  # fmt: skip
