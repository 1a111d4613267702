"""The order of copies from a device. There is no device here: streams that are late stand for it.

What runs is everything but the class CudaStreams, whose methods are a line or two each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pccheck
import pccheck.torch


class LateDevice:
    """Streams whose work is done only when somebody waits for it, in any order that is allowed.

    Its tensors are those that were put on it. Host memory is filled with rubbish.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tensors: set[int] = set()
        #: Work of each stream in order: an action, or an event to wait for or to set.
        self.queues: dict[str, list[tuple[str, Any]]] = {"compute": [], "side": []}
        self.come: set[int] = set()
        self.event_count = 0
        self.host_waits = 0
        self.allocated: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] = []

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Says that a tensor is on this device."""
        self.tensors.add(tensor.untyped_storage().data_ptr())
        return tensor

    def compute(self, action: Callable[[], object]) -> None:
        """Queues work of the training."""
        self.queues["compute"].append(("do", action))

    def record(self, stream: str) -> int:
        self.event_count += 1
        self.queues[stream].append(("set", self.event_count))
        return self.event_count

    def run_until(self, event: int | None) -> None:
        """Lets streams go on, each in its order, until an event has come or all is done."""
        while event is None or event not in self.come:
            ready = [name for name, queue in self.queues.items() if self.can_go_on(queue)]
            if not ready:
                assert event is None, "waits for what never comes"
                return
            kind, what = self.queues[self.random.choice(ready)].pop(0)
            if kind == "do":
                with torch.no_grad():
                    what()
            elif kind == "set":
                self.come.add(what)

    def can_go_on(self, queue: list[tuple[str, Any]]) -> bool:
        return bool(queue) and (queue[0][0] != "wait" or queue[0][1] in self.come)

    # -- pccheck._torch.device.Streams

    def handles(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.tensors

    def allocate(self, byte_count: int) -> torch.Tensor:
        self.allocated.append(torch.full((byte_count,), 0xA5, dtype=torch.uint8))
        return self.allocated[-1]

    def follow(self, device: torch.device) -> None:
        self.queues["side"].append(("wait", self.record("compute")))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.kept.append(source)
        self.queues["side"].append(("do", lambda: target.copy_(source)))

    def mark(self, device: torch.device) -> int:
        return self.record("side")

    def wait(self, event: int) -> None:
        self.host_waits += 1
        self.run_until(event)


class DoesNotFollow(LateDevice):
    """Copies without waiting for the training."""

    def follow(self, device: torch.device) -> None:
        self.record("compute")


class DoesNotWait(LateDevice):
    """Lets the writer begin before the copies are there."""

    def wait(self, event: int) -> None:
        self.host_waits += 1


def train_and_load(
    device: LateDevice, path: Path, monkeypatch: pytest.MonkeyPatch, steps: int = 4
) -> list[tuple[float, float]]:
    """What each checkpoint holds of a parameter that a late device changes step by step."""
    module = nn.Module()
    module.x = nn.Parameter(device.put(torch.zeros(3000)))
    module.register_buffer("y", device.put(torch.zeros(2, 5).T))
    monkeypatch.setattr(pccheck.torch.Checkpointer, "_streams", device)
    found = []
    with pccheck.torch.Checkpointer(path, retain=steps, capacity="1 MiB") as checkpointer:
        for step in range(steps):
            for part in (module.x, module.y):
                device.compute(lambda part=part, step=step: part.fill_(step + 1))
            handle = checkpointer.save(step, module=module, host=torch.tensor(step), rng=False)
            # The next step may be queued at once: nothing of it may get into the checkpoint.
            device.compute(lambda: module.x.fill_(-1))
            device.run_until(None)
            handle.wait()
        for step in range(steps):
            state = checkpointer.load(step)
            assert state["host"] == step
            for key in "xy":
                assert state["module"][key].unique().numel() == 1
            found.append((state["module"]["x"][0].item(), state["module"]["y"][0, 0].item()))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_a_checkpoint_holds_what_was_queued_before_it(
    path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = LateDevice(seed)
    found = train_and_load(device, path, monkeypatch)
    assert found == [(step + 1.0, step + 1.0) for step in range(4)]
    # One wait for one event in each save, and one piece of memory for all of them.
    assert device.host_waits == 4 and len(device.allocated) == 1


@pytest.mark.parametrize("broken", [DoesNotFollow, DoesNotWait])
def test_the_late_device_notices_a_missing_order(
    path: Path, broken: type[LateDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = 0
    for seed in range(4):
        try:
            found = train_and_load(broken(seed), path, monkeypatch)
            wrong += found != [(step + 1.0, step + 1.0) for step in range(4)]
        except AssertionError:
            wrong += 1
        path.unlink()
    assert wrong


def test_pinned_memory_is_used_again_only_when_it_was_staged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = LateDevice(1)
    module = nn.Module()
    module.x = nn.Parameter(device.put(torch.zeros(6 << 20)))
    monkeypatch.setattr(pccheck.torch.Checkpointer, "_streams", device)
    options: dict[str, Any] = {"chunk": "1 MiB", "pool": "4 MiB", "in_flight": 3, "retain": 3}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        handles = []
        for step in range(3):
            device.compute(lambda step=step: module.x.fill_(step))
            handles.append(checkpointer.save(step, module=module, rng=False))
        assert len(device.allocated) > 1
        for handle in handles:
            handle.wait()
        count = len(device.allocated)
        checkpointer.save(3, module=module, rng=False).wait()
        assert len(device.allocated) == count
        for step in checkpointer.steps():
            loaded = checkpointer.load(step)["module"]["x"]
            assert (loaded == min(step, 2)).all(), step


def test_a_step_does_not_wait_for_copies(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied from a device cannot be changed by a step: the hook lets it go on."""
    device = LateDevice(2)
    module = nn.Module()
    module.x = nn.Parameter(device.put(torch.zeros(16 << 20)))
    module.x.grad = torch.zeros(16 << 20)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    monkeypatch.setattr(pccheck.torch.Checkpointer, "_streams", device)
    with pccheck.torch.Checkpointer(path, chunk="1 MiB", pool="4 MiB") as checkpointer:
        handle = checkpointer.save(1, module=module, rng=False)
        pccheck.torch._before_step(optimizer)
        assert handle.state == "staging"
        optimizer.step()
        assert handle.wait().durable


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_device(path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    with pccheck.torch.Checkpointer(path, pin="auto") as checkpointer:
        for step in range(5):
            optimizer.zero_grad()
            model(torch.randn(64, 1024, device="cuda")).square().mean().backward()
            optimizer.step()
            handle = checkpointer.save(step, model=model, optimizer=optimizer)
            expected = {key: value.clone() for key, value in model.state_dict().items()}
            with torch.no_grad():
                model[0].weight.add_(1)
            handle.wait()
            loaded = checkpointer.load(step)["model"]
            assert all(torch.equal(loaded[key], expected[key].cpu()) for key in expected)
        checkpointer.resume(model=model, optimizer=optimizer)
        assert all(
            torch.equal(value, expected[key]) for key, value in model.state_dict().items()
        )
