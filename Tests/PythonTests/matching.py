"""Small models and optimizers whose resumes are compared: what the tests of matching share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pccheck
import pccheck.torch as pcc


class Twins(nn.Module):
    """Parameters of one shape, in an order that can be chosen."""

    def __init__(self, order: str = "abc", seed: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for name in order:
            self.register_parameter(name, nn.Parameter(torch.randn(3)))

    def forward(self) -> torch.Tensor:
        total = torch.zeros(())
        for name, parameter in sorted(self.named_parameters()):
            total = total + (parameter * (ord(name) - 96)).square().sum()
        return total


def step(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 1) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()


def moments(model: nn.Module, optimizer: Any, key: str = "exp_avg") -> dict[str, list[float]]:
    """What the optimizer has for each parameter, by its name."""
    return {
        name: optimizer.state[parameter][key].tolist()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def values(model: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def adam(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1, **options)


def saved(path: Path, **parts: Any) -> None:
    with pcc.Checkpointer(path) as checkpointer:
        checkpointer.save(1, **parts).wait()


def resumed(path: Path, strict: bool = True, **parts: Any) -> pccheck.ResumeReport:
    with pcc.Checkpointer(path) as checkpointer:
        assert checkpointer.resume(strict=strict, **parts) == 2
        report = checkpointer.resume_report
        assert report is not None
        return report


def refused(path: Path, strict: bool = True, **parts: Any) -> pccheck.StateMismatch:
    """The error; the parts are as they were."""
    before = {
        name: state_text(part) for name, part in parts.items() if hasattr(part, "state_dict")
    }
    with pcc.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.StateMismatch) as caught:
            checkpointer.resume(strict=strict, **parts)
    for name, state in before.items():
        assert state_text(parts[name]) == state, name
    return caught.value


def state_text(part: Any) -> str:
    return repr(part.state_dict())
