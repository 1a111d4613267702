"""Checkpoints of a Hugging Face ``Trainer`` in one file.

    checkpoints = pccheck.huggingface.CheckpointCallback("run.pcc", policy=100)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[checkpoints])
    trainer.train(resume_from_checkpoint=checkpoints.resume_folder())

Saving overlaps training and needs no folders: ``save_strategy="no"`` leaves the Trainer's own out.
``resume_folder`` lays the newest whole checkpoint out as the folder that the Trainer resumes from,
which puts back model, optimizer, scheduler, random generators, and the place in the data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import tempfile
from typing import Any

import numpy as np
import torch

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "pccheck.huggingface needs the package transformers: pip install 'pccheck[huggingface]'"
    ) from error

from . import torch as pcc
from ._loading import Loading
from .errors import InvalidArgument, NoCheckpoint

__all__ = ["CheckpointCallback"]

_RANK = "{rank}"


class CheckpointCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Saves a Trainer's run at the end of its steps.

    With several processes each has a file of its own: write ``{rank}`` into the path. FSDP,
    DeepSpeed and the loss scaling of fp16 are refused, because a callback is not given their state.
    What other callbacks count, such as the patience of early stopping, begins anew on resume.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """``options`` are those of ``pccheck.torch.Checkpointer``.

        ``policy`` says when to save: a number of steps, or one of ``pccheck.policies``; without,
        ``save_steps`` of the ``TrainingArguments`` does. After SIGTERM, with
        ``on_sigterm="save"``, one more checkpoint is made durable.
        """
        self._path = os.fspath(path)
        self._options = options
        self._checkpointer: pcc.Checkpointer | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def checkpointer(self) -> pcc.Checkpointer | None:
        """What writes the file, while a training runs: for ``stats()`` and metrics."""
        return self._checkpointer

    def resume_folder(self, directory: str | os.PathLike[str] | None = None) -> str | None:
        """The newest whole checkpoint as a folder for ``train(resume_from_checkpoint=…)``.

        None when nothing was saved yet, with which training starts from the beginning. The folder
        lies in ``directory``, by default where temporary files do, takes as much room as one
        checkpoint, and goes when the first step has been trained. Raises ``NoCheckpoint`` when
        everything in the file is damaged.
        """
        rank, count = _rank_and_count()
        checkpointer = self._opened(rank, count)
        if not checkpointer.is_open:
            return None
        found = checkpointer._resume_state(Loading(pcc.TorchMemory()))
        if found is None:
            return None
        state = found[1]
        if not isinstance(state, dict) or "trainer" not in state:
            raise NoCheckpoint(
                f"{checkpointer.path}: its checkpoints are not of a Trainer; load them with "
                "pccheck.torch"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="pccheck-resume-", dir=directory)
        folder = self._folder.name
        name = "rng_state.pth" if count == 1 else f"rng_state_{rank}.pth"
        for file, part in {
            "pytorch_model.bin": "model", "optimizer.pt": "optimizer", "scheduler.pt": "scheduler",
            name: "random",
        }.items():  # fmt: skip
            torch.save(state[part], os.path.join(folder, file))
        with open(os.path.join(folder, "trainer_state.json"), "w", encoding="utf-8") as text:
            json.dump(state["trainer"], text)
        return folder

    # -- what the Trainer calls

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Opens the file, if there is one."""
        _refuse_hidden_state(args)
        self._options.setdefault("policy", max(1, int(args.save_steps)))
        self._opened(args.process_index, args.world_size)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        *, model: Any = None, optimizer: Any = None, lr_scheduler: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        """Saves when the policy says so; returns before it is staged."""
        self._drop_folder()
        checkpointer = self._opened(args.process_index, args.world_size)
        checkpointer.maybe_save(
            state.global_step,
            rng=False,
            model=model,
            # What accelerate wraps them in adds nothing to their state.
            optimizer=getattr(optimizer, "optimizer", optimizer),
            scheduler=getattr(lr_scheduler, "scheduler", lr_scheduler),
            random=_random_state(),
            trainer=json.loads(json.dumps(dataclasses.asdict(state))),
        )
        if checkpointer.should_stop():
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Waits until the last checkpoint is durable, and closes the file."""
        self._drop_folder()
        self.close()

    def close(self) -> None:
        """Closes the file; a training that ended with an error has not."""
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is not None:
            checkpointer.close()

    def _opened(self, rank: int, count: int) -> pcc.Checkpointer:
        if self._checkpointer is None:
            if count > 1 and _RANK not in self._path:
                raise InvalidArgument(
                    f"{self._path} would be the file of {count} processes; write {_RANK} where "
                    "the rank belongs, so that each has one of its own"
                )
            path = self._path.replace(_RANK, str(rank))
            options = {"rank": rank, "world_size": count, **self._options}
            self._checkpointer = pcc.Checkpointer(path, **options)
        return self._checkpointer

    def _drop_folder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()


def _refuse_hidden_state(args: TrainingArguments) -> None:
    for name, is_on in {
        "FSDP": bool(args.fsdp), "DeepSpeed": bool(args.deepspeed), "fp16": bool(args.fp16),
    }.items():  # fmt: skip
        if is_on:
            raise InvalidArgument(
                f"the Trainer runs with {name}, whose state it does not give to callbacks; use "
                + ("bf16" if name == "fp16" else "pccheck.dcp or pccheck.torch in a loop of yours")
            )


def _random_state() -> dict[str, Any]:
    """As the Trainer keeps it beside its own checkpoints."""
    state = {
        "python": random.getstate(), "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }  # fmt: skip
    if torch.cuda.is_available():
        is_distributed = _rank_and_count()[1] > 1
        state["cuda"] = (
            torch.cuda.random.get_rng_state_all()
            if is_distributed
            else torch.cuda.random.get_rng_state()
        )
    return state


def _rank_and_count() -> tuple[int, int]:
    """As the launcher says, since no process group need exist before the Trainer does."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
