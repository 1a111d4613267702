"""What a training loop does between its saves: nothing on these cores, or real work on them."""

from __future__ import annotations

import math
import time
from typing import Protocol

import torch
from torch import nn

_LAYER_COUNT = 36
_BATCH_SIZE = 16
#: Stands for the forward and backward pass on an accelerator, which leaves the cores alone.
STEP_SECONDS = 0.05


class Work(Protocol):
    """One step of a loop."""

    def compute(self) -> None:
        """Forward and backward: the state is read."""
        ...

    def update(self) -> None:
        """The optimizer's step: the state is changed. Called once the last save has it."""
        ...


class Elsewhere:
    """Steps on a device that leaves this machine's cores to the saves."""

    def compute(self) -> None:
        time.sleep(STEP_SECONDS)

    def update(self) -> None:
        pass


class Training:
    """A network with AdamW, trained on the CPU, whose state has about this size."""

    def __init__(self, byte_count: int) -> None:
        torch.manual_seed(1)
        # Weights and two moments, of four bytes.
        width = max(8, math.isqrt(byte_count // (12 * _LAYER_COUNT)) - 1)
        layers = [nn.Linear(width, width) for _ in range(_LAYER_COUNT)]
        self._model = nn.Sequential(
            *(part for layer in layers for part in (layer, nn.LayerNorm(width, bias=False)))
        )
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._inputs = torch.randn(_BATCH_SIZE, width)
        # The moments exist after the first step; the next ones are for caches and clocks.
        for _ in range(5):
            self.compute()
            self.update()
        self.state: dict[str, torch.Tensor] = {}
        for name, parameter in self._model.named_parameters():
            self.state[name] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                self.state[f"{name}.{moment}"] = self._optimizer.state[parameter][moment]

    def compute(self) -> None:
        self._optimizer.zero_grad()
        (self._model(self._inputs) - self._inputs).square().mean().backward()

    def update(self) -> None:
        self._optimizer.step()
