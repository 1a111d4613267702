"""A Trainer that saves through a file: resumed after a kill, after damage, after SIGTERM."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import pccheck
from pccheck.huggingface import CheckpointCallback

TRAINING = '''
import json, os, sys, time, torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from pccheck.huggingface import CheckpointCallback

class Words(torch.utils.data.Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        words = torch.randint(0, 64, (12,), generator=draw)
        return {"input_ids": words, "labels": words}

class Losses(TrainerCallback):
    """A line per step: the loss to the last bit."""
    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            print(state.global_step, float(logs["loss"]).hex(), flush=True)

class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step == stop

path, stop = sys.argv[1], int(sys.argv[2])
options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
transformers.set_seed(1)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=32, attention_dropout=0.1,
    tie_word_embeddings=True)
arguments = TrainingArguments(
    output_dir=path + ".out", per_device_train_batch_size=4, max_steps=12, save_strategy="no",
    logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, gradient_accumulation_steps=2,
    lr_scheduler_type="cosine", learning_rate=1e-3, seed=1)
checkpoints = CheckpointCallback(path, **{"policy": 1, **options})
trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=Words(),
                  callbacks=[Losses(), checkpoints, Stop()])
trainer.train(resume_from_checkpoint=checkpoints.resume_folder())
total = sum(p.double().sum().item() for p in trainer.model.parameters())
print("end", total.hex(), flush=True)
'''

Start = Callable[..., subprocess.Popen[str]]


def losses_of(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Step and loss; the Trainer prints lines of its own."""
    return ((fields[0], fields[1]) for fields in map(str.split, lines) if len(fields) == 2)


def finished(child: subprocess.Popen[str]) -> dict[str, str]:
    output, errors = child.communicate(timeout=180)
    assert child.returncode == 0, errors
    return dict(losses_of(output.splitlines()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The losses of a run that nothing interrupts, over two epochs and a half."""
    path = tmp_path_factory.mktemp("whole") / "run.pcc"
    child = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(path), "12"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    losses = finished(child)
    assert len(losses) == 13
    assert [info.step for info in pccheck.checkpoints(path)][0] == 12
    return losses


def test_a_killed_run_goes_on_with_the_same_losses(
    path: Path, run_child: Start, whole: dict[str, str]
) -> None:
    child = run_child(TRAINING, path, 12)
    assert child.stdout is not None
    seen = dict(islice(losses_of(child.stdout), 7))
    child.send_signal(signal.SIGKILL)
    child.wait()
    rest = finished(run_child(TRAINING, path, 12))
    # Steps after the newest durable one, and none before it.
    assert 1 < len(rest) <= 8
    assert seen | rest == whole


def test_sigterm_saves_once_more(path: Path, run_child: Start, whole: dict[str, str]) -> None:
    options = '{"policy": 100, "on_sigterm": "save", "after_sigterm": "return"}'
    child = run_child(TRAINING, path, 12, options)
    assert child.stdout is not None
    seen = dict(islice(losses_of(child.stdout), 4))
    child.send_signal(signal.SIGTERM)
    rest, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    stopped = dict(losses_of(rest.splitlines()))
    newest = pccheck.checkpoints(path)[0].step
    assert 4 <= newest < 12 and str(newest + 1) not in stopped
    resumed = finished(run_child(TRAINING, path, 12))
    stopped.pop("end")
    assert seen | stopped | resumed == whole


def test_damage_costs_one_checkpoint(
    path: Path, run_child: Start, whole: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    finished(run_child(TRAINING, path, 8))
    newest, older = pccheck.checkpoints(path)[:2]
    weight = pccheck.load(path, newest.step)["model"]["model.norm.weight"]
    content = bytearray(path.read_bytes())
    start = content.find(weight.tobytes())
    assert start > 0
    content[start] ^= 1
    path.write_bytes(content)
    resumed = finished(run_child(TRAINING, path, 12))
    assert min(int(step) for step in resumed if step != "end") == older.step + 1
    assert {step: whole[step] for step in resumed} == resumed


# -- misuse


def arguments(path: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(path) + ".out", use_cpu=True, **options)


def test_a_new_file_starts_from_the_beginning(path: Path) -> None:
    assert CheckpointCallback(path).resume_folder() is None
    assert CheckpointCallback(path, capacity="1 MiB").resume_folder() is None
    assert path.exists()


def test_checkpoints_of_something_else_are_told_apart(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"a": 1}).wait()
    with pytest.raises(pccheck.NoCheckpoint, match="not of a Trainer"):
        CheckpointCallback(path).resume_folder()


def test_several_processes_need_a_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(pccheck.InvalidArgument, match="one file of 2 processes; give a folder"):
        CheckpointCallback(path).resume_folder()
    with pytest.raises(pccheck.InvalidArgument, match="make the Trainer.*first"):
        CheckpointCallback(f"{path}/").resume_folder()


def test_state_that_a_callback_does_not_see_is_refused(path: Path) -> None:
    given = arguments(path)
    given.fp16 = True
    with pytest.raises(pccheck.InvalidArgument, match="runs with fp16.*use bf16"):
        CheckpointCallback(path).on_train_begin(given, TrainerState(), TrainerControl())


def test_the_folder_goes_with_the_first_step(path: Path, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    data = [{"x": torch.randn(2)} for _ in range(4)]

    class Plain(Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
            return model(inputs["x"]).sum()

    def run(steps: int) -> str | None:
        checkpoints = CheckpointCallback(path, policy=1)
        trainer = Plain(
            model, arguments(path, max_steps=steps, report_to=[], disable_tqdm=True,
                             save_strategy="no", remove_unused_columns=False),
            train_dataset=data, callbacks=[checkpoints],
        )  # fmt: skip
        folder = checkpoints.resume_folder(tmp_path)
        assert folder is None or sorted(os.listdir(folder)) == [
            "optimizer.pt", "pytorch_model.bin", "rng_state.pth", "scheduler.pt",
            "trainer_state.json",
        ]  # fmt: skip
        trainer.train(resume_from_checkpoint=folder)
        assert trainer.state.global_step == steps
        return folder

    logging.getLogger("transformers").setLevel(logging.ERROR)
    assert run(2) is None
    folder = run(4)
    assert folder is not None and not os.path.exists(folder)
    assert [info.step for info in pccheck.checkpoints(path)][0] == 4


# -- what the Trainer, its log and its callbacks keep

EVALUATING = """
import json, os, sys, numpy as np, torch, transformers
from transformers import (
    EarlyStoppingCallback, LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback,
    TrainingArguments)
from pccheck.huggingface import CheckpointCallback

words = torch.randint(0, 64, (24, 12), generator=torch.Generator().manual_seed(3))
data = [{"input_ids": row, "labels": row} for row in words]

class Logging(Trainer):
    def compute_loss(self, model, inputs, *arguments, **options):
        found = super().compute_loss(model, inputs, *arguments, **options)
        if model.training:
            self.log({"aux": np.float32(0.5), "batch": np.int64(4)})
        return found

class Kill(TrainerCallback):
    # Dies in the middle of a step, once the step before is durable.
    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step == kill:
            while checkpoints.checkpointer.stats()["newest_durable_step"] != kill:
                pass
            os.kill(os.getpid(), 9)

path, kill, optim = sys.argv[1], int(sys.argv[2]), sys.argv[3]
transformers.set_seed(1)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, attention_dropout=0.1))
arguments = TrainingArguments(
    output_dir=path + ".out", per_device_train_batch_size=4, num_train_epochs=3,
    save_strategy="no", logging_steps=2, eval_strategy="steps", eval_steps=3, report_to=[],
    disable_tqdm=True, use_cpu=True, learning_rate=1e-3, seed=1, optim=optim,
    lr_scheduler_type="constant" if "free" in optim else "cosine",
    metric_for_best_model="loss", greater_is_better=False,
    restore_callback_states_from_checkpoint=True)
checkpoints = CheckpointCallback(path, policy=1)
early = EarlyStoppingCallback(100, 100.0)
trainer = Logging(model, arguments, train_dataset=data, eval_dataset=data[:8],
                  callbacks=[checkpoints, early, Kill()])
checkpoints.attach(trainer)
trainer.train(resume_from_checkpoint=checkpoints.resume_folder())
history = [{key: value for key, value in entry.items() if "runtime" not in key
            and "per_second" not in key} for entry in trainer.state.log_history[:-1]]
kept = [item for item in trainer.callback_handler.callbacks
        if isinstance(item, EarlyStoppingCallback)][0]
total = sum(p.double().sum().item() for p in model.parameters())
print(json.dumps([history, trainer.state.best_metric, total.hex(),
                  kept.early_stopping_patience_counter], default=float))
"""


@pytest.mark.parametrize("optim", ["adamw_torch", "schedule_free_adamw"])
def test_the_whole_log_and_every_counter_come_back(
    path: Path, run_child: Start, optim: str
) -> None:
    """Steps that were logged and evaluated, too; a schedule-free optimizer is swapped for that."""

    def ended(name: str, kill: int) -> tuple[int, Any]:
        child = run_child(EVALUATING, path.with_name(name), kill, optim)
        output, errors = child.communicate(timeout=180)
        assert child.returncode in (0, -signal.SIGKILL), errors
        lines = output.strip().splitlines()
        return child.returncode, json.loads(lines[-1]) if child.returncode == 0 else None

    code, whole = ended("whole.pcc", -1)
    assert code == 0
    history, _, _, patience = whole
    assert sum("loss" in entry for entry in history) == 9
    assert sum("eval_loss" in entry for entry in history) == 6
    assert sum("aux" in entry for entry in history) == 18 and patience == 5
    # In the step after one that was logged and evaluated, and after one at the end of an epoch.
    for kill in (6, 12) if optim == "adamw_torch" else (6,):
        assert ended(f"{kill}.pcc", kill)[0] == -signal.SIGKILL
        assert pccheck.checkpoints(path.with_name(f"{kill}.pcc"))[0].step == kill
        assert ended(f"{kill}.pcc", -1) == (0, whole)


def plain_trainer(path: Path, callbacks: list[Any], **options: Any) -> Trainer:
    class Plain(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **more: Any) -> Any:
            loss = model(inputs["x"]).sum()
            return (loss, inputs["x"]) if more.get("return_outputs") else loss

    data = [{"x": torch.randn(2)} for _ in range(4)]
    given = arguments(
        path, report_to=[], disable_tqdm=True, remove_unused_columns=False, label_names=["x"],
        **{"save_strategy": "no", **options},
    )  # fmt: skip
    model = torch.nn.Linear(2, 2)
    return Plain(model, given, train_dataset=data, eval_dataset=data, callbacks=callbacks)


def test_state_of_other_callbacks_is_missed_aloud(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    early = EarlyStoppingCallback(3)
    options = {"eval_strategy": "epoch", "metric_for_best_model": "loss", "max_steps": 1}
    checkpoints = CheckpointCallback(path)
    plain_trainer(path, [checkpoints, early], **options).train()
    assert "what EarlyStoppingCallback counts begins again" in caplog.text
    assert "call attach(trainer)" in caplog.text
    caplog.clear()
    checkpoints = CheckpointCallback(path.with_name("other.pcc"))
    trainer = plain_trainer(path, [checkpoints, early], **options)
    checkpoints.attach(trainer)
    trainer.train()
    assert "give TrainingArguments(restore_callback" in caplog.text


def test_the_best_model_is_that_of_the_trainers_folders(path: Path) -> None:
    """The file holds the newest; a best one that is gone is told before training."""
    options: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.1,
    }  # fmt: skip

    def run(steps: int) -> Trainer:
        checkpoints = CheckpointCallback(path, policy=1)
        trainer = plain_trainer(path, [checkpoints], max_steps=steps, **options)
        trainer.train(resume_from_checkpoint=checkpoints.resume_folder())
        return trainer

    first = run(2)
    best = first.state.best_model_checkpoint
    assert best is not None and os.path.exists(best)
    # What is saved of the last step is not the best model, which was loaded after it.
    weight = pccheck.load(path)["model"]["weight"]
    kept = load_file(os.path.join(first.args.output_dir, "checkpoint-2", "model.safetensors"))
    assert (weight == kept["weight"].numpy()).all()
    assert run(3).state.global_step == 3
    shutil.rmtree(first.args.output_dir)
    with pytest.raises(pccheck.InvalidArgument, match=r"that of step \d, is in no folder"):
        run(4)


def test_a_log_that_is_not_json_is_named(path: Path) -> None:
    class Odd(TrainerCallback):
        def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
            state.log_history.append({"odd": object()})

    trainer = plain_trainer(path, [Odd(), CheckpointCallback(path, policy=1)], max_steps=1)
    with pytest.raises(TypeError, match="log holds <object object.*JSON"):
        trainer.train()
