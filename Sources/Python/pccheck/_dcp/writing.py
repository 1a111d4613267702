"""What one rank stores of a save of ``pccheck.dcp``, and the file that it goes to."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType

from .. import torch as pcc
from ..errors import CheckpointError, InvalidArgument


class DurableCheckpointer(pcc.Checkpointer):
    """Saves while the caller waits, so that nothing has to be copied first."""

    def save_durably(
        self, step: int, state: dict[str, Any], tensors: list[torch.Tensor]
    ) -> None:
        """Returns when the checkpoint is durable; reads dense tensors of the CPU in place."""
        in_place = {
            tensor.untyped_storage().data_ptr() for tensor in tensors
            if tensor.is_cpu and tensor.layout == torch.strided
        }  # fmt: skip
        with self._save_lock:
            self._begin_save()
            handle = self._save_parts(step, state, in_place)
        outcome = handle.wait()
        if not outcome.durable:
            raise CheckpointError(
                f"{self.path}: step {step} is not in the file, as a newer save was durable before "
                "it; wait for the future of a save before the next one begins"
            )


# The files that this process has open for writers that DCP sent it, with their options. A writer
# is sent again for every save, the file stays open.
_sent: dict[str, tuple[dict[str, Any], DurableCheckpointer]] = {}


def sent_checkpointer(path: str, **options: Any) -> DurableCheckpointer:
    """The open file of a writer that DCP has sent to this process; opened when it is not."""
    key = os.path.abspath(path)
    known = _sent.pop(key, None)
    if known is not None and (known[0] != options or not known[1].is_open):
        known[1].close()
        known = None
    _sent[key] = known or (options, DurableCheckpointer(path, **options))
    return _sent[key][1]


class Part:
    """What one rank stores of a save."""

    def __init__(self, items: Sequence[WriteItem], planner: SavePlanner) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.objects: dict[str, bytes] = {}
        #: What a reader must know of the items besides their values.
        self.descriptions: list[dict[str, Any]] = []
        self.results: list[storage.WriteResult] = []
        keys = _keys(items)
        for item, key in zip(items, keys, strict=True):
            value = planner.resolve_data(item)
            if isinstance(value, torch.Tensor):
                byte_count = self._add_tensor(item, key, value.detach())
            else:
                self.objects[key] = value.getvalue()
                byte_count = len(self.objects[key])
                self.descriptions.append({"fqn": item.index.fqn, "key": key})
            self.results.append(storage.WriteResult(item.index, byte_count, None))

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
