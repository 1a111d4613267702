"""A Lightning run with FSDP version 2, killed and restarted on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from lightning.pytorch import Trainer
from lightning_child import batches
from lightning_fsdp_child import Module
from test_accelerate_fsdp import assert_same
from test_hugging_groups import losses

import pccheck.distributed as pcd
from pccheck.lightning import CheckpointCallback, CheckpointIO

CHILD = Path(__file__).with_name("lightning_fsdp_child.py")


class Whole(Module):
    """The same module without shards."""

    def configure_model(self) -> None:
        pass


def test_a_killed_job_continues_on_any_number_of_processes(tmp_path: Path) -> None:
    def kept(name: str, rank: int) -> Any:
        return torch.load(tmp_path / f"{name}-{rank}")

    ranks.run_jobs(CHILD, tmp_path, "whole:2", "cut:2:fails", "on:2")
    whole, cut, on = (losses(tmp_path, name) for name in ("whole", "cut", "on"))
    assert set(cut) == {(rank, step) for rank in range(2) for step in range(1, 5)}
    assert cut | on == whole and not cut.keys() & on.keys()
    for rank in range(2):
        assert_same(kept("on.end", rank), kept("whole.end", rank))
    model, optimizer, _ = kept("on.end", 0)
    state = pcd.load(tmp_path / "cut")
    assert_same(dict(state["state_dict"]), dict(model))
    assert_same(state["optimizer_states"][0], optimizer)
    assert optimizer["state"][0]["exp_avg"].abs().sum() > 0

    ranks.run_jobs(CHILD, tmp_path, "wider:2", "wider:3", "read:3")
    assert_same(kept("read", 2)[0], model)
    assert not torch.equal(kept("read5", 2)[0]["first.weight"], model["first.weight"])

    # Each goes on with what another number of processes saved.
    ranks.run_jobs(CHILD, tmp_path, "other:3", "alone:1")
    for rank in range(3):
        assert_same(kept("other.begin", rank), kept("on.end", 0))
    assert_same(kept("alone.begin", 0), kept("other.end", 0))
    other = sorted(losses(tmp_path, "other"))
    assert other == [(rank, step) for rank in range(3) for step in (7, 8)]
    assert list(losses(tmp_path, "alone")) == [(0, 9)]

    # So does a Trainer that shards nothing.
    storage, module = CheckpointIO(f"{tmp_path}/cut/"), Whole()
    callbacks = [CheckpointCallback(storage, policy=1)]
    trainer = Trainer(
        max_steps=9, accelerator="cpu", logger=False, enable_progress_bar=False, plugins=[storage],
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks,
    )  # type: ignore[arg-type]  # fmt: skip
    trainer.fit(module, batches(8, 8), ckpt_path=storage.resume_path())
    assert_same(dict(module.state_dict()), dict(kept("alone.end", 0)[0]))
    assert_same(trainer.optimizers[0].state_dict(), kept("alone.end", 0)[1])


def test_buffers_of_each_process_continue_on_as_many_of_them_only(tmp_path: Path) -> None:
    ranks.run_jobs(CHILD, tmp_path, "each:2", "each-other:3", "each-other:1", "each-on:2")
    for rank in range(2):
        before, after = (
            torch.load(tmp_path / f"{name}-{rank}")[0]["scale"]
            for name in ("each.end", "each-on.begin")
        )
        assert torch.equal(before, after)
        assert before.item() == pytest.approx(1 + 0.001 * (1 + rank))


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    ranks.run_jobs(CHILD, tmp_path, "changing:2", "unfit:2")


def test_other_paths_hold_files_of_lightning(tmp_path: Path) -> None:
    ranks.run_jobs(CHILD, tmp_path, "own-files:2")
