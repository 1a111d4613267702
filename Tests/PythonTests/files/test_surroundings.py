"""What goes on around a checkpointer: paths, folders, forks, signals, other people's defaults."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pccheck
import pccheck.numpy
import pccheck.torch as pcc
import pytest
import torch


def linear(value: float = 0) -> torch.nn.Module:
    made = torch.nn.Linear(4, 4)
    with torch.no_grad():
        made.weight.fill_(value)
    return made


# -- the path


def test_a_path_is_fixed_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    with pcc.Checkpointer("run.pcc") as checkpointer:
        monkeypatch.chdir(tmp_path / "second")
        checkpointer.save(8, model=linear()).wait()
        assert checkpointer.steps() == [8]
        assert checkpointer.path == str(tmp_path / "first" / "run.pcc")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ("s3://bucket/run.pcc", pccheck.InvalidArgument, "is a URL"),
        ("missing/run.pcc", pccheck.FileMissing, "there is no folder"),
        (".", pccheck.InvalidArgument, "is a folder"),
    ],
)
@pytest.mark.parametrize("module", [pccheck, pccheck.numpy, pcc])
def test_a_path_that_cannot_work_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, given: str, kind: Any, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=text):
        module.Checkpointer(given)


def save_is_refused(checkpointer: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        checkpointer.save(2, model=linear())
    with pytest.raises(kind, match=text):
        checkpointer.close()
    assert not checkpointer.is_open


def test_a_file_that_was_removed_takes_no_save(path: Path) -> None:
    checkpointer = pcc.Checkpointer(path)
    checkpointer.save(1, model=linear()).wait()
    path.unlink()
    save_is_refused(checkpointer, pccheck.FileMissing, f"{path}: the file was removed")


def test_a_file_that_was_replaced_takes_no_save(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pcc"
    with pcc.Checkpointer(other) as checkpointer:
        checkpointer.save(1, model=linear()).wait()
    for swap in (lambda link: os.replace(other, link), lambda link: link.symlink_to(other)):
        checkpointer = pcc.Checkpointer(path)
        checkpointer.save(1, model=linear()).wait()
        if other.exists() and swap.__code__.co_names[0] != "os":
            path.unlink()
        swap(path)
        save_is_refused(checkpointer, pccheck.FileMissing, "another file is there")
        os.replace(path.resolve(), other)
        path.unlink(missing_ok=True)


def test_a_file_that_was_truncated_takes_no_save(path: Path) -> None:
    checkpointer = pcc.Checkpointer(path)
    checkpointer.save(1, model=linear()).wait()
    os.truncate(path, 4096)
    save_is_refused(checkpointer, pccheck.Corrupt, "was truncated while it was open")


# -- children


def test_a_child_ends_at_sigterm(path: Path) -> None:
    with pcc.Checkpointer(path, on_sigterm="save") as checkpointer:
        checkpointer.save(1, model=linear()).wait()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
        # The parent's handler is still the parent's.
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpointer.should_stop()
        with pytest.raises(SystemExit):
            checkpointer.save(2, model=linear())


def test_a_pool_of_processes_ends(path: Path) -> None:
    with pcc.Checkpointer(path, on_sigterm="save") as checkpointer:
        checkpointer.save(1, model=linear()).wait()
        began = time.monotonic()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        assert time.monotonic() - began < 20


# -- a save inside a save


class Interrupting:
    """A step that a signal arrives in the middle of."""

    def __index__(self) -> int:
        signal.raise_signal(signal.SIGUSR1)
        return 2


def test_a_save_inside_a_save_is_refused(path: Path) -> None:
    refused: list[str] = []

    def handler(*_: object) -> None:
        try:
            checkpointer.save(3, s=state)
        except pccheck.CheckpointError as error:
            refused.append(str(error))

    state = {f"t{index}": torch.full((50,), 2.0) for index in range(20)}
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pcc.Checkpointer(path, retain=4) as checkpointer:
            checkpointer.save(1, s=state).wait()
            checkpointer.save(Interrupting(), s=state).wait()  # type: ignore[arg-type]
            assert checkpointer.steps() == [2, 1]
            checkpointer.save(3, s=state).wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(refused) == 1 and "set a flag" in refused[0]
    for tensor in pcc.load(path, 2)["s"].values():
        assert tensor.unique().tolist() == [2]


# -- states and defaults


def test_the_default_device_changes_nothing(path: Path) -> None:
    model = linear(3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    with pcc.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=model, optimizer=optimizer, x=torch.arange(5.0)).wait()
    live = linear()
    second = torch.optim.Adam(live.parameters())
    with torch.device("meta"):
        with pcc.Checkpointer(path) as checkpointer:
            checkpointer.resume(model=live, optimizer=second)
        found = pcc.load(path)["x"]
        rows = pcc.load(path, lazy=True)["x"][1:3]
        one = pcc.load_tensor(path, "x")
    assert torch.equal(model.weight, live.weight)
    for tensor, expected in ((found, [0, 1, 2, 3, 4]), (rows, [1, 2]), (one, [0, 1, 2, 3, 4])):
        assert tensor.device.type == "cpu" and tensor.tolist() == expected
    moments = second.state[live.weight]["exp_avg"]
    assert torch.equal(moments, optimizer.state[model.weight]["exp_avg"])


@pytest.mark.parametrize("module", [pccheck.numpy, pcc])
def test_a_state_without_end_names_its_key(path: Path, module: Any) -> None:
    cycle: dict[str, Any] = {"ok": 1}
    cycle["again"] = {"inner": [cycle]}
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with module.Checkpointer(path) as checkpointer:
        with pytest.raises(ValueError, match=r"key 's.again.inner.0': .* contains itself"):
            checkpointer.save(1, s=cycle)
        with pytest.raises(ValueError, match=r"key 's(\.0)+\.…': .* nested 500\d deep"):
            checkpointer.save(1, s=deep)
        checkpointer.save(1, s={"x": np.arange(3)}).wait()


def test_a_plain_state_without_end_names_its_key(path: Path) -> None:
    cycle: list[Any] = []
    cycle.append({"a": cycle})
    with pccheck.Checkpointer(path) as checkpointer:
        with pytest.raises(ValueError, match=r"key '0.a': .* contains itself"):
            checkpointer.save(1, cycle)
