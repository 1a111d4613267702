"""Debug mode names what changed while it was being copied."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import pccheck
import pccheck.numpy
import pccheck.torch


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.BatchNorm1d(300), nn.Linear(300, 8))
    return model, torch.optim.AdamW(model.parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(16, 64)).square().mean().backward()
    optimizer.step()


def test_a_loop_that_keeps_the_rules_is_quiet(path: Path) -> None:
    model, optimizer = made()
    with pccheck.torch.Checkpointer(path, debug="digest") as checkpointer:
        for step in range(6):
            train(model, optimizer)
            checkpointer.save(step, model=model, optimizer=optimizer)
        checkpointer.wait_staged()
        with torch.no_grad():
            model[0].weight.zero_()


@pytest.mark.parametrize(
    "write",
    [
        lambda model: model[0].weight.data.add_(1),
        lambda model: model[0].weight.detach().numpy().fill(3),
        lambda model: model[0].weight.detach().view(-1)[-1].fill_(3),
    ],
    ids=["data", "numpy", "last element"],
)
def test_what_bypasses_the_optimizer_is_named(path: Path, write: Any) -> None:
    model, optimizer = made()
    with pccheck.torch.Checkpointer(path, debug="digest") as checkpointer:
        train(model, optimizer)
        checkpointer.save(7, model=model, optimizer=optimizer)
        write(model)
        with pytest.raises(
            pccheck.StateChanged, match=r"^step 7: 'model\.0\.weight' changed between"
        ) as caught:
            train(model, optimizer)
        assert caught.value.names == ["model.0.weight"] and caught.value.step == 7
        # Told once; the run may go on.
        train(model, optimizer)
        checkpointer.save(8, model=model, optimizer=optimizer).wait()


def test_without_it_nothing_is_noticed(path: Path) -> None:
    model, optimizer = made()
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=model)
        model[0].weight.data.add_(1)
        train(model, optimizer)


def test_by_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCHECK_DEBUG", "1")
    arrays = {f"x{index}": np.zeros(1 << 14) for index in range(8)}
    with pccheck.numpy.Checkpointer(path) as checkpointer:
        handle = checkpointer.save(1, state=arrays, overlap=True)
        for array in arrays.values():
            array[-1] = 1
        with pytest.raises(pccheck.StateChanged, match="and 3 more changed"):
            handle.wait_staged()
        handle.wait()
        handle = checkpointer.save(2, state=arrays, overlap=True)
        handle.wait_staged()
        arrays["x0"][0] = 5
        handle.wait()
    monkeypatch.setenv("PCCHECK_DEBUG", "0")
    with pccheck.numpy.Checkpointer(path) as checkpointer:
        checkpointer.save(3, state=arrays, overlap=True)
        arrays["x0"][0] = 6


def test_a_change_that_is_found_at_close_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    array = np.zeros(1 << 14)
    with caplog.at_level(logging.ERROR, "pccheck"):
        with pccheck.Checkpointer(path, debug="digest") as checkpointer:
            checkpointer.save(4, {"x": array}, overlap=True)
            array[3] = 1
    assert "step 4: 'x' changed between" in caplog.text


def test_odd_values(path: Path) -> None:
    with pytest.raises(pccheck.InvalidArgument, match="debug is 'loud'"):
        pccheck.Checkpointer(path, debug="loud")


def test_averaged_models_wait_like_optimizers(path: Path) -> None:
    """Updated between a save and the next step: without the wait the copy would be a mixture."""
    model = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(8)])
    average = AveragedModel(model)
    expected = {key: value.clone() for key, value in average.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    options: dict[str, Any] = {"chunk": "1 MiB", "pool": "4 MiB", "debug": "digest"}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        handle = checkpointer.save(1, average=average)
        average.update_parameters(model)
        average.update_parameters(model)
        assert handle.state != "staging"
        handle.wait()
        loaded = checkpointer.load(1)["average"]
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert not torch.equal(average.module[0].weight, expected["module.0.weight"])
