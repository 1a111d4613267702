"""What one rank stores of a save of ``pccheck.dcp``, and the file that it goes to."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType

from .. import distributed
from .. import torch as pcc
from .._core.handle import SaveHandle
from .._group.division import Division
from .._group.exchange import Save
from .._group.handle import GroupHandle
from ..errors import CheckpointError, InvalidArgument, StepBackwards
from .reading import LAYOUT_VERSION


class Part:
    """What one rank stores of a save."""

    def __init__(
        self, plan: SavePlan, planner: SavePlanner, world_size: int, save_id: str | None
    ) -> None:
        self._layout = {
            "planner": plan.planner_data, "world_size": world_size, "save": save_id,
        }  # fmt: skip
        self.tensors: dict[str, torch.Tensor] = {}
        self.objects: dict[str, bytes] = {}
        #: What a reader must know of the items besides their values.
        self.descriptions: list[dict[str, Any]] = []
        self.results: list[storage.WriteResult] = []
        keys = _keys(plan.items)
        for item, key in zip(plan.items, keys, strict=True):
            value = planner.resolve_data(item)
            if isinstance(value, torch.Tensor):
                byte_count = self._add_tensor(item, key, value.detach())
            else:
                self.objects[key] = value.getvalue()
                byte_count = len(self.objects[key])
                self.descriptions.append({"fqn": item.index.fqn, "key": key})
            self.results.append(storage.WriteResult(item.index, byte_count, None))

    @property
    def state(self) -> dict[str, Any]:
        """What is stored: spec/STATE.md."""
        layout = {"version": LAYOUT_VERSION, "items": self.descriptions, **self._layout}
        return {"state": self.tensors, "objects": self.objects, "dcp": layout}

    @property
    def in_place(self) -> set[int]:
        """The storages that can be read where they are, as the caller waits."""
        return {
            tensor.untyped_storage().data_ptr() for tensor in self.tensors.values()
            if tensor.is_cpu and tensor.layout == torch.strided
        }  # fmt: skip

    def _add_tensor(self, item: WriteItem, key: str, tensor: torch.Tensor) -> int:
        data = item.tensor_data
        if data is None or tuple(tensor.shape) != tuple(data.chunk.sizes):
            planned = None if data is None else tuple(data.chunk.sizes)
            raise InvalidArgument(
                f"the planner gave a tensor of shape {tuple(tensor.shape)} for '{item.index.fqn}', "
                f"but its plan says {planned}"
            )
        self.tensors[key] = tensor
        self.descriptions.append(
            {
                "fqn": item.index.fqn, "key": key, "size": list(data.size),
                "offsets": list(data.chunk.offsets), "sizes": list(data.chunk.sizes),
                "requires_grad": data.properties.requires_grad,
            }
        )  # fmt: skip
        return tensor.numel() * tensor.element_size()


def _keys(items: Sequence[WriteItem]) -> list[str]:
    """The names under which items are stored, no two of which are the same.

    A full tensor keeps its own name. The name of a part includes its place, in a form that
    no other has.
    """
    taken: set[str] = set()
    for item in items:
        if item.type != WriteItemType.SHARD:
            if item.index.fqn in taken:
                raise InvalidArgument(f"the plan saves '{item.index.fqn}' twice")
            taken.add(item.index.fqn)
    keys = []
    for item in items:
        key = item.index.fqn
        if item.type == WriteItemType.SHARD and item.tensor_data is not None:
            place = f"{key}[{','.join(map(str, item.tensor_data.chunk.offsets))}]"
            key, number = place, 1
            while key in taken:
                number += 1
                key = f"{place}~{number}"
            taken.add(key)
        keys.append(key)
    return keys


def check_completeness(plans: Sequence[SavePlan]) -> None:
    """Raises when the parts of a tensor in all plans are less, or more, than all of it."""
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    for item in (item for plan in plans for item in plan.items):
        if item.tensor_data is not None:
            fqn = item.index.fqn
            sizes[fqn] = math.prod(item.tensor_data.size)
            counts[fqn] = counts.get(fqn, 0) + math.prod(item.tensor_data.chunk.sizes)
    for fqn, size in sizes.items():
        if counts[fqn] != size:
            raise InvalidArgument(
                f"{len(plans)} of the processes that share '{fqn}' save {counts[fqn]} of its "
                f"{size} elements, so that it could not be loaded; save with all of them"
            )


class FileCheckpointer(pcc.Checkpointer):
    """The file of one process. Saves while the caller waits, so that nothing is copied first."""

    #: One process misses no save of others.
    open_steps: Sequence[int] = ()

    def catch_up(self, steps: Sequence[int]) -> None:
        """There is nothing to catch up with."""

    def save_durably(self, step: int, make: Callable[[], Part]) -> SaveHandle:
        """Returns when the checkpoint is durable; reads dense tensors of the CPU in place."""
        with self._save_lock:
            part = make()
            self._begin_save()
            handle = self._save_parts(step, part.state, part.in_place)
        outcome = handle.wait()
        if not outcome.durable:
            raise CheckpointError(
                f"{self.path}: step {step} is not in the file, as a newer save was durable before "
                "it; wait for the future of a save before the next one begins"
            )
        return handle


class GroupCheckpointer(distributed.Checkpointer):
    """The file of one of several processes, in the folder of all of them.

    A save talks to the other ranks in ``write_data``, which DCP calls on all ranks or on none,
    unless a planner fails in ``finish_plan``: such a rank is late, and catches up in the next save.
    """

    @property
    def open_steps(self) -> Sequence[int]:
        """The saves of which this rank does not know whether all ranks have them."""
        return self._exchange.open_steps

    def catch_up(self, steps: Sequence[int]) -> None:
        """Lets the other ranks know that this one did not begin these saves, as they did."""
        if not self._has_begun:
            return
        last = self._exchange.last_step
        for step in steps:
            if last is None or step > last:
                self._exchange.add(Save(step, None, _NOT_BEGUN))

    def save_durably(self, step: int, make: Callable[[], Part]) -> GroupHandle:
        """Returns when the part of this rank is durable; DCP then hears of it from all ranks."""
        with self._save_lock, self._in_order(step):
            self._ensure_choice("save")
            part = make()
            self._division = _AS_PLANNED
            self._begin_save()
            try:
                self._check_order(step)
                handle = self._save_parts(step, part.state, part.in_place)
            except StepBackwards as error:
                error.reword(
                    f"{error}. If dcp.load went back to an older step, call "
                    "writer.checkpointer.rewind() with that step on all ranks"
                )
                raise
        handle.wait()
        assert isinstance(handle, GroupHandle)
        return handle


_NOT_BEGUN = "the planner failed before the save began there"
# The plan of DCP divides the state already, and gives no tensor to two ranks to store.
_AS_PLANNED = Division({}, {}, b"as planned", None, 1.0)

#: What writes for a ``StorageWriter``.
DurableCheckpointer: TypeAlias = FileCheckpointer | GroupCheckpointer


# What this process has open for writers that DCP sent it, by their options. A writer is sent again
# for every save, the file stays open.
_sent: dict[str, tuple[dict[str, Any], DurableCheckpointer]] = {}


def sent_checkpointer(
    path: str, make: Callable[[], DurableCheckpointer], options: dict[str, Any]
) -> DurableCheckpointer:
    """What writes for a writer that DCP has sent to this process; made when it is not there."""
    key = os.path.abspath(path)
    known = _sent.pop(key, None)
    if known is not None and (known[0] != options):
        known[1].close()
        known = None
    _sent[key] = known or (options, make())
    return _sent[key][1]
