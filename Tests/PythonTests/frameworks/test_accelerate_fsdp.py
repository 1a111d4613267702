"""An Accelerate loop with FSDP version 2, killed and restarted on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from test_hugging_groups import losses
from torch.utils._pytree import tree_flatten

import pccheck.distributed as pcd

CHILD = Path(__file__).with_name("accelerate_fsdp_child.py")


def assert_same(left: Any, right: Any) -> None:
    """Two nests of states, bit by bit."""
    (left_leaves, left_form), (right_leaves, right_form) = tree_flatten(left), tree_flatten(right)
    assert left_form == right_form
    for a, b in zip(left_leaves, right_leaves, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b)
        else:
            assert a == b


@pytest.mark.parametrize("kind", ["plain", "wrapped"])
def test_a_killed_job_continues_on_any_number_of_processes(tmp_path: Path, kind: str) -> None:
    def kept(name: str, when: str, rank: int) -> Any:
        return torch.load(tmp_path / f"{kind}-{name}.{when}-{rank}")

    ranks.run_jobs(CHILD, tmp_path, f"{kind}-whole:2", f"{kind}-cut:2:fails", f"{kind}-on:2")
    whole, cut, on = (losses(tmp_path, f"{kind}-{name}") for name in ("whole", "cut", "on"))
    assert set(cut) == {(rank, step) for rank in range(2) for step in range(4)}
    assert cut | on == whole and not cut.keys() & on.keys()
    for rank in range(2):
        assert_same(kept("on", "end", rank), kept("whole", "end", rank))
    model, optimizer, _ = kept("on", "end", 0)
    state = pcd.load(tmp_path / f"{kind}-cut")
    assert_same(dict(state["models"][0]), dict(model))
    assert_same(state["optimizers"][0], optimizer)
    assert optimizer["state"][0]["exp_avg"].abs().sum() > 0

    # Each goes on with what another number of processes saved.
    ranks.run_jobs(CHILD, tmp_path, f"{kind}-other:3", f"{kind}-alone:1")
    for rank in range(3):
        assert_same(kept("other", "begin", rank), kept("on", "end", 0))
    assert_same(kept("alone", "begin", 0), kept("other", "end", 0))
    other = sorted(losses(tmp_path, f"{kind}-other"))
    assert other == [(rank, step) for rank in range(3) for step in (6, 7)]
    assert list(losses(tmp_path, f"{kind}-alone")) == [(0, 8)]
