"""The ranks of jobs that save and restart: python layout_child.py DIRECTORY TASK:WORLD…"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import pccheck
import pccheck.torch
from pccheck._core.reader import Reader
from pccheck._group.assembly import Assembly
from pccheck._group.claims import compare
from pccheck._state.request import Loading
from pccheck._group.division import Division
from pccheck._torch.layout import Layout
from pccheck._group.assembled import load_assembled
from pccheck._torch.loading.assembled import AssembledMemory
from pccheck._torch.loading.restoring import TorchRestorer
from pccheck._torch.parts import set_random_state

sys.path.insert(0, str(Path(__file__).parents[1] / "frameworks"))
from ranks import main


class Model(nn.Module):
    """Uneven dimensions, a tied weight that is large enough to be divided, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(701, 10)
        self.up = nn.Linear(10, 14)
        self.down = nn.Linear(14, 10)
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 701, bias=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, tokens: torch.Tensor) -> Any:
        self.seen += 1
        hidden = self.embedding(tokens)
        hidden = self.norm(hidden + self.down(torch.tanh(self.up(hidden))))
        return self.head(hidden)


class Run:
    """A model in some placement, and everything that its training needs."""

    def __init__(self, kind: str, rank: int, world: int, seed: int) -> None:
        torch.manual_seed(seed)
        model = Model()
        self.rank, self.world = rank, world
        self.model: nn.Module = getattr(self, f"_{kind}")(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        # The ranks of one tensor-parallel group train on the same data.
        torch.manual_seed(100 * seed + (rank // 2 if kind == "tp" else rank))
        self.parts: dict[str, Any] = {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
        }  # fmt: skip

    def _plain(self, model: nn.Module) -> nn.Module:
        model.head.weight = model.embedding.weight  # type: ignore[union-attr,assignment]
        return model

    def _ddp(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(self._plain(model))

    def _fsdp(self, model: nn.Module) -> nn.Module:
        model = self._plain(model)
        fully_shard(model, mesh=init_device_mesh("cpu", (self.world,)))
        return model

    def _hooked(self, model: nn.Module) -> nn.Module:
        """It may put what it reads elsewhere, so that it is given that apart from its memory."""
        model.register_load_state_dict_pre_hook(lambda *_: None)
        return self._fsdp(model)

    def _hsdp(self, model: nn.Module) -> nn.Module:
        model = self._plain(model)
        names = ("replicas", "shards")
        fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=names))
        return model

    def _tp(self, model: nn.Module) -> nn.Module:
        model = self._plain(model)
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(model, mesh["tp"], plan)
        fully_shard(model, mesh=mesh["dp"])
        return model

    def step(self) -> float:
        tokens = torch.randint(701, (4, 5))
        loss = self.model(tokens).logsumexp(-1).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return float(loss)


class RankFile(pccheck.torch.Checkpointer):
    """The file of one rank, which divides what others hold too."""

    def __init__(
        self, path: str, rank: int, world: int, *, shared: Any = (), replicas: str = "split",
        **options: Any,
    ) -> None:  # fmt: skip
        self.layout = Layout(rank, world, shared, replicas)
        self.division: Division | None = None
        super().__init__(path, rank=rank, world_size=world, **options)

    def _divided(self, state: dict[str, Any], parts: dict[str, Any]) -> Division | None:
        self.division = self.layout.divide(state, parts, sample=True)
        return self.division


def path_of(directory: str, rank: int) -> str:
    return os.path.join(directory, f"rank{rank}.pcc")


def world_of(directory: str) -> int:
    return len(list(Path(directory).glob("rank*.pcc")))


@contextmanager
def assembled(
    directory: str, rank: int | None, ranks: list[int], *, step: int | None = None
) -> Iterator[Assembly]:
    """The files of some ranks at the newest step, or another one."""
    with ExitStack() as stack:
        readers, paths = {}, {}
        for number in ranks:
            paths[number] = path_of(directory, number)
            readers[number] = stack.enter_context(Reader(paths[number]))
            readers[number].select_newest(step)
        yield Assembly(readers, world_of(directory), rank, paths)


def resume(
    directory: str, state: dict[str, Any], rank: int | None, *, strict: bool = True,
    ranks: list[int] | None = None,
) -> Loading:  # fmt: skip
    """What a restart does, from all files or some."""
    loading = Loading(
        AssembledMemory(), state, parts=list(state), optional_parts=["rng"], strict=strict
    )
    numbers = list(range(world_of(directory))) if ranks is None else ranks
    with assembled(directory, rank, numbers) as assembly:
        loaded = load_assembled(assembly, loading)
    with loading.explained():
        TorchRestorer(strict).restore_parts(state, loaded, loading.report)
    if "rng" in loaded:
        set_random_state(loaded["rng"])
    return loading


def full(value: Any) -> torch.Tensor:
    found: torch.Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return found.detach().clone()


def whole(run: Run) -> dict[str, Any]:
    """All values of a run, without its wrappers."""
    state = run.model.state_dict()
    return {
        "model": {key.removeprefix("module."): full(value) for key, value in state.items()},
        "optimizer": {
            number: {key: full(value) for key, value in item.items()}
            for number, item in run.optimizer.state_dict()["state"].items()
        },
    }


def check_claims(division: Division | None, rank: int, world: int) -> None:
    assert division is not None and division.claims is not None
    found: list[Any] = [None] * world
    dist.all_gather_object(found, division.claims)
    assert compare(dict(enumerate(found))) is None, compare(dict(enumerate(found)))


def save(kind: str, rank: int, world: int, directory: str, **options: Any) -> None:
    """Trains, saves, and records what an undisturbed run does next."""
    run = Run(kind, rank, world, 1)
    with RankFile(path_of(directory, rank), rank, world, **options) as checkpointer:
        for step in range(3):
            run.step()
            checkpointer.save(step, **run.parts).wait()
            check_claims(checkpointer.division, rank, world)
    values = whole(run)
    losses = [run.step() for _ in range(3)]
    Path(directory, f"losses{rank}.json").write_text(json.dumps(losses))
    if rank == 0:
        torch.save(values, os.path.join(directory, "whole.pt"))
        Path(directory, "kind").write_text(f"{kind}:{world}")


def restart(kind: str, rank: int, world: int, directory: str) -> None:
    """A fresh run in some placement has the values that were saved."""
    run = Run(kind, rank, world, 2)
    is_same = Path(directory, "kind").read_text() == f"{kind}:{world}"
    own = rank if world == world_of(directory) else None
    addresses = [
        (item.to_local() if isinstance(item, DTensor) else item).data_ptr()
        for item in run.model.parameters()
    ]
    report = resume(directory, run.parts, own).report
    assert report is not None and not report.differs, report
    assert bool(report.left_alone) == (own is None), report
    expected = torch.load(os.path.join(directory, "whole.pt"), weights_only=True)
    found = whole(run)
    for part, values in expected.items():
        assert found[part].keys() == values.keys()
        for key, value in values.items():
            if part == "model":
                assert torch.equal(found[part][key], value), key
            else:
                for name, item in value.items():
                    assert torch.equal(found[part][key][name], item), (key, name)
    assert run.scheduler.last_epoch == 3 and run.optimizer.param_groups[0]["lr"] == 1e-3
    assert addresses == [
        (item.to_local() if isinstance(item, DTensor) else item).data_ptr()
        for item in run.model.parameters()
    ]
    for parameter, state in run.optimizer.state.items():
        assert type(state["exp_avg"]) in (type(parameter), torch.Tensor), kind
        assert isinstance(parameter, DTensor) == isinstance(state["exp_avg"], DTensor)
    if is_same:
        losses = [run.step() for _ in range(3)]
        assert losses == json.loads(Path(directory, f"losses{rank}.json").read_text())
    else:
        run.step()


KINDS = ("plain", "ddp", "fsdp", "hooked", "hsdp", "tp")

if __name__ == "__main__":
    import layout_tasks

    main(
        {
            **{f"save-{kind}": functools.partial(save, kind) for kind in KINDS},
            **{f"restart-{kind}": functools.partial(restart, kind) for kind in KINDS},
            **layout_tasks.TASKS,
        }
    )
