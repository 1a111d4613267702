"""Every optimizer of torch with every kind of scheduler: a resumed training is the same training.

For each pair, training goes on from a checkpoint in fresh objects. Losses, weights, and the whole
state of optimizer and scheduler must have the bits of a training that was not interrupted.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import pccheck.torch as pcc

FIRST_STEPS, LAST_STEPS = 4, 4
DECOUPLED = {"decoupled_weight_decay": True, "weight_decay": 0.1}
#: Class and arguments, by the name that a failure shows.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Adadelta": ("Adadelta", {"lr": 0.5}),
    "Adafactor": ("Adafactor", {"lr": 0.05}),
    "Adafactor, maximize": ("Adafactor", {"lr": 0.01, "maximize": True}),
    "Adagrad": ("Adagrad", {"lr": 0.1}),
    "Adagrad, lr_decay": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "foreach": True}),
    "Adam": ("Adam", {"lr": 0.01}),
    "Adam, amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True}),
    "Adam, one by one": ("Adam", {"lr": 0.01, "foreach": False}),
    "Adam, foreach": ("Adam", {"lr": 0.01, "foreach": True}),
    "Adam, fused": ("Adam", {"lr": 0.01, "fused": True}),
    "Adam, tensor lr": ("Adam", {"lr": torch.tensor(0.01), "foreach": False}),
    "AdamW": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "AdamW, amsgrad": ("AdamW", {"lr": 0.01, "amsgrad": True, "foreach": True}),
    "AdamW, fused": ("AdamW", {"lr": 0.01, "fused": True, "amsgrad": True}),
    "AdamW, maximize": ("AdamW", {"lr": 0.001, "maximize": True}),
    "Adamax": ("Adamax", {"lr": 0.01}),
    "ASGD": ("ASGD", {"lr": 0.05, "t0": 3.0, "alpha": 0.5}),
    "ASGD, foreach": ("ASGD", {"lr": 0.05, "foreach": True}),
    "LBFGS": ("LBFGS", {"lr": 0.5, "max_iter": 3, "history_size": 4}),
    "LBFGS, line search": ("LBFGS", {"max_iter": 3, "line_search_fn": "strong_wolfe"}),
    "Muon": ("Muon", {"lr": 0.01}),
    "Muon, nesterov": ("Muon", {"lr": 0.01, "nesterov": False, "momentum": 0.5}),
    "NAdam": ("NAdam", {"lr": 0.01}),
    "NAdam, decoupled": ("NAdam", {"lr": 0.01, **DECOUPLED}),
    "RAdam": ("RAdam", {"lr": 0.01}),
    "RAdam, decoupled": ("RAdam", {"lr": 0.01, **DECOUPLED}),
    "RMSprop": ("RMSprop", {"lr": 0.01}),
    "RMSprop, centered": ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9}),
    "Rprop": ("Rprop", {"lr": 0.01}),
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD, dampening": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "maximize": True}),
    "SGD, fused": ("SGD", {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "SGD, nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "SparseAdam": ("SparseAdam", {"lr": 0.01}),
}


def sequential(optimizer: Any) -> Any:
    first = lr_scheduler.LinearLR(optimizer, total_iters=3)
    later = lr_scheduler.ExponentialLR(optimizer, 0.9)
    return lr_scheduler.SequentialLR(optimizer, [first, later], milestones=[5])


def chained(optimizer: Any) -> Any:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


def nested(optimizer: Any) -> Any:
    later = lr_scheduler.CosineAnnealingLR(optimizer, 6)
    return lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer, 0.3, 2), later], milestones=[3]
    )


class Warmup:
    """A callable whose own state is saved with the scheduler."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.length)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ChainedScheduler": chained,
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, 3, cycle_momentum=False),
    "CyclicLR, exp_range": lambda o: lr_scheduler.CyclicLR(
        o, 1e-3, 1e-1, 2, mode="exp_range", gamma=0.9, cycle_momentum=cycles_momentum(o)
    ),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.95**step),
    "LambdaLR, callable object": lambda o: lr_scheduler.LambdaLR(o, Warmup(6)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.2, total_iters=6),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 7], 0.5),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=12, cycle_momentum=cycles_momentum(o)
    ),
    "OneCycleLR, three phases": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=12, three_phase=True, cycle_momentum=False
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "SequentialLR": sequential,
    "SequentialLR, cosine": nested,
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=6),
}


def cycles_momentum(optimizer: Any) -> bool:
    return bool({"momentum", "betas"} & set(optimizer.defaults)) and not isinstance(
        optimizer, torch.optim.Muon
    )


class Training:
    """A small model, what trains it, and what it saw."""

    def __init__(self, optimizer: str, scheduler: str) -> None:
        kind, arguments = OPTIMIZERS[optimizer]
        torch.manual_seed(7)
        self.is_sparse = kind == "SparseAdam"
        # Muon takes nothing but matrices.
        bias = kind != "Muon"
        if self.is_sparse:
            self.model = nn.Sequential(nn.Embedding(6, 4, sparse=True))
        else:
            self.model = nn.Sequential(nn.Linear(3, 4, bias), nn.Tanh(), nn.Linear(4, 4, bias))
            if kind != "LBFGS":
                # State has the layout of its parameter; only LBFGS needs it to be row-major.
                weight = self.model[2].weight
                weight.data = weight.data.t().contiguous().t()
        self.optimizer = getattr(torch.optim, kind)(
            self.model.parameters(), **copy.deepcopy(arguments)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.scheduler = SCHEDULERS[scheduler](self.optimizer)

    def run(self, first: int, end: int) -> list[float]:
        losses = []
        for step in range(first, end):
            loss = self.optimizer.step(lambda: self.loss(step))  # noqa: B023
            losses.append(loss.item())
            if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(losses[-1])
            else:
                self.scheduler.step()
        return losses

    def loss(self, step: int) -> torch.Tensor:
        self.optimizer.zero_grad()
        if self.is_sparse:
            batch = torch.tensor([[step % 6, (step * 5 + 1) % 6]])
        else:
            batch = torch.sin(torch.arange(6.0).view(2, 3) + step)
        loss = (self.model(batch) - 0.5).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def state(self) -> list[tuple[str, Any]]:
        states = {name: part.state_dict() for name, part in self.parts().items()}
        return list(leaves(states, "run"))


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value of a state with all that must be the same about it."""
    if isinstance(value, dict):
        yield path, sorted(map(str, value))
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        yield path, (type(value), len(value))
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}")
    elif isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().view(-1).view(torch.uint8).tolist()
        yield path, (value.dtype, value.shape, value.stride(), bits)
    elif not callable(value):
        yield path, (type(value), value.hex() if type(value) is float else value)


def differences(left: list[tuple[str, Any]], right: list[tuple[str, Any]]) -> list[str]:
    return [f"{a} is not {b}" for a, b in zip(left, right, strict=False) if a != b][:2] or (
        [] if len(left) == len(right) else [f"{len(left)} values, not {len(right)}"]
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of torch cost more than these models take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*", "ignore:.*epoch parameter.*")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_as_if_it_had_not_stopped(optimizer: str, path: Path) -> None:
    end = FIRST_STEPS + LAST_STEPS
    failures = []
    trainings = {scheduler: Training(optimizer, scheduler) for scheduler in SCHEDULERS}
    with pcc.Checkpointer(path) as checkpointer:
        for training in trainings.values():
            training.run(0, FIRST_STEPS)
        checkpointer.save(1, **{name: item.parts() for name, item in trainings.items()})
    with pcc.Checkpointer(path) as checkpointer:
        for scheduler, training in trainings.items():
            resumed = Training(optimizer, scheduler)
            checkpointer.resume(**{scheduler: resumed.parts()})
            report = checkpointer.resume_report
            assert report is not None and report.is_exact, f"{scheduler}: {report}"
            wrong = differences(resumed.state(), training.state())
            losses = resumed.run(FIRST_STEPS, end), training.run(FIRST_STEPS, end)
            if losses[0] != losses[1]:
                wrong.append(f"losses {losses[0]} are not {losses[1]}")
            wrong += differences(resumed.state(), training.state())
            failures += [f"{scheduler}: {text}" for text in wrong]
    assert not failures, "\n".join(failures)


def test_every_optimizer_and_scheduler_of_torch_is_here() -> None:
    optimizers = {
        name for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    }  # fmt: skip
    assert {kind for kind, _ in OPTIMIZERS.values()} == optimizers - {"Optimizer"}
    schedulers = {
        name for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler)
    } - {"LRScheduler", "_LRScheduler"}  # fmt: skip
    assert {name.split(",")[0] for name in SCHEDULERS} == schedulers | {"SWALR"}
    assert len(OPTIMIZERS) >= 30 and len(SCHEDULERS) == 20
