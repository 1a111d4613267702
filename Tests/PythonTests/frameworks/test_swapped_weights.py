"""Weights that are swapped in place, for an evaluation or a save: no checkpoint is a mixture, and
none fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pccheck
import pccheck.torch as pcc
import pytest
import torch
from schedulefree import AdamWScheduleFree, ScheduleFreeWrapper
from torch import nn

# A pool that is much smaller than the state: staging takes as long as the disk does.
SLOW: dict[str, Any] = {"pool": "4 MiB", "chunk": "1 MiB", "retain": 8}
STEPS = 6


def large() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(512, 512, bias=False) for _ in range(12)])


def train_step(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(torch.randn(2, 512)).square().mean().backward()
    optimizer.step()


def schedule_free(model: nn.Module) -> Any:
    return AdamWScheduleFree(model.parameters(), lr=0.05)


def wrapped(model: nn.Module) -> Any:
    return ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.05))


@pytest.mark.parametrize("make", [schedule_free, wrapped])
def test_a_schedule_free_optimizer_waits(path: Path, make: Callable[[nn.Module], Any]) -> None:
    """As its authors say: eval(), save, train()."""
    model = large()
    optimizer = make(model)
    saved = {}
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for step in range(STEPS):
            optimizer.train()
            train_step(model, optimizer)
            optimizer.eval()
            saved[step] = [p.detach().clone() for p in model.parameters()]
            handle = checkpointer.save(step, model=model, optimizer=optimizer)
            optimizer.train()
            if step == STEPS - 1:
                # The one before it may be superseded by it.
                assert handle.wait().durable
    for step in pccheck.checkpoints(path):
        loaded = pcc.load(path, step.step)["model"].values()
        assert all(map(torch.equal, loaded, saved[step.step]))


def test_a_step_of_a_wrapper_waits(path: Path) -> None:
    """It changes the weights before the optimizer in it steps."""
    model = large()
    optimizer = wrapped(model)
    optimizer.train()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        train_step(model, optimizer)
        train_step(model, optimizer)
        expected = model[0].weight.detach().clone()
        handle = checkpointer.save(1, model=model, optimizer=optimizer)
        train_step(model, optimizer)
        assert handle.wait().durable
    assert torch.equal(pcc.load(path)["model"]["0.weight"], expected)


def test_an_optimizer_of_accelerate_waits(path: Path) -> None:
    """It hands ``eval()`` and ``train()`` on to the optimizer in it."""
    from accelerate import Accelerator
    from pccheck.accelerate import Checkpointer

    accelerator = Accelerator(cpu=True)
    model = large()
    model, optimizer = accelerator.prepare(model, schedule_free(model))
    with Checkpointer(path, accelerator, **SLOW) as checkpointer:
        for step in range(3):
            optimizer.train()
            train_step(model, optimizer)
            optimizer.eval()
            expected = [p.detach().clone() for p in model.parameters()]
            handle = checkpointer.save(step)
            optimizer.train()
            assert handle.wait().durable
    loaded = pcc.load(path)["models"][0].values()
    assert all(map(torch.equal, loaded, expected))


def test_only_the_class_of_the_optimizer_is_changed(path: Path) -> None:
    """Nothing is left in the object, which may be pickled or compared."""
    model = large()
    optimizer = schedule_free(model)
    before = dict(vars(optimizer))
    with pcc.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=model, optimizer=optimizer)
    assert vars(optimizer) == before
    assert "eval" not in vars(torch.optim.Optimizer)
    assert AdamWScheduleFree.eval.__name__ == "eval"


class Shadow:
    """Averages as torch-ema and diffusers keep them: swapped in through ``.data``."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = [p.detach().clone() * 0 for p in model.parameters()]
        self.kept: list[torch.Tensor] = []

    def store(self, parameters: Any) -> None:
        self.kept = [p.detach().clone() for p in parameters]

    def copy_to(self, parameters: Any) -> None:
        for parameter, value in zip(parameters, self.shadow, strict=True):
            parameter.data.copy_(value)

    def restore(self, parameters: Any) -> None:
        for parameter, value in zip(parameters, self.kept, strict=True):
            parameter.data.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow = state["shadow"]


def test_averages_that_torch_does_not_see_wait(path: Path) -> None:
    model = large()
    average = Shadow(model)
    expected = [p.detach().clone() for p in model.parameters()]
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for step in range(3):
            handle = checkpointer.save(step, model=model, average=average)
            average.store(model.parameters())
            average.copy_to(model.parameters())
            average.restore(model.parameters())
            handle.wait()
            loaded = pcc.load(path, step)["model"].values()
            assert all(map(torch.equal, loaded, expected))


def test_half_precision_is_never_a_mixture(path: Path) -> None:
    """``Module.to`` gives parameters new memory and counts that as a change: the checkpoint keeps
    the old memory, or fails."""
    model = large()
    expected = model[0].weight.detach().clone()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        handle = checkpointer.save(1, model=model)
        model.half()
        with torch.no_grad():
            model[0].weight.zero_()
        try:
            assert handle.wait().durable
        except pccheck.StateChanged as error:
            assert "model.0.weight" in error.names
            return
    assert torch.equal(pcc.load(path)["model"]["0.weight"], expected)
