"""What one save learned about the tensors of a state, for the next one of the same structure.

A state of 100,000 small tensors costs more to describe than to copy. From one save to the next its
names, types and shapes stay; only addresses and values change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..._core.tensors import TensorEntry

_Leaf = tuple[dict[str, Any], torch.Tensor, str]


class Plan:
    """The entries and nodes of the tensors that were stored last."""

    def __init__(self) -> None:
        self._signature: list[Any] | None = None
        self._names_before: list[str] = []
        self._entries: list[TensorEntry] = []
        #: Nodes that say more than the path of their tensor.
        self._nodes: list[tuple[int, dict[str, Any]]] = []
        self._in_place: list[int] = []
        self._small: dict[torch.dtype, list[int]] = {}
        self._others: list[int] = []

    @property
    def tensor_count(self) -> int:
        """How many tensors were stored last."""
        return len(self._entries)

    def fits(self, signature: list[Any], names_before: list[str]) -> bool:
        """True when the state has the structure of the last one."""
        return signature == self._signature and names_before == self._names_before

    def learn(
        self,
        signature: list[Any],
        names_before: list[str],
        leaves: Sequence[_Leaf],
        entries: list[TensorEntry],
        small: dict[torch.dtype, list[tuple[int, torch.Tensor]]],
    ) -> None:
        """Notes how a state was stored, of which every leaf is the entry of the same index."""
        # Set last: an interrupt may strike in between.
        self._signature = None
        self._names_before = names_before
        self._entries = entries
        self._nodes = [
            (index, dict(node))
            for index, (node, _, path) in enumerate(leaves)
            if len(node) > 1 or node["$tensor"] != path
        ]
        first = len(names_before)
        self._small = {
            dtype: [index - first for index, _ in items] for dtype, items in small.items()
        }
        copied = {index for indices in self._small.values() for index in indices}
        self._in_place = [i for i, entry in enumerate(entries) if not entry.is_copy]
        copied.update(self._in_place)
        self._others = [index for index in range(len(entries)) if index not in copied]
        self._signature = signature

    def apply(
        self,
        leaves: Sequence[_Leaf],
        storages: Sequence[torch.UntypedStorage],
        copied: Callable[[Sequence[torch.Tensor]], list[tuple[int, object]]],
    ) -> list[TensorEntry]:
        """The entries of a state that fits, with its addresses; the nodes are completed."""
        entries = self._entries
        for index in self._in_place:
            entry = entries[index]
            entry.address, entry.owner = leaves[index][1].data_ptr(), storages[index]
        for indices in self._small.values():
            copy = together([leaves[index][1] for index in indices])
            address = copy.data_ptr()
            for index in indices:
                entry = entries[index]
                entry.address, entry.owner = address, copy
                address += entry.byte_count
        copies = copied([leaves[index][1] for index in self._others])
        for index, (address, owner) in zip(self._others, copies, strict=True):
            entries[index].address, entries[index].owner = address, owner
        for index, node in self._nodes:
            leaves[index][0].update(node)
        return entries

    def release(self) -> None:
        """Releases the memory of the last state: its readers hold it."""
        for entry in self._entries:
            entry.owner = None


def together(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Copies of the values of dense CPU tensors of one type, one after another."""
    with torch.no_grad():
        # A view costs several times as much as to ask whether it is needed.
        return torch.cat([item if item.dim() == 1 else item.view(-1) for item in tensors])
