"""Lightning's strategy for sharded modules, saved into the folder of a job."""

from __future__ import annotations

import operator
import os
from abc import abstractmethod
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy as LightningModelParallelStrategy
from torch.utils._pytree import tree_flatten

from .._core.saver import changes_nothing
from ..errors import InvalidArgument
from .checkpointers import OBJECTS, LiveParts

changes_nothing(__file__)


class Storage(CheckpointIO):  # type: ignore[misc,unused-ignore]
    """What the strategy asks of the storage of this package."""

    @abstractmethod
    def is_in_file(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path is that of the storage, and not of another file."""

    @abstractmethod
    def expect_folder(self) -> None:
        """Raises ``InvalidArgument`` where the storage is one file."""

    @abstractmethod
    def load_live(self, path: str | os.PathLike[str], live: LiveParts) -> dict[str, Any]:
        """Fills objects on all processes, and returns the rest of the checkpoint."""


class ModelParallelStrategy(LightningModelParallelStrategy):  # type: ignore[misc,unused-ignore]
    """Lightning's strategy for ``fully_shard`` and other DTensors, saved by a
    ``CheckpointCallback`` into the folder of a ``CheckpointIO``.

    It accepts what Lightning's accepts. Each process saves its shards, and what is not sharded
    (buffers, ignored modules) as its own. A restart may have another number of processes and
    another mesh. What is saved under another path is a checkpoint of Lightning's own.
    """

    # While the callback saves: the states that it was given, by leaves and form.
    _shown: list[tuple[list[Any], Any]] | None = None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The shards of the module."""
        if self._shown is None:
            found: dict[str, Any] = super().lightning_module_state_dict()
            return found
        assert self.model is not None
        return self._show(self.model.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The shards of an optimizer."""
        if self._shown is None:
            found: dict[str, Any] = super().optimizer_state(optimizer)
            return found
        return self._show(optimizer.state_dict())

    def _show(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state in live memory, where Lightning would make a copy of it on the CPU."""
        assert self._shown is not None
        self._shown.append(tree_flatten(state))
        return state

    def dump_live(self, trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
        """What Lightning makes a checkpoint of; and apart from it the module and the optimizers,
        which are saved as objects, so that a resume knows their parameters by name."""
        self._shown = []
        try:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(False)
            shown = self._shown
        finally:
            self._shown = None
        module, optimizers = (checkpoint.pop(name, None) for name in OBJECTS)
        now = [tree_flatten(state) for state in (module, *(optimizers or ()))]
        is_same = len(now) == len(shown) and all(
            form == shown_form and all(map(operator.is_, leaves, shown_leaves))
            for (leaves, form), (shown_leaves, shown_form) in zip(now, shown)
        )
        if not is_same:
            raise InvalidArgument(
                "on_save_checkpoint of the module or of a callback changed "
                f"{' or '.join(OBJECTS)} of the checkpoint; under ModelParallelStrategy every "
                "process saves its shards as they are: store other values under a key of your own"
            )
        return checkpoint, LiveParts(self.model, self.optimizers).objects

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """As Lightning's, to another path than that of the storage, which refuses its own."""
        storage = self.checkpoint_io
        if isinstance(storage, Storage) and storage.is_in_file(filepath):
            storage.expect_folder()
            storage.save_checkpoint(checkpoint, filepath, storage_options)
        else:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, *arguments: Any, **options: Any) -> Any:
        """Fills module and optimizers in place, and returns the rest."""
        storage = self.checkpoint_io
        path = self.broadcast(checkpoint_path)
        if isinstance(storage, Storage) and storage.is_in_file(path):
            storage.expect_folder()
            return storage.load_live(path, LiveParts(self.model, self.optimizers))
        return super().load_checkpoint(path, *arguments, **options)
