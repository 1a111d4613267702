"""A part without the frozen base of a model, as LoRA has it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import pccheck
import pccheck.torch as pcc

SIZE = 64


class Lora(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def made(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(
        Lora(nn.Linear(SIZE, SIZE)), nn.BatchNorm1d(SIZE), Lora(nn.Linear(SIZE, 8))
    )
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(16, SIZE)).square().mean().backward()
    optimizer.step()


@pytest.fixture
def saved(path: Path) -> Path:
    model, optimizer = made(0)
    with pcc.Checkpointer(path) as ckpt:
        for step in range(3):
            train(model, optimizer)
            ckpt.save(step, model=pcc.trainable(model), optimizer=optimizer)
    return path


def test_only_what_is_trained_is_stored_and_the_run_goes_on(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = pcc.load(saved)["model"]
    assert not any(".base." in key for key in held) and "1.running_mean" in held
    straight, its_optimizer = made(0)
    for _ in range(4):
        train(straight, its_optimizer)
    model, optimizer = made(0)
    caplog.set_level(logging.INFO)
    with pcc.Checkpointer(saved) as ckpt:
        assert ckpt.resume(model=pcc.trainable(model), optimizer=optimizer) == 3
        assert ckpt.resume_report is not None and ckpt.resume_report.is_exact
    assert "4 frozen tensors" in caplog.text and "on purpose" in caplog.text
    train(model, optimizer)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_every_bit_comes_back(path: Path) -> None:
    model, optimizer = made(0)
    train(model, optimizer)
    with pcc.Checkpointer(path) as ckpt:
        ckpt.save(1, model=pcc.trainable(model), optimizer=optimizer).wait()
        other, _ = made(0)
        ckpt.resume(model=pcc.trainable(other))
        for (name, value), found in zip(
            model.state_dict().items(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(value, found), name


def test_another_base_is_refused_before_anything_changes(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = made(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pcc.Checkpointer(saved) as ckpt:
        with pytest.raises(pccheck.StateMismatch, match="base of 4 frozen tensors"):
            ckpt.resume(model=pcc.trainable(model))
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert ckpt.resume(model=pcc.trainable(model), strict=False) == 3
    assert "base of 4 frozen tensors" in caplog.text
    stored = pcc.load(saved)["model"]
    assert torch.equal(model.state_dict()["0.up"], stored["0.up"])
    assert torch.equal(model.state_dict()["0.base.weight"], before["0.base.weight"])


def test_one_changed_value_in_a_small_base_is_another_base(saved: Path) -> None:
    model, _ = made(0)
    with torch.no_grad():
        model[2].base.weight[3, 4] += 1  # type: ignore[index, union-attr]
    assert pcc.trainable(model).base() != pcc.trainable(made(0)[0]).base()
    # It is made again when the base changes.
    first = pcc.trainable(model).base()
    with torch.no_grad():
        model[0].base.bias.zero_()  # type: ignore[index, union-attr]
    assert pcc.trainable(model).base() != first


def test_what_is_read_in_place_is_guarded(path: Path) -> None:
    """A change before it is staged fails that checkpoint, as it does for a module."""
    model, _ = made(0)
    with pcc.Checkpointer(path, pool="64 KiB", chunk="64 KiB", writer_workers=1) as ckpt:
        part = pcc.trainable(model)
        handle = ckpt.save(1, model=part)
        with torch.no_grad():
            part.parameters()[0].add_(1.0)
        try:
            outcome = handle.wait()
        except pccheck.StateChanged as change:
            assert change.names == ["model.0.down"]
        else:
            assert outcome.durable
            stored = pcc.load(path)["model"]["0.down"]
            assert torch.equal(stored + 1.0, part.parameters()[0])


def test_parts_that_do_not_fit(saved: Path) -> None:
    model, _ = made(0)
    model[0].down = nn.Parameter(torch.zeros(8, SIZE))  # type: ignore[union-attr]
    with pytest.raises(pccheck.StateMismatch, match=r"model\.0\.down"):
        pcc.load_into(saved, model=pcc.trainable(model))
    whole, _ = made(0)
    with pytest.raises(pccheck.StateMismatch, match=r"model\.0\.base\.weight"):
        pcc.load_into(saved, model=whole)
    pcc.load_into(saved, model=whole, strict=False)
    assert torch.equal(whole.state_dict()["2.up"], pcc.load(saved)["model"]["2.up"])
    assert pcc.trainable(model).absent() == [
        "0.base.weight", "0.base.bias", "2.base.weight", "2.base.bias",
    ]  # fmt: skip


def test_without_buffers(path: Path) -> None:
    model, _ = made(0)
    with pcc.Checkpointer(path) as ckpt:
        ckpt.save(1, model=pcc.trainable(model, buffers=False))
    assert "1.running_mean" not in pcc.load(path)["model"]
    pcc.load_into(path, model=pcc.trainable(made(0)[0], buffers=False))


def test_an_optimizer_in_another_order_goes_by_names(path: Path) -> None:
    """Shapes that are alike say nothing: only names tell whose state it is."""

    def run() -> tuple[nn.Module, list[nn.Parameter]]:
        model = nn.Sequential(*(nn.Linear(SIZE, SIZE, bias=False) for _ in range(4)))
        model[0].requires_grad_(False)
        return model, [p for p in model.parameters() if p.requires_grad]

    torch.manual_seed(0)
    model, parameters = run()
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    train(model, optimizer)
    with pcc.Checkpointer(path) as ckpt:
        ckpt.save(1, model=pcc.trainable(model), optimizer=optimizer)
    other, its_parameters = run()
    other[0].load_state_dict(model[0].state_dict())
    its_optimizer = torch.optim.Adam(its_parameters[::-1])
    with pcc.Checkpointer(path) as ckpt:
        ckpt.resume(model=pcc.trainable(other), optimizer=its_optimizer)
        assert ckpt.resume_report is not None and ckpt.resume_report.is_exact
    for now, then in zip(its_parameters, parameters, strict=True):
        expected = optimizer.state[then]["exp_avg"]
        assert torch.equal(its_optimizer.state[now]["exp_avg"], expected)


def test_a_base_that_was_changed_behind_the_back_of_torch_is_another_one(path: Path) -> None:
    """As when adapters are merged into their base, which counts no change of it."""
    model, optimizer = made(0)
    with pcc.Checkpointer(path) as ckpt:
        ckpt.save(1, model=pcc.trainable(model), optimizer=optimizer)
        first = next(p for p in model.parameters() if not p.requires_grad)
        version = first._version
        first.data += 1
        assert first._version == version
        ckpt.save(2, model=pcc.trainable(model), optimizer=optimizer)
    fresh, its_optimizer = made(0)
    with pcc.Checkpointer(path) as ckpt:
        with pytest.raises(pccheck.StateMismatch, match="pccheck.base"):
            ckpt.resume(model=pcc.trainable(fresh), optimizer=its_optimizer)
        ckpt.resume(model=pcc.trainable(model), optimizer=optimizer)
