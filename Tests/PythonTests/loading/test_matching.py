"""What comes back is what was saved, or it is refused before anything is touched: optimizers go by
the names of their parameters, they and other objects by their class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import images
import pytest
import torch
from matching import Twins, adam, moments, refused, resumed, saved, step, values
from torch import nn
from torch.optim import lr_scheduler

import pccheck
import pccheck.torch as pcc

# -- optimizers, by the names of their parameters


def test_equally_shaped_parameters_in_another_order(path: Path) -> None:
    model = Twins("abc")
    optimizer = adam(model.parameters())
    step(model, optimizer, 2)
    saved(path, model=model, optimizer=optimizer)
    live = Twins("cab", seed=2)
    other = adam(live.parameters())
    report = resumed(path, model=live, optimizer=other)
    assert report.is_exact and report.matched_count == 3 + 9
    assert moments(live, other) == moments(model, optimizer)
    step(model, optimizer), step(live, other)
    assert values(live) == {name: values(model)[name] for name in values(live)}


def test_an_optimizer_that_has_stepped_is_filled_by_name(path: Path) -> None:
    model, live = Twins("abc"), Twins("bca", seed=2)
    optimizer, other = adam(model.parameters()), adam(live.parameters())
    step(model, optimizer, 2), step(live, other, 3)
    saved(path, model=model, optimizer=optimizer)
    memory = other.state[live.a]["exp_avg"].data_ptr()
    resumed(path, model=live, optimizer=other)
    assert moments(live, other) == moments(model, optimizer)
    assert other.state[live.a]["exp_avg"].data_ptr() == memory


def test_the_optimizer_may_be_given_first(path: Path) -> None:
    model, live = Twins("abc"), Twins("cba", seed=2)
    optimizer, other = adam(model.parameters()), adam(live.parameters())
    step(model, optimizer)
    saved(path, optimizer=optimizer, model=model)
    resumed(path, optimizer=other, model=live)
    assert moments(live, other) == moments(model, optimizer)


def test_lists_of_models_and_optimizers(path: Path) -> None:
    models, lives = [Twins("abc"), Twins("ab", 3)], [Twins("cba", 4), Twins("ba", 5)]
    optimizers, others = [[adam(m.parameters()) for m in each] for each in (models, lives)]
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer)
    saved(path, models=models, optimizers=optimizers)
    resumed(path, models=lives, optimizers=others)
    for index in range(2):
        expected = moments(models[index], optimizers[index])
        assert moments(lives[index], others[index]) == expected


def grouped(model: Twins, *groups: tuple[str, float]) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        [{"params": [getattr(model, n) for n in names], "lr": lr} for names, lr in groups]
    )


def test_groups_in_another_order(path: Path) -> None:
    model, live = Twins(), Twins(seed=2)
    optimizer = grouped(model, ("ab", 0.1), ("c", 0.2))
    other = grouped(live, ("c", 0.5), ("ba", 0.6))
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    resumed(path, model=live, optimizer=other)
    assert moments(live, other) == moments(model, optimizer)
    assert [group["lr"] for group in other.param_groups] == [0.2, 0.1]


def test_groups_in_another_order_under_a_scheduler(path: Path) -> None:
    """It keeps a list with a value for each group."""
    model, live = Twins(), Twins(seed=2)
    optimizer = grouped(model, ("ab", 0.1), ("c", 0.2))
    other = grouped(live, ("c", 0.5), ("ab", 0.6))
    schedulers = [lr_scheduler.StepLR(item, 3) for item in (optimizer, other)]
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer, scheduler=schedulers[0])
    error = refused(path, model=live, optimizer=other, scheduler=schedulers[1])
    assert [str(item) for item in error.report.reshaped] == [
        "optimizer.param_groups.0: saved its parameters in group 1, live in group 0",
        "optimizer.param_groups.1: saved its parameters in group 0, live in group 1",
        "scheduler: saved values for other groups, live an optimizer whose groups differ",
    ]


def test_a_scheduler_whose_groups_moved_keeps_its_own_values(path: Path) -> None:
    """In whichever order the parts are given."""
    model, live = Twins(), Twins(seed=2)
    optimizer = grouped(model, ("ab", 0.1), ("c", 0.2))
    other = grouped(live, ("c", 0.5), ("ab", 0.6))
    scheduler, own = (lr_scheduler.StepLR(item, 3) for item in (optimizer, other))
    step(model, optimizer)
    saved(path, scheduler=scheduler, optimizer=optimizer, model=model)
    report = resumed(path, strict=False, scheduler=own, optimizer=other, model=live)
    assert "scheduler: saved values for other groups" in str(report)
    assert own.base_lrs == [0.5, 0.6] and moments(live, other) == moments(model, optimizer)


def test_groups_that_were_made_in_another_way(path: Path) -> None:
    model, live = Twins("abcd"), Twins("abcd", seed=2)
    optimizer = grouped(model, ("ab", 0.1), ("cd", 0.2))
    other = grouped(live, ("ac", 0.5), ("bd", 0.6))
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    error = refused(path, model=live, optimizer=other)
    assert [str(item) for item in error.report.reshaped] == [
        "optimizer.param_groups.0: saved its parameters in groups 0, 1, live in group 0",
        "optimizer.param_groups.1: saved its parameters in groups 0, 1, live in group 1",
    ]
    resumed(path, strict=False, model=live, optimizer=other)
    assert moments(live, other) == moments(model, optimizer)
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.6]


def test_groups_that_end_elsewhere(path: Path) -> None:
    """The order of all parameters is the same, and the sizes of the groups are, too."""
    model, live = Twins(), Twins(seed=2)
    optimizer = grouped(model, ("ab", 0.1), ("c", 0.2))
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    error = refused(path, model=live, optimizer=grouped(live, ("a", 0.5), ("bc", 0.6)))
    assert "optimizer.param_groups.1: saved its parameters in groups 0, 1" in str(error)


def test_a_group_without_parameters(path: Path) -> None:
    model, live = Twins(), Twins("cba", seed=2)
    optimizer = grouped(model, ("abc", 0.1), ("", 0.2))
    other = grouped(live, ("cab", 0.5), ("", 0.6))
    schedulers = [lr_scheduler.StepLR(item, 3) for item in (optimizer, other)]
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer, scheduler=schedulers[0])
    assert resumed(path, model=live, optimizer=other, scheduler=schedulers[1]).is_exact
    assert moments(live, other) == moments(model, optimizer)
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.2]


def test_a_group_that_was_split_keeps_its_settings(path: Path) -> None:
    model, live = Twins(), Twins(seed=2)
    optimizer, other = grouped(model, ("abc", 0.1)), grouped(live, ("ab", 0.5), ("c", 0.6))
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    error = refused(path, model=live, optimizer=other)
    assert "optimizer: saved groups of 3 parameters, live groups of 2, 1" in str(error)
    resumed(path, strict=False, model=live, optimizer=other)
    assert moments(live, other) == moments(model, optimizer)
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.6]


def test_parameters_of_no_module_go_by_their_place(path: Path) -> None:
    model, live = Twins("ab"), Twins("ba", seed=2)
    loose, own = [torch.ones(3, requires_grad=True)], [torch.zeros(3, requires_grad=True)]
    optimizer, other = adam([*model.parameters(), *loose]), adam([*own, *live.parameters()])
    for parameter, gradient in zip([*model.parameters(), *loose], (1.0, 2.0, 3.0), strict=True):
        parameter.grad = torch.full((3,), gradient)
    optimizer.step()
    saved(path, model=model, optimizer=optimizer)
    resumed(path, model=live, optimizer=other)
    assert moments(live, other) == moments(model, optimizer)
    assert torch.equal(other.state[own[0]]["exp_avg"], optimizer.state[loose[0]]["exp_avg"])


def test_a_model_that_only_one_side_names(path: Path) -> None:
    """The parameters of the other model go by their place."""
    models, lives = (Twins("ab"), Twins("cd", 3)), (Twins("ba", 4), Twins("cd", 5))
    optimizer, other = [
        adam([*first.parameters(), *second.parameters()]) for first, second in (models, lives)
    ]
    for number, parameter in enumerate([p for model in models for p in model.parameters()]):
        parameter.grad = torch.full((3,), float(number))
    optimizer.step()
    expected = [moments(model, optimizer) for model in models]
    saved(path, first=models[0], second=models[1], optimizer=optimizer)
    assert resumed(path, first=lives[0], optimizer=other).is_exact
    assert [moments(model, other) for model in lives] == expected
    less = path.with_name("less.pcc")
    saved(less, first=models[0], optimizer=optimizer, extra=models[1])
    again = adam([*lives[0].parameters(), *lives[1].parameters()])
    assert resumed(less, first=lives[0], extra=lives[1], optimizer=again).is_exact
    assert [moments(model, again) for model in lives] == expected


def test_names_that_torch_keeps_tell_when_only_the_save_had_a_model(path: Path) -> None:
    model, live = Twins("abc"), Twins("cab", seed=2)
    optimizer, other = adam(model.named_parameters()), adam(live.named_parameters())
    step(model, optimizer)
    saved(path, optimizer=optimizer, model=model)
    resumed(path, optimizer=other)
    assert moments(live, other) == moments(model, optimizer)


def test_names_that_torch_keeps_tell_without_a_model(path: Path) -> None:
    model, live = Twins("abc"), Twins("cab", seed=2)
    optimizer, other = adam(model.named_parameters()), adam(live.named_parameters())
    step(model, optimizer)
    saved(path, optimizer=optimizer)
    resumed(path, optimizer=other)
    assert moments(live, other) == moments(model, optimizer)
    assert other.param_groups[0]["param_names"] == ["c", "a", "b"]
    seen = []
    hooked = adam(live.named_parameters())
    hooked.register_load_state_dict_pre_hook(
        lambda _, state: seen.append(state["param_groups"][0]["param_names"])
    )
    resumed(path, optimizer=hooked)
    assert seen == [["c", "a", "b"]] and moments(live, hooked) == moments(model, optimizer)
    stranger = nn.ParameterDict({name: nn.Parameter(torch.zeros(3)) for name in "xyz"})
    error = refused(path, optimizer=adam(stranger.named_parameters()))
    assert error.report.missing == [f"optimizer.state of {name}" for name in "xyz"]
    assert error.report.unexpected == [f"optimizer.state of {name}" for name in "abc"]


def test_a_tied_parameter_has_several_names(path: Path) -> None:
    def tied(first: str, second: str) -> nn.ParameterDict:
        model = nn.ParameterDict()
        model[first] = nn.Parameter(torch.ones(3))
        model["x"] = nn.Parameter(torch.zeros(3))
        model[second] = model[first]
        return model

    model, live = tied("a", "b"), tied("b", "a")
    optimizer, other = adam(model.parameters()), adam(reversed(list(live.parameters())))
    model["a"].grad, model["x"].grad = torch.ones(3), torch.full((3,), 2.0)
    optimizer.step()
    saved(path, model=model, optimizer=optimizer)
    resumed(path, model=live, optimizer=other)
    for name in "ax":
        saved_moment = optimizer.state[model[name]]["exp_avg"]
        assert torch.equal(other.state[live[name]]["exp_avg"], saved_moment), name


def test_a_parameter_of_two_parts_has_the_names_of_both(path: Path) -> None:
    models = [nn.ModuleList([Twins("ab", 1), Twins("ab", 2)]) for _ in range(2)]
    optimizer = adam(models[0].parameters())
    other = adam(reversed(list(models[1].parameters())))
    for number, parameter in enumerate(models[0].parameters()):
        parameter.grad = torch.full((3,), float(number))
    optimizer.step()
    saved(path, body=models[0][0], whole=models[0], optimizer=optimizer)
    assert resumed(path, whole=models[1], optimizer=other).is_exact
    assert moments(models[1], other) == moments(models[0], optimizer)


def test_one_vector_over_all_parameters_needs_their_order(path: Path) -> None:
    model, live = Twins("abc"), Twins("cab", seed=2)
    optimizer, other = torch.optim.LBFGS(model.parameters()), torch.optim.LBFGS(live.parameters())
    model().backward()
    optimizer.step(lambda: model())
    saved(path, model=model, optimizer=optimizer)
    error = refused(path, model=live, optimizer=other)
    assert "optimizer: saved one vector over its parameters, live other parameters" in str(error)
    same = Twins("abc", seed=2)
    resumed(path, model=same, optimizer=torch.optim.LBFGS(same.parameters()))


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves as releases did that recorded nothing of objects."""
    monkeypatch.setattr("pccheck.torch.objects_metadata", lambda state: {})


def test_files_without_names_go_by_the_place(path: Path, unrecorded: None) -> None:
    model, live = Twins("ab"), Twins("ab", seed=2)
    optimizer, other = adam(model.parameters()), adam(live.parameters())
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    assert resumed(path, model=live, optimizer=other).is_exact
    assert moments(live, other) == moments(model, optimizer)
    more = Twins("abc", seed=2)
    error = refused(path, model=more, optimizer=adam(more.parameters()))
    assert "optimizer: saved groups of 2 parameters, live groups of 3" in str(error)


@pytest.mark.parametrize(("was", "now"), [("SGD", "AdamW"), ("AdamW", "SGD"), ("Adam", "AdamW")])
def test_files_without_classes_go_by_the_settings(
    path: Path, was: str, now: str, unrecorded: None
) -> None:
    model, live = Twins(), Twins(seed=2)
    optimizer = getattr(torch.optim, was)(model.parameters(), lr=0.1)
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    error = refused(path, model=live, optimizer=getattr(torch.optim, now)(live.parameters(), lr=1))
    text = str(error.report.other_class[0])
    assert text.startswith("optimizer: saved a class with the settings ")
    assert text.endswith(f", weight_decay, live {now}")


def test_schedulers_without_classes_go_by_their_settings(path: Path, unrecorded: None) -> None:
    optimizer = adam([nn.Parameter(torch.zeros(1))])
    saved(path, scheduler=lr_scheduler.StepLR(optimizer, 3))
    error = refused(path, scheduler=lr_scheduler.CosineAnnealingLR(optimizer, 3))
    assert str(error.report.other_class[0]) == (
        "scheduler: saved another class, live CosineAnnealingLR"
    )
    assert resumed(path, scheduler=lr_scheduler.StepLR(optimizer, 4)).is_exact


# -- classes


@pytest.mark.parametrize(
    ("was", "now"),
    [("SGD", "AdamW"), ("AdamW", "SGD"), ("Adam", "AdamW"), ("Adamax", "RAdam"), ("Adam", "LBFGS")],
)
def test_an_optimizer_of_another_class(path: Path, was: str, now: str) -> None:
    model, live = Twins(), Twins(seed=2)
    optimizer = getattr(torch.optim, was)(model.parameters(), lr=0.1)
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    other = getattr(torch.optim, now)(live.parameters(), lr=0.2)
    error = refused(path, model=live, optimizer=other)
    assert [str(item) for item in error.report.other_class] == [
        f"optimizer: saved {was}, live {now}"
    ]
    resumed(path, strict=False, model=live, optimizer=other)
    assert values(live) == values(model) and other.param_groups[0]["lr"] == 0.2
    assert type(other).__name__ == now
    other.step(lambda: live())


def test_moments_go_over_to_a_class_of_the_same_kind(path: Path) -> None:
    model, live = Twins(), Twins(seed=2)
    optimizer, other = adam(model.parameters()), torch.optim.AdamW(live.parameters(), lr=0.2)
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    report = resumed(path, strict=False, model=live, optimizer=other)
    assert "of another class (1)\n    optimizer: saved Adam, live AdamW" in str(report)
    assert moments(live, other) == moments(model, optimizer)
    assert other.param_groups[0]["decoupled_weight_decay"] is True
    assert other.param_groups[0]["lr"] == 0.2


def test_a_scheduler_of_another_class(path: Path) -> None:
    optimizers = [adam([nn.Parameter(torch.zeros(1))]) for _ in range(2)]
    saved(path, scheduler=lr_scheduler.ExponentialLR(optimizers[0], 0.5))
    error = refused(path, scheduler=lr_scheduler.StepLR(optimizers[1], 3))
    assert str(error.report.other_class[0]) == "scheduler: saved ExponentialLR, live StepLR"
    same = lr_scheduler.ExponentialLR(optimizers[1], 0.25)
    resumed(path, scheduler=same)
    assert same.gamma == 0.5


def test_schedulers_inside_of_another_class(path: Path) -> None:
    def made(second: Any) -> Any:
        optimizer = adam([nn.Parameter(torch.zeros(1))])
        first = lr_scheduler.LinearLR(optimizer)
        return lr_scheduler.SequentialLR(optimizer, [first, second(optimizer)], [3])

    saved(path, scheduler=made(lambda item: lr_scheduler.ExponentialLR(item, 0.5)))
    error = refused(path, scheduler=made(lambda item: lr_scheduler.CosineAnnealingLR(item, 5)))
    assert str(error.report.other_class[0]) == (
        "scheduler: saved SequentialLR of LinearLR, ExponentialLR, "
        "live SequentialLR of LinearLR, CosineAnnealingLR"
    )


def test_a_scheduler_of_an_optimizer_with_more_groups(path: Path) -> None:
    one = adam([nn.Parameter(torch.zeros(1))])
    two = adam([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)])
    saved(path, scheduler=lr_scheduler.StepLR(one, 3))
    error = refused(path, scheduler=lr_scheduler.StepLR(two, 3))
    assert "scheduler: saved base_lrs of 1 groups, live an optimizer with 2" in str(error)


def test_the_scaler_of_a_run_without_one(path: Path) -> None:
    model, live = Twins(), Twins(seed=2)
    saved(path, model=model, scaler=torch.amp.GradScaler("cpu", enabled=False))
    error = refused(path, model=live, scaler=torch.amp.GradScaler("cpu"))
    assert "scaler: saved the state of a disabled GradScaler, live an enabled one" in str(error)


class StepLR(lr_scheduler.StepLR):
    """A class of a user's own that has the name of one of torch."""


def test_a_class_that_moved_to_another_module_is_the_same(path: Path) -> None:
    optimizer = adam([nn.Parameter(torch.zeros(1))])
    saved(path, scheduler=lr_scheduler.StepLR(optimizer, 3))
    assert resumed(path, scheduler=StepLR(optimizer, 4)).is_exact


# -- partial resumes


def test_an_added_layer_leaves_the_state_of_the_others(path: Path) -> None:
    model = Twins("ac")
    optimizer = adam(model.parameters())
    step(model, optimizer, 2)
    saved(path, model=model, optimizer=optimizer)
    live = Twins("abc", seed=2)
    other = torch.optim.Adam(live.parameters(), lr=0.7)
    error = refused(path, model=live, optimizer=other)
    assert error.report.missing == ["model.b", "optimizer.state of model.b"]
    report = resumed(path, strict=False, model=live, optimizer=other)
    assert report.missing == error.report.missing
    assert moments(live, other) == moments(model, optimizer)
    assert other.param_groups[0]["lr"] == 0.1
    step(live, other)
    assert live.b in other.state


def test_a_removed_layer(path: Path) -> None:
    model, live = Twins("abc"), Twins("ac", seed=2)
    optimizer, other = adam(model.parameters()), adam(live.parameters())
    step(model, optimizer)
    saved(path, model=model, optimizer=optimizer)
    report = resumed(path, strict=False, model=live, optimizer=other)
    assert report.unexpected == ["model.b", "optimizer.state of model.b"]
    expected = moments(model, optimizer)
    assert moments(live, other) == {name: expected[name] for name in "ac"}


def test_state_of_a_reshaped_parameter_is_left_out_whatever_it_is(path: Path) -> None:
    """Adafactor keeps rows and columns, which do not have the shape of their parameter."""
    model, live = nn.Linear(3, 4), nn.Linear(3, 5)
    optimizer, other = torch.optim.Adafactor(model.parameters()), None
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    saved(path, model=model, optimizer=optimizer, extra=Twins("a"))
    other = torch.optim.Adafactor(live.parameters())
    resumed(path, strict=False, model=live, optimizer=other, extra=Twins("a", 2))
    assert not other.state
    live(torch.ones(2, 3)).sum().backward()
    other.step()


def test_what_a_partial_resume_does_not_find_stays_as_it_is(path: Path) -> None:
    model, live = Twins("ac"), Twins("abc", seed=2)
    optimizer, other = adam(model.parameters()), adam(live.parameters())
    step(model, optimizer), step(live, other, 2)
    before = moments(live, other)["b"]
    saved(path, model=model, optimizer=optimizer)
    resumed(path, strict=False, model=live, optimizer=other)
    assert moments(live, other) == {**moments(model, optimizer), "b": before}


def test_a_partial_resume_of_no_tensor_at_all_is_refused(path: Path) -> None:
    """Even when a counter and a scheduler fit."""
    model = Twins("ab")
    optimizer = adam(model.parameters())
    step(model, optimizer)
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    saved(path, model=model, optimizer=optimizer, scheduler=scheduler, counters={"epoch": 3})
    live = Twins("xy", seed=2)
    other = adam(live.parameters())
    error = refused(
        path, strict=False, model=live, optimizer=other, counters={"epoch": 0},
        scheduler=lr_scheduler.StepLR(other, 3),
    )  # fmt: skip
    assert error.report.is_empty and str(error).endswith("nothing was loaded; no tensor fits")


# -- the record


def test_a_record_that_is_not_one(path: Path) -> None:
    model = Twins()
    text = json.dumps({"version": 1, "state": {"model": {}}})
    for record in ("{", '{"version":1}', '{"version":1,"objects":{"model":1}}'):
        image = images.safetensors([], {"pccheck.state": text, "pccheck.objects": record})
        images.write(path, [image])
        with pcc.Checkpointer(path) as checkpointer:
            with pytest.raises(pccheck.StateFormatError, match="the record of objects"):
                checkpointer.resume(model=model)
        path.unlink()


def written(path: Path, entry: dict[str, Any]) -> None:
    """A file with the state of an optimizer over two parameters, and a record of it."""
    settings = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False}
    groups = [{**settings, "weight_decay": 0.0, "params": [0, 1]}]
    state = {"optimizer": {"state": {}, "param_groups": groups}}
    document = json.dumps({"version": 1, "state": state})
    record = json.dumps({"version": 1, "objects": {"optimizer": entry}})
    metadata = {"pccheck.state": document, "pccheck.objects": record}
    images.write(path, [images.safetensors([], metadata)])


@pytest.mark.parametrize(
    "entry",
    [
        {"parameters": [["only one"]]},
        {"parameters": [[1, 2]]},
        {"parameters": "text"},
        {"parameters": [None]},
        {"class": "torch.optim.sgd.SGD", "parameters": [[None, None]]},
    ],
)
def test_names_of_another_form_are_none(path: Path, entry: dict[str, Any]) -> None:
    written(path, entry)
    model = Twins("ab")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with pcc.Checkpointer(path) as checkpointer:
        checkpointer.resume(optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_classes_from_the_file_do_not_reach_the_terminal_raw(path: Path) -> None:
    written(path, {"class": "evil\x1b[2J\nname"})
    optimizer = torch.optim.SGD(Twins("ab").parameters(), lr=0.2)
    with pcc.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.StateMismatch) as caught:
            checkpointer.resume(optimizer=optimizer)
    assert "\x1b" not in str(caught.value) and r"evil\u{1b}[2J\nname" in str(caught.value)


def test_an_optimizer_alone_is_matched_by_place_and_says_so(path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with pcc.Checkpointer(path) as ckpt:
        ckpt.save(1, model=model, optimizer=optimizer).wait()
        for parts, said in (({}, ["optimizer"]), ({"model": model}, [])):
            ckpt.resume(optimizer=optimizer, **parts)
            report = ckpt.resume_report
            assert report is not None and report.by_place == said
            assert report.is_exact == (not said) and not report.differs
