"""Checkpoints of a Lightning ``Trainer`` in one file.

    storage = pccheck.lightning.CheckpointIO("run.pcc")
    trainer = Trainer(
        plugins=[storage],
        callbacks=[pccheck.lightning.CheckpointCallback(storage, policy=100)],
    )
    trainer.fit(module, loader, ckpt_path=storage.resume_path())

Whatever saves through the Trainer (``ModelCheckpoint``, ``trainer.save_checkpoint``) then saves
into the file; the callback does so in the middle of training without stopping it.
"""

from __future__ import annotations

import os
from typing import Any

try:
    from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO as _CheckpointIO
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "pccheck.lightning needs the package lightning: pip install 'pccheck[lightning]'"
    ) from error

from . import torch as pcc
from ._engine import refuse_reentry
from ._load import load_from
from ._loading import Loading
from ._reader import Reader
from ._torch_parts import in_place_storages, random_state, set_random_state
from .errors import InvalidArgument, NoCheckpoint
from .policies import Every, Policy

__all__ = ["CheckpointCallback", "CheckpointIO"]

_RANDOM_STATE = "pccheck_random_state"


class CheckpointIO(_CheckpointIO):  # type: ignore[misc,unused-ignore]
    """Keeps what the Trainer saves in one file, under the step that it was saved at.

    A save returns when the state is copied; the checkpoint is durable when the next one begins to
    need its slot, and at the latest when ``fit`` ends. Nothing is ever removed: a checkpoint stays
    until ``retain`` newer ones are durable.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """``options`` are those of ``pccheck.torch.Checkpointer``."""
        self._path = os.fspath(path)
        self._options = options
        self._checkpointer: _Checkpointer | None = None
        # Modules and optimizers whose tensors are read where they are, while one is saved.
        self._live: list[object] = []

    @property
    def checkpointer(self) -> pcc.Checkpointer:
        """What writes the file: for ``stats()`` and metrics."""
        return self._opened()

    def resume_path(self) -> str | None:
        """For ``fit(ckpt_path=…)``: the file, or None when nothing was saved into it yet."""
        return self._path if self._opened().steps() else None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Begins a checkpoint and returns once its state is copied."""
        if storage_options is not None:
            raise InvalidArgument("storage_options mean nothing to a checkpoint file; leave them")
        parts = {"name": os.fspath(path), "checkpoint": checkpoint}
        in_place = in_place_storages(self._live)
        self._opened().save_parts(checkpoint["global_step"], parts, in_place)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The newest whole checkpoint of the file, or the one that was saved under a name.

        ``map_location`` is a device; ``weights_only`` makes no difference, as nothing is pickled.
        Raises ``NoCheckpoint`` when there is none of that name any more.
        """
        checkpointer = self._opened()
        is_newest = os.path.abspath(os.fspath(path)) == os.path.abspath(self._path)
        step = None if is_newest else self._step_of(os.fspath(path))
        device = None if callable(map_location) else map_location
        checkpoint: dict[str, Any] = checkpointer.load(step, map_location=device)["checkpoint"]
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Nothing: the slot is used again when newer checkpoints have taken its place."""

    def teardown(self) -> None:
        """Waits until the last checkpoint is durable, and closes the file."""
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is not None:
            checkpointer.close()

    def _opened(self) -> _Checkpointer:
        if self._checkpointer is None:
            self._checkpointer = _Checkpointer(self._path, **self._options)
        return self._checkpointer

    def _step_of(self, path: str) -> int:
        names = {}
        for step in self._opened().steps():
            with Reader(self._path) as reader:
                memory = pcc.TorchMemory()
                _, state = load_from(self._path, reader, step, Loading(memory, parts=["name"]))
            names[step] = state["name"]
            if os.path.abspath(state["name"]) == os.path.abspath(path):
                return step
        held = ", ".join(f"{name} (step {step})" for step, name in names.items()) or "none"
        raise NoCheckpoint(
            f"{self._path} holds no checkpoint that was saved as {path}; it holds: {held}. Give a "
            "larger retain to keep more"
        )


class CheckpointCallback(Callback):  # type: ignore[misc,unused-ignore]
    """Saves through a ``CheckpointIO`` at the end of training steps.

    Parameters and optimizer state are read in place while training goes on; optimizers wait, before
    their next step, until they are staged. The states of the random generators are saved too, and
    put back when training resumes.
    """

    def __init__(self, storage: CheckpointIO, policy: int | Policy = 100) -> None:
        """``policy`` is a number of optimizer steps, or one of ``pccheck.policies``."""
        self._storage = storage
        self._policy = policy if isinstance(policy, Policy) else Every(policy)
        self._random_state: dict[str, Any] | None = None
        self._last_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a Trainer that saves elsewhere."""
        if trainer.strategy.checkpoint_io is not self._storage:
            raise InvalidArgument(
                "the Trainer does not save through this callback's CheckpointIO; give "
                "Trainer(plugins=[storage])"
            )
        checkpointer = self._storage.checkpointer
        self._policy.bind(checkpointer.path, 1)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the random generators."""
        checkpoint[_RANDOM_STATE] = random_state()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the random generators' states until training begins."""
        self._random_state = checkpoint.get(_RANDOM_STATE)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the random generators back."""
        state, self._random_state = self._random_state, None
        if state is not None:
            set_random_state(state)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Saves when the policy says so; returns before it is staged."""
        step = trainer.global_step
        if step == self._last_step:
            return  # gradients are still being accumulated
        self._last_step = step
        if not self._policy.is_due(step):
            return
        self._storage._live = [pl_module, *trainer.optimizers]
        try:
            trainer.save_checkpoint(f"{self._storage.checkpointer.path}#step={step}")
        finally:
            self._storage._live = []


class _Checkpointer(pcc.Checkpointer):
    """Saves a state that was taken out of its objects already."""

    def save_parts(self, step: int, parts: dict[str, Any], in_place: set[int]) -> None:
        refuse_reentry(self, self._path)
        with self._save_lock:
            self._begin_save()
            self._save_parts(step, parts, in_place)
