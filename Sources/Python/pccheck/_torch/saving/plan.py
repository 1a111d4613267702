"""What one save learned about the tensors of a state, for the next one of the same structure.

A state of 100,000 small tensors costs more to describe than to copy. From one save to the next its
names, types and shapes stay; only addresses and values change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..._core.tensors import TensorEntry
from ..._state.document import node_text

#: The node of a tensor, the tensor, and its path.
Leaf = tuple[dict[str, Any], torch.Tensor, str]


@dataclass(frozen=True)
class Part:
    """A dictionary that holds only tensors: the leaves from ``first`` on, one for each name."""

    first: int
    names: list[str]

    def node(self, leaves: Sequence[Leaf]) -> dict[str, Any]:
        """Its node in the document."""
        own = leaves[self.first : self.first + len(self.names)]
        return {name: node for name, (node, _, _) in zip(self.names, own, strict=True)}

    def text(self, leaves: Sequence[Leaf]) -> str:
        """The text of its node, which is complete."""
        return node_text(self.node(leaves))


class Plan:
    """The entries and nodes of the tensors that were stored last."""

    def __init__(self) -> None:
        self._signature: list[Any] | None = None
        self._names_before: list[str] = []
        self._entries: list[TensorEntry] = []
        #: Nodes that say more than the path of their tensor.
        self._nodes: list[tuple[int, dict[str, Any]]] = []
        self._in_place: list[int] = []
        #: Of what is read in place, the tensors whose changes wait or are noticed.
        self.guarded: list[int] = []
        self._small: dict[torch.dtype, list[int]] = {}
        self._others: list[int] = []
        #: What was made of parts since the structure is this one.
        self._texts: dict[int, tuple[Part, str]] = {}

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
        leaves: Sequence[Leaf],
        entries: list[TensorEntry],
        small: dict[torch.dtype, list[tuple[int, torch.Tensor]]],
    ) -> None:
        """Notes how a state was stored, of which every leaf is the entry of the same index."""
        # Set last: an interrupt may strike in between.
        self._signature = None
        self._texts = {}
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
        self.guarded = [i for i in self._in_place if entries[i].is_guarded]
        copied.update(self._in_place)
        self._others = [index for index in range(len(entries)) if index not in copied]
        self._signature = signature

    def apply(
        self,
        leaves: Sequence[Leaf],
        storages: Sequence[torch.UntypedStorage],
        copied: Callable[[Sequence[torch.Tensor]], list[tuple[int, object]]],
    ) -> list[TensorEntry]:
        """The entries of a state that fits, with its addresses; the nodes are completed."""
        entries = self._entries
        for index in self._in_place:
            entry = entries[index]
            storage = storages[index]
            entry.address, entry.owner = address_in(storage, leaves[index][1]), storage
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

    def text_of(self, part: Part, leaves: Sequence[Leaf]) -> str:
        """The text of a part of a state that fits: it depends on the structure only."""
        known = self._texts.get(part.first)
        if known is None or known[0] != part:
            known = self._texts[part.first] = part, part.text(leaves)
        return known[1]

    def release(self) -> None:
        """Releases the memory of the last state: its readers hold it."""
        for entry in self._entries:
            entry.owner = None


def address_in(storage: torch.UntypedStorage, tensor: torch.Tensor) -> int:
    """Where the elements of a tensor begin in its storage; `data_ptr` would be that of another one
    which it may have by now."""
    return storage.data_ptr() + int(tensor.storage_offset()) * tensor.itemsize


def together(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Copies of the values of dense CPU tensors of one type, one after another."""
    with torch.no_grad():
        # A view costs several times as much as to ask whether it is needed.
        copy = torch.cat([item if item.dim() == 1 else item.view(-1) for item in tensors])
    return copy
