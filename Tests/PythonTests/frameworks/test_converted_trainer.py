"""``python -m pccheck convert`` with checkpoints of a real Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from foreign import contents, run, same
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from pccheck.huggingface import CheckpointCallback


class Config(PretrainedConfig):  # type: ignore[misc,unused-ignore]
    model_type = "tiny"


class Tiny(PreTrainedModel):  # type: ignore[misc,unused-ignore]
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layer = nn.Linear(8, 8)
        self.post_init()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, Any]:
        out = self.layer(x)
        return {"loss": (out - x).square().mean(), "logits": out}


def train(folder: Path, resume: str | None, steps: int, callbacks: list[Any]) -> list[float]:
    """The losses of the steps that were made."""
    torch.manual_seed(1)
    data = [{"x": torch.randn(8), "labels": torch.tensor(0)} for _ in range(16)]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, save_steps=2, logging_steps=1, report_to=[], use_cpu=True,
        per_device_train_batch_size=2, disable_tqdm=True,
        save_strategy="no" if callbacks else "steps",
    )  # fmt: skip
    trainer = Trainer(Tiny(Config()), arguments, train_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_trainer_goes_on_with_what_was_converted(path: Path, tmp_path: Path) -> None:
    whole = train(tmp_path / "run", None, 6, [])
    folders = [tmp_path / "run" / f"checkpoint-{step}" for step in (2, 4)]
    run("convert", *folders, "-o", path)
    for folder, step in zip(folders, (2, 4), strict=True):
        back = tmp_path / f"back-{step}"
        run("convert", path, "-o", back, "--step", step)
        assert contents(back).keys() == contents(folder).keys()
        for name, data in contents(folder).items():
            if name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
                same(*(torch.load(place / name, weights_only=False) for place in (back, folder)))
            else:
                assert (back / name).read_bytes() == data
        assert train(tmp_path / f"again-{step}", str(back), 6, []) == whole


def test_a_trainer_goes_on_with_the_folder_of_a_callback(path: Path, tmp_path: Path) -> None:
    whole = train(tmp_path / "run", None, 4, [CheckpointCallback(path, policy=2, retain=2)])
    out = tmp_path / "folder"
    run("convert", path, "-o", out, "--to", "hf", "--step", 2)
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2
    resumed = train(tmp_path / "again", str(out), 4, [])
    assert resumed == whole and len(whole) == 4


def test_the_weights_are_the_model(tmp_path: Path, path: Path) -> None:
    model = Tiny(Config())
    model.save_pretrained(tmp_path / "model")
    run("convert", tmp_path / "model", "-o", path)
    run("convert", path, "-o", tmp_path / "back")
    again = Tiny.from_pretrained(tmp_path / "back")
    same(dict(again.state_dict()), dict(model.state_dict()))
    assert contents(tmp_path / "back") == contents(tmp_path / "model")
