"""Checkpoints of a training loop that uses Hugging Face Accelerate.

    accelerator = Accelerator()
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    checkpoints = pccheck.accelerate.Checkpointer("run/", accelerator)
    start = checkpoints.resume()
    for step in range(start, steps):
        …
        checkpoints.save(step)

It saves what ``accelerator.save_state`` would: models, optimizers, schedulers, the loss scaler,
samplers, stateful loaders, registered objects, and random generators. In a folder every process
has a file of its own, and a checkpoint counts once it is durable on all of them: see
``pccheck.distributed``. A job of one process may name a file instead, such as ``"run.pcc"``.
"""

from __future__ import annotations

import os
from typing import Any

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
except ImportError as error:
    raise ImportError(
        "pccheck.accelerate needs the package accelerate: pip install 'pccheck[accelerate]'"
    ) from error

from . import distributed as pcd
from . import torch as pcc
from ._core.handle import SaveHandle
from ._group.files import names_folder
from ._torch.wrappers import Wrappers
from .errors import InvalidArgument

__all__ = ["Checkpointer", "GroupCheckpointer"]

_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Checkpointer(pcc.Checkpointer):
    """Saves and resumes everything that an ``Accelerator`` has prepared.

    With a folder as its path (one that exists, or that ends with a slash) this is a
    ``GroupCheckpointer``; several processes need one. Models that are split over processes (FSDP,
    DeepSpeed, Megatron) are refused.
    """

    def __new__(
        cls, path: str | os.PathLike[str], accelerator: Accelerator, **options: Any
    ) -> Checkpointer:
        """Chooses by the path."""
        if cls is Checkpointer and names_folder(path):
            return object.__new__(GroupCheckpointer)
        return super().__new__(cls)

    def __init__(
        self, path: str | os.PathLike[str], accelerator: Accelerator, **options: Any
    ) -> None:
        """``options`` are those of ``pccheck.torch.Checkpointer``, or of
        ``pccheck.distributed.Checkpointer`` for a folder."""
        if accelerator.distributed_type not in _PLAIN:
            raise InvalidArgument(
                f"the accelerator runs as {accelerator.distributed_type.value}, which splits the "
                "state over its processes; use pccheck.distributed, which saves the DTensors of "
                "FSDP version 2, or pccheck.dcp"
            )
        count = accelerator.num_processes
        if count > 1 and not names_folder(path):
            raise InvalidArgument(
                f"{os.fspath(path)} would be one file of {count} processes; give a folder, such as "
                "'run/', in which each has a file of its own"
            )
        self._accelerator = accelerator
        super().__init__(path, **options)

    def save(self, step: int, **options: Any) -> SaveHandle:
        """Begins a checkpoint of what was prepared and of the parts given by name.

        As ``pccheck.torch.Checkpointer.save``, which see.
        """
        return super().save(step, **self._parts(), **options)

    def resume(self, **options: Any) -> int:
        """Restores what was prepared from the newest intact checkpoint; returns the next step.

        As ``pccheck.torch.Checkpointer.resume``, which see. Batches that were trained already are
        left out with ``accelerator.skip_first_batches``, or by a stateful loader.
        """
        return super().resume(**self._parts(), **options)

    def _parts(self) -> dict[str, Any]:
        """Bare objects: what the accelerator wraps them in adds nothing to their state."""
        accelerator = self._accelerator
        loaders = accelerator._dataloaders
        parts: dict[str, Any] = {
            "models": [accelerator.unwrap_model(model) for model in accelerator._models],
            "optimizers": [item.optimizer for item in accelerator._optimizers],
            "schedulers": [item.scheduler for item in accelerator._schedulers],
            "registered": list(accelerator._custom_objects),
            "samplers": [_Sampler(loader) for loader in loaders],
        }
        if accelerator.dataloader_config.use_stateful_dataloader:
            parts["loaders"] = list(loaders)
        if accelerator.scaler is not None:
            parts["scaler"] = accelerator.scaler
        return parts


class GroupCheckpointer(Checkpointer, pcd.Checkpointer):
    """The same for all processes of a job, in a folder.

    ``save`` and ``resume`` are those of ``pccheck.distributed.Checkpointer``: every process calls
    them. A restart may have another number of processes.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """See ``Checkpointer``."""
        self._wrappers = Wrappers()
        super().__init__(*arguments, **options)

    def save(self, step: int, **options: Any) -> pcd.GroupHandle:
        """Begins a checkpoint on this process; ``wait_group()`` of the handle is for all."""
        self._layout.replicated = self._wrappers.around(self._accelerator._models)
        handle = super().save(step, **options)
        assert isinstance(handle, pcd.GroupHandle)
        return handle


class _Sampler:
    """The epoch and seed of a loader's order, which say which permutation comes."""

    _NAMES = ("epoch", "initial_seed")

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else None

    def state_dict(self) -> dict[str, int | None]:
        state = {name: getattr(self._sampler, name, None) for name in self._NAMES}
        iteration = getattr(self._loader, "iteration", None)
        if iteration is not None and self._loader.end_of_dataloader:
            # It is counted when the loop asks for more than the last batch.
            iteration += 1
        return {**state, "iteration": iteration}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        for name in self._NAMES:
            if state[name] is not None:
                setattr(self._sampler, name, state[name])
        if state["iteration"] is not None:
            self._loader.iteration = state["iteration"]
