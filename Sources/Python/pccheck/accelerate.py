"""Checkpoints of a training loop that uses Hugging Face Accelerate.

    accelerator = Accelerator()
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    checkpoints = pccheck.accelerate.Checkpointer("run.pcc", accelerator)
    start = checkpoints.resume()
    for step in range(start, steps):
        …
        checkpoints.save(step)

It saves what ``accelerator.save_state`` would, into one file: models, optimizers, schedulers, the
loss scaler, samplers, stateful loaders, registered objects, and random generators.
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

from . import torch as pcc
from ._core.handle import SaveHandle
from .errors import InvalidArgument

__all__ = ["Checkpointer"]

_RANK = "{rank}"
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Checkpointer(pcc.Checkpointer):
    """Saves and resumes everything that an ``Accelerator`` has prepared.

    With several processes each has a file of its own: write ``{rank}`` into the path. Models that
    are split over processes (FSDP, DeepSpeed, Megatron) are refused.
    """

    def __init__(
        self, path: str | os.PathLike[str], accelerator: Accelerator, **options: Any
    ) -> None:
        """``options`` are those of ``pccheck.torch.Checkpointer``."""
        if accelerator.distributed_type not in _PLAIN:
            raise InvalidArgument(
                f"the accelerator runs as {accelerator.distributed_type.value}, which splits the "
                "state over its processes; use pccheck.dcp, or pccheck.torch with DTensors"
            )
        rank, count = accelerator.process_index, accelerator.num_processes
        if count > 1 and _RANK not in os.fspath(path):
            raise InvalidArgument(
                f"{os.fspath(path)} would be the file of {count} processes; write {_RANK} where "
                "the rank belongs, so that each has one of its own"
            )
        self._accelerator = accelerator
        own = os.fspath(path).replace(_RANK, str(rank))
        super().__init__(own, **{"rank": rank, "world_size": count, **options})

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
