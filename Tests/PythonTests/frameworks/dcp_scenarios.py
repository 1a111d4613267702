"""What PyTorch tests its own storage of DCP with, as scenarios for any storage: see ranks.py."""

from __future__ import annotations

import io
from typing import Any

import ranks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from dcp_storages import Storage, failing, failures_of, storage_of
from torch import nn
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import (
    ChunkShardingSpec,
    EnumerableShardingSpec,
    ShardMetadata,
)
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

WHOLE = torch.arange(7 * 10, dtype=torch.float32).view(7, 10)


# -- placements


def placed(mesh: Any, placements: list[Any], values: torch.Tensor) -> DTensor:
    return distribute_tensor(values.clone(), mesh, placements)


def placements_1d(rank: int, world: int, directory: str) -> None:
    """Every placement into every other, with rows that do not divide evenly."""
    storage, mesh = storage_of(directory), init_device_mesh("cpu", (world,))
    choices = [[Replicate()], [Shard(0)], [Shard(1)]]
    for step, saved in enumerate(choices):
        storage.save({"t": placed(mesh, saved, WHOLE)}, step)
        for live in choices:
            state = {"t": placed(mesh, live, torch.zeros_like(WHOLE))}
            storage.load(state, step)
            assert torch.equal(state["t"].full_tensor(), WHOLE), (saved, live)
    storage.close()


def placements_2d(rank: int, world: int, directory: str) -> None:
    """Meshes of two dimensions into each other, and into one."""
    storage = storage_of(directory)
    flat, mesh = init_device_mesh("cpu", (world,)), init_device_mesh("cpu", (2, world // 2))
    kinds = [Replicate(), Shard(0), Shard(1)]
    choices = [(mesh, [one, other]) for one in kinds for other in kinds]
    choices += [(flat, [kind]) for kind in kinds]
    for step, (saved_mesh, saved) in enumerate(choices):
        storage.save({"t": placed(saved_mesh, saved, WHOLE)}, step)
        for live_mesh, live in choices:
            state = {"t": placed(live_mesh, live, torch.zeros_like(WHOLE))}
            storage.load(state, step)
            assert torch.equal(state["t"].full_tensor(), WHOLE), (saved, live)
    storage.close()


def save_shards(rank: int, world: int, directory: str) -> None:
    """For other numbers of ranks."""
    storage, mesh = storage_of(directory), init_device_mesh("cpu", (world,))
    storage.save(
        {
            "rows": placed(mesh, [Shard(0)], WHOLE), "few": placed(mesh, [Shard(0)], WHOLE[:1]),
            "columns": placed(mesh, [Shard(1)], WHOLE), "same": placed(mesh, [Replicate()], WHOLE),
            "plain": WHOLE.clone(), "scalar": torch.tensor(3.5), "note": {"world": [world, "a"]},
        },
        0,
    )  # fmt: skip
    storage.close()


def load_shards(rank: int, world: int, directory: str) -> None:
    """Takes over what any number of ranks saved, in another placement."""
    storage, mesh = storage_of(directory), init_device_mesh("cpu", (world,))
    zeros = torch.zeros_like(WHOLE)
    state: dict[str, Any] = {
        "rows": placed(mesh, [Shard(1)], zeros), "few": placed(mesh, [Shard(1)], zeros[:1]),
        "columns": placed(mesh, [Shard(1)], zeros), "same": placed(mesh, [Shard(0)], zeros),
        "plain": zeros.clone(), "scalar": torch.tensor(0.0), "note": {"world": [0, ""]},
    }  # fmt: skip
    storage.load(state, 0)
    for key in ("rows", "columns", "same"):
        assert torch.equal(state[key].full_tensor(), WHOLE), key
    assert torch.equal(state["few"].full_tensor(), WHOLE[:1])
    assert torch.equal(state["plain"], WHOLE) and state["scalar"] == 3.5
    assert state["note"]["world"][1] == "a"
    check_metadata(storage)


def check_metadata(storage: Storage) -> None:
    """What a reader says of a checkpoint, as DCP's planners see it."""
    metadata = storage.reader(0).read_metadata()
    for fqn in ("rows", "columns", "same", "plain"):
        tensor = metadata.state_dict_metadata[fqn]
        assert isinstance(tensor, TensorStorageMetadata)
        assert tensor.size == WHOLE.shape and tensor.properties.dtype == torch.float32
        held = torch.zeros(WHOLE.shape, dtype=torch.int64)
        for chunk in tensor.chunks:
            ends = [start + size for start, size in zip(chunk.offsets, chunk.sizes, strict=True)]
            held[chunk.offsets[0] : ends[0], chunk.offsets[1] : ends[1]] += 1
        assert bool((held == 1).all()), fqn
    assert metadata.planner_data["note.world"] == ("note", "world")


def sharded_tensors(rank: int, world: int, directory: str) -> None:
    """Tensors of the sharding before DTensor, several shards on a rank among them."""
    storage = storage_of(directory)
    blocks = [(0, 2, 0), (2, 1, 1), (3, 3, 0), (6, 3, 1), (9, 1, 0)]
    specs = [
        ChunkShardingSpec(dim=0, placements=["rank:0", "rank:1"]),
        ChunkShardingSpec(dim=0, placements=["rank:0", "rank:1", "rank:1", "rank:0"]),
        ChunkShardingSpec(dim=1, placements=["rank:1", "rank:0"]),
        EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_offsets=[start, 0], shard_sizes=[count, 20], placement=f"rank:{owner}"
                )
                for start, count, owner in blocks
            ]
        ),
    ]
    for step, saved in enumerate(specs):
        before = sharded_tensor.rand(saved, 10, 20)
        storage.save({"t": before}, step)
        for live in specs:
            after = sharded_tensor.zeros(live, 10, 20)
            storage.load({"t": after}, step)
            wholes = [torch.zeros(10, 20) if rank == 0 else None for _ in range(2)]
            before.gather(out=wholes[0])
            after.gather(out=wholes[1])
            assert rank or torch.equal(wholes[0], wholes[1]), (saved, live)
    storage.close()


def parts_of_a_mesh(rank: int, world: int, directory: str) -> None:
    """Stages of a pipeline: each half of the ranks has tensors of its own, and keys."""
    storage = storage_of(directory)
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("stage", "shard"))
    stage, shards = mesh.get_coordinate()[0], mesh["shard"]
    values = WHOLE + stage
    own = f"stage{stage}"
    storage.save({own: placed(shards, [Shard(0)], values), f"{own}.n": stage, "all": WHOLE}, 0)
    state = {
        own: placed(shards, [Shard(1)], torch.zeros_like(WHOLE)), f"{own}.n": -1,
        "all": torch.zeros_like(WHOLE),
    }  # fmt: skip
    storage.load(state, 0)
    assert torch.equal(state[own].full_tensor(), values) and state[f"{own}.n"] == stage
    assert torch.equal(state["all"], WHOLE)
    storage.close()


# -- models


class Run:
    """A model in one of the ways to spread it, and its optimizer."""

    def __init__(self, way: str, world: int, seed: int) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
        if way == "fsdp":
            fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        elif way == "hsdp":
            names = ("replicate", "shard")
            mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=names)
            fully_shard(model, mesh=mesh)
        elif way in ("tp", "fsdp+tp"):
            shape = (1, world) if way == "tp" else (2, world // 2)
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(model, mesh["tp"], plan)
            if way == "fsdp+tp":
                fully_shard(model, mesh=mesh["dp"])
        elif way == "ddp":
            model = DistributedDataParallel(model)
        self.model = model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.step()

    def step(self) -> None:
        torch.manual_seed(9)
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 6)).square().mean().backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def take(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )  # fmt: skip

    def whole(self) -> dict[str, torch.Tensor]:
        state = self.state()
        optimizer = {
            f"{name}.{key}": value
            for name, values in state["optimizer"]["state"].items()
            for key, value in values.items()
        }
        return {
            key: value.full_tensor() if isinstance(value, DTensor) else value.clone()
            for key, value in {**state["model"], **optimizer}.items()
        }


WAYS = ("fsdp", "hsdp", "tp", "fsdp+tp", "ddp")


def models(rank: int, world: int, directory: str) -> None:
    """Every way to spread a model over four ranks, into every other, and trained on."""
    storage = storage_of(directory, retain=5)
    wholes, after = {}, {}
    for step, way in enumerate(WAYS):
        run = Run(way, world, seed=step)
        storage.save(run.state(), step)
        wholes[way] = run.whole()
    for step, saved in enumerate(WAYS):
        for way in WAYS:
            run = Run(way, world, seed=99)
            state = run.state()
            storage.load(state, step)
            run.take(state)
            found = run.whole()
            assert found.keys() == wholes[saved].keys()
            for key, value in wholes[saved].items():
                assert torch.equal(found[key], value), (saved, way, key)
            if way == saved:
                run.step()
                after[way] = run.whole()
    for step, way in enumerate(WAYS):
        # A run that was never interrupted comes to the same.
        run = Run(way, world, seed=step)
        run.step()
        for key, value in run.whole().items():
            assert torch.equal(after[way][key], value), (way, key)
    storage.close()


def model_alone(rank: int, world: int, directory: str) -> None:
    """What four ranks saved, as one process reads it, whole or in part."""
    storage = storage_of(directory)
    run = Run("none", world, seed=99)
    state = run.state()
    storage.load(state, 0)
    assert world == 1
    run.take(state)
    options: dict[str, Any] = {"storage_reader": storage.reader(0)}
    part = _load_state_dict_from_keys("model", **options)["model"]
    for key, value in run.whole().items():
        assert key not in part or torch.equal(part[key], value)
    assert part.keys() == run.model.state_dict().keys()
    states = _load_state_dict_from_keys("optimizer.state", **options)["optimizer"]
    assert "param_groups" not in states and states["state"]


def replicas(rank: int, world: int, directory: str) -> None:
    """What all ranks have is stored once, on which rank the planner says."""
    storage = storage_of(directory)
    state = {f"layer{number}": WHOLE + number for number in range(6)}
    for step, planner in enumerate(
        [dcp.DefaultSavePlanner(), dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)]
    ):
        metadata = storage.save(state, step, planner=planner)
        assert all(len(m.chunks) == 1 for m in metadata.state_dict_metadata.values())
        found = {key: torch.zeros_like(value) for key, value in state.items()}
        storage.load(found, step)
        assert all(torch.equal(found[key], value) for key, value in state.items())
    storage.close()


def orders(rank: int, world: int, directory: str) -> None:
    """Keys in another order on every rank, objects with a state among them."""

    class Kept:
        def __init__(self, value: int) -> None:
            self.value = value

        def state_dict(self) -> dict[str, Any]:
            # A collective, as a sharded model has one: an order of its own would wait for ever.
            dist.barrier()
            return {"value": torch.tensor(self.value)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            dist.barrier()
            self.value = int(state["value"])

    names = ["b", "c", "a"]
    names = names[rank % 3 :] + names[: rank % 3]
    storage = storage_of(directory)
    storage.save({name: torch.full((3,), float(ord(name))) for name in names}, 0)
    found = {name: torch.zeros(3) for name in reversed(names)}
    storage.load(found, 0)
    assert all(found[name][0] == ord(name) for name in names)
    storage.save({"one": Kept(1), "two": Kept(2)}, 1)
    kept = {"two": Kept(0), "one": Kept(0)} if rank else {"one": Kept(0), "two": Kept(0)}
    storage.load(kept, 1)
    assert (kept["one"].value, kept["two"].value) == (1, 2)
    storage.close()


# -- planners


def cached_plans(rank: int, world: int, directory: str) -> None:
    """Plans that are kept from one save to the next, and change on one rank."""
    storage, mesh = storage_of(directory, retain=4), init_device_mesh("cpu", (world,))
    for step in range(4):
        state: dict[str, Any] = {"t": placed(mesh, [Shard(0)], WHOLE + step), "n": step}
        if step >= 2:
            state[f"own{rank}"] = torch.full((2,), float(step))
        if step == 3:
            state["more"] = WHOLE * step
        storage.save(state, step, planner=dcp.DefaultSavePlanner(enable_plan_caching=True))
        found: dict[str, Any] = {"t": placed(mesh, [Shard(1)], WHOLE * 0), "n": -1}
        found |= {key: torch.zeros_like(state[key]) for key in state if key not in found}
        storage.load(found, step)
        assert torch.equal(found["t"].full_tensor(), WHOLE + step) and found["n"] == step
        assert all(torch.equal(found[key], state[key]) for key in state if key not in "tn")
    storage.close()


# -- failures

ERROR = ValueError


def saves_that_fail(rank: int, world: int, directory: str) -> None:
    """A failure of any rank at any point of a save reaches all, with its rank."""
    storage, mesh = storage_of(directory), init_device_mesh("cpu", (world,))
    state = {"t": placed(mesh, [Shard(0)], WHOLE), "plain": WHOLE.clone(), "bytes": [1, 2]}
    writer_class, _ = storage.classes()
    cases = [
        ("set_up_storage_writer", [0]), ("set_up_storage_writer", [1, world - 1]),
        ("prepare_local_plan", [0]), ("prepare_local_plan", [world - 1]),
        ("prepare_global_plan", [0]), ("write_data", [1]), ("write_data", [0, world - 1]),
        ("finish", [0]),
    ]  # fmt: skip
    for step, (method, culprits) in enumerate(cases):
        kind = failing(writer_class, method, rank in culprits, lambda: ERROR("on purpose"))
        writer = storage.writer(step, kind)
        if storage.kind == "ours" and method == "write_data":
            # The ranks of a group meet in the first one, where each of them is waited for.
            writer.is_armed = False
            storage.save(state, 2 * step, writer)
            writer.is_armed = True
        step = 2 * step + 1
        failures = failures_of(lambda writer=writer, step=step: storage.save(state, step, writer))
        assert list(failures) == culprits and all(type(e) is ERROR for e in failures.values())
        if storage.kind == "ours":
            writer.close()
        dist.barrier()
    # The same files take the next save.
    storage.save(state, 99)
    found = {"t": placed(mesh, [Shard(1)], WHOLE * 0), "plain": WHOLE * 0, "bytes": [0, 0]}
    storage.load(found, 99)
    assert torch.equal(found["t"].full_tensor(), WHOLE) and found["bytes"] == [1, 2]
    storage.close()


def loads_that_fail(rank: int, world: int, directory: str) -> None:
    """The same of a load."""
    storage, mesh = storage_of(directory), init_device_mesh("cpu", (world,))
    state = {"t": placed(mesh, [Shard(0)], WHOLE), "plain": WHOLE.clone(), "bytes": [1, 2]}
    storage.save(state, 0)
    _, reader_class = storage.classes()
    cases = [
        ("read_metadata", [0]), ("read_metadata", [world - 1]), ("set_up_storage_reader", [1]),
        ("prepare_local_plan", [1]), ("prepare_global_plan", [0]), ("read_data", [world - 1]),
        ("read_data", [0]),
    ]  # fmt: skip
    for method, culprits in cases:
        kind = failing(reader_class, method, rank in culprits, lambda: ERROR("on purpose"))
        reader = storage.reader(0, kind)
        failures = failures_of(lambda reader=reader: storage.load(state, 0, reader))
        assert list(failures) == culprits, (method, failures)
        assert all("on purpose" in str(error) for error in failures.values())
    storage.load(state, 0)
    for wrong, text in (({"other": WHOLE}, "Missing key"), ({"plain": WHOLE[:1]}, "Size")):
        if rank == 1:
            failures = failures_of(lambda wrong=wrong: storage.load(dict(wrong), 0))
        else:
            failures = failures_of(lambda: storage.load({"plain": WHOLE.clone()}, 0))
        assert list(failures) == [1] and text in str(failures[1])
    storage.close()


# -- in the background


def in_background(kind: AsyncCheckpointerType, world: int, directory: str) -> None:
    """Saves while the live state goes on changing."""
    storage, mesh = storage_of(directory), init_device_mesh("cpu", (world,))
    for step in range(3):
        live = placed(mesh, [Shard(0)], WHOLE + step)
        stream = io.BytesIO(b"bytes %d" % step)
        future = storage.start(
            {"t": live, "n": {"step": step}, "stream": stream}, step, async_checkpointer_type=kind
        )
        live.to_local().zero_()
        metadata = future.result(timeout=100)
        assert metadata.state_dict_metadata["t"].size == WHOLE.shape
        dist.barrier()
        found = {"t": placed(mesh, [Shard(1)], WHOLE * 0), "n": {"step": -1}, "stream": None}
        storage.load(found, step)
        assert torch.equal(found["t"].full_tensor(), WHOLE + step) and found["n"]["step"] == step
        assert found["stream"].getvalue() == stream.getvalue()
        dist.barrier()
    storage.close()


def background_thread(rank: int, world: int, directory: str) -> None:
    """In a thread of the same process."""
    in_background(AsyncCheckpointerType.THREAD, world, directory)


def background_process(rank: int, world: int, directory: str) -> None:
    """In a process that each rank starts for it."""
    in_background(AsyncCheckpointerType.PROCESS, world, directory)


def whole_state(rank: int, world: int, directory: str) -> None:
    """A state that is made from the metadata alone."""
    storage, mesh = storage_of(directory), init_device_mesh("cpu", (world,))
    storage.save({"a": {"b": [placed(mesh, [Shard(0)], WHOLE), 7]}, "c": torch.tensor(1)}, 0)
    found: dict[str, Any] = {}
    storage.load(found, 0, planner=_EmptyStateDictLoadPlanner())
    found = {}
    dcp.state_dict_loader._load_state_dict(
        found, storage.reader(0), planner=_EmptyStateDictLoadPlanner()
    )
    assert torch.equal(found["a"]["b"][0], WHOLE) and found["a"]["b"][1] == 7 and found["c"] == 1
    storage.close()


if __name__ == "__main__":
    ranks.main(
        {
            task.__name__: task
            for task in (
                placements_1d, placements_2d, save_shards, load_shards, sharded_tensors,
                parts_of_a_mesh, models, model_alone, replicas, orders, cached_plans,
                saves_that_fail, loads_that_fail, background_thread, background_process,
                whole_state,
            )
        }
    )  # fmt: skip
