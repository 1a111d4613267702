"""Jobs of a Trainer with FSDP version 2: python hugging_fsdp_child.py DIRECTORY TASK:WORLD…"""

from __future__ import annotations

import os
from typing import Any

import ranks
import torch
import torch.distributed as dist
import transformers
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate_fsdp_child import die_together, keep
from hugging_child import Rows, Watch, launched, losses_of
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments

from pccheck._state.comparing import StateMismatch
from pccheck.errors import InvalidArgument
from pccheck.huggingface import CheckpointCallback, ResumesShards


class Model(torch.nn.Module):
    """Nothing of it divides evenly."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, width)
        self.drop = torch.nn.Dropout(0.2)
        self.last = torch.nn.Linear(width, 1)
        # A checkpoint has several chunks with it.
        self.large = torch.nn.Parameter(torch.ones(100_001))

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.last(self.drop(self.first(values).relu()))
        return {"loss": found.square().mean() + self.large.mean()}


class Sharding:
    """Accelerate takes the plugin only where there are GPUs; what follows is the same without."""

    accelerator: Any
    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        parent: Any = super()
        parent.create_accelerator_and_postprocess()
        self.accelerator.state.distributed_type = DistributedType.FSDP
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        self.is_fsdp_enabled = True


class Plain(Sharding, Trainer):  # type: ignore[misc,unused-ignore]
    pass


class Sharded(Sharding, ResumesShards, Trainer):  # type: ignore[misc,unused-ignore]
    pass


class Keep(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Keeps the state at the begin and at the end, and kills all in the middle of a step."""

    def __init__(
        self, noted: str, rank: int, world: int, kill_at: int | None,
        checkpoints: CheckpointCallback,
    ) -> None:  # fmt: skip
        self.noted, self.rank, self.kill_at, self.checkpoints = noted, rank, kill_at, checkpoints
        self.processes = [0] * world
        dist.all_gather_object(self.processes, os.getpid())

    def keep(self, when: str, model: Any, optimizer: Any, lr_scheduler: Any) -> None:
        keep(f"{self.noted}.{when}-{self.rank}", model, optimizer, lr_scheduler)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any,
        lr_scheduler: Any, **_: Any,
    ) -> None:  # fmt: skip
        self.keep("begin", model, optimizer, lr_scheduler)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.kill_at:
            checkpointer: Any = self.checkpoints.checkpointer
            checkpointer._last_handle.wait_group()
            die_together(self.rank, self.processes)

    def on_train_end(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any,
        lr_scheduler: Any, **_: Any,
    ) -> None:  # fmt: skip
        self.keep("end", model, optimizer, lr_scheduler)


def train(
    name: str, steps: int, kill_at: int | None = None, note_as: str = "", kind: Any = Sharded,
    width: int = 7, attaches: bool = True, is_given: bool = True, is_listed: bool = True,
) -> ranks.Task:  # fmt: skip
    def run(rank: int, world: int, directory: str) -> None:
        launched(rank, world, directory)
        noted = note_as or name
        transformers.set_seed(1 + rank)
        arguments = TrainingArguments(
            output_dir=f"{directory}/{name}.out", per_device_train_batch_size=4, max_steps=steps,
            save_strategy="no", logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True,
            learning_rate=1e-2, lr_scheduler_type="constant_with_warmup", warmup_steps=3,
        )  # fmt: skip
        checkpoints = CheckpointCallback(
            f"{directory}/{name}/", policy=1, timeout=60, chunk="64 KiB"
        )
        callbacks = [
            Watch(losses_of(noted, rank, directory), None), *[checkpoints] * is_listed,
            Keep(f"{directory}/{noted}", rank, world, kill_at, checkpoints),
        ]  # fmt: skip
        torch.manual_seed(5)
        trainer = kind(Model(width), arguments, train_dataset=Rows(), callbacks=callbacks)
        torch.manual_seed(1 + rank)
        if attaches:
            checkpoints.attach(trainer)
        folder = checkpoints.resume_folder(directory)
        trainer.train(resume_from_checkpoint=folder if is_given else None)

    return run


def refused(error: type[Exception], words: str, task: ranks.Task) -> ranks.Task:
    """All processes get an error with these words."""

    def run(rank: int, world: int, directory: str) -> None:
        try:
            task(rank, world, directory)
        except error as failure:
            assert words in str(failure), failure
        else:
            raise AssertionError("it was accepted")

    return run


def first_version(rank: int, world: int, directory: str) -> None:
    launched(rank, world, directory)
    arguments = TrainingArguments(
        output_dir=f"{directory}/first.out", max_steps=1, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    callback = CheckpointCallback(f"{directory}/first/")
    model = torch.nn.Sequential(FullyShardedDataParallel(Model(), device_id=torch.device("cpu")))
    try:
        callback.on_train_begin(arguments, None, None, model=model)  # type: ignore[arg-type]
    except InvalidArgument as error:
        assert "FSDP version 1" in str(error), error
    else:
        raise AssertionError("FSDP version 1 was accepted")


TASKS = {
    "whole": train("whole", 6),
    "cut": train("cut", 6, kill_at=4),
    "on": train("cut", 6, note_as="on"),
    "past-damage": train("damaged", 6, note_as="past"),
    "other": train("cut", 8, note_as="other"),
    "alone": train("cut", 9, note_as="alone"),
    "wider": refused(
        StateMismatch, "model.first.weight", train("cut", 9, note_as="bad", width=9)
    ),
    "not-given": refused(
        InvalidArgument, "training begins at step 0",
        train("cut", 9, note_as="bad", is_given=False),
    ),
    "not-listed": refused(
        InvalidArgument, "no CheckpointCallback of the Trainer",
        train("cut", 9, note_as="bad", is_listed=False),
    ),
    "plain": refused(InvalidArgument, "ResumesShards", train("plain", 9, kind=Plain)),
    "unattached": refused(InvalidArgument, "attach(trainer)", train("none", 9, attaches=False)),
    "first-version": first_version,
}  # fmt: skip

if __name__ == "__main__":
    ranks.main(TASKS)
