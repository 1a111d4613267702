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

import logging
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

log = logging.getLogger("pccheck")

#: What `save` accepts besides parts of the caller's own.
_SAVE_OPTIONS = {"rng", "metadata", "urgent", "overlap"}
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Checkpointer(pcc.Checkpointer):
    """Saves and resumes everything that an ``Accelerator`` has prepared.

    With a folder as its path (one that exists, or that ends with a slash) this is a
    ``GroupCheckpointer``; several processes need one. Of the ways to split a model over processes,
    FSDP version 2 is saved; FSDP version 1, DeepSpeed and Megatron are refused.
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
        _check_kind(accelerator)
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
        parts = self._parts()
        has_own = bool(options.keys() - _SAVE_OPTIONS)
        if not (has_own or parts["models"] or parts["optimizers"] or parts["registered"]):
            raise InvalidArgument(
                "the accelerator has nothing to save; prepare the model and the optimizer first"
            )
        return super().save(step, **parts, **options)

    def resume(self, **options: Any) -> int:
        """Restores what was prepared from the newest intact checkpoint; returns the next step.

        As ``pccheck.torch.Checkpointer.resume``, which see. Call it after everything is prepared
        and registered: saved objects for which the accelerator has none are an error, and with
        ``strict=False`` a line in the report. Batches that were trained already are left out with
        ``accelerator.skip_first_batches``, or by a stateful loader.
        """
        parts = self._parts()
        empty = [name for name, part in parts.items() if part == []]
        step = super().resume(**parts, **options)
        # An empty list takes what was saved, and no object of the accelerator gets it.
        lost = [name for name in empty if parts[name]]
        if not lost:
            return step
        if self.resume_report is not None:
            self.resume_report.unexpected += lost
        text = f"the checkpoint has {', '.join(lost)}, and the accelerator has none"
        if options.get("strict", True):
            raise InvalidArgument(
                f"{text}; the rest holds the values of the checkpoint now: prepare and register "
                "everything and call resume() again, or give strict=False"
            )
        log.warning("%s: %s", self.path, text)
        return step

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
    them. A restart may have another number of processes. With FSDP version 2 each process saves its
    shards, and what FSDP does not shard (buffers, ignored modules) as its own.
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


def _check_kind(accelerator: Accelerator) -> None:
    """Raises ``InvalidArgument`` for state that no part below holds exactly."""
    kind = accelerator.distributed_type
    # Accelerate knew only version 1 before it had this attribute.
    if kind in _PLAIN or getattr(accelerator, "is_fsdp2", False):
        return
    if kind == DistributedType.FSDP:
        raise InvalidArgument(
            "the accelerator runs FSDP version 1, and pccheck.accelerate saves version 2 only; "
            "give FullyShardedDataParallelPlugin(fsdp_version=2), or convert the configuration "
            "with 'accelerate to-fsdp2'"
        )
    raise InvalidArgument(
        f"the accelerator runs as {kind.value}, and pccheck.accelerate saves one process, "
        "DistributedDataParallel and FSDP version 2; use one of these, or save with "
        "accelerator.save_state()"
    )


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
