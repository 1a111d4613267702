"""A save of the structure of the last one is faster, and stores what is there now."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pccheck.torch as pcc
import pytest
import torch
from foreign import same
from pccheck.state import document_text
from torch import nn


@pytest.fixture(autouse=True, params=[1, 1000])
def least_part_count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a document are kept as text, which here are shorter than those of a real state."""
    monkeypatch.setattr("pccheck._torch.saving.encoder._LEAST_PART_COUNT", request.param)


def states() -> dict[str, Any]:
    """States that are alike: what one save knows of one of them is wrong for the next."""
    a, b = torch.arange(6.0), torch.arange(10.0, 14.0)
    base = torch.arange(12.0)
    shared = torch.arange(20.0)
    return {
        "plain": {"a": a, "b": b},
        "values": {"a": a + 1, "b": b + 1},
        "names": {"a": a, "c": b},
        "order": {"b": b, "a": a},
        "shape": {"a": a.view(2, 3), "b": b},
        "dtype": {"a": a.to(torch.float64), "b": b},
        "same size": {"a": a.to(torch.int32), "b": b},
        "strides": {"a": base[::2], "b": b},
        "shared": {"a": shared[:6], "b": shared[6:10]},
        "equal": {"a": a, "b": a},
        "names with signs": {"\"\\\n": a, "größe": b},
        "conjugate": {"a": torch.complex(a, a).conj(), "b": b},
        "complex": {"a": torch.complex(a, a), "b": b},
        "empty": {"a": torch.empty(0), "b": b},
        "fewer": {"a": a},
        "more": {"a": a, "b": b, "c": a + 2},
        "ordered": OrderedDict(a=a, b=b),
        "deeper": {"a": {"b": a}, "c": b},
        "one path": {"a.b": a, "c": b},
        "tag": {"$a": a, "b": b},
        "dollar": {"a$": a, "b": b},
        "numbers": {1: a, 2: b},
        "mixed": {"a": a, "b": 1.5},
        "list": [a, b],
        "text": {"{\"$part\":0}": '{"$part":0}', "a": {"b": a}, "$part": {"b": b}},
        "twice": {"a": {"b": a}, "b": {"b": b}},
        "other place": {"b": {"b": a}, "a": {"b": b}},
        "empty parts": {"a": {}, "b": {"b": a}, "c": OrderedDict()},
        "parameters": {"a": nn.Parameter(a), "b": b},
    }


@pytest.mark.parametrize("name", states())
def test_a_state_is_stored_as_it_is_whatever_was_saved_before(path: Path, name: str) -> None:
    steps = itertools.count()
    found = states()
    with pcc.Checkpointer(path.with_name("fresh.pcc")) as checkpointer:
        checkpointer.save(0, state=found[name], rng=False).wait()
        expected = checkpointer.load()
    with pcc.Checkpointer(path) as checkpointer:
        for other in found.values():
            checkpointer.save(next(steps), state=other, rng=False)
            checkpointer.save(next(steps), state=found[name], rng=False).wait()
            same(checkpointer.load(), expected)


def test_the_text_is_that_of_the_document() -> None:
    for state in states().values():
        document = pcc.TorchEncoder(set()).encode_state([state, state])
        text = pcc.TorchEncoder(set()).encode_text([state, state])
        assert text == document_text(document)


class Numbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 6))


@pytest.mark.parametrize(
    "new",
    [
        torch.ones(4, 6), torch.ones(6, 4), torch.ones(4, 6, dtype=torch.float64),
        torch.arange(24.0).view(6, 4).t(), torch.arange(48.0)[::2].view(4, 6),
    ],
)  # fmt: skip
def test_a_parameter_may_get_other_memory(path: Path, new: torch.Tensor) -> None:
    model = Numbers()
    with pcc.Checkpointer(path) as checkpointer:
        for step in range(3):
            checkpointer.save(step, model=model).wait()
        for step in range(3, 6):
            model.weight.data = new.clone(memory_format=torch.preserve_format)
            checkpointer.save(step, model=model).wait()
            assert torch.equal(checkpointer.load()["model"]["weight"], new)


def test_memory_that_came_since_the_last_save_stays_where_it_is_too(path: Path) -> None:
    model = Numbers()
    with pcc.Checkpointer(path) as checkpointer:
        for step in range(3):
            model.weight.data = torch.ones(4, 6)
            checkpointer.save(step, model=model).wait()
            with pytest.raises(RuntimeError, match="resiz"):
                model.weight.untyped_storage().resize_(0)


@pytest.mark.parametrize(("count", "left"), [(10, 0), (50_000, 40), (50_000, 0)])
def test_a_storage_that_is_too_small_is_refused(path: Path, count: int, left: int) -> None:
    """Also where the state is as it was before."""
    state = {"a": torch.ones(count), "b": torch.ones(10)}
    with pcc.Checkpointer(path, capacity="8 MiB") as checkpointer:
        checkpointer.save(0, s=state, rng=False).wait()
        state["a"].untyped_storage().resize_(left)
        with pytest.raises(TypeError, match=f"s.a.*has {left} bytes, expected {4 * count} or more"):
            checkpointer.save(1, s=state, rng=False)
        state["a"] = torch.ones(3, 1).expand(3, count)
        checkpointer.save(1, s=state, rng=False).wait()
        assert torch.equal(checkpointer.load(1)["s"]["a"], torch.ones(3, count))


def test_memory_that_a_thread_replaces_is_kept(path: Path) -> None:
    """An address and its owner belong together, whatever `.data` is set to meanwhile."""
    state = {f"x{i}": torch.zeros(4) for i in range(2000)} | {"large": torch.zeros(1_000_000)}
    is_over = threading.Event()

    def replace() -> None:
        number = 0
        while not is_over.wait(0.002):
            number += 1
            state["large"].data = torch.full((1_000_000,), float(number))

    thread = threading.Thread(target=replace)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread.start()
    try:
        with pcc.Checkpointer(path, capacity="16 MiB") as checkpointer:
            for step in range(60):
                checkpointer.save(step, s=state, rng=False).wait()
                assert checkpointer.load()["s"]["large"].unique().numel() == 1
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(interval)
