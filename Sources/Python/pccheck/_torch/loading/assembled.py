"""Fills live tensors of any placement from the files of all ranks.

Each live tensor needs boxes of the full one: all of it, or those of its local tensor. They are read
from the files that hold them, this rank's own file first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..._group.assembled import Assembled, joined_tensors
from ..._group.assembly import Assembly, JoinedManifest, JoinedTensor
from ..._group.boxes import Box
from ..._group.node import TAG, ShardedNode
from ..._group.pieces import Piece, dense
from ..._state.comparing import GONE, Comparison, Leaf, items_of, with_items
from ..._state.generators import GENERATOR_TYPES
from ..._state.memory import Place
from ..._state.stored import StoredTensor, View
from ...errors import StateFormatError
from ..objects import ParameterNames, bare_name, recorded_names
from ..sharded import Sharding, dtensor, is_dtensor, local_of, parts_of_local, view_of
from ..types import PLAIN_TENSOR_TYPES, dtype_named
from .decoder import TorchMemory, tensor_type
from .pieces import pieces_of


class _Region:
    """A box in the payload of one file."""

    def __init__(self, assembly: Assembly, rank: int, node: Any, sizes: tuple[int, ...]) -> None:
        if "$view" in node:
            view = View(node)
            stored = assembly.stored(rank, view.name)
            self.dtype, self.sizes = dtype_named(view.dtype), view.shape
            view.check(self.dtype.itemsize, stored)
            self.stride = view.stride
            self.payload_offset = stored.payload_offset + view.offset
        else:
            stored = assembly.stored(rank, node["$tensor"])
            self.dtype, self.sizes = tensor_type(stored, node.get("dtype"))
            self.stride = dense(self.sizes)
            self.payload_offset = stored.payload_offset
        if self.sizes != sizes:
            raise StateFormatError(
                f"the file of rank {rank} has a part of the shape {self.sizes}, expected {sizes}"
            )


class AssembledMemory(Assembled, TorchMemory):
    """Memory for the state of several files. For one request."""

    _random_types = (torch.Generator, *GENERATOR_TYPES)

    def begin(self, assembly: Assembly, manifest: JoinedManifest) -> None:
        """Starts with the files of one checkpoint."""
        super().begin(assembly, manifest)
        self._places: dict[str, Place] = {}
        #: What fills which live memory.
        self._filled: dict[object, tuple[Any, ...]] = {}
        self._sharded.tensors.clear()

    # -- comparing

    def live_leaf(self, target: Any) -> Leaf | None:
        """Type and shape of the full live tensor."""
        leaf = super().live_leaf(target)
        return leaf and Leaf(leaf.dtype, leaf.shape)

    def compare_object(self, comparison: Comparison, node: Any, target: Any, name: str) -> Any:
        """Of an optimizer only the parameters that this rank has, where the ranks that saved did
        not all have them."""
        if self._leaves_alone(comparison, target, name):
            return GONE
        if isinstance(target, torch.optim.Optimizer) and self._manifest.partial:
            node = _without_others(comparison, node, target, name, self._manifest.partial)
        return super().compare_object(comparison, node, target, name)

    # -- places

    def state_of(self, target: Any, node: Any) -> Any:
        """Optimizers show tensors for state that they do not have yet, placed as their parameters
        are."""
        state = super().state_of(target, node)
        if isinstance(target, torch.optim.Optimizer) and isinstance(state, dict):
            saved = {key: child for _, key, child in items_of(node) or []}.get("state")
            return {**state, "state": self._with_missing(target, state["state"], saved)}
        return state

    def _with_missing(
        self, optimizer: torch.optim.Optimizer, state: dict[Any, Any], node: Any
    ) -> dict[Any, Any]:
        parameters = [item for group in optimizer.param_groups for item in group["params"]]
        tensors = self._manifest.tensors_of(node)
        found = dict(state)
        for _, number, child in items_of(node) or []:
            if not isinstance(number, int) or number >= len(parameters):
                continue
            live = found.get(number, {})
            for _, key, item in items_of(child) or []:
                leaf = self.leaf(item, tensors) if isinstance(item, dict) else None
                if leaf is None or key in live:
                    continue
                made = _like(parameters[number], leaf, is_divided=TAG in item)
                if made is not None:
                    live = {**live, key: made}
            found[number] = live
        return found

    def place(
        self, node: dict[str, Any], kind: str, tensor: StoredTensor, target: Any
    ) -> Place | None:
        """A DTensor takes its boxes out of a tensor that was stored whole."""
        if kind != "$tensor" or not is_dtensor(target):
            return super().place(node, kind, tensor, target)
        tag = node.get("dtype")
        dtype, shape = tensor_type(tensor, tag)
        if tuple(target.shape) != shape:
            return None
        local = local_of(target)
        parts = parts_of_local(Sharding.of(target), local)

        def fill(memory: torch.Tensor) -> None:
            full = memory.view(dtype).view(shape)
            for item, view in parts:
                view.copy_(view_of(full, item.box))

        key = ("torch", tensor.name, tag)
        return Place(target, None, local.data_ptr(), key, fill, max(_span(local), 1))

    def unwrapped(
        self, node: dict[str, Any], target: Any, claim: Callable[[int, int], bool]
    ) -> list[tuple[Any, Any]]:
        """Notes what is to be read into a live tensor."""
        content = node.get(TAG)
        if isinstance(content, JoinedTensor) and isinstance(target, torch.Tensor):
            self._fill_live(content, target, claim)
        return []

    def _fill_live(
        self, content: JoinedTensor, target: Any, claim: Callable[[int, int], bool]
    ) -> None:
        local = local_of(target)
        if tuple(target.shape) != content.shape or not _can_be_filled(local):
            return
        memory = local.device, local.data_ptr(), local.shape, local.stride(), local.dtype
        source = _source_of(content)
        span = _span(local)
        if span and self._filled.get(memory) == source:
            # Tied here and there: it is read once.
            self._sharded.tensors[id(content)] = (target, [])
            return
        if span and not claim(local.data_ptr(), span):
            return
        self._filled[memory] = source
        self._fill(content, target)
        if span:
            name = content.path
            while name in self._places:
                name += "~"
            self._places[name] = Place(target, None, local.data_ptr(), None, None, span)

    def _fill(self, content: JoinedTensor, target: torch.Tensor) -> None:
        """Notes the pieces for the boxes of a tensor."""
        parts = (
            [(item.box, view) for item, view in
             parts_of_local(Sharding.of(target), local_of(target))]
            if is_dtensor(target) else [(Box.whole(content.shape), target.detach())]
        )  # fmt: skip
        for box, view in parts:
            if box.element_count:
                self._fill_box(content, box, view)
        self._sharded.tensors[id(content)] = (target, [])

    def _pieces_of(
        self, rank: int, node: Any, sizes: tuple[int, ...], part: Box, view: torch.Tensor
    ) -> Iterator[Piece]:
        region = _Region(self._assembly, rank, node, sizes)
        return pieces_of(region, part.offsets, part.sizes, view, self._located)

    def _part_of(self, view: torch.Tensor, box: Box) -> torch.Tensor:
        return view_of(view, box)

    def _holds(self, content: JoinedTensor, rank: int, left: list[Box]) -> bool:
        """True when a rank of the mesh held some of the boxes."""
        node = ShardedNode(content.shape, content.dtype, content.ranks, (), content.placement)
        sharding = Sharding.decoded(node)
        if sharding is None or rank not in sharding.mesh_ranks:
            return False
        index, coordinate = sharding.mesh_ranks.index(rank), []
        for count in reversed(sharding.mesh_shape):
            index, place = divmod(index, count)
            coordinate.append(place)
        boxes = sharding.boxes(coordinate[::-1])[1]
        return any(item.box.within(box) for item in boxes for box in left)

    def places_of_divided(self, document: Any) -> dict[str, Place]:
        """The live memory that the pieces fill; what has no live tensor gets a full one."""
        made: dict[object, torch.Tensor] = {}
        for content in joined_tensors(document):
            if id(content) in self._sharded.tensors:
                continue
            key = content.shape, content.dtype, _source_of(content)
            full = made.get(key) if content.boxes else None
            if full is None:
                full = made[key] = torch.empty(
                    content.shape, dtype=dtype_named(content.dtype), device=self.device or "cpu"
                )
                if not full.is_meta:
                    self._fill(content, full)
            # Tied tensors stay one.
            self._sharded.tensors[id(content)] = (full, [])
        return self._places


def _source_of(content: JoinedTensor) -> tuple[Any, ...]:
    """Where its elements are stored; equal for tied tensors."""
    return tuple((box, rank, str(node)) for box, rank, node in content.boxes)


def _without_others(
    comparison: Comparison, node: Any, optimizer: torch.optim.Optimizer, name: str,
    partial: set[str],
) -> Any:  # fmt: skip
    """The state of an optimizer without parameters that are in other stages of a pipeline."""
    record = comparison.objects.get(name, {})
    recorded = record.get("parameters")
    items = {key: child for _, key, child in items_of(node) or []}
    groups = items.get("param_groups")
    if not isinstance(recorded, list) or not isinstance(groups, list):
        return node
    live = {
        bare_name(text) for group in ParameterNames(comparison.targets).of(optimizer)
        for names in group for text in names
    }  # fmt: skip
    kept_names, kept_groups, dropped = [], [], set()
    for group, all_names in zip(groups, recorded, strict=True):
        found = dict((key, child) for _, key, child in items_of(group) or [])
        pairs = []
        for number, names in zip(found["params"], all_names, strict=True):
            texts = recorded_names(names) or ()
            is_other = any(text in partial for text in texts)
            if is_other and not any(bare_name(text) in live for text in texts):
                dropped.add(number)
            else:
                pairs.append((number, names))
        kept_names.append([names for _, names in pairs])
        numbers = [number for number, _ in pairs]
        kept_groups.append(
            with_items(group, [(stored, numbers if key == "params" else child)
                               for stored, key, child in items_of(group) or []])
        )  # fmt: skip
    state = items["state"]
    kept_state = [
        (stored, child) for stored, key, child in items_of(state) or [] if key not in dropped
    ]
    comparison.objects[name] = {**record, "parameters": kept_names}
    new = {"param_groups": kept_groups, "state": with_items(state, kept_state)}
    return with_items(
        node, [(stored, new.get(key, child)) for stored, key, child in items_of(node) or []]
    )


def _like(parameter: Any, leaf: Leaf, *, is_divided: bool) -> torch.Tensor | None:
    """An empty tensor for the state of a parameter, spread as the parameter when it has its
    shape; None where the usual way makes it."""
    dtype = dtype_named(leaf.dtype)
    is_alike = leaf.shape == tuple(parameter.shape) and bool(leaf.shape)
    if is_alike and is_dtensor(parameter):
        local = torch.empty_like(local_of(parameter), dtype=dtype)
        return dtensor(local, parameter.device_mesh, Sharding.of(parameter))
    if not is_divided:
        return None
    if is_alike:
        return torch.empty_like(parameter.detach(), dtype=dtype)
    return torch.empty(leaf.shape, dtype=dtype)


def _can_be_filled(local: torch.Tensor) -> bool:
    if type(local) not in PLAIN_TENSOR_TYPES or local.is_meta or local.is_quantized:
        return False
    return local.layout == torch.strided and not any(
        n > 1 and step == 0 for n, step in zip(local.shape, local.stride(), strict=True)
    )


def _span(local: torch.Tensor) -> int:
    """Bytes from the first element to the last."""
    if not local.numel():
        return 0
    last = sum((n - 1) * step for n, step in zip(local.shape, local.stride(), strict=True))
    return (last + 1) * local.itemsize
