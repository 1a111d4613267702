"""A Trainer and an Accelerate loop of several processes, killed and restarted from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import torch
from transformers import Trainer, TrainingArguments

import pccheck
import pccheck.distributed as pcd
from pccheck.huggingface import CheckpointCallback

CHILD = Path(__file__).with_name("hugging_child.py")


def losses(directory: Path, name: str) -> dict[tuple[int, int], str]:
    """By rank and step."""
    lines = (directory / f"{name}.losses").read_text().splitlines()
    return {(int(rank), int(step)): loss for rank, step, loss in map(str.split, lines)}


@pytest.mark.parametrize("kind", ["trainer", "accelerate"])
def test_a_killed_job_continues_from_one_step(tmp_path: Path, kind: str) -> None:
    jobs = [f"{kind}-whole:2", f"{kind}-cut:2:fails", f"{kind}-on:2", f"{kind}-other:3"]
    ranks.run_jobs(CHILD, tmp_path, *jobs)
    whole, on = losses(tmp_path, "whole"), losses(tmp_path, "on")
    assert on and (0, min(step for _, step in whole)) not in on
    assert on == {key: whole[key] for key in on}
    # Both end, and began with the same step.
    last = max(step for _, step in whole)
    assert {rank for rank, step in on if step == last} == {0, 1}
    assert sum(rank == 0 for rank, _ in on) == sum(rank == 1 for rank, _ in on)
    # Three processes continue with what two saved.
    assert sorted(losses(tmp_path, "other")) == [
        (rank, step) for rank in range(3) for step in (last + 1, last + 2)
    ]
    folder = tmp_path / "whole"
    sizes = [info.payload_byte_count for path in sorted(folder.iterdir())
             for info in pccheck.checkpoints(path)[:1]]  # fmt: skip
    assert len(sizes) == 2 and max(sizes) - min(sizes) < 4096
    state = pcd.load(folder)
    model = state["model"] if kind == "trainer" else state["models"][0]
    prefix = "network." if kind == "trainer" else ""
    assert model[f"{prefix}0.weight"].shape == (64, 8)
    assert model[f"{prefix}1.running_mean"].abs().sum() > 0


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(values).square().mean()}


@pytest.mark.parametrize("name", ["run/", "run.pcc"])
@pytest.mark.parametrize("save_steps", [2, 0.5])
def test_a_resumed_training_saves_as_often_as_its_arguments_say(
    tmp_path: Path, name: str, save_steps: float
) -> None:
    path = tmp_path / name
    for steps in (4, 8):
        checkpoints = CheckpointCallback(f"{tmp_path}/{name}", retain=4)
        arguments = TrainingArguments(
            output_dir=f"{tmp_path}/out", max_steps=steps, save_steps=save_steps,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        rows = [{"values": torch.full((4,), float(index))} for index in range(64)]
        trainer = Trainer(Model(), arguments, train_dataset=rows, callbacks=[checkpoints])
        trainer.train(resume_from_checkpoint=checkpoints.resume_folder())
    file = path / "rank-00000-of-00001.pcc" if path.is_dir() else path
    expected = [8, 6, 4, 2] if save_steps == 2 else [8, 4, 2]
    assert [info.step for info in pccheck.checkpoints(file)] == expected
