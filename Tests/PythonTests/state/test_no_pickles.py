"""What holds a file open is neither pickled nor copied, and says what to do."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pccheck
import pccheck.numpy
import pccheck.torch

SAID = r"run\.pcc: a Checkpointer cannot be pickled or copied.*save_hyperparameters\(ignore=.*path"
WAYS: dict[str, Callable[[Any], object]] = {
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "in an object": lambda item: copy.deepcopy({"trainer": [item]}),
    "torch.save": lambda item: torch.save(item, "/dev/null"),
}


@pytest.mark.parametrize("kind", [pccheck, pccheck.numpy, pccheck.torch])
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpointer_is_refused(path: Path, kind: Any, way: str) -> None:
    unused = kind.Checkpointer(path)
    with pytest.raises(TypeError, match=SAID):
        WAYS[way](unused)
    with kind.Checkpointer(path, capacity="1 MiB") as checkpointer:
        with pytest.raises(TypeError, match=SAID):
            WAYS[way](checkpointer)
        # It goes on.
        assert checkpointer.is_open and checkpointer.steps() == []


def test_a_handle_is_refused(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        handle = checkpointer.save(3, {"a": 1})
        with pytest.raises(TypeError, match="step 3: a SaveHandle cannot be pickled"):
            pickle.dumps(handle)
        assert handle.wait().durable


class Samples(torch.utils.data.Dataset[int]):
    """One that has got hold of the checkpointer."""

    def __init__(self, checkpointer: Any) -> None:
        self.checkpointer = checkpointer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


def test_a_loader_that_spawns_its_workers_says_so(path: Path) -> None:
    with pccheck.torch.Checkpointer(path, capacity="1 MiB") as checkpointer:
        loader = torch.utils.data.DataLoader(
            Samples(checkpointer), num_workers=1,
            multiprocessing_context=multiprocessing.get_context("spawn"),
        )  # fmt: skip
        with pytest.raises(TypeError, match=SAID):
            next(iter(loader))
