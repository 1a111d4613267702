"""Resuming into a state that differs: all of it is told before anything is touched, or what fits
is loaded."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pccheck
import pccheck.numpy
import pccheck.torch


def made(seed: int = 1, *, width: int = 8, extra: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(OrderedDict(body=nn.Linear(4, width), head=nn.Linear(width, 2)))
    if extra:
        model.add_module("tail", nn.Linear(2, 2))
    return model


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return optimizer


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def saved(path: Path) -> nn.Module:
    """A model and its optimizer, saved as step 5."""
    model = made(1)
    optimizer = stepped(model)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(5, model=model, optimizer=optimizer, history=[1.0]).wait()
    return model


def test_a_state_that_fits_is_exact(path: Path, saved: nn.Module) -> None:
    live = made(2)
    optimizer = torch.optim.AdamW(live.parameters())
    with pccheck.torch.Checkpointer(path) as checkpointer:
        assert checkpointer.resume_report is None
        assert checkpointer.resume(model=live, optimizer=optimizer) == 6
        report = checkpointer.resume_report
        assert report is not None and report.is_exact and not report.differs
        # Four of the model, and for each parameter a counter and two moments.
        assert report.matched_count == 4 + 4 * 3
        assert str(report) == f"{path}, step 5: all 16 tensors fit"
    assert same(values(live), values(saved))


def test_everything_that_differs_is_listed_and_nothing_is_touched(
    path: Path, saved: nn.Module
) -> None:
    live = nn.Sequential(
        OrderedDict(
            body=nn.Linear(4, 16), head=nn.Linear(8, 2).to(torch.bfloat16), tail=nn.Linear(2, 2)
        )
    )
    del live.body.bias
    live.body.register_parameter("bias", None)
    before = values(live)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.StateMismatch) as caught:
            checkpointer.resume(model=live, scheduler={"x": 1})
        report = caught.value.report
        assert checkpointer.resume_report is report
        assert report.missing == ["model.tail.weight", "model.tail.bias", "scheduler"]
        assert report.unexpected == ["model.body.bias"]
        assert [item.name for item in report.reshaped] == ["model.body.weight"]
        assert [item.name for item in report.retyped] == ["model.head.weight", "model.head.bias"]
    assert same(values(live), before)
    text = str(caught.value)
    assert text == f"""{path}, step 5: the checkpoint and the live state differ
  missing from the checkpoint (3)
    model.tail.weight
    model.tail.bias
    scheduler
  unexpected: in the checkpoint, not in the live state (1)
    model.body.bias
  reshaped (1)
    model.body.weight: saved float32 (8, 4), live float32 (16, 4)
  retyped (2)
    model.head.weight: saved float32, live bfloat16
    model.head.bias: saved float32, live bfloat16
  the checkpoint holds: model, optimizer, history, rng
  nothing was loaded; give resume(strict=False) to load what fits"""


def test_a_partial_resume_loads_what_fits_and_says_so(
    path: Path, saved: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    live = made(2, width=8, extra=True).to(torch.float64)
    live.head.to(torch.bfloat16)
    live.body = nn.Linear(4, 9)
    before = values(live)
    other: dict[str, Any] = {"untouched": torch.ones(2)}
    with pccheck.torch.Checkpointer(path) as checkpointer:
        with caplog.at_level(logging.WARNING, "pccheck"):
            assert checkpointer.resume(strict=False, model=live, other=other) == 6
        report = checkpointer.resume_report
    after, stored = values(live), values(saved)
    for key in ("body.weight", "body.bias", "tail.weight", "tail.bias"):
        assert torch.equal(after[key], before[key]), key
    for key in ("head.weight", "head.bias"):
        # Rounded to the live type, as was asked for.
        assert torch.equal(after[key], stored[key].to(torch.bfloat16)), key
    assert torch.equal(other["untouched"], torch.ones(2))
    assert report is not None
    assert [item.name for item in report.reshaped] == ["model.body.weight", "model.body.bias"]
    assert report.missing == ["model.tail.weight", "model.tail.bias", "other"]
    assert str(report) in caplog.text


def test_a_wider_type_is_converted_without_loss_even_when_strict(
    path: Path, saved: nn.Module
) -> None:
    live = made(2).to(torch.float64)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.resume(model=live)
        report = checkpointer.resume_report
    assert report is not None and not report.is_exact and not report.differs
    assert len(report.converted) == 4
    assert torch.equal(live.head.weight, saved.head.weight.to(torch.float64))


def test_an_optimizer_with_other_groups(path: Path, saved: nn.Module) -> None:
    live = made(2)
    optimizer = torch.optim.AdamW(live.head.parameters())
    with pccheck.torch.Checkpointer(path) as checkpointer:
        with pytest.raises(
            pccheck.StateMismatch,
            match=r"optimizer: saved groups of 4 parameters, live groups of 2",
        ):
            checkpointer.resume(model=live, optimizer=optimizer)
        checkpointer.resume(strict=False, model=live, optimizer=optimizer)
    assert list(optimizer.state) == [live.head.weight, live.head.bias]
    assert same(values(live), values(saved))


def test_moments_of_a_reshaped_parameter_are_left_out(path: Path, saved: nn.Module) -> None:
    """A fresh optimizer would take them over, and fail in its first step."""
    live = made(2, width=9)
    optimizer = torch.optim.AdamW(live.parameters())
    with pccheck.torch.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.StateMismatch, match=r"optimizer.state.0.exp_avg: saved"):
            checkpointer.resume(optimizer=optimizer)
        checkpointer.resume(strict=False, model=live, optimizer=optimizer)
    # Only the last bias has the shape that was saved.
    assert list(optimizer.state) == [live.head.bias]
    live(torch.randn(3, 4)).sum().backward()
    optimizer.step()


class Renamed(nn.Module):
    """A module that knows what its parameter was called in older checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "old" in state:
            state[prefix + "new"] = state.pop(prefix + "old")
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_module_that_reads_old_names_is_left_to_do_so(path: Path) -> None:
    live = nn.Sequential(Renamed())
    with pccheck.torch.Checkpointer(path) as checkpointer:
        state = OrderedDict([("0.old", torch.arange(3.0))])
        checkpointer.save(1, model=state, rng=False).wait()
        checkpointer.resume(model=live, rng=False)
    assert torch.equal(live[0].new, torch.arange(3.0))


def test_long_lists_are_cut_in_the_message_not_in_the_report(path: Path) -> None:
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=nn.Module(), rng=False).wait()
        live = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(50))
        with pytest.raises(pccheck.StateMismatch, match="and 30 more") as caught:
            checkpointer.resume(model=live)
        assert len(caught.value.report.missing) == 50
        assert "model.49" in caught.value.report.text()


def test_names_from_the_file_do_not_reach_the_terminal_raw(path: Path) -> None:
    state = OrderedDict([("evil\x1b[2J\nname", torch.zeros(1))])
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=state, rng=False).wait()
        with pytest.raises(pccheck.StateMismatch) as caught:
            checkpointer.resume(model=nn.Module())
    assert "\x1b" not in str(caught.value) and r"evil\u{1b}[2J\nname" in str(caught.value)


def test_arrays_and_nests(path: Path) -> None:
    state = {"a": np.arange(3.0), "list": [np.zeros(2), 1], "plain": 5}
    with pccheck.numpy.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state=state, rng=False).wait()
        live = {"a": np.zeros(3, np.float32), "list": [np.ones(2)], "b": np.ones(1), "plain": 0}
        with pytest.raises(pccheck.StateMismatch) as caught:
            checkpointer.resume(state=live, rng=False)
        report = caught.value.report
        assert report.missing == ["state.b"] and live["plain"] == 0
        assert [str(item) for item in report.reshaped] == [
            "state.list: saved a list of 2, live a list of 1"
        ]
        assert [str(item) for item in report.retyped] == ["state.a: saved float64, live float32"]
        checkpointer.resume(state=live, rng=False, strict=False)
    assert np.array_equal(live["a"], np.arange(3.0)) and live["a"].dtype == np.float32
    assert live["list"][0].all() and live["b"].all() and live["plain"] == 5


# -- devices


def test_a_model_on_the_meta_device_gets_memory_as_it_is_loaded(
    path: Path, saved: nn.Module
) -> None:
    with torch.device("meta"):
        live = nn.Sequential(OrderedDict(body=nn.Linear(4, 8), head=nn.Linear(8, 2)))
        live.register_buffer("scratch", torch.zeros(2), persistent=False)
    live.body.weight.requires_grad_(False)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.resume(model=live)
    assert same(values(live), values(saved))
    assert isinstance(live.head.weight, nn.Parameter) and live.head.weight.requires_grad
    assert not live.body.weight.requires_grad and live.scratch.is_meta


def test_ties_of_a_meta_model_are_kept(path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
        model[1].weight = model[0].weight
        return model

    model = tied()
    with torch.device("meta"):
        live = tied()
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=model).wait()
        checkpointer.resume(model=live)
    assert live[1].weight is live[0].weight and torch.equal(live[0].weight, model[0].weight)


def test_a_mismatch_leaves_a_meta_model_on_meta(path: Path, saved: nn.Module) -> None:
    with torch.device("meta"):
        live = made(1, width=9)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.StateMismatch):
            checkpointer.resume(model=live)
    assert all(parameter.is_meta for parameter in live.parameters())


def test_map_location(path: Path, saved: nn.Module) -> None:
    skeleton = pccheck.torch.load(path, map_location="meta")
    weight = skeleton["model"]["head.weight"]
    assert weight.is_meta and weight.shape == (2, 8) and skeleton["history"] == [1.0]
    loaded = pccheck.torch.load(path, map_location=torch.device("cpu"))
    assert torch.equal(loaded["model"]["head.weight"], saved.head.weight)
    with pytest.raises(pccheck.InvalidArgument, match="map_location is a dict; give a device"):
        pccheck.torch.load(path, map_location={"cuda:0": "cpu"})  # type: ignore[arg-type]


def test_what_cannot_be_read_straight_goes_through_a_bounded_buffer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Casts and strides on the CPU take the way that another device takes."""
    counts: list[int] = []
    original = pccheck.torch.TorchMemory.allocate

    def allocate(self: Any, byte_count: int) -> Any:
        counts.append(byte_count)
        return original(self, byte_count)

    monkeypatch.setattr(pccheck.torch.TorchMemory, "allocate", allocate)
    monkeypatch.setattr("pccheck._state.reading._BUFFER_BYTE_COUNT", 3000)
    state = {str(index): torch.randn(16, 16) for index in range(20)}
    live = {
        key: torch.zeros(16, 16).T if int(key) % 2 else torch.zeros(16, 16, dtype=torch.float64)
        for key in state
    }
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state=state, rng=False).wait()
        checkpointer.resume(state=live, rng=False)
    assert all(torch.equal(live[key].float(), state[key]) for key in state)
    assert counts == [2048] * 10


# -- on demand


def test_lazy_tensors_read_what_is_asked_for(path: Path, saved: nn.Module) -> None:
    state = pccheck.torch.load(path, lazy=True)
    lazy = state["model"]["head.weight"]
    assert repr(lazy) == "<LazyTensor 'model.head.weight' torch.float32 (2, 8)>"
    assert lazy.shape == (2, 8) and lazy.dtype == torch.float32 and lazy.meta.is_meta
    assert torch.equal(lazy.load(), saved.head.weight)
    assert torch.equal(lazy[1], saved.head.weight[1]) and torch.equal(lazy[-2], lazy[0])
    assert torch.equal(lazy[0:1], saved.head.weight[:1]) and lazy[1:1].shape == (0, 8)
    into = torch.zeros(2, 8, dtype=torch.float64)
    assert lazy.load(into=into) is into and torch.equal(into.float(), saved.head.weight)
    assert state["history"] == [1.0]
    with pytest.raises(IndexError, match="row 2 of 'model.head.weight', which has 2"):
        lazy[2]
    with pytest.raises(pccheck.InvalidArgument, match="steps of 1"):
        lazy[::2]
    with pytest.raises(pccheck.InvalidArgument, match="has the shape"):
        lazy.load(into=torch.zeros(3))
    with pytest.raises(TypeError):
        len(state["optimizer"]["state"][0]["step"])
    with pytest.raises(pccheck.InvalidArgument, match="no use for into"):
        pccheck.torch.load(path, lazy=True, into={})


def test_lazy_tensors_stay_what_they_were_while_the_writer_goes_on(path: Path) -> None:
    with pccheck.torch.Checkpointer(path, in_flight=2) as checkpointer:
        checkpointer.save(1, x=torch.full((1000,), 1.0)).wait()
        lazy = pccheck.torch.load(path, lazy=True)["x"]
        for step in range(2, 8):
            checkpointer.save(step, x=torch.full((1000,), float(step))).wait()
        assert lazy.load().max() == 1
        assert checkpointer.load()["x"].min() == 7


@pytest.mark.parametrize(
    ("live", "words"),
    [
        (torch.empty(3, device="meta"), "'t' is on the meta device, which holds no values"),
        (torch.zeros(1).expand(3), "'t' cannot be filled with what was saved: "),
        (torch.zeros(3).to_sparse(), "'t' cannot be filled with what was saved: "),
    ],
    ids=["meta", "expanded", "sparse"],
)
def test_a_tensor_that_takes_nothing_is_named(
    path: Path, live: torch.Tensor, words: str
) -> None:
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, t=torch.arange(3.0), a=np.arange(3)).wait()
        with pytest.raises(pccheck.CheckpointError, match=words):
            checkpointer.resume(t=live)
        with pytest.raises(pccheck.CheckpointError, match="'a' was saved as a ndarray"):
            checkpointer.resume(a=torch.zeros(3, dtype=torch.int64))
