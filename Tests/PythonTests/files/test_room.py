"""Room for a state: what the first save costs, files that grow, options that a file does not have,
and what optimizers will need."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pattern as patterned
from disks import disk_of
from torch import nn

import pccheck
import pccheck.torch

MIB = 1 << 20


def pattern(step: int) -> Any:
    return patterned(step, 5000)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]


def shape(path: Path) -> tuple[int, int, int]:
    report = pccheck.report(path)
    return report["in_flight"], report["retain"], report["slot_byte_count"]


# -- creation


def test_the_first_save_does_not_write_the_whole_file(path: Path) -> None:
    """Blocks that were reserved and never written are told apart by the file system."""
    with pccheck.Checkpointer(path, retain=8, capacity="64 MiB") as checkpointer:
        checkpointer.save(1, {"x": pattern(1)}).wait()
    assert os.stat(path).st_blocks * 512 >= 10 * 64 * MIB
    run = subprocess.run(
        ["filefrag", "-v", path], capture_output=True, text=True, check=False
    )
    if run.returncode != 0 or "unwritten" not in run.stdout:
        pytest.skip("this file system does not say which blocks were written")
    unwritten = sum(
        int(line.split(":")[3]) for line in run.stdout.splitlines() if "unwritten" in line
    )
    assert unwritten * 4096 > 9 * 64 * MIB


def test_a_killed_creation_leaves_nothing_for_long(
    path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    code = (
        "import sys, pccheck\n"
        "pccheck.Checkpointer(sys.argv[1], capacity='600 MiB', prealloc='zero', retain=2)"
    )
    leftovers: list[Path] = []
    child = run_child(code, path)
    while not leftovers:
        leftovers = list(path.parent.glob("*.creating-*"))
        assert child.poll() is None
    with pccheck.Checkpointer(path, capacity="1 MiB") as checkpointer:
        assert list(path.parent.glob("*.creating-*")) == leftovers, "it lives"
        child.kill()
        child.wait()
        checkpointer.save(1, {"x": 1}).wait()
    assert leftovers[0].exists()
    path.unlink()
    with pccheck.Checkpointer(path, capacity="1 MiB"):
        assert sorted(path.parent.iterdir()) == [path]


# -- options that the file does not have


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retain": 3}, ["retain is 1, not 3", "--retain 3"]),
        ({"in_flight": 4}, ["in_flight is 2, not 4", "--in-flight 4"]),
        ({"capacity": "2 MiB"}, ["capacity is 1048576, not 2097152", "--capacity 2097152"]),
        ({"chunk": "128 KiB"}, ["chunk is 65536 in this file, not 131072"]),
    ],
)
def test_an_option_that_differs_is_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], words: list[str]
) -> None:
    pccheck.Checkpointer(path, capacity="1 MiB", chunk="64 KiB").close()
    with pccheck.Checkpointer(path, **options):
        pass
    (warning,) = warnings(caplog)
    assert all(word in warning for word in words), warning
    assert shape(path) == (2, 1, MIB)


def test_no_warning_for_what_was_not_asked_for_or_is_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pccheck.Checkpointer(path, capacity="1 MiB", in_flight=3, retain=2).close()
    pccheck.Checkpointer(path).close()
    pccheck.Checkpointer(path, capacity=MIB - 5, in_flight=3, retain=2).close()
    assert warnings(caplog) == []


def test_resize_when_opening(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pccheck.Checkpointer(path, capacity="1 MiB", retain=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"x": pattern(step)}).wait()
    caplog.set_level(logging.INFO, "pccheck")
    options: dict[str, Any] = {"retain": 4, "in_flight": 1, "capacity": "3 MiB", "resize": True}
    with pccheck.Checkpointer(path, **options) as checkpointer:
        assert checkpointer.steps() == [2, 1]
        for step in (3, 4):
            checkpointer.save(step, {"x": pattern(step)}).wait()
        assert checkpointer.steps()[:4] == [4, 3, 2, 1]
        assert np.array_equal(checkpointer.load(1)["x"], pattern(1))
    assert shape(path) == (1, 4, 3 * MIB)
    (message,) = [text for text in caplog.messages if "resized" in text]
    assert "resized: in_flight from 2 to 1, retain from 2 to 4, capacity from" in message
    # Again: nothing is left to do, and what has grown is not made smaller.
    with pccheck.Checkpointer(path, **{**options, "capacity": "1 MiB"}):
        pass
    assert shape(path) == (1, 4, 3 * MIB)
    assert sum("resized" in text for text in caplog.messages) == 1 and not warnings(caplog)


def test_a_resize_that_is_impossible_leaves_file_and_lock_alone(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"x": pattern(1)}).wait()
    before = shape(path)
    with pytest.raises(pccheck.NoSpace, match="beside the old file, which stays as it is"):
        pccheck.Checkpointer(path, capacity="1 TiB", resize=True)
    assert shape(path) == before
    with pccheck.Checkpointer(path) as checkpointer:
        assert np.array_equal(checkpointer.load()["x"], pattern(1))


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_does_not_fit_takes_no_space(kind: str) -> None:
    """fallocate(2) alone would take every free block before it fails, from everybody."""
    with disk_of(kind) as disk:
        free, is_done = [os.statvfs(disk.mount_point).f_bfree], threading.Event()

        def watch() -> None:
            while not is_done.is_set():
                free.append(os.statvfs(disk.mount_point).f_bfree)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(20):
                with pytest.raises(pccheck.NoSpace):
                    pccheck.Checkpointer(disk.mount_point / "run.pcc", capacity="4 GiB")
        finally:
            is_done.set()
            watcher.join()
        assert len(free) > 100 and free[0] - min(free) < 100, (free[0], min(free))
        assert not list(disk.mount_point.glob("run*"))


# -- a state that outgrows its slots


def test_a_file_made_for_its_first_state_grows(path: Path) -> None:
    with pccheck.Checkpointer(path, retain=2) as checkpointer:
        first = checkpointer.save(1, {"x": pattern(1)})
        big = np.arange(5 * MIB, dtype=np.uint8)
        assert checkpointer.save(2, {"x": big}).wait().durable
        assert first.wait().kind in ("durable", "superseded")
        assert checkpointer.steps() == [2, 1]
        # A save that is refused anyway does not make the file grow.
        with pytest.raises(pccheck.StepBackwards):
            checkpointer.save(1, {"x": np.zeros(20 * MIB, np.uint8)})
        assert np.array_equal(checkpointer.load()["x"], big)
    assert shape(path)[2] >= 5 * MIB


def test_growing_keeps_the_guard_and_the_modules(path: Path) -> None:
    small, large = nn.Linear(4, 4), nn.Linear(1024, 1024)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=small)
        handle = checkpointer.save(2, model=large)
        assert handle.wait().durable
        expected = large.weight.detach().clone()
        nn.init.zeros_(large.weight)
        checkpointer.resume(model=large)
        assert torch.equal(large.weight, expected)


@pytest.mark.parametrize("options", [{"capacity": "1 MiB"}, {"resize": False}])
def test_too_large_says_how_to_go_on(path: Path, options: dict[str, Any]) -> None:
    with pccheck.Checkpointer(path, **options) as checkpointer:
        checkpointer.save(1, {"x": pattern(1)}).wait()
        with pytest.raises(pccheck.TooLarge, match=r"pccheck resize .* --capacity \d+") as caught:
            checkpointer.save(2, {"x": np.zeros(4 * MIB, np.uint8)})
        # Nothing that was saved is lost, and the run can go on.
        assert checkpointer.save(3, {"x": pattern(3)}).wait().durable
    command = str(caught.value).split("make room with ")[1].split(", and resume")[0]
    tool = Path(__file__).parents[3] / "build" / "bin" / "pccheck"
    if not tool.exists():
        pytest.skip(f"{tool} is not built; run make tools")
    subprocess.run([tool, *command.split()[1:]], check=True, capture_output=True)
    with pccheck.Checkpointer(path, resize=False) as checkpointer:
        assert np.array_equal(checkpointer.load()["x"], pattern(3))
        checkpointer.save(4, {"x": np.zeros(4 * MIB, np.uint8)}).wait()


def test_a_nearly_full_slot_is_one_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pccheck.Checkpointer(path, capacity="1 MiB") as checkpointer:
        checkpointer.save(1, {"x": np.zeros(MIB // 2, np.uint8)}).wait()
        assert warnings(caplog) == []
        for step in (2, 3):
            checkpointer.save(step, {"x": np.zeros(MIB - 4096, np.uint8)}).wait()
    (warning,) = warnings(caplog)
    assert "of the 1048576 that a slot holds" in warning and "pccheck resize" in warning


# -- what optimizers will need

OPTIMIZERS: list[tuple[str, type[torch.optim.Optimizer], dict[str, Any]]] = [
    ("Adam", torch.optim.Adam, {}),
    ("AMSGrad", torch.optim.AdamW, {"amsgrad": True}),
    ("SGD", torch.optim.SGD, {"lr": 0.1}),
    ("momentum", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    ("RMSprop", torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    ("Adagrad", torch.optim.Adagrad, {}),
    ("Adadelta", torch.optim.Adadelta, {}),
    ("Adamax", torch.optim.Adamax, {}),
    ("NAdam", torch.optim.NAdam, {}),
    ("RAdam", torch.optim.RAdam, {}),
    ("ASGD", torch.optim.ASGD, {}),
    ("Rprop", torch.optim.Rprop, {}),
    ("LBFGS", torch.optim.LBFGS, {"history_size": 5}),
]


@pytest.mark.parametrize(
    ("kind", "options"), [row[1:] for row in OPTIMIZERS], ids=[row[0] for row in OPTIMIZERS]
)
def test_the_first_save_leaves_room_for_the_optimizer(
    path: Path, kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    """``resize=False``: it must fit without growing, also with what was frozen at first."""
    model = nn.Sequential(nn.Linear(400, 700), nn.Linear(700, 700))
    optimizer = kind(model.parameters(), **options)
    if kind is not torch.optim.LBFGS:
        model[0].requires_grad_(False)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(torch.randn(4, 400)) ** 4).sum()
        loss.backward()
        return loss

    with pccheck.torch.Checkpointer(path, resize=False) as checkpointer:
        checkpointer.save(0, model=model, optimizer=optimizer).wait()
        optimizer.step(closure)
        model[0].requires_grad_(True)
        for _ in range(3):
            optimizer.step(closure)
        checkpointer.save(1, model=model, optimizer=optimizer).wait()
        taken = pccheck.report(path)["slots"][1]["payload_byte_count"]
    # No more than a little is reserved in vain.
    assert shape(path)[2] < 1.25 * taken + 2 * MIB
