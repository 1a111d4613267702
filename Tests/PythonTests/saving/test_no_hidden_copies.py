"""What ``save`` reads where it is, what it copies, and that memory stays bounded by the pool."""

from __future__ import annotations

import contextlib
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pccheck
import pccheck.torch as pcc
import pytest
import torch
from pccheck._torch.saving import live
from torch import nn

# A pool that is much smaller than the state: staging takes as long as the disk does.
SLOW: dict[str, Any] = {"pool": "4 MiB", "chunk": "1 MiB", "capacity": "200 MiB", "retain": 2}
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nobody_is_known() -> Iterator[None]:
    """Objects of other tests are not those of this one."""
    gc.collect()
    live._seen.clear()
    yield


def run(width: int = 1024, layers: int = 16) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def copy_of(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: copy_of(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copy_of(value) for value in state]
    return state


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def resident(field: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


# -- tensors of live objects in a state_dict()


def test_a_state_dict_of_a_run_is_read_in_place(path: Path) -> None:
    model, optimizer = run()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for number in range(4):
            step(model, optimizer)
            nest = {"model": model.state_dict(), "more": [optimizer.state_dict(), number]}
            expected = copy_of(nest)
            handle = checkpointer.save(number, run=nest, rng=False)
            assert handle.state == "staging"
            assert handle.copied_byte_count == 0
            step(model, optimizer)
            assert handle.state != "staging"
            assert handle.wait().durable
            assert same(checkpointer.load(number)["run"], expected)


def test_what_was_resumed_is_known_before_the_first_step(path: Path) -> None:
    model, optimizer = run()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        checkpointer.save(0, model=model, optimizer=optimizer, rng=False).wait()
    live._seen.clear()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        checkpointer.resume(model=model, optimizer=optimizer)
        handle = checkpointer.save(1, model=model.state_dict(), rng=False)
        assert handle.state == "staging" and handle.copied_byte_count == 0
        handle.wait()


def test_a_change_of_what_was_recognised_is_noticed(path: Path) -> None:
    model, optimizer = run()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        step(model, optimizer)
        handle = checkpointer.save(1, model=model.state_dict(), rng=False)
        with torch.no_grad():
            model[3].weight.zero_()
        with pytest.raises(pccheck.StateChanged, match=r"'model\.3\.weight'"):
            handle.wait()


def test_lists_in_optimizer_state_are_recognised(path: Path) -> None:
    model, _ = run(layers=4)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, history_size=4)
    data = torch.randn(8, 1024)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(data).square().mean()
        loss.backward()
        return loss

    with pcc.Checkpointer(path, **{**SLOW, "capacity": "400 MiB"}) as checkpointer:
        optimizer.step(closure)
        optimizer.step(closure)
        expected = copy_of(optimizer.state_dict())
        handle = checkpointer.save(1, optimizer=optimizer, rng=False)
        assert handle.state == "staging" and handle.copied_byte_count == 0
        optimizer.step(closure)
        handle.wait()
        assert same(checkpointer.load(1)["optimizer"]["state"][0], expected["state"][0])


def test_known_objects_are_not_kept_alive(path: Path) -> None:
    model, optimizer = run(64, 1)
    with pcc.Checkpointer(path) as checkpointer:
        step(model, optimizer)
        checkpointer.save(1, model=model, optimizer=optimizer).wait()
        assert len(live._seen) == 2
        del model, optimizer
        gc.collect()
        assert len(live._seen) == 0


def test_hooks_go_with_their_checkpointer(path: Path) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = len(hooks)
    checkpointer = pcc.Checkpointer(path)
    assert len(hooks) == before + 1
    del checkpointer
    gc.collect()
    assert len(hooks) == before


# -- plain tensors: read before save returns


def strided() -> torch.Tensor:
    return torch.zeros(1024, 4096).T


def conjugate() -> torch.Tensor:
    return torch.zeros(1 << 20, dtype=torch.complex64).conj()


def of_numpy() -> torch.Tensor:
    return torch.from_numpy(np.zeros(4 << 20, np.float32))


def shared() -> torch.Tensor:
    return torch.zeros(4 << 20).share_memory_()


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(4 << 20)


PLAIN: dict[str, Callable[[], torch.Tensor]] = {
    "float": lambda: torch.zeros(4 << 20),
    "small": lambda: torch.zeros(100),
    "half": lambda: torch.zeros(4 << 20, dtype=torch.bfloat16),
    "float8": lambda: torch.zeros(4 << 20).to(torch.float8_e4m3fnuz),
    "complex": lambda: torch.zeros(2 << 20, dtype=torch.complex64),
    "double complex": lambda: torch.zeros(2 << 20, dtype=torch.complex128),
    "a leaf": lambda: torch.zeros(4 << 20, requires_grad=True),
    "a view": lambda: torch.zeros(5 << 20)[1 << 20 :],
    "strided": strided,
    "conjugate": conjugate,
    "of NumPy": of_numpy,
    "shared": shared,
    "of inference": inference,
}


def fill(tensor: torch.Tensor, value: int) -> None:
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        if tensor.dtype == torch.float8_e4m3fnuz:
            tensor.copy_(torch.full(tensor.shape, float(value)).to(tensor.dtype))
        else:
            tensor.fill_(value)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_tensor_may_change_once_save_returned(path: Path, kind: str) -> None:
    """And nothing fails: unlike parameters, such tensors are nobody's to wait for."""
    tensor = PLAIN[kind]()
    with pcc.Checkpointer(path, **{**SLOW, "retain": 5}) as checkpointer:
        for number in range(1, 5):
            fill(tensor, number)
            handle = checkpointer.save(number, nest={"x": [tensor, 1]}, rng=False)
            fill(tensor, 9)
            assert handle.wait().kind in ("durable", "superseded")
        for number in checkpointer.steps():
            found = checkpointer.load(number)["nest"]["x"][0]
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            assert set(found.float().flatten()[::999].tolist()) == {number}


@pytest.mark.parametrize("kind", ["float", "half", "float8", "complex", "a leaf", "of NumPy"])
def test_no_copy_of_a_plain_tensor_is_made(path: Path, kind: str) -> None:
    tensor = PLAIN[kind]()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        handle = checkpointer.save(1, x=tensor, rng=False)
        assert handle.copied_byte_count == 0 and handle.blocked_seconds > 0
        handle.wait()
        assert checkpointer.stats()["copied_byte_count"] == 0


@pytest.mark.parametrize("kind", ["strided", "conjugate"])
def test_a_copy_that_is_needed_is_counted(path: Path, kind: str) -> None:
    tensor = PLAIN[kind]()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for number in range(1, 3):
            handle = checkpointer.save(number, x=tensor, rng=False)
            assert handle.copied_byte_count == tensor.nbytes
            handle.wait()
            # The next save uses the same memory.
            assert len(checkpointer._arenas._free) == 1
        assert checkpointer.stats()["copied_byte_count"] == 2 * tensor.nbytes


def test_copies_of_small_tensors_are_bounded(path: Path) -> None:
    tensors = {str(index): torch.full((10_000,), float(index)) for index in range(2000)}
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for number in range(2):
            handle = checkpointer.save(number, x=tensors, rng=False)
            assert 15 * MIB < handle.copied_byte_count <= 16 * MIB
            for tensor in tensors.values():
                tensor.add_(1)
            handle.wait()
            for index, tensor in enumerate(checkpointer.load(number)["x"].values()):
                assert set(tensor.tolist()) == {index + number}


def test_copies_made_in_inference_mode_may_be_made_again_outside(path: Path) -> None:
    tensor = strided()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        with torch.inference_mode():
            checkpointer.save(1, x=tensor).wait()
        tensor.fill_(2)
        checkpointer.save(2, x=tensor).wait()
        assert checkpointer.load(2)["x"].unique().tolist() == [2]


@pytest.mark.parametrize("owner", ["module", "state_dict", "plain"])
def test_memory_is_bounded_by_the_pool(path: Path, owner: str) -> None:
    model, optimizer = run(layers=32)
    plain = {str(index): torch.zeros(1 << 20) for index in range(32)}
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        step(model, optimizer)
        state: Any = {"module": model, "state_dict": model.state_dict(), "plain": plain}[owner]
        checkpointer.save(0, x=state, rng=False).wait()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident()
        for number in range(1, 4):
            checkpointer.save(number, x=state, rng=False).wait()
        assert resident("VmHWM") - before < 8 * MIB


def test_a_module_keeps_its_overlap_beside_what_is_read_first(path: Path) -> None:
    """A large buffer, an array and a plain tensor: save waits for these alone."""
    model, optimizer = run(layers=24)
    model.register_buffer("mask", torch.zeros(1 << 20))
    array, plain = np.zeros(1 << 19), torch.zeros(1 << 20)
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for number in range(1, 6):
            step(model, optimizer)
            for item in (model.mask, plain, torch.from_numpy(array)):
                item.fill_(number)
            expected = copy_of(model.state_dict())
            handle = checkpointer.save(number, model=model, rest=[array, plain], rng=False)
            assert handle.state == "staging" and handle.copied_byte_count == 0
            for item in (model.mask, plain, torch.from_numpy(array)):
                item.fill_(-1)
            step(model, optimizer)
            assert handle.wait().durable
            loaded = checkpointer.load(number)
            assert same(dict(loaded["model"]), expected)
            assert set(loaded["rest"][0].tolist()) == {number}
            assert set(loaded["rest"][1].tolist()) == {number}


def test_memory_of_a_plain_tensor_is_let_go_when_save_returns(path: Path) -> None:
    model, optimizer = run(layers=24)
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        step(model, optimizer)
        plain, array = torch.ones(1 << 20), np.ones(1 << 20)
        handle = checkpointer.save(1, model=model, rest=[plain, array], rng=False)
        assert handle.state == "staging"
        # Nobody holds it any more, so that it may move.
        array.resize((1 << 21,))
        plain.resize_(1 << 22).zero_()
        assert handle.wait().durable
        found = checkpointer.load(1)["rest"]
        assert found[0].unique().tolist() == [1] and set(found[1].tolist()) == {1}


# -- interrupted saves


LINES = """
import sys, numpy as np, pccheck, pccheck.torch as pcc, torch
path, overlap = sys.argv[1], sys.argv[2] != "False"
plain, array = torch.zeros(3 << 19), np.zeros(3 << 18)
model = torch.nn.Linear(1024, 1024)
options = {"pool": "3 MiB", "chunk": "1 MiB", "capacity": "32 MiB", "in_flight": 2}
place, count, step, hits = 0, 0, 0, 0

def trace(frame, event, argument):
    global count
    if "pccheck" not in frame.f_code.co_filename:
        return None
    if event == "line":
        count += 1
        if count == place:
            sys.settrace(None)
            raise KeyboardInterrupt
    return trace

def fill(value):
    plain.fill_(value)
    array[:] = value
    if not overlap:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)

checkpointer = pcc.Checkpointer(path, **options)
while count >= place:
    place, count, step = place + 1, 0, step + 1
    fill(step)
    sys.settrace(trace)
    try:
        handle = checkpointer.save(step, x=[plain, array], model=model, rng=False, overlap=overlap)
    except KeyboardInterrupt:
        handle = None
        hits += 1
    finally:
        sys.settrace(None)
    fill(-1)
    if handle is not None or place % 5 == 0:
        checkpointer.close()
        if handle is not None:
            assert handle.wait().durable
        if found := pcc.checkpoints(path):
            state = pcc.load(path)
            values = {*state["x"][0].unique().tolist(), *np.unique(state["x"][1]).tolist()}
            if not overlap:
                values.update(*(item.unique().tolist() for item in state["model"].values()))
            assert values == {found[0].step}, (place, found[0].step, values)
        checkpointer = pcc.Checkpointer(path, **options)
checkpointer.close()
print(hits)
"""


@pytest.mark.parametrize("overlap", [True, False])
def test_an_interrupted_save_is_no_mixture(path: Path, overlap: bool) -> None:
    """Ctrl-C at every line of save(); what it was given changes right after it."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", LINES, path, str(overlap)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 300


def test_a_handler_that_closes_keeps_the_save_below_it(path: Path) -> None:
    """As a program does that ends by itself on SIGTERM."""
    plain = torch.zeros(24 << 20)
    kept = 0
    for number in range(1, 7):
        plain.fill_(number)
        checkpointer = pcc.Checkpointer(path, **SLOW)

        def end(*_: object, opened: pcc.Checkpointer = checkpointer) -> None:
            opened.close()
            raise SystemExit

        before = signal.signal(signal.SIGUSR1, end)
        timer = threading.Timer(0.003 * number, signal.raise_signal, [signal.SIGUSR1])
        with contextlib.suppress(SystemExit):
            # On a busy machine the signal comes before this returns.
            timer.start()
            checkpointer.save(number, x=plain, rng=False)
            timer.join()
            time.sleep(0.001)
        timer.join()
        signal.signal(signal.SIGUSR1, before)
        if pcc.checkpoints(path):
            found = pcc.load(path)["x"]
            assert found.unique().tolist() == [pcc.checkpoints(path)[0].step]
            kept += found[0].item() == number
    assert kept


def test_debug_mode_lets_change_what_was_read_first(path: Path) -> None:
    model, _ = run(layers=8)
    plain = torch.zeros(1 << 20)
    with pcc.Checkpointer(path, debug="digest", **SLOW) as checkpointer:
        handle = checkpointer.save(1, model=model, plain=plain)
        plain.add_(1)
        handle.wait_staged()
        handle.wait()


# -- parameters that torch does not count


def test_parameters_that_processes_share_are_read_before_save_returns(path: Path) -> None:
    """Another process changes them and no count (Hogwild)."""
    model, _ = run()
    model.share_memory()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for number in range(1, 4):
            for parameter in model.parameters():
                parameter.data.fill_(number)
            handle = checkpointer.save(number, model=model, rng=False)
            assert handle.copied_byte_count == 0
            for parameter in model.parameters():
                parameter.data.fill_(1000)
            handle.wait()
            loaded = checkpointer.load(number)["model"]
            assert {value for item in loaded.values() for value in item.unique().tolist()} == {
                number
            }


def test_parameters_of_inference_mode_are_read_before_save_returns(path: Path) -> None:
    with torch.inference_mode():
        model, _ = run()
    with pcc.Checkpointer(path, **SLOW) as checkpointer, torch.inference_mode():
        for number in range(1, 4):
            for parameter in model.parameters():
                parameter.fill_(number)
            handle = checkpointer.save(number, model=model, rng=False)
            for parameter in model.parameters():
                parameter.fill_(1000)
            handle.wait()
            loaded = checkpointer.load(number)["model"]
            assert {value for item in loaded.values() for value in item.unique().tolist()} == {
                number
            }


# -- what cannot be stored


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_by_name(path: Path, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=layout)
    with pcc.Checkpointer(path) as checkpointer:
        with pytest.raises(TypeError, match=r"^key 'state\.x\.0': .* nested tensor; save the list"):
            checkpointer.save(1, state={"x": [nested]})
        checkpointer.save(1, state={"x": nested.unbind()}).wait()
