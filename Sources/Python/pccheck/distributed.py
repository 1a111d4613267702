"""Checkpoints of a job of many processes: durable on all ranks, or not at all.

    ckpt = pccheck.distributed.Checkpointer("run/")
    start = ckpt.resume(model=model, optimizer=optimizer)
    for step in range(start, steps):
        train(step)
        if step % 10 == 0:
            ckpt.save(step, model=model, optimizer=optimizer)
    ckpt.close()

The same three calls as with one process, on every rank, under ``torchrun`` or alone. Each rank
writes a file of its own in the folder. There is no coordinator: after each save the ranks exchange
a few words in the background, and find out that all of them have it. Nothing on the training path
waits for that. A restart continues from the newest step that is durable on all ranks; spec/GROUP.md
has the rules.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist

from ._core.engine import wait_staged_everywhere
from ._core.handle import SaveHandle
from ._core.saver import changes_nothing
from ._group.division import Division
from ._group.folder import load_folder
from ._group.handle import GroupHandle, GroupOutcome
from ._group.transport import LocalTransport, Transport
from ._torch.layout import Layout
from ._torch.loading.assembled import AssembledMemory
from ._torch.transport import TorchTransport
from ._state.loading import loading_of
from .errors import InvalidArgument
from .group_checkpointer import TIMEOUT_SECONDS, GroupCheckpointer
from .torch import Checkpointer as TorchCheckpointer
from .torch import device_of, filled_device_of

__all__ = [
    "Checkpointer", "GroupHandle", "GroupOutcome", "LocalTransport", "TorchTransport", "Transport",
    "load",
]  # fmt: skip


changes_nothing(__file__)


class Checkpointer(GroupCheckpointer, TorchCheckpointer):
    """Saves named parts of a training run on all ranks, and puts them back on all of them."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        group: dist.ProcessGroup | None = None,
        transport: Transport | None = None,
        shared: Collection[str] | Mapping[str, Any] = (),
        replicas: Literal["split", "whole"] = "split",
        timeout: float = TIMEOUT_SECONDS,
        **options: Any,
    ) -> None:
        """Prepares the file of this rank in the folder ``path``; ``resume`` opens it.

        Accepts the options of ``pccheck.torch.Checkpointer`` except ``rank`` and ``world_size``,
        which come from the group. ``in_flight`` and ``retain`` are 2 by default.

        - ``group``: the processes that save together, as ``torch.distributed`` knows them; by
          default all of the job, or this process alone without ``torch.distributed``. PCcheck makes
          connections of its own and never uses those of training.
        - ``transport``: another network in place of ``torch.distributed``.
        - ``shared``: names of parts that are the same on all ranks, or a process group of the ranks
          that hold it by name; False is each rank's own. Modules under DDP and optimizers of
          DTensors need no mention. What several ranks hold alike is stored once.
        - ``replicas``: ``split`` divides what several ranks hold among them, and a restart reads
          the files of other ranks for it. With ``whole`` each rank stores all that it holds, for
          folders that no other machine reads.
        - ``timeout``: how many seconds any call waits for other ranks. The error then names those
          that did not come.
        - ``on_busy``, ``policy``, ``on_sigterm``: as with one process. What depends on time is
          decided alike on all ranks, from what all of them knew at the call before.

        The first ``resume``, ``load``, ``save``, ``maybe_save`` or ``is_due`` is *collective*:
        every rank makes the same call. So are ``rewind`` and ``close``.
        """
        transport = _transport_for(group) if transport is None else transport
        self._layout = Layout(transport.rank, transport.world_size, shared, replicas)
        self._alike_options = {"replicas": replicas, "shared": sorted(shared)}
        super().__init__(path, transport=transport, timeout=timeout, **options)

    def _memory_on(self, device: torch.device | None) -> AssembledMemory:
        return AssembledMemory(device)

    def save(
        self,
        step: int,
        *,
        rng: bool = True,
        metadata: str | Mapping[str, Any] | None = None,
        urgent: bool = False,
        overlap: bool = True,
        **state: Any,
    ) -> GroupHandle:
        """Begins a checkpoint on this rank; every rank saves the same steps.

        As ``pccheck.torch.Checkpointer.save``. ``wait()`` on the handle is for this rank;
        ``wait_group()`` returns when the checkpoint is durable on all ranks. A save that fails on
        one rank is void on all of them, and what was durable on all ranks stays.
        """
        with self._save_lock:
            save = super().save
            return self._save_together(
                step, urgent,
                lambda: save(
                    step, rng=rng, metadata=metadata, urgent=urgent, overlap=overlap, **state
                ),
            )  # fmt: skip

    def _divided(self, state: dict[str, Any], parts: dict[str, Any]) -> Division:
        return self._divide(lambda sample: self._layout.divide(state, parts, sample=sample))

    def _save_due(self, step: int, **state: Any) -> GroupHandle:
        """Saves a step after ``is_due``."""
        with self._after_turn():
            return self.save(step, **state)

    def maybe_save(self, step: int, **state: Any) -> SaveHandle | None:
        """Saves when the policy asks for it, with the arguments of ``save``; alike on all ranks.

        Call it at the end of every step, on every rank.
        """
        return self._maybe_save(step, lambda: self.save(step, **state))


def load(
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    into: Any = None,
    map_location: str | torch.device | None = None,
) -> Any:
    """The state in a folder of a job, which may be running; this process takes no part in it.

    Loads the newest checkpoint that is durable on all ranks, or that of ``step``, from the files
    of all ranks. What is divided among them is joined to full tensors; what each rank stored for
    itself comes from rank 0. ``into`` and ``map_location`` are those of ``pccheck.torch.load``.
    Raises ``NoCheckpoint`` when nothing is durable on all ranks, or a file that a newer checkpoint
    needs is missing.
    """
    if into is not None:
        wait_staged_everywhere()
    device = (device_of if into is None else filled_device_of)(map_location)
    return load_folder(path, step, loading_of(AssembledMemory(device), into))[1]


def _transport_for(group: dist.ProcessGroup | None) -> Transport:
    if group is not None or (dist.is_available() and dist.is_initialized()):
        return TorchTransport(group)
    count = os.environ.get("WORLD_SIZE", "1")
    if count not in ("", "1"):
        raise InvalidArgument(
            f"WORLD_SIZE is {count}, so a launcher started {count} ranks, and torch.distributed "
            "has no process group yet; call init_process_group() first, or pass "
            "transport=LocalTransport() where each process trains alone"
        )
    return LocalTransport()
