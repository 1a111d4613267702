"""What users do to a state, a file and a process while saves are under way."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pccheck
import pccheck.torch
from pccheck._core.reader import Reader
from pccheck._state.loading import load_selected
from pccheck._state.request import Loading

MIB = 1 << 20
#: A pool far smaller than the state: staging takes as long as the disk.
SLOW: dict[str, Any] = {"chunk": "1 MiB", "pool": "8 MiB"}


def layers(count: int = 16) -> nn.Module:
    return nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(count)])


# -- memory that is taken away


def test_a_parameter_that_gets_other_memory_is_saved_as_it_was(path: Path) -> None:
    """`param.data = …` frees the old memory, unless the save holds it."""
    model = layers()
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    with pccheck.torch.Checkpointer(path, **SLOW) as checkpointer:
        handle = checkpointer.save(1, model=model)
        for parameter in model.parameters():
            parameter.data = torch.zeros(2, 2)
        assert handle.state == "staging"
        # Memory that was freed would be given away again, and filled with something else.
        garbage = [torch.full((1024, 1024), 7.0) for _ in range(16)]
        handle.wait()
        loaded = checkpointer.load(1)["model"]
    assert garbage and all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_tensor_cannot_be_resized_while_it_is_read(path: Path) -> None:
    model = layers()
    with pccheck.torch.Checkpointer(path, **SLOW) as checkpointer:
        handle = checkpointer.save(1, model=model)
        with pytest.raises(RuntimeError, match="not resizable"):
            model[15].weight.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="not resizable"):
            model[15].weight.detach().resize_(4096, 4096)
        assert handle.wait().durable


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2, torch.bool])
def test_every_type_of_parameter_is_kept_from_resizing(path: Path, dtype: torch.dtype) -> None:
    module = nn.Module()
    module.x = nn.Parameter(torch.zeros(3, 3).to(dtype), requires_grad=False)
    module.zero_dim = nn.Parameter(torch.zeros(()).to(dtype), requires_grad=False)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, module=module).wait()
        assert not module.x.untyped_storage().resizable()
        assert torch.equal(checkpointer.load()["module"]["x"].float(), torch.zeros(3, 3))


def test_a_buffer_may_be_resized_at_once(path: Path) -> None:
    tensor = torch.ones(1000)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        handle = checkpointer.save(1, x=tensor)
        tensor.resize_(1 << 20).fill_(5)
        handle.wait()
        assert torch.equal(checkpointer.load()["x"], torch.ones(1000))


# -- odd values


def test_odd_tensors(path: Path) -> None:
    state = {
        "nan": torch.full((3,), math.nan), "inf": torch.tensor([math.inf, -math.inf]),
        "payload": torch.tensor([0x7FC12345, -1], dtype=torch.int32).view(torch.float32),
        "zero_dim": torch.tensor(3), "zero_size": torch.empty(0), "sizes": torch.empty(2, 0, 3),
        "also_zero_size": torch.empty(0, dtype=torch.int8), "negative_zero": torch.tensor(-0.0),
    }  # fmt: skip
    with pccheck.torch.Checkpointer(path) as checkpointer:
        for step in range(3):
            checkpointer.save(step, state=state).wait()
        loaded = checkpointer.load()["state"]
    for key, value in state.items():
        assert loaded[key].shape == value.shape and loaded[key].dtype == value.dtype, key
        assert loaded[key].numpy().tobytes() == value.numpy().tobytes(), key


KEYS = [
    "", " ", ".", "a.b", "~2", "__metadata__", "$tensor", "ключ", "鍵", "🔑", "e\u0301", "é",
    "\x00", "\n\x1b[0m", "\u202e", "\ud800", "\uffff", "x" * 5000, "é" * 3000, "'\"\\",
]  # fmt: skip


def test_keys_with_any_characters(path: Path) -> None:
    state = {key: torch.full((2,), float(index)) for index, key in enumerate(KEYS)}
    with pccheck.torch.Checkpointer(path) as checkpointer:
        for step in range(2):
            checkpointer.save(step, state=state, rng=False).wait()
        loaded = checkpointer.load()["state"]
        live = {key: torch.zeros(2) for key in KEYS}
        checkpointer.resume(state=live, rng=False)
    assert list(loaded) == KEYS == list(live)
    assert all(torch.equal(loaded[key], state[key]) for key in KEYS)
    assert all(torch.equal(live[key], state[key]) for key in KEYS)


# -- many


def test_a_hundred_thousand_small_tensors(path: Path) -> None:
    """Describing a tensor may not cost much more than copying one by itself does."""
    count = 100_000
    state = OrderedDict((f"layers.{index}.bias", torch.randn(4)) for index in range(count))
    seconds, clones = [], []
    with pccheck.torch.Checkpointer(path, pool="16 MiB") as checkpointer:
        checkpointer.save(0, state=state, rng=False).wait()
        for step in range(1, 3):
            began = time.thread_time()
            copies = [tensor.clone() for tensor in state.values()]
            clones.append(time.thread_time() - began)
            del copies
            state["layers.7.bias"] = torch.full((4,), float(step))
            began = time.thread_time()
            handle = checkpointer.save(step, state=state, rng=False)
            seconds.append(time.thread_time() - began)
            handle.wait()
        loaded = checkpointer.load()["state"]
    assert len(loaded) == count and torch.equal(loaded["layers.7.bias"], torch.full((4,), 2.0))
    assert all(torch.equal(loaded[key], state[key]) for key in list(state)[::997])
    ratio = min(seconds) / min(clones)
    print(f"{min(seconds) / count * 1e6:.2f} µs per tensor, {ratio:.1f} times a clone")
    assert ratio < 10


def test_a_structure_that_changes_is_never_taken_for_the_last_one(path: Path) -> None:
    """The description of a state is kept from save to save; each change must be seen."""
    a, b = torch.ones(3), torch.arange(6.0)
    states: list[dict[str, Any]] = [
        {"a": a, "b": b}, {"a": a, "b": b}, {"b": b, "a": a}, {"a": a, "b": b.view(2, 3)},
        {"a": a.double(), "b": b}, {"a": a}, {"a": a, "b": b, "c": torch.zeros(1)},
        {"a": a, "b": a}, {"a": a, "b": b.view(2, 3).T}, {"a": a, "b": b.view(3, 2)},
        {"a": {"b": a}, "a.b": b}, {"a.b": b, "a": {"b": a}}, {"a": a.numpy(), "b": b},
        {"a": a, "b": b.to(torch.complex64)}, {"a": a, "b": b}, {"a": torch.ones(1 << 16), "b": b},
    ]  # fmt: skip
    with pccheck.torch.Checkpointer(path, retain=2, capacity="2 MiB") as checkpointer:
        for step, state in enumerate([*states, *states]):
            checkpointer.save(step, state=state, rng=False).wait()
            loaded = checkpointer.load(step)["state"]
            flat = {"a": state["a"], "b": state.get("b")}
            assert list(loaded) == list(state), step
            for key, value in flat.items():
                if isinstance(value, torch.Tensor):
                    assert loaded[key].dtype == value.dtype, step
                    assert torch.equal(loaded[key], value), step


# -- one file, several users


def test_a_second_checkpointer_in_this_process_is_told_of_the_first(path: Path) -> None:
    first = pccheck.torch.Checkpointer(path, capacity="1 MiB")
    line = f"{__file__}:"
    with pytest.raises(pccheck.Locked) as caught:
        pccheck.torch.Checkpointer(os.path.relpath(path))
    text = str(caught.value)
    assert f"this process has the file open already, since {line}" in text
    assert repr(first) in text and "pccheck.close_all()" in text
    # As a notebook does whose cell runs again.
    assert pccheck.close_all() == 1 and pccheck.close_all() == 0
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, x=1)
    with pytest.raises(pccheck.Closed):
        first.save(2, x=1)


def test_another_process_is_told_of_as_before(
    path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    with pccheck.Checkpointer(path, capacity="1 MiB"):
        child = run_child("import pccheck, sys; pccheck.Checkpointer(sys.argv[1])", path)
        _, errors = child.communicate(timeout=30)
    assert "Locked" in errors and f"process {os.getpid()}" in errors
    assert "this process has the file open" not in errors


# -- interrupts


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, signal.raise_signal, [signal.SIGINT])
    timer.start()
    return timer


def test_an_interrupt_ends_a_wait_and_nothing_else(path: Path) -> None:
    model = layers()
    with pccheck.torch.Checkpointer(path, **SLOW) as checkpointer:
        for _ in range(3):
            handle = checkpointer.save(1, model=model)
            with pytest.raises(KeyboardInterrupt):
                # Again, where one strikes in a finalizer, which Python goes on after.
                while True:
                    timer = interrupt_after(0.01)
                    while timer.is_alive():
                        handle.wait()
            timer.join()
        assert checkpointer.save(2, model=model).wait().durable
    assert pccheck.torch.load(path)["model"].keys() == model.state_dict().keys()


def test_interrupts_during_saves_leave_a_sound_file(path: Path) -> None:
    """Memory that the engine still reads may not go, wherever the interrupt strikes."""
    interrupted = 0
    with pccheck.torch.Checkpointer(path, in_flight=2, **SLOW) as checkpointer:
        for step in range(25):
            state = {"step": step, "x": np.full(2 * MIB, step, np.int64)}
            try:
                timer = interrupt_after(0.001 + 0.0005 * (step % 10))
                checkpointer.save(step, state=state, rng=False)
                timer.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted += 1
            del state
        # Nothing is in flight behind it, so that every step stays where it is.
        state = {"step": 25, "x": np.full(2 * MIB, 25, np.int64)}
        checkpointer.save(25, state=state, rng=False).wait()
        for step in checkpointer.steps():
            loaded = checkpointer.load(step)["state"]
            assert loaded["step"] == step and (loaded["x"] == step).all()
    # Now and then one strikes in a finalizer, which Python goes on after.
    assert interrupted > 15


def test_an_interrupt_while_opening_does_not_leave_the_file_locked(path: Path) -> None:
    pccheck.Checkpointer(path, capacity="4 MiB").close()

    def interrupt(address: int, byte_count: int) -> Callable[[], object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        pccheck.Checkpointer(path, pin=interrupt)
    # The traceback lives on, as in a notebook, and with it everything in its frames.
    assert kept.tb is not None
    pccheck.Checkpointer(path).close()


# -- the end of the process


def test_an_exit_with_saves_in_flight_finishes_them(
    path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import sys, torch, pccheck.torch
model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(8)])
checkpointer = pccheck.torch.Checkpointer(sys.argv[1], chunk="1 MiB", pool="8 MiB", in_flight=3)
for step in range(3):
    checkpointer.save(step, model=model)
{end}
"""
    for end, status in (("", 0), ("raise ValueError", 1)):
        child = run_child(code.format(end=end), path)
        child.communicate(timeout=60)
        assert child.returncode == status
        assert pccheck.checkpoints(path)[0].step == 2
        path.unlink()


def test_a_data_loader_worker_cannot_save(path: Path) -> None:
    """Workers are forked after the file was opened: the writer is not theirs."""

    class Saves(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> str:
            try:
                checkpointer.save(9, x=1)
            except pccheck.Forked as error:
                return str(error)
            return "saved"

    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, x=torch.ones(3)).wait()
        loader = torch.utils.data.DataLoader(
            Saves(), num_workers=1, multiprocessing_context="fork"
        )
        assert "belongs to the parent process" in next(iter(loader))[0]
        assert checkpointer.save(2, x=torch.ones(3)).wait().durable


def test_threads_that_save_at_once(path: Path) -> None:
    """Each checkpoint is of one state, whichever thread gave it."""
    errors: list[BaseException] = []
    mixed: list[set[float]] = []
    interval = sys.getswitchinterval()
    options: dict[str, Any] = {"in_flight": 4, "retain": 4, "capacity": "4 MiB"}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:

        def save(number: int) -> None:
            try:
                for turn in range(8):
                    value = float(100 * number + turn)
                    state = {str(index): torch.full((8,), value) for index in range(300)}
                    checkpointer.save(0, state=state, rng=False)
            except BaseException as error:
                errors.append(error)

        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=save, args=[number]) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
    assert not errors
    with Reader(path) as reader:
        infos = reader.list()
        for info in infos:
            reader.select(info.sequence)
            state = load_selected(reader, Loading(pccheck.torch.TorchMemory()))["state"]
            values = {value for tensor in state.values() for value in tensor.tolist()}
            if len(values) != 1:
                mixed.append(values)
    assert len(infos) >= 4 and not mixed
