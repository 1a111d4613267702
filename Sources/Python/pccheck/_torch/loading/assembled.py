"""Fills live tensors of any placement from the files of all ranks.

Each live tensor needs boxes of the full one: all of it, or those of its local tensor. They are read
from the files that hold them, this rank's own file first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..._group.assembly import (
    RANDOM_PART,
    Assembly,
    Conflict,
    JoinedManifest,
    JoinedTensor,
)
from ..._group.boxes import Box
from ..._group.claims import ranks_in_words
from ..._group.node import TAG, ShardedNode
from ..._state.comparing import GONE, Comparison, Leaf, items_of, with_items
from ..._state.generators import GENERATOR_TYPES
from ..._state.loading import load_selected
from ..._state.memory import Place
from ..._state.references import tag_of
from ..._state.request import Loading
from ..._state.stored import StoredTensor, View
from ...errors import IncompleteShards, StateFormatError
from ..objects import ParameterNames, bare_name, recorded_names
from ..sharded import Sharding, dtensor, is_dtensor, local_of, parts_of_local, ranks_text, view_of
from ..types import PLAIN_TENSOR_TYPES, dtype_named
from .decoder import TorchMemory, tensor_type
from .pieces import Piece, PieceReader, dense, pieces_of


log = logging.getLogger("pccheck")


def load_assembled(assembly: Assembly, loading: Loading) -> Any:
    """Loads the request from the files of a world; every byte that it reads is verified.

    ``loading`` has an ``AssembledMemory``. As ``load_selected``: a ``StateMismatch`` is raised
    before anything changes. Raises ``IncompleteShards`` when the files lack elements; ``rank`` of
    another error is the rank whose file it concerns.
    """
    memory = loading.memory
    assert isinstance(memory, AssembledMemory)
    manifest = assembly.manifest(loading.part_names)
    memory.begin(assembly, manifest)
    state = load_selected(assembly, loading, manifest)
    if loading.report is None:
        for conflict in manifest.conflicts:
            log.warning("left out: %s", memory.conflict_text(conflict))
    return state


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


class AssembledMemory(TorchMemory):
    """Memory for the state of several files. For one request."""

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(device)
        self._assembly: Assembly | None = None
        self._manifest: JoinedManifest | None = None
        self._pieces: dict[int, list[Piece]] = {}
        self._places: dict[str, Place] = {}
        #: What fills which live memory.
        self._filled: dict[object, tuple[Any, ...]] = {}

    def begin(self, assembly: Assembly, manifest: JoinedManifest) -> None:
        """Starts with the files of one checkpoint."""
        self._assembly, self._manifest = assembly, manifest
        self._pieces, self._places, self._filled = {}, {}, {}
        self._sharded.tensors.clear()

    # -- comparing

    def leaf(self, node: dict[str, Any], tensors: dict[str, StoredTensor]) -> Leaf | None:
        """Type and shape of the full tensor: how it was spread makes no difference."""
        content = node.get(TAG)
        if isinstance(content, JoinedTensor):
            return Leaf(content.dtype, content.shape)
        return super().leaf(node, tensors)

    def live_leaf(self, target: Any) -> Leaf | None:
        """Type and shape of the full live tensor."""
        leaf = super().live_leaf(target)
        return leaf and Leaf(leaf.dtype, leaf.shape)

    def compare_object(self, comparison: Comparison, node: Any, target: Any, name: str) -> Any:
        """Of an optimizer only the parameters that this rank has, where the ranks that saved did
        not all have them."""
        assert self._manifest is not None and self._assembly is not None
        if self._assembly.is_one_for_many and _is_random(target):
            comparison.report.left_alone.append(self._left_alone(name))
            return GONE
        if isinstance(target, torch.optim.Optimizer) and self._manifest.partial:
            node = _without_others(comparison, node, target, name, self._manifest.partial)
        return super().compare_object(comparison, node, target, name)

    def finish_comparison(self, comparison: Comparison) -> None:
        """Reports what ranks stored for themselves, where there is no rank to give it to."""
        assert self._assembly is not None and self._manifest is not None
        report = comparison.report
        # What only some ranks had may be for others now.
        partial = self._manifest.partial
        report.unexpected = [
            name for name in report.unexpected if name.split(".state of ")[-1] not in partial
        ]
        for conflict in self._manifest.conflicts:
            part = conflict.path.split(".")[0]
            target = comparison.targets.get(conflict.path, comparison.targets.get(part))
            is_random = conflict.path == RANDOM_PART or _is_random(target)
            where = report.left_alone if is_random else report.ambiguous
            where.append(self.conflict_text(conflict, is_random=is_random))
            below = f"{conflict.path}."
            report.missing = [
                name for name in report.missing
                if name != conflict.path and not name.startswith(below)
            ]  # fmt: skip

    def conflict_text(self, conflict: Conflict, *, is_random: bool = False) -> str:
        """Why what each rank stored for itself is not loaded."""
        if is_random or conflict.path == RANDOM_PART:
            return self._left_alone(conflict.path)
        return self._ambiguous(conflict)

    def _left_alone(self, path: str) -> str:
        assert self._assembly is not None
        count = self._assembly.world_size
        saved = "one rank" if count == 1 else f"{count} ranks"
        return f"{path}: random generators belong to a rank; a world of {saved} saved them"

    def _ambiguous(self, conflict: Conflict) -> str:
        where = "" if conflict.where == conflict.path else f", at {conflict.where}"
        groups = " and ".join(map(ranks_in_words, conflict.ranks))
        return (
            f"{conflict.path}: differs between {groups}{where}; each rank stored its own: declare "
            "the part as shared, leave it out, or give strict=False to leave it as it is"
        )

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
        assert self._manifest is not None
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
        source = tuple((box, rank, str(node)) for box, rank, node in content.boxes)
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

    def _fill_box(self, content: JoinedTensor, needed: Box, view: torch.Tensor) -> None:
        assert self._assembly is not None
        left = [needed]
        for box, rank, node in content.boxes:
            remaining: list[Box] = []
            region: _Region | None = None
            for part in left:
                common = part.within(box)
                if common is None:
                    remaining.append(part)
                    continue
                remaining += part.without(common)
                region = region or _Region(self._assembly, rank, node, box.sizes)
                self._pieces.setdefault(rank, []).extend(
                    pieces_of(
                        region, common.relative_to(box).offsets, common.sizes,
                        view_of(view, common.relative_to(needed)),
                    )
                )  # fmt: skip
            left = remaining
            if not left:
                return
        raise self._incomplete(content, needed, left)

    def _incomplete(self, content: JoinedTensor, needed: Box, left: list[Box]) -> IncompleteShards:
        assert self._assembly is not None
        missing = [rank for rank in self._assembly.missing_ranks if rank in content.ranks]
        having = [rank for rank in missing if _holds(content, rank, left)]
        ranks = having or missing
        held = needed.element_count - sum(box.element_count for box in left)
        reason = (
            f"give the file of {ranks_in_words(ranks)}, which has the rest" if ranks
            else "no rank of this world has them"
        )  # fmt: skip
        return IncompleteShards(
            f"'{content.path}' lacks {', '.join(map(str, left[:3]))}: of {needed.element_count} "
            f"elements these files hold {held}; {reason}. The files of all ranks are those "
            f"of {ranks_text(content.ranks)}",
            ranks=ranks,
        )

    def places_of_divided(self, document: Any) -> dict[str, Place]:
        """The live memory that the pieces fill; what has no live tensor gets a full one."""
        for content in _joined_tensors(document):
            if id(content) in self._sharded.tensors:
                continue
            full = torch.empty(
                content.shape, dtype=dtype_named(content.dtype), device=self.device or "cpu"
            )
            if full.is_meta:
                self._sharded.tensors[id(content)] = (full, [])
            else:
                self._fill(content, full)
        return self._places

    def read_divided(self) -> None:
        """Reads the pieces, one file after another."""
        assert self._assembly is not None
        for rank, pieces in self._pieces.items():
            with self._assembly.blamed_on(rank):
                byte_count = self._assembly.payload_byte_count(rank)
                PieceReader(self._assembly.readers[rank], byte_count).read(pieces)
        self._pieces = {}


def _is_random(target: Any) -> bool:
    """True for a random generator, and for a nest of nothing else."""
    if isinstance(target, (dict, list, tuple)) and target:
        return all(map(_is_random, target.values() if isinstance(target, dict) else target))
    return isinstance(target, (torch.Generator, *GENERATOR_TYPES))


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


def _joined_tensors(node: Any) -> Iterator[JoinedTensor]:
    """The tensors of a document that are divided, in its order."""
    if isinstance(node, dict) and tag_of(node) == TAG:
        if isinstance(node[TAG], JoinedTensor):
            yield node[TAG]
    elif isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _joined_tensors(child)


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


def _holds(content: JoinedTensor, rank: int, left: list[Box]) -> bool:
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
