"""Checkpoints of a Lightning ``Trainer`` in one file, or in a folder with a file for each process.

    storage = pccheck.lightning.CheckpointIO("run/")
    trainer = Trainer(
        plugins=[storage],
        callbacks=[pccheck.lightning.CheckpointCallback(storage, policy=100)],
    )
    trainer.fit(module, loader, ckpt_path=storage.resume_path())

The callback saves in the middle of training and without stopping it. In a folder every process has
a file of its own, the processes divide what they hold alike, and a checkpoint counts once it is
durable on all of them: see ``pccheck.distributed``. With a file, such as ``"run.pcc"``, process 0
writes everything. A module that ``configure_model`` shards with ``fully_shard`` is saved into a
folder under ``strategy=pccheck.lightning.ModelParallelStrategy()``. Whatever else saves under a
path (``ModelCheckpoint``, ``trainer.save_checkpoint``, the learning-rate finder) leaves a file of
Lightning's own at that path, as it does without this plugin.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

try:
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.__version__ import version as lightning_version
    from lightning.pytorch.strategies import FSDPStrategy, Strategy
    from lightning.pytorch.strategies import ModelParallelStrategy as LightningModelParallelStrategy
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from lightning.pytorch.utilities.model_helpers import is_overridden
except ImportError as error:
    raise ImportError(
        "pccheck.lightning needs the package lightning: pip install 'pccheck[lightning]'"
    ) from error

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from . import distributed as pcd
from . import torch as pcc
from ._core.damage import damaged_slots
from ._core.engine import wait_staged_everywhere
from ._core.saver import changes_nothing
from ._group.files import names_folder
from ._lightning.checkpointers import (
    CHECKPOINT,
    OBJECTS,
    FileCheckpointer,
    GroupCheckpointer,
    LiveParts,
)
from ._lightning.strategy import ModelParallelStrategy, Storage
from ._torch.parts import in_place_storages, random_state, set_random_state
from ._torch.saving.waiting import wait_before_swaps
from .checkpointer import checkpoints
from .errors import Busy, FileMissing, InvalidArgument, NoCheckpoint
from .policies import Every, Policy

__all__ = ["CheckpointCallback", "CheckpointIO", "ModelParallelStrategy"]

log = logging.getLogger("pccheck")
changes_nothing(__file__)

_RANDOM_STATE = "pccheck_random_state"
# Between the file and a step in it: "run.pcc#step=30".
_STEP = re.compile(r"(?P<file>.*)#step=(?P<step>\d+)")


class CheckpointIO(Storage):
    """Keeps the checkpoints of a run in one file or folder, under their steps.

    A path is that of a folder when it ends with a slash, or when the folder is there. In a folder
    only a ``CheckpointCallback`` saves, on every process. Into a file goes what it saves, and what
    is saved under the file's own path. A save returns when the state is copied; the checkpoint is
    durable when the next one begins to need its slot, and at the latest when ``fit`` ends. A
    checkpoint stays until ``retain`` newer ones are durable.

    What is saved under another path is a file of its own, which stays until it is removed.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """``options`` are those of ``pccheck.torch.Checkpointer``, or of
        ``pccheck.distributed.Checkpointer`` for a folder."""
        self._path = os.path.abspath(os.fspath(path))
        self._is_folder = names_folder(path)
        self._options = options
        self._checkpointer: FileCheckpointer | GroupCheckpointer | None = None
        # True while a Trainer trains with the callback: what it loads, it continues from.
        self._is_training = False
        # What is saved under other paths, as Lightning does it.
        self._files = TorchCheckpointIO()
        self._has_callback = False
        # The step that was loaded last: training continues from there, whatever the file holds.
        self._loaded_step: int | None = None
        # Modules and optimizers whose tensors are read where they are, while one is saved.
        self._live: list[object] = []

    @property
    def checkpointer(self) -> pcc.Checkpointer:
        """What writes the file: for ``stats()`` and metrics."""
        return self._opened()

    def resume_path(self) -> str | None:
        """For ``fit(ckpt_path=…)``: the file, or None when nothing was saved into it yet.

        A folder is returned in any case: the processes decide together what is in it, and ``fit``
        starts at the beginning when nothing is durable on all of them. Raises ``NoCheckpoint``
        when everything in the file is damaged: such a run does not start over unasked.
        """
        if self._is_folder:
            return self._path
        if not os.path.exists(self._path):
            return None
        if checkpoints(self._path):
            return self._path
        damaged = damaged_slots(self._path, None)
        if damaged:
            raise NoCheckpoint(
                f"{self._path}: no checkpoint can be loaded, but the file is not empty: "
                f"{'; '.join(damaged)}. Run pcfsck, or start over with another file"
            )
        return None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Begins a checkpoint in the file, and returns once its state is copied; or writes a file
        of its own at another path."""
        if storage_options is not None:
            raise InvalidArgument("storage_options mean nothing to a checkpoint file; leave them")
        if not self.is_in_file(path):
            self._tell_of_files(path)
            self._files.save_checkpoint(checkpoint, os.fspath(path))
        elif self._is_folder:
            raise InvalidArgument(
                f"{self._path} is the folder of all processes, and one of them saves into it: only "
                "pccheck.lightning.CheckpointCallback does that on all; save it under another path"
            )
        elif "optimizer_states" not in checkpoint:
            raise InvalidArgument(
                f"{self._path}: a checkpoint of weights alone cannot be resumed from, and would be "
                "the newest in the file; save it under a path of its own"
            )
        else:
            in_place = in_place_storages(self._live)
            wait_before_swaps(self._live)
            parts = {"checkpoint": checkpoint}
            checkpointer = self._opened()
            assert isinstance(checkpointer, FileCheckpointer)
            checkpointer.save_parts(checkpoint["global_step"], parts, in_place)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The newest intact checkpoint of the file, that of a step (``"run.pcc#step=30"``), or what
        was saved under another path.

        Of a folder it is the newest that is durable on all processes; to train, all of them load
        it together. For file and folder, ``map_location`` is a device, and ``weights_only`` makes
        no difference, as nothing is pickled. Raises ``NoCheckpoint`` when the step is not there,
        and ``FileMissing`` when there is nothing at another path.
        """
        if not self.is_in_file(path):
            if not os.path.exists(path) and "://" not in os.fspath(path):
                raise FileMissing(
                    f"{os.fspath(path)}: no such file, and it is no name in {self._path}; give "
                    f"ckpt_path={self._path!r}, or {self._path + '#step=…'!r} for one of its steps "
                    f"({', '.join(map(str, self._steps())) or 'it holds none'})"
                )
            found: dict[str, Any] = self._files.load_checkpoint(
                os.fspath(path), map_location, weights_only
            )
            return found
        state = self._load(_step_of(path), None if callable(map_location) else map_location)
        if state is None or not isinstance(state, dict):
            return self._continued(state)
        # The objects of a ModelParallelStrategy are parts of their own.
        objects = {name: state[name] for name in OBJECTS if name in state}
        return self._continued(state.get(CHECKPOINT) or {}, **objects)

    def _load(self, step: int | None, device: Any) -> Any:
        if self._is_folder and self._is_training:
            checkpointer = self._opened()
            assert isinstance(checkpointer, GroupCheckpointer)
            return checkpointer.load_part(step, device)
        if self._is_folder:
            return pcd.load(self._path, step, map_location=device)
        if self._checkpointer is None:
            # Probably not the process that writes, so this takes no lock.
            return pcc.load(self._path, step, map_location=device)
        return self._checkpointer.load(step, map_location=device)

    def expect_folder(self) -> None:
        """Raises ``InvalidArgument`` for one file: every process has its own shards."""
        if not self._is_folder:
            raise InvalidArgument(
                f"{self._path} would be one file of all processes, each of which has its own "
                "shards; give CheckpointIO a folder, such as 'run/'"
            )

    def load_live(self, path: str | os.PathLike[str], live: LiveParts) -> dict[str, Any]:
        """As ``load_checkpoint``, on all processes of a job, whose objects it fills."""
        if self._is_training:
            checkpointer = self._opened()
            assert isinstance(checkpointer, GroupCheckpointer)
            return self._continued(checkpointer.load_live(_step_of(path), live))
        found, checkpoint = live.load(self._path, _step_of(path))
        # A job that is running may have saved the next one meanwhile.
        others: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(others, str(found))
        if len(set(others)) > 1:
            raise Busy(
                f"{self._path}: the processes loaded different checkpoints, because a job saves "
                f"into the folder: {', '.join(sorted(set(others)))}; name one, such as "
                f"{self._path + f'#step={found.step}'!r}"
            )
        return self._continued(checkpoint)

    def _continued(self, checkpoint: Any, **objects: Any) -> dict[str, Any]:
        """What a Trainer continues from, as Lightning has it; nothing for None."""
        if checkpoint is None:
            return _Nothing({"pytorch-lightning_version": lightning_version})
        if not isinstance(checkpoint, dict) or "global_step" not in checkpoint:
            raise NoCheckpoint(
                f"{self._path}: its checkpoints are not of a Lightning Trainer; load them with "
                "pccheck.torch"
            )
        self._loaded_step = checkpoint["global_step"]
        return {**checkpoint, **objects}

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a file at another path. In the file nothing is removed: a slot is used again
        when newer checkpoints have taken its place."""
        if not self.is_in_file(path):
            self._files.remove_checkpoint(os.fspath(path))

    def teardown(self) -> None:
        """Waits until the last checkpoint is durable, and closes the file."""
        self._is_training = False
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is not None:
            checkpointer.close()

    def _leave_early(self) -> None:
        """After an error other processes may not come, so that closing waits for them briefly."""
        if isinstance(self._checkpointer, GroupCheckpointer):
            self._checkpointer.leave_early()

    def is_in_file(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path is that of the file or folder, or of a step in it."""
        named = _STEP.fullmatch(os.fspath(path))
        return os.path.abspath(named["file"] if named else os.fspath(path)) == self._path

    def _steps(self) -> list[int]:
        is_there = os.path.exists(self._path)
        return [info.step for info in checkpoints(self._path)] if is_there else []

    def _opened(self) -> FileCheckpointer | GroupCheckpointer:
        if self._checkpointer is None and self._is_folder:
            self._checkpointer = GroupCheckpointer(self._path, **self._options)
        elif self._checkpointer is None:
            self._checkpointer = FileCheckpointer(self._path, **self._options)
            if self._loaded_step is not None:
                self._checkpointer.rewind(self._loaded_step)
        return self._checkpointer

    def _tell_of_files(self, path: str | os.PathLike[str]) -> None:
        """Once, to whom expects all of it in the file."""
        if not self._has_callback:
            self._has_callback = True
            log.warning(
                "%s is a file of its own; %s gets only what pccheck.lightning.CheckpointCallback "
                "saves: give Trainer(callbacks=[CheckpointCallback(storage)])",
                os.fspath(path), self._path,
            )  # fmt: skip


class CheckpointCallback(Callback):  # type: ignore[misc,unused-ignore]
    """Saves through a ``CheckpointIO`` at the end of training steps.

    Parameters and optimizer state are read in place while training continues; before their next
    step optimizers wait until they are staged. So do validation, the end of an epoch and the end
    of training, which may swap weights. This callback runs last, so that it saves what the others
    made of the step. It saves the states of the random generators too, and restores them when
    training resumes.
    """

    def __init__(
        self, storage: CheckpointIO | None = None, policy: int | Policy | None = None
    ) -> None:
        """``storage`` is by default the Trainer's ``CheckpointIO``.

        ``policy`` is a number of optimizer steps, or one of ``pccheck.policies``; by default that
        of the storage, or 100.
        """
        self._storage = storage
        self._policy = Every(policy) if isinstance(policy, int) else policy
        self._random_states: Any = None
        # While every process saves a part of its own.
        self._saves_alone = False
        self._last_step = -1
        self._has_gradients = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a Trainer that saves elsewhere, and takes its place behind other callbacks."""
        if stage != "fit":
            return
        storage = trainer.strategy.checkpoint_io
        if not isinstance(storage, CheckpointIO) or self._storage not in (None, storage):
            raise InvalidArgument(
                "the Trainer does not save through this callback's CheckpointIO; give "
                "Trainer(plugins=[storage])"
            )
        self._storage = storage
        storage._has_callback = storage._is_training = True
        _refuse_split_state(trainer, storage)
        if storage._is_folder:
            # All processes have met, and what they load next is where training continues.
            storage._opened().follow(self._policy)
        # What is loaded from here on is where training continues.
        storage._loaded_step = None
        # The Trainer sets it, and does not declare it.
        held: Any = trainer
        others = [item for item in held.callbacks if item is not self]
        others = [item for item in others if type(item) is not _Waiting]
        held.callbacks = [_Waiting(), *others, self]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the file."""
        storage = self._of_trainer(trainer)
        if storage._is_folder:
            _refuse_split_optimizers(trainer)
        elif trainer.is_global_zero:
            storage._opened().follow(self._policy)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the random generators, of every process."""
        own = _portable(random_state())
        if self._saves_alone:
            # Each process stores its own.
            rank, count = trainer.global_rank, trainer.world_size
            checkpoint[_RANDOM_STATE] = {"rank": rank, "world": count, "state": own}
            return
        states: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, own)
        else:
            states = [own]
        checkpoint[_RANDOM_STATE] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the random generators' states until training begins."""
        self._random_states = checkpoint.get(_RANDOM_STATE)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the random generators back. Refuses a run that lost its place."""
        storage = self._of_trainer(trainer)
        loaded = storage._loaded_step
        if loaded is not None and trainer.global_step < loaded:
            raise InvalidArgument(
                f"{storage._path}: step {loaded} was loaded, but training begins at step "
                f"{trainer.global_step}: a callback that saves and restores before training, such "
                "as LearningRateFinder or BatchSizeFinder, made the Trainer forget what it loaded; "
                "give such a callback to a new run only"
            )
        # Until the first step of the optimizer there is nothing new, and gradients are not saved.
        self._last_step, self._has_gradients = trainer.global_step, False
        states, self._random_states = self._random_states, None
        if isinstance(states, dict):
            own = {"rank": trainer.global_rank, "world": trainer.world_size}
            is_own = {key: states[key] for key in own} == own
            states = [states["state"]] * trainer.world_size if is_own else []
        if states is not None and len(states) == trainer.world_size:
            set_random_state(_generators(states[trainer.global_rank]))
        elif states is not None:
            log.warning(
                "%s: another number of processes saved this checkpoint: the random generators "
                "start again", storage._path,
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Saves when the policy asks for it; returns before it is staged."""
        step = trainer.global_step
        self._has_gradients = step == self._last_step
        if self._has_gradients:
            return  # they are still being accumulated
        self._last_step = step
        storage = self._of_trainer(trainer)
        if not self._is_due(trainer, storage, step):
            return
        live = [pl_module, *trainer.optimizers, *_averages(trainer)]
        if storage._is_folder:
            self._save_own_part(trainer, storage, step, live)
        else:
            storage._live = live
            try:
                trainer.save_checkpoint(f"{storage._path}#step={step}")
            finally:
                storage._live = []
        if is_overridden("on_train_batch_end", pl_module):
            # It comes now, and may change the weights.
            wait_staged_everywhere()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves once more where Lightning ends training for SIGTERM: processes that share a folder
        agree on that one step after the signal, and Lightning trains no such step."""
        if not isinstance(exception, SIGTERMException) or self._has_gradients:
            return
        if not trainer.training:
            return  # validation may have swapped the weights
        storage, step = self._of_trainer(trainer), trainer.global_step
        checkpointer = storage._checkpointer
        if isinstance(checkpointer, GroupCheckpointer) and checkpointer.ends_for_signal(step):
            live = [pl_module, *trainer.optimizers, *_averages(trainer)]
            self._save_own_part(trainer, storage, step, live)

    def _is_due(self, trainer: Trainer, storage: CheckpointIO, step: int) -> bool:
        if storage._is_folder:
            return storage._opened().is_due(step)
        is_due = storage._opened().is_due(step) if trainer.is_global_zero else False
        if trainer.world_size > 1:
            # Time, which policies may go by, is not the same everywhere.
            is_due = trainer.strategy.broadcast(is_due)
        return is_due

    def _save_own_part(
        self, trainer: Trainer, storage: CheckpointIO, step: int, live: list[object]
    ) -> None:
        """Every process saves what it has; the Trainer would let process 0 save, and wait."""
        checkpointer = storage._opened()
        assert isinstance(checkpointer, GroupCheckpointer)
        strategy, objects = trainer.strategy, dict[str, Any]()
        self._saves_alone = True
        try:
            if isinstance(strategy, ModelParallelStrategy):
                checkpoint, objects = strategy.dump_live(trainer)
            else:
                checkpoint = trainer._checkpoint_connector.dump_checkpoint(False)
        finally:
            self._saves_alone = False
        checkpointer.save_part(step, checkpoint, live, strategy.model, objects)

    def _of_trainer(self, trainer: Trainer) -> CheckpointIO:
        storage: Any = trainer.strategy.checkpoint_io
        assert isinstance(storage, CheckpointIO)
        return storage


class _Waiting(Callback):  # type: ignore[misc,unused-ignore]
    """Comes before all other callbacks, and waits where one of them may swap weights."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait_staged_everywhere()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait_staged_everywhere()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait_staged_everywhere()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait_staged_everywhere()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        wait_staged_everywhere()
        storage: Any = trainer.strategy.checkpoint_io
        if isinstance(storage, CheckpointIO):
            storage._leave_early()


def _averages(trainer: Trainer) -> list[object]:
    """Those of the callbacks, which wait before they are updated."""
    held: Any = trainer
    return [
        value
        for callback in held.callbacks
        for value in vars(callback).values()
        if isinstance(value, AveragedModel)
    ]


def _portable(state: Any) -> Any:
    """With tensors in the place of arrays: torch reads those as weights alone."""
    if isinstance(state, dict):
        return {key: _portable(value) for key, value in state.items()}
    return torch.from_numpy(state.astype(np.int64)) if isinstance(state, np.ndarray) else state


def _generators(state: dict[str, Any]) -> dict[str, Any]:
    """The other way."""
    numpy = dict(state["numpy"])
    inner = dict(numpy["state"])
    inner["key"] = inner["key"].numpy().astype(np.uint32)
    return {**state, "numpy": {**numpy, "state": inner}}


def _step_of(path: str | os.PathLike[str]) -> int | None:
    named = _STEP.fullmatch(os.fspath(path))
    return None if named is None else int(named["step"])


def _refuse_split_state(trainer: Trainer, storage: CheckpointIO) -> None:
    """What the callback saves has to go through the storage; in a folder each process saves what
    Lightning gives it as the state."""
    strategy = trainer.strategy
    kind, sharding = type(strategy), f"strategy={__name__}.ModelParallelStrategy(…)"
    if isinstance(strategy, ModelParallelStrategy):
        storage.expect_folder()
    elif isinstance(strategy, LightningModelParallelStrategy):
        raise InvalidArgument(
            f"the Trainer runs with {kind.__name__} of Lightning, which does not save through a "
            f"CheckpointIO; give {sharding} in its place, with the same arguments"
        )
    elif isinstance(strategy, FSDPStrategy):
        raise InvalidArgument(
            f"the Trainer runs with {kind.__name__}, which is FSDP version 1; shard the module "
            f"with fully_shard in configure_model, and give {sharding}"
        )
    elif kind.save_checkpoint is not Strategy.save_checkpoint:
        raise InvalidArgument(
            f"the Trainer runs with {kind.__name__}, which does not save through a CheckpointIO; "
            f"use DDP, {sharding}, or pccheck.distributed in a loop of yours"
        )


def _refuse_split_optimizers(trainer: Trainer) -> None:
    for optimizer in trainer.optimizers:
        if hasattr(optimizer, "consolidate_state_dict"):
            raise InvalidArgument(
                f"{type(optimizer).__name__} has its state on process 0 only when it is saved; use "
                "another optimizer, or pccheck.distributed in a loop of yours"
            )


class _Nothing(dict[str, Any]):
    """A checkpoint with which the Trainer starts at the beginning: it looks only whether it is
    true, once it has seen the version."""

    def __bool__(self) -> bool:
        return False
