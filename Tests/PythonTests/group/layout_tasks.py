"""More that the ranks of ``layout_child.py`` do: what is refused, told and stored."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
import torch.distributed as dist
from layout_child import RankFile, Run, assembled, full, path_of, resume, world_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pccheck
import pccheck.torch
from pccheck._core.reader import Reader
from pccheck._group.claims import compare
from pccheck._state.request import Loading
from pccheck._group.assembled import load_assembled
from pccheck._torch.loading.assembled import AssembledMemory


def raised(kind: type[Exception], function: Any, *arguments: Any, **options: Any) -> Any:
    try:
        function(*arguments, **options)
    except kind as error:
        return error
    raise AssertionError("nothing was refused")


def refusals(rank: int, world: int, directory: str) -> None:
    """One process with the files of four, or with some of them."""
    run = Run("plain", rank, world, 2)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    error = raised(pccheck.IncompleteShards, resume, directory, run.parts, None, ranks=[0, 1, 3])
    assert error.ranks == [2] and "the file of rank 2" in str(error), error
    assert "' lacks [" in str(error) and "those of ranks 0 to 3" in str(error), error
    for key, value in run.model.state_dict().items():
        assert torch.equal(value, before[key]), "nothing was to be changed"
    # Only what was asked for has to be there.
    resume(directory, {"scheduler": run.scheduler}, None, ranks=[0, 1])
    # Another shape: nothing is read.
    other = nn.Linear(3, 3)
    error = raised(pccheck.StateMismatch, resume, directory, {"model": other}, None)
    assert "missing" in str(error), error
    damage(directory)


def damage(directory: str) -> None:
    """A damaged file is named by its rank."""
    path = path_of(directory, 3)
    value = pccheck.torch.load_tensor(path, "model.module.embedding.weight")
    content = bytearray(open(path, "rb").read())
    needle = value.contiguous().numpy().tobytes()
    place, count = content.find(needle), 0
    while place >= 0:
        content[place] ^= 1
        place, count = content.find(needle, place), count + 1
    assert count
    open(path, "wb").write(content)
    run = Run("plain", 0, 1, 2)
    error = raised(pccheck.Corrupt, resume, directory, run.parts, None)
    assert error.rank == 3 and "rank3.pcc" in str(error), error


def own_parts(rank: int, world: int, directory: str) -> None:
    """What each rank stored for itself, on the same ranks and on others."""
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    loader = {"position": 10 * rank, "epoch": 2}
    generator = torch.Generator().manual_seed(rank)
    average = torch.arange(6000.0)
    parts: dict[str, Any] = {
        "model": model, "loader": loader, "epoch": {"number": 7}, "generator": [generator],
        "average": {"values": average}, "own": {"values": average.clone()},
        "differs": {"values": torch.full((5,), float(rank))},
    }  # fmt: skip
    path = path_of(directory, rank)
    with RankFile(path, rank, world, shared=("average",)) as checkpointer:
        checkpointer.save(1, **parts).wait()
        assert checkpointer.division is not None
        assert '"shared":["model","average"]' in checkpointer.division.metadata["pccheck.group"]
    dist.barrier()
    same = {
        "loader": {"position": -1, "epoch": 0}, "generator": [torch.Generator()],
        "differs": {"values": torch.zeros(5)},
    }  # fmt: skip
    resume(directory, same, rank)
    assert same["loader"] == loader and same["generator"][0].initial_seed() == rank
    assert torch.equal(same["differs"]["values"], torch.full((5,), float(rank)))
    # As a job of another number of ranks.
    even = {
        "epoch": {"number": 0}, "average": {"values": torch.zeros(6000)},
        "own": {"values": torch.zeros(6000)}, "generator": [torch.Generator().manual_seed(99)],
    }  # fmt: skip
    report = resume(directory, even, None).report
    assert even["epoch"] == {"number": 7}
    assert torch.equal(even["average"]["values"], average)  # type: ignore[index]
    assert torch.equal(even["own"]["values"], average)  # type: ignore[index]
    assert even["generator"][0].initial_seed() == 99  # type: ignore[index]
    assert report is not None
    assert [item.split(":")[0] for item in report.left_alone] == ["generator", "rng"], report
    state = {"loader": {"position": -1}, "epoch": {"number": 0}}
    error = raised(pccheck.StateMismatch, resume, directory, state, None)
    assert "loader: differs between rank 0 and rank 1, at loader.position" in str(error), error
    assert "declare the part as shared" in str(error) and state["epoch"] == {"number": 0}
    report = resume(directory, state, None, strict=False).report
    assert state == {"loader": {"position": -1}, "epoch": {"number": 7}}
    assert report is not None and len(report.ambiguous) == 1 and not report.missing
    state = {"differs": {"values": torch.zeros(5)}, "epoch": {"number": 0}}
    error = raised(pccheck.StateMismatch, resume, directory, state, None)
    assert "differs: differs between rank 0 and rank 1, at differs.values" in str(error), error


def share(rank: int, world: int, directory: str) -> None:
    """How evenly eight ranks of DDP store what they hold alike."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Embedding(5003, 96), *(nn.TransformerEncoderLayer(96, 4, 384) for _ in range(2)),
        nn.Linear(96, 5003),
    )  # fmt: skip
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with RankFile(path_of(directory, rank), rank, world) as checkpointer:
        checkpointer.save(1, rng=False, model=wrapped, optimizer=optimizer).wait()
        # Parameters and moments are read in place; what is stored whole and small is copied.
        assert checkpointer.stats()["copied_byte_count"] < 64 << 10
    with Reader(path_of(directory, rank)) as reader:
        reader.select_newest()
        manifest, _ = reader.manifest()
        metadata = manifest.pop("__metadata__")
        own = sum(end - start for start, end in (row["data_offsets"] for row in manifest.values()))
        size = os.path.getsize(path_of(directory, rank))
    counts: list[Any] = [None] * world
    dist.all_gather_object(counts, own)
    total = 3 * sum(item.nbytes for item in model.parameters())
    if rank == 0:
        print(f"bytes of each rank: {counts}; document: {len(metadata['pccheck.state'])}")
        assert max(counts) < 1.03 * total / world, (counts, total)
        assert min(counts) > 0.97 * total / world, (counts, total)
    # In flight two checkpoints, and one that is kept: no room for all that the others store.
    assert size < 4.5 * total / world + (12 << 20), (size, total)


def claims(rank: int, world: int, directory: str) -> None:
    """Replicas that differ, in values, shapes and settings."""

    def told(**parts: Any) -> str:
        path = os.path.join(directory, f"claims{rank}.pcc")
        shared = parts.pop("shared", [*({"average"} & parts.keys())])
        with RankFile(path, rank, world, shared=shared) as checkpointer:
            checkpointer.save(1, rng=False, **parts).wait()
            division = checkpointer.division
        os.unlink(path)
        assert division is not None
        found: list[Any] = [None] * world
        dist.all_gather_object(found, division.claims)
        return compare(dict(enumerate(found))) or ""

    torch.manual_seed(3)
    model = nn.parallel.DistributedDataParallel(nn.Linear(40, 40))
    assert told(model=model) == ""
    average = {"values": torch.ones(50), "count": 3}
    assert told(average=average) == ""
    with torch.no_grad():
        model.module.weight[7] += rank == 2
    text = told(model=model, average=average)
    assert "'model.module.weight' has other values on ranks 0, 1, 3 than on rank 2" in text, text
    assert "average" not in text and "bias" not in text
    average["count"] = 3 + (rank == 1)
    assert "'average.count' is 3 on ranks 0, 2, 3, 4 on rank 1" in told(average=average)
    average = {"values": torch.ones(50 + (rank == 0)), "count": 3}
    assert "float32 (51,) on rank 0, float32 (50,) on ranks 1 to 3" in told(average=average)
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if rank else 0.2)
    text = told(optimizer=optimizer, model=model)
    assert "'optimizer.param_groups' is" in text and "on ranks 1 to 3" in text, text
    # One name for the tensors of two groups of ranks that know nothing of each other.
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "dp"))
    torch.manual_seed(10 + rank // 2)
    stage = nn.Linear(4, 4)
    fully_shard(stage, mesh=mesh["dp"])
    assert told(model=stage, shared={"model": False}) == ""
    text = told(model=stage)
    assert "'model.weight[0:2, 0:4]' has other values on rank 0 than on rank 2" in text, text


def buffers(rank: int, world: int, directory: str) -> None:
    """Buffers of DDP are the first rank's; where it does not send them, each keeps its own."""
    for sends in (True, False):
        torch.manual_seed(1)
        model = nn.parallel.DistributedDataParallel(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), broadcast_buffers=sends
        )
        torch.manual_seed(rank)
        model(torch.randn(5, 4)).sum().backward()
        own = model.module[1].running_mean.clone()
        first = own.clone()
        dist.broadcast(first, 0)
        assert rank == 0 or not torch.equal(own, first)
        with RankFile(path_of(directory, rank), rank, world) as checkpointer:
            checkpointer.save(int(not sends), rng=False, model=model).wait()
            division = checkpointer.division
        assert division is not None
        found: list[Any] = [None] * world
        dist.all_gather_object(found, division.claims)
        assert compare(dict(enumerate(found))) is None
        live = copy.deepcopy(model.module)
        live[1].running_mean.zero_()
        dist.barrier()
        resume(directory, {"model": live}, rank)
        assert torch.equal(live[1].running_mean, first if sends else own)
        if sends:
            resume(directory, {"model": live}, None)
            assert torch.equal(live[1].running_mean, first)
        else:
            error = raised(pccheck.StateMismatch, resume, directory, {"model": live}, None)
            assert "module.1.running_mean: differs between rank 0 and rank 1" in str(error), error
        dist.barrier()


def whole(rank: int, world: int, directory: str) -> None:
    """With whole replicas a rank restarts from its own file alone."""
    run = Run("ddp", rank, world, 1)
    run.step()
    with RankFile(path_of(directory, rank), rank, world, replicas="whole") as checkpointer:
        checkpointer.save(1, **run.parts).wait()
    values = [full(value) for value in run.model.state_dict().values()]
    dist.barrier()
    other = Run("ddp", rank, world, 2)
    resume(directory, other.parts, rank, ranks=[rank])
    for value, expected in zip(other.model.state_dict().values(), values, strict=True):
        assert torch.equal(value, expected)
    assert world_of(directory) == world
    # And any one of them is enough for another number of ranks.
    state = {"model": Run("plain", 0, 1, 3).model}
    resume(directory, state, None, ranks=[world - 1])
    for value, expected in zip(state["model"].state_dict().values(), values, strict=True):
        assert torch.equal(value, expected)


TASKS = {
    "refusals": refusals, "own": own_parts, "share": share, "claims": claims, "buffers": buffers,
    "whole": whole,
}  # fmt: skip


class Layers(nn.ModuleDict):
    """Layers under their names."""

    def forward(self, hidden: Any) -> Any:
        for layer in self.values():
            hidden = layer(hidden)
        return hidden


class Stages:
    """A pipeline of two stages, each on some ranks; None is the whole model on one process."""

    def __init__(self, stage: int | None, mesh: Any, seed: int) -> None:
        torch.manual_seed(seed)
        layers = {str(index): nn.Linear(6, 6) for index in range(2 * 2)}
        kept = [str(index) for index in range(4) if stage is None or index // 2 == stage]
        self.model = Layers({key: layers[key] for key in kept})
        if mesh is not None:
            fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter) * parameter
        self.optimizer.step()

    def values(self) -> dict[str, Any]:
        found = {name: full(value) for name, value in self.model.named_parameters()}
        moments = {
            f"{name} {key}": full(self.optimizer.state[value][key])
            for name, value in self.model.named_parameters() for key in ("exp_avg", "step")
        }  # fmt: skip
        return {**found, **moments}


def pipeline(rank: int, world: int, directory: str) -> None:
    """Two stages on two ranks each; every key is on the ranks of one stage only."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "dp"))["dp"]
    run = Stages(rank // 2, mesh, 1)
    for _ in range(2):
        run.step()
    with RankFile(path_of(directory, rank), rank, world) as checkpointer:
        checkpointer.save(1, **run.parts).wait()
        division = checkpointer.division
    assert division is not None
    found: list[Any] = [None] * world
    dist.all_gather_object(found, division.claims)
    assert compare(dict(enumerate(found))) is None, compare(dict(enumerate(found)))
    values: list[Any] = [None] * world
    dist.all_gather_object(values, run.values())
    expected = {**values[0], **values[2]}
    # The same placement, and the other stage on each rank.
    for stage in (rank // 2, 1 - rank // 2):
        other = Stages(stage, mesh, 2)
        report = resume(directory, other.parts, rank).report
        assert report is not None and not report.differs, report
        for name, value in other.values().items():
            assert torch.equal(value, expected[name]), (stage, name)
    # One process has the whole model.
    one = Stages(None, None, 3)
    report = resume(directory, one.parts, None).report
    assert report is not None and not report.differs, report
    assert one.values().keys() == expected.keys()
    for name, value in one.values().items():
        assert torch.equal(value, expected[name]), name
    dist.barrier()


TASKS["pipeline"] = pipeline


def fallback(rank: int, world: int, directory: str) -> None:
    """A checkpoint that turns out damaged after live tensors were filled from it; then an older."""
    torch.manual_seed(1)
    model = nn.parallel.DistributedDataParallel(nn.Linear(300, 300))
    # The last chunks of each file differ from step to step.
    with RankFile(path_of(directory, rank), rank, world, retain=2, chunk=1 << 16) as checkpointer:
        for step in (1, 2):
            with torch.no_grad():
                model.module.weight.fill_(step)
                model.module.bias.fill_(step)
            checkpointer.save(step, rng=False, model=model).wait()
    dist.barrier()
    if rank == 0:
        path = path_of(directory, 1)
        content = bytearray(open(path, "rb").read())
        place = content.find(torch.full((3000,), 2.0).numpy().tobytes())
        assert place > 0
        content[place + 100_000] ^= 1
        open(path, "wb").write(content)
        live = nn.Linear(300, 300)
        state = {"model": live}
        loading = Loading(AssembledMemory(), state, parts=["model"], strict=True)
        errors = []
        for step in (2, 1):
            with assembled(directory, None, [0, 1], step=step) as assembly:
                try:
                    load_assembled(assembly, loading)
                except pccheck.Corrupt as error:
                    errors.append(error)
                    assert (live.weight == 2).any(), "nothing was filled, so nothing is tried here"
        assert [error.rank for error in errors] == [1], errors
        assert (live.weight == 1).all() and (live.bias == 1).all()
        # In a partial load all files are verified before the first byte is filled.
        other = nn.Linear(300, 300)
        loading = Loading(AssembledMemory(), {"model": other}, parts=["model"], strict=False)
        with assembled(directory, None, [0, 1], step=2) as assembly:
            before = other.weight.clone()
            assert raised(pccheck.Corrupt, load_assembled, assembly, loading).rank == 1
            assert torch.equal(other.weight, before)
    dist.barrier()


def own_file(rank: int, world: int, directory: str) -> None:
    """FSDP restarts from this rank's own file alone, and takes another placement from all."""
    run = Run("fsdp", rank, world, 1)
    run.step()
    with RankFile(path_of(directory, rank), rank, world) as checkpointer:
        checkpointer.save(1, **run.parts).wait()
    expected = {key: full(value) for key, value in run.model.state_dict().items()}
    dist.barrier()
    other = Run("fsdp", rank, world, 2)
    resume(directory, other.parts, rank, ranks=[rank])
    placed = Run("tp", rank, world, 3)
    report = resume(directory, placed.parts, rank).report
    assert report is not None and report.is_exact, report
    for found in (other, placed):
        for key, value in found.model.state_dict().items():
            assert torch.equal(full(value), expected[key]), key
        assert found.scheduler.last_epoch == 1
    error = raised(pccheck.IncompleteShards, resume, directory, placed.parts, rank, ranks=[rank])
    assert rank not in error.ranks and error.ranks, error


TASKS["fallback"] = fallback
TASKS["own-file"] = own_file
