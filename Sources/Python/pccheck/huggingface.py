"""Checkpoints of a Hugging Face ``Trainer``.

    checkpoints = pccheck.huggingface.CheckpointCallback("run/", policy=100)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[checkpoints])
    trainer.train(resume_from_checkpoint=checkpoints.resume_folder())

In a folder every process has a file of its own, and a checkpoint counts once it is durable on all
of them: see ``pccheck.distributed``. A job of one process may name a file instead, ``"run.pcc"``.
Saving overlaps training; ``save_strategy="no"`` leaves the Trainer's own folders out.
``resume_folder`` writes the newest intact checkpoint as the folder that the Trainer resumes from,
which restores model, optimizer, scheduler, random generators, and the place in the data.

Where FSDP version 2 shards the model, the callback fills the shards itself:

    class ShardedTrainer(pccheck.huggingface.ResumesShards, Trainer):
        pass

    checkpoints.attach(trainer)
    trainer.train(resume_from_checkpoint=checkpoints.resume_folder())
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import random
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        "pccheck.huggingface needs the package transformers: pip install 'pccheck[huggingface]'"
    ) from error

from . import distributed as pcd
from . import torch as pcc
from ._core.engine import wait_staged_everywhere
from ._group.files import names_folder
from ._state.request import Loading
from ._torch.wrappers import Wrappers
from .errors import InvalidArgument, NoCheckpoint
from .policies import Every

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["CheckpointCallback", "ResumesShards"]

log = logging.getLogger("pccheck")

#: In a folder without weights: the callback fills them.
_SHARDS_FILE = "pccheck-shards"


class CheckpointCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Saves a Trainer's run at the end of its steps.

    The path is a folder, which exists or ends with a slash, or the file of a job of one process.
    FSDP version 2 is saved from a Trainer that ``ResumesShards``, into a folder. FSDP version 1,
    DeepSpeed and the loss scaling of fp16 are refused, because a callback is not given their state.
    What other callbacks count, such as the patience of early stopping, is saved after
    ``attach``.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """``options`` are those of ``pccheck.torch.Checkpointer``, or of
        ``pccheck.distributed.Checkpointer`` for a folder.

        ``policy`` is when to save: a number of steps, or one of ``pccheck.policies``; the default
        is ``save_steps`` of the ``TrainingArguments``. After SIGTERM, with
        ``on_sigterm="save"``, one more checkpoint is made durable.
        """
        self._path = os.fspath(path)
        self._options = options
        self._checkpointer: pcc.Checkpointer | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._trainer: Callable[[], Trainer | None] = _nobody
        # The step that is to be saved, and the generators as they were at its end.
        self._due: int | None = None
        self._random: dict[str, Any] = {}
        self._is_ending = False
        self._logged_step = 0
        # The step whose shards are filled when training begins.
        self._shards_step: int | None = None

    @property
    def checkpointer(self) -> pcc.Checkpointer | None:
        """What writes the file, while a training runs: for ``stats()`` and metrics."""
        return self._checkpointer

    def resume_folder(self, directory: str | os.PathLike[str] | None = None) -> str | None:
        """Writes the newest intact checkpoint as a folder for ``resume_from_checkpoint``.

        Returns None when nothing was saved yet; training then starts from the beginning. In a job
        of several processes every process calls it, once the Trainer exists. The written folder is
        in ``directory``, by default that of temporary files. It takes as much room as
        one checkpoint, and is removed when the first step has been trained. Raises
        ``NoCheckpoint`` when everything in the file is damaged.
        """
        rank, count = _rank_and_count()
        checkpointer = self._opened(count)
        if not (checkpointer.is_open or isinstance(checkpointer, pcd.Checkpointer)):
            return None
        is_sharded = isinstance(checkpointer, _GroupCheckpointer) and isinstance(
            self._trainer(), ResumesShards
        )
        self._shards_step = None
        memory = checkpointer._memory_on(None)
        # The shards are filled when training begins, too late for an older checkpoint.
        found = checkpointer._resume_state(
            Loading(memory, parts=["trainer", "random"], proves_rest=True)
            if is_sharded else Loading(memory)
        )  # fmt: skip
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
        files = {name: "random"}
        if is_sharded:
            self._shards_step = found[0] - 1
            with open(os.path.join(folder, _SHARDS_FILE), "w"):
                pass
        else:
            files |= {
                "pytorch_model.bin": "model", "optimizer.pt": "optimizer",
                "scheduler.pt": "scheduler",
            }  # fmt: skip
        if isinstance(checkpointer, _GroupCheckpointer) and not checkpointer.is_own_world:
            log.warning(
                "%s: another number of processes saved this checkpoint: the random generators "
                "start again, and the Trainer's state is that of process 0", checkpointer.folder,
            )  # fmt: skip
            del files[name]
        for file, part in files.items():
            torch.save(state[part], os.path.join(folder, file))
        with open(os.path.join(folder, "trainer_state.json"), "w", encoding="utf-8") as text:
            json.dump(state["trainer"], text)
        return folder

    def will_fill(self, folder: str) -> bool:
        """Whether the shards of a folder without weights are filled when training begins."""
        is_own = self._folder is not None and self._folder.name == folder
        return is_own and self._shards_step is not None

    def attach(self, trainer: Trainer) -> None:
        """Has the states of the Trainer's other callbacks saved, such as what early stopping has
        counted. ``restore_callback_states_from_checkpoint=True`` of its ``TrainingArguments``
        restores them. Call it before ``train``."""
        self._trainer = weakref.ref(trainer)

    # -- what the Trainer calls. A step that is due is saved once the Trainer has logged and
    # evaluated it, as that is in its state, too: when the next step begins, or when training ends.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Opens the file, if there is one. Fills what FSDP has sharded."""
        _refuse_hidden_state(args, given.get("model"))
        _refuse_lost_best(args, state)
        self._tell_of_other_state(args, state)
        checkpointer = self._opened(args.world_size)
        if _is_sharded(given.get("model")):
            self._expect_to_resume_shards(checkpointer)
        self._fill_shards(checkpointer, state, **given)
        if checkpointer._policy is None:
            checkpointer._follow(Every(_steps_between_saves(args, state)))
        self._due = None
        self._is_ending = False
        self._logged_step = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Saves the step before, when that was due; returns before it is staged."""
        self._save_due(state, **given)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Asks the policy. After SIGTERM it saves at once."""
        self._drop_folder()
        checkpointer = self._opened(args.world_size)
        if checkpointer.is_due(state.global_step):
            self._due = state.global_step
            self._note_random()
            if checkpointer.should_stop():
                self._is_ending = True
                self._save_due(state, **given)
        if checkpointer.should_stop():
            control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """The last step may wait for this."""
        self._logged_step = state.global_step
        self._note_random()
        if self._is_ending and not control.should_evaluate:
            self._save_due(state, **given)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """The last step may wait for this."""
        self._note_random()
        if self._is_ending:
            self._save_due(state, **given)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Saves the last step of training: what comes after may load the best model."""
        self._note_random()
        self._is_ending = control.should_training_stop or state.global_step >= state.max_steps
        will_log = control.should_log and state.global_step > self._logged_step
        if self._is_ending and not (control.should_evaluate or will_log):
            self._save_due(state, **given)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Waits until the last checkpoint is durable, and closes the file."""
        self._due = None
        self._drop_folder()
        self.close()

    def _expect_to_resume_shards(self, checkpointer: pcc.Checkpointer) -> None:
        """Before there is a checkpoint that cannot be resumed from."""
        if not isinstance(checkpointer, _GroupCheckpointer):
            raise InvalidArgument(
                f"{self._path} would be one file of all processes, each of which has its own "
                "shards; give a folder, such as 'run/'"
            )
        if not isinstance(self._trainer(), ResumesShards):
            raise InvalidArgument(
                "the Trainer runs with FSDP version 2, and would load no checkpoint of this "
                "callback; make it of a class ShardedTrainer(pccheck.huggingface.ResumesShards, "
                "Trainer), and call attach(trainer) of the callback before train"
            )

    def _fill_shards(
        self, checkpointer: pcc.Checkpointer, state: TrainerState,
        *, model: Any = None, optimizer: Any = None, lr_scheduler: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        step, self._shards_step = self._shards_step, None
        if step is None:
            return
        if state.global_step != step:
            raise InvalidArgument(
                f"{self._path}: resume_folder() is at step {step}, and training begins at step "
                f"{state.global_step}; give train(resume_from_checkpoint=…) what it returned"
            )
        assert isinstance(checkpointer, _GroupCheckpointer)
        checkpointer.fill(step, **_bare(model, optimizer, lr_scheduler))

    def _note_random(self) -> None:
        """The generators as the Trainer left the step that is due."""
        if self._due is not None:
            self._random = _random_state()

    def _save_due(
        self, state: TrainerState,
        *, model: Any = None, optimizer: Any = None, lr_scheduler: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        step, self._due = self._due, None
        if step is None or self._checkpointer is None:
            return
        checkpointer = self._checkpointer
        save = (
            checkpointer.save_step if isinstance(checkpointer, _GroupCheckpointer)
            else partial(checkpointer.save, rng=False)
        )  # fmt: skip
        save(
            step,
            **_bare(model, optimizer, lr_scheduler),
            random=self._random,
            trainer=_plain({**dataclasses.asdict(state), **self._callback_states()}),
        )
        if self._is_ending:
            # The Trainer may load the best model next, into the memory that is being copied.
            wait_staged_everywhere()

    def _callback_states(self) -> dict[str, Any]:
        """Of all callbacks as they are now, in the form of the Trainer's own checkpoints."""
        trainer = self._trainer()
        if trainer is None:
            return {}
        callbacks = [*trainer.callback_handler.callbacks, trainer.control]
        states: dict[str, Any] = {}
        for callback in callbacks:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        alone = {name: held[0] if len(held) == 1 else held for name, held in states.items()}
        return {"stateful_callbacks": alone}

    def _tell_of_other_state(self, args: TrainingArguments, state: TrainerState) -> None:
        # By the names of their classes: the Trainer's state does not report it in its type.
        held: Any = state.stateful_callbacks
        names = sorted(set(held or {}) - {"TrainerControl"})
        trainer, is_restored = self._trainer(), args.restore_callback_states_from_checkpoint
        if not names or (trainer is not None and is_restored):
            return
        log.warning(
            "what %s counts begins again when training resumes: %s",
            ", ".join(names),
            "give TrainingArguments(restore_callback_states_from_checkpoint=True)"
            if trainer is not None
            else "call attach(trainer) of the CheckpointCallback, and give "
            "TrainingArguments(restore_callback_states_from_checkpoint=True)",
        )

    def close(self) -> None:
        """Closes the file; a training that ended with an error has not."""
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is not None:
            checkpointer.close()

    def _opened(self, count: int) -> pcc.Checkpointer:
        if self._checkpointer is None:
            if names_folder(self._path):
                if count > 1 and not torch.distributed.is_initialized():
                    raise InvalidArgument(
                        f"a launcher started {count} processes, which have not met yet; make the "
                        "Trainer, or its TrainingArguments, first"
                    )
                self._checkpointer = _GroupCheckpointer(self._path, **self._options)
            elif count > 1:
                raise InvalidArgument(
                    f"{self._path} would be one file of {count} processes; give a folder, such as "
                    "'run/', in which each has a file of its own"
                )
            else:
                self._checkpointer = pcc.Checkpointer(self._path, **self._options)
        return self._checkpointer

    def _drop_folder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()


class _GroupCheckpointer(pcd.Checkpointer):
    """Saves what all processes of a Trainer have."""

    # As where process 0 saves for all.
    _first_rank_parts = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._wrappers = Wrappers()
        super().__init__(*arguments, **options)

    @property
    def is_own_world(self) -> bool:
        """Whether as many processes saved what was loaded."""
        return self._base is None or self._base.world_size == self.world_size

    def fill(self, step: int, **parts: Any) -> None:
        """Fills sharded parts; no process has the values of all, so nothing is that of the first
        one."""
        self._first_rank_parts = frozenset()
        self.resume(step=step, rng=False, **parts)

    def save_step(self, step: int, model: torch.nn.Module, **state: Any) -> None:
        """Saves a step for which ``is_due`` was true. The Trainer trains the model inside of
        DistributedDataParallel, and does not give that to callbacks."""
        self._layout.replicated = self._wrappers.around([model])
        self._save_due(step, rng=False, model=model, **state)


class ResumesShards:
    """Put before ``Trainer`` as a base of a class: it leaves the shards of FSDP version 2 to the
    ``CheckpointCallback`` that it is attached to. It resumes from all other folders as before."""

    callback_handler: Any

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Without this the Trainer refuses a folder that has no weights.
        if not os.path.exists(os.path.join(resume_from_checkpoint, _SHARDS_FILE)):
            parent: Any = super()
            parent._load_from_checkpoint(resume_from_checkpoint, model)
            return
        callbacks = [
            item for item in self.callback_handler.callbacks if isinstance(item, CheckpointCallback)
        ]
        # A Trainer that begins again, for example with a smaller batch, asks once more.
        if not any(item.will_fill(resume_from_checkpoint) for item in callbacks):
            raise InvalidArgument(
                f"{resume_from_checkpoint} has no weights, and no CheckpointCallback of the "
                "Trainer fills them: give the Trainer the callback in callbacks, and train() what "
                "resume_folder() returned, once"
            )


def _nobody() -> None:
    return None


def _plain(value: dict[str, Any]) -> Any:
    """As the Trainer's JSON has it; metrics may be numbers of NumPy or torch."""

    def number(item: Any) -> Any:
        if isinstance(item, (np.generic, np.ndarray, torch.Tensor)):
            return item.tolist()
        raise TypeError(
            f"the Trainer's state or log holds {item!r}, a {type(item).__qualname__}, which is "
            "nothing that JSON has; log numbers and texts"
        )

    return json.loads(json.dumps(value, default=number))


def _steps_between_saves(args: TrainingArguments, state: TrainerState) -> int:
    """Those of the arguments, which may be a part of all steps."""
    steps = args.save_steps
    return int(steps) if steps >= 1 else max(1, math.ceil(state.max_steps * steps))


def _refuse_lost_best(args: TrainingArguments, state: TrainerState) -> None:
    if not args.load_best_model_at_end:
        return
    # The Trainer forgets the path of a folder that is gone, with no more than a warning.
    best, step = state.best_model_checkpoint, getattr(state, "best_global_step", None)
    if (best is None and step is not None) or (best is not None and not os.path.exists(best)):
        raise InvalidArgument(
            f"load_best_model_at_end: the best model so far, that of step {step}, is in no folder "
            f"of {args.output_dir} any more; bring its folder back, or resume without "
            "load_best_model_at_end. The checkpoint file holds the newest steps, not the best one"
        )


def _bare(model: Any, optimizer: Any, lr_scheduler: Any) -> dict[str, Any]:
    """The parts of a step; what accelerate wraps them in adds nothing to their state."""
    return {
        "model": model,
        "optimizer": getattr(optimizer, "optimizer", optimizer),
        "scheduler": getattr(lr_scheduler, "scheduler", lr_scheduler),
    }


def _is_sharded(model: Any) -> bool:
    return model is not None and any(isinstance(item, FSDPModule) for item in model.modules())


def _refuse_hidden_state(args: TrainingArguments, model: Any) -> None:
    # A launcher configures FSDP without the arguments, too.
    modules = [] if model is None else model.modules()
    if any(isinstance(item, FullyShardedDataParallel) for item in modules):
        raise InvalidArgument(
            "the Trainer runs with FSDP version 1, whose state it does not give to callbacks; give "
            "TrainingArguments(fsdp_config={'version': 2}), or convert the configuration with "
            "'accelerate to-fsdp2'"
        )
    for name, is_on in {
        "FSDP": bool(args.fsdp) and not _is_sharded(model), "DeepSpeed": bool(args.deepspeed),
        "fp16": bool(args.fp16),
    }.items():  # fmt: skip
        if is_on:
            raise InvalidArgument(
                f"the Trainer runs with {name}, whose state it does not give to callbacks; use "
                + ("bf16" if name == "fp16" else "pccheck.accelerate or pccheck.distributed in a "
                   "loop of yours")
            )


def _random_state() -> dict[str, Any]:
    """As the Trainer keeps it with its own checkpoints."""
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
