"""Modules take what torch's own ``load_state_dict`` would take, and wrappers are no difference."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from matching import Twins, adam, moments, refused, resumed, saved, values
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import pccheck
import pccheck.torch as pcc



def test_prefixes_of_wrappers_are_no_difference(path: Path) -> None:
    plain, live = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), None
    wrapped = nn.DataParallel(torch.compile(plain))
    optimizer = adam(plain.parameters())
    wrapped.module._orig_mod(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    saved(path, model=wrapped, optimizer=optimizer)
    live = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    other = adam(reversed(list(live.parameters())))
    report = resumed(path, model=live, optimizer=other)
    assert not report.differs and not report.is_exact
    assert str(report).splitlines()[1:] == [
        "  renamed by wrappers (1)",
        "    model: saved module._orig_mod.0.weight inside DistributedDataParallel or DataParallel "
        "and torch.compile, live 0.weight",
    ]
    assert values(live) == values(plain) and moments(live, other) == moments(plain, optimizer)
    # And the other way round, with versions of the parts.
    saved(path.with_name("plain.pcc"), model=live, optimizer=other)
    again = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    last = adam(again.parameters())
    report = resumed(path.with_name("plain.pcc"), model=again, optimizer=last)
    assert values(again._orig_mod) == values(plain)
    assert moments(again._orig_mod, last) == moments(plain, optimizer)


def test_a_wrapper_inside_and_a_layer_more(path: Path) -> None:
    def made(*, is_compiled: bool, is_longer: bool = False) -> nn.Module:
        body = nn.Linear(2, 2)
        parts = {"body": torch.compile(body) if is_compiled else body, "head": nn.Linear(2, 1)}
        return nn.Sequential(OrderedDict(parts, **({"tail": nn.Linear(1, 1)} if is_longer else {})))

    model, live = made(is_compiled=True), made(is_compiled=False)
    saved(path, model=model)
    assert len(resumed(path, model=live).renamed) == 1
    assert torch.equal(live.body.weight, model.body._orig_mod.weight)
    longer = made(is_compiled=False, is_longer=True)
    error = refused(path, model=longer)
    assert error.report.missing == ["model.tail.weight", "model.tail.bias"]
    assert not error.report.unexpected
    resumed(path, strict=False, model=longer)
    assert torch.equal(longer.body.weight, model.body._orig_mod.weight)


def test_a_wrapper_that_shows_only_in_the_names_of_parameters(path: Path) -> None:
    """The wrapper of activation checkpointing takes its name off the keys of the state."""
    model = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)), nn.Linear(2, 2))
    optimizer = adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved(path, model=model, optimizer=optimizer)
    live = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    other = adam(reversed(list(live.parameters())))
    assert resumed(path, model=live, optimizer=other).is_exact
    assert list(moments(live, other).values()) == list(moments(model, optimizer).values())


def test_averaged_weights_are_not_taken_for_the_model(path: Path) -> None:
    saved(path, model=torch.optim.swa_utils.AveragedModel(Twins()))
    error = refused(path, model=Twins(seed=2))
    assert error.report.unexpected == ["model.n_averaged"]


def test_files_from_before_batches_were_counted(path: Path) -> None:
    model, live = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), None
    model(torch.ones(4, 2))
    state = model.state_dict()
    del state["1.num_batches_tracked"]
    state._metadata["1"]["version"] = 1
    saved(path, model=state)
    live = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    resumed(path, model=live)
    assert torch.equal(live[1].running_mean, model[1].running_mean)
    del state["1.running_mean"]
    saved(path.with_name("less.pcc"), model=state)
    error = refused(path.with_name("less.pcc"), model=live)
    assert error.report.missing == ["model.1.running_mean", "model.1.num_batches_tracked"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["MinMax", "PerChannelMinMax", "Histogram"])
def test_observers_take_buffers_of_any_length(path: Path, kind: str) -> None:
    def made(width: int = 4) -> nn.Module:
        observer = getattr(torch.ao.quantization, f"{kind}Observer")()
        return nn.Sequential(nn.Linear(3, width), observer)

    model, live = made(), made()
    model(torch.randn(5, 3))
    saved(path, model=model)
    resumed(path, model=live)
    for key, value in model.state_dict().items():
        assert torch.equal(live.state_dict()[key], value), key
    error = refused(path, model=made(5))
    assert [item.name for item in error.report.reshaped] == ["model.0.weight", "model.0.bias"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_prepared_for_quantization(path: Path) -> None:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).train()
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        fused = torch.ao.quantization.fuse_modules_qat(model, [["0", "1", "2"]])
        return torch.ao.quantization.prepare_qat(fused)

    model, live = made(1), made(2)
    model(torch.randn(2, 1, 5, 5))
    saved(path, model=model)
    resumed(path, model=live)
    for key, value in model.state_dict().items():
        assert torch.equal(live.state_dict()[key], value), key


def test_lazy_parameters_are_made_by_what_is_loaded(path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    model(torch.ones(1, 3))
    saved(path, model=model)
    live = nn.Sequential(nn.LazyLinear(4))
    report = resumed(path, model=live)
    assert values(live) == values(model)
    assert report.is_exact and str(report).endswith(": it fits")


class Extra(nn.Module):
    """A module with state beside its tensors."""

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_extra_state_is_the_affair_of_its_module(path: Path) -> None:
    saved(path, model=Extra(torch.arange(3.0)))
    live = Extra(torch.zeros(0, dtype=torch.int64))
    resumed(path, model=live)
    assert live.extra.tolist() == [0, 1, 2]


def test_a_scalar_that_was_a_vector_of_one(path: Path) -> None:
    saved(path, model=OrderedDict(scale=torch.ones(1)))
    live = nn.Module()
    live.scale = nn.Parameter(torch.zeros(()))
    resumed(path, model=live)
    assert live.scale.item() == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrizations_and_norms_of_weights(path: Path) -> None:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
            nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)),
            nn.utils.spectral_norm(nn.Linear(2, 2)),
        )

    model, live = made(1), made(2)
    optimizer, other = adam(model.parameters()), adam(live.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved(path, model=model, optimizer=optimizer)
    resumed(path, model=live, optimizer=other)
    assert values(live) == values(model) and moments(live, other) == moments(model, optimizer)


class Forgetful(nn.Module):
    """It reads in a way of its own, and nothing of a model of another kind."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(2)))
        self.register_load_state_dict_pre_hook(lambda *_: None)


def test_a_module_of_its_own_that_fits_key_by_key_is_counted(path: Path) -> None:
    saved(path, model=Forgetful("a"))
    live = Forgetful("a")
    assert resumed(path, model=live).matched_count == 1
    assert str(resumed(path, model=live)).endswith("all 1 tensors fit")


def test_wrappers_around_modules_with_hooks(path: Path) -> None:
    model, live = nn.Sequential(Forgetful("a")), nn.DataParallel(nn.Sequential(Forgetful("a")))
    nn.init.constant_(model[0].a, 7.0)
    saved(path, model=model)
    assert resumed(path, model=live).renamed and live.module[0].a.tolist() == [7, 7]


def test_a_module_of_its_own_that_takes_nothing(path: Path) -> None:
    saved(path, model=Forgetful("a"))
    live = Forgetful("b")
    with pcc.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.CheckpointError) as caught:
            checkpointer.resume(strict=False, model=live)
    assert str(caught.value) == (
        f"{path}: 'model' reads saved state in its own way, and accepted none of it: saved "
        "are a, it has b"
    )
    assert live.b.tolist() == [1, 1]


def test_a_module_of_its_own_that_takes_some(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(path, model=nn.ModuleDict({"x": Forgetful("a"), "y": Twins("a")}))
    live = nn.ModuleDict({"x": Forgetful("a"), "z": Twins("a")})
    report = resumed(path, strict=False, model=live)
    assert report.missing == ["model.z.a"] and report.unexpected == ["model.y.a"]
    assert "model.y.a" in caplog.text


def test_a_module_of_its_own_that_refuses(path: Path) -> None:
    saved(path, model=Forgetful("a"))
    with pcc.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.CheckpointError) as caught:
            checkpointer.resume(model=Forgetful("b"))
    text = str(caught.value)
    assert text.startswith("'model' reads saved state in its own way, and refused it: Err")
    assert 'Unexpected key(s) in state_dict: "a"' in text and "unspecified values now" in text


def test_weights_that_were_tied_since_are_in_the_report(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint has two tensors for one memory: the report says that one of them is lost."""
    untied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pcc.Checkpointer(path) as ckpt:
        ckpt.save(1, model=untied).wait()
        ckpt.resume(model=tied)
        report = ckpt.resume_report
        assert report is not None and not report.is_exact and not report.differs
        assert report.overwritten == ["model.0.weight and model.1.weight"]
        assert "the last one stays" in caplog.text
        # Tied when it was saved, or untied here: nothing is lost.
        for saved, live in ((tied, tied), (tied, untied), (untied, untied)):
            ckpt.save(2, model=saved).wait()
            ckpt.resume(model=live)
            assert ckpt.resume_report is not None and ckpt.resume_report.is_exact
