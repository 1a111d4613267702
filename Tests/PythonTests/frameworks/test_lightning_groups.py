"""A Lightning run that saves into a folder: each process its part, all from one step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_launch import CHILD, launch
from ranks import run_jobs

import pccheck
import pccheck.distributed as pcd
import pccheck.policies
from pccheck.errors import InvalidArgument
from pccheck.lightning import CheckpointCallback, CheckpointIO


def losses(directory: Path, name: str) -> dict[str, str]:
    """The loss of each step on each rank."""
    lines = (directory / f"{name}.losses").read_text().splitlines()
    return {f"{rank} {step}": loss for rank, step, loss in map(str.split, lines)}


def test_a_killed_job_continues_on_any_number_of_processes(tmp_path: Path) -> None:
    # Lightning launches these processes; the others it only joins.
    launch(tmp_path, "whole")
    run_jobs(CHILD, tmp_path, "cut:2:fails", "on:2")
    whole = losses(tmp_path, "whole")
    assert len(whole) == 12
    cut = losses(tmp_path, "cut")
    assert "1 4" in cut and "1 5" not in cut
    continued = losses(tmp_path, "on")
    assert continued and "0 1" not in continued
    assert continued == {key: whole[key] for key in continued}
    assert "1 6" in continued

    folder = tmp_path / "cut"
    files = sorted(folder.iterdir())
    assert [item.name for item in files] == ["rank-00000-of-00002.pcc", "rank-00001-of-00002.pcc"]
    state = pcd.load(folder)["checkpoint"]
    assert state["global_step"] == 6 and state["state_dict"]["layers.0.weight"].shape == (64, 8)
    moment = state["optimizer_states"][0]["state"][0]["exp_avg"]
    assert moment.shape == (64, 8) and moment.abs().sum() > 0
    # Weights and moments are stored once.
    sizes = [pccheck.checkpoints(path)[0].payload_byte_count for path in files]
    assert abs(sizes[0] - sizes[1]) < 2048
    run_jobs(CHILD, tmp_path, "other:1")
    assert list(losses(tmp_path, "other")) == ["0 7", "0 8"]


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.layer(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer_for(storage: CheckpointIO, **options: object) -> Trainer:
    settings: dict[str, object] = {
        "max_steps": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "plugins": [storage],
        "callbacks": [CheckpointCallback(storage, policy=1)], **options,
    }  # fmt: skip
    return Trainer(**settings)  # type: ignore[arg-type]


def batches() -> torch.utils.data.DataLoader[torch.Tensor]:
    return torch.utils.data.DataLoader(torch.randn(16, 4), 4)  # type: ignore[arg-type]


def test_who_only_reads_begins_no_attempt(tmp_path: Path) -> None:
    storage = CheckpointIO(f"{tmp_path}/run/")
    module = Module()
    trainer = trainer_for(storage)
    trainer.fit(module, batches(), ckpt_path=storage.resume_path())
    own = tmp_path / "run" / "rank-00000-of-00001.pcc"
    before = own.read_bytes()
    other = Module()
    trainer.validate(other, batches(), ckpt_path=f"{tmp_path}/run", verbose=False)
    assert torch.equal(other.layer.weight, module.layer.weight)
    first = Module()
    trainer.validate(first, batches(), ckpt_path=f"{tmp_path}/run/#step=1", verbose=False)
    assert not torch.equal(first.layer.weight, module.layer.weight)
    assert own.read_bytes() == before


@pytest.mark.parametrize("name", ["run/", "run.pcc"])
def test_one_callback_saves_a_step_again_after_going_back(tmp_path: Path, name: str) -> None:
    storage = CheckpointIO(f"{tmp_path}/{name}", retain=3)
    callback = CheckpointCallback(storage, policy=pccheck.policies.Every(1))
    for ckpt_path in (storage.resume_path(), f"{tmp_path}/{name}#step=1"):
        trainer = trainer_for(storage, callbacks=[callback])
        trainer.fit(Module(), batches(), ckpt_path=ckpt_path)
    path = tmp_path / name
    file = path / "rank-00000-of-00001.pcc" if path.is_dir() else path
    assert [info.step for info in pccheck.checkpoints(file)] == [2, 2, 1]


def steps_in(folder: Path) -> list[int]:
    return [info.step for info in pccheck.checkpoints(folder / "rank-00000-of-00001.pcc")]


def test_nothing_is_saved_between_the_steps_of_the_optimizer(tmp_path: Path) -> None:
    """Gradients that accumulate are in no checkpoint."""
    storage = CheckpointIO(f"{tmp_path}/run/", retain=4)
    for steps in (1, 2):
        trainer = trainer_for(storage, max_steps=steps, accumulate_grad_batches=2)
        trainer.fit(Module(), batches(), ckpt_path=storage.resume_path())
    assert steps_in(tmp_path / "run") == [2, 1]


def test_sigterm_saves_the_step_at_which_lightning_ends(tmp_path: Path) -> None:
    """It ends before the processes could agree at another step."""

    class Signalled(Module):
        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            if self.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, index)

    storage = CheckpointIO(f"{tmp_path}/run/", on_sigterm="save", after_sigterm="return")
    trainer = trainer_for(storage, max_steps=4, callbacks=[CheckpointCallback(storage, 100)])
    with pytest.raises(SystemExit):
        trainer.fit(Signalled(), batches(), ckpt_path=storage.resume_path())
    assert steps_in(tmp_path / "run") == [2]


def test_only_the_callback_saves_into_a_folder(tmp_path: Path) -> None:
    storage = CheckpointIO(f"{tmp_path}/run/")
    trainer = trainer_for(storage)
    trainer.fit(Module(), batches(), ckpt_path=storage.resume_path())
    with pytest.raises(InvalidArgument, match="only pccheck.lightning.CheckpointCallback"):
        trainer.save_checkpoint(f"{tmp_path}/run")
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert (tmp_path / "own.ckpt").stat().st_size > 0


def test_an_error_on_one_process_does_not_make_it_wait_for_long(tmp_path: Path) -> None:
    class Failing(Module):
        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            if self.global_step == 1:
                raise ValueError("planned")
            return super().training_step(batch, index)

    storage = CheckpointIO(f"{tmp_path}/run/")
    began = time.monotonic()
    with pytest.raises(ValueError, match="planned"):
        trainer_for(storage).fit(Failing(), batches(), ckpt_path=storage.resume_path())
    assert time.monotonic() - began < 60
    assert [info.step for info in pccheck.checkpoints(
        tmp_path / "run" / "rank-00000-of-00001.pcc")] == [1]
