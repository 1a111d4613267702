"""Fills the parts of arrays that the devices of this process need, from the files of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .._group.assembled import Assembled, joined_tensors
from .._group.assembly import Assembly, JoinedManifest, JoinedTensor
from .._group.boxes import Box
from .._group.node import TAG
from .._group.pieces import DenseBox, Piece, split
from .._state.comparing import Leaf
from .._state.decoder import Decoder
from .._state.memory import Place
from .._state.stored import StoredTensor, array_type, dtype_named
from ..errors import StateFormatError
from .arrays import Target, slices_of


class JaxMemory(Assembled):
    """Memory for the parts of arrays. For one request."""

    def __init__(self, *, reads_rest: bool) -> None:
        """``reads_rest``: what has no target is read whole, and not left out."""
        self._reads_rest = reads_rest
        # What gets the values of a divided tensor, by the identity of its content.
        self._filled: dict[int, Any] = {}

    def begin(self, assembly: Assembly, manifest: JoinedManifest) -> None:
        """Starts with the files of one checkpoint."""
        super().begin(assembly, manifest)
        self._filled.clear()

    def decoder(self, tensors: dict[str, StoredTensor], made: dict[object, Any]) -> Decoder:
        """The decoder that knows what was filled."""
        return _JaxDecoder(tensors, made, self._filled)

    # -- comparing

    def live_leaf(self, target: Any) -> Leaf | None:
        """Type and shape of the full array."""
        if isinstance(target, Target):
            return Leaf(target.dtype.name, target.shape)
        return super().live_leaf(target)

    def fills_in_place(self, target: Any) -> bool:
        """True when a loaded value goes into this object rather than in its place."""
        return isinstance(target, Target) or super().fills_in_place(target)

    # -- reading

    def unwrapped(
        self, node: dict[str, Any], target: Any, claim: Callable[[int, int], bool]
    ) -> list[tuple[Any, Any]]:
        """Notes what is to be read into a target, which has memory of its own."""
        content = node.get(TAG)
        if isinstance(content, JoinedTensor) and self.live_leaf(target) is not None:
            if target.shape == content.shape:
                self._fill(content, target)
        return []

    def _fill(self, content: JoinedTensor, target: Any) -> None:
        whole = Box.whole(content.shape)
        parts = target.parts if isinstance(target, Target) else {whole: target}
        for box, view in parts.items():
            if box.element_count:
                self._fill_box(content, box, view)
        self._filled[id(content)] = target

    def places_of_divided(self, document: Any) -> dict[str, Place]:
        """No memory that anybody sees before the load is over; the rest gets memory here."""
        for content in joined_tensors(document) if self._reads_rest else ():
            if id(content) not in self._filled:
                dtype = dtype_named(content.dtype, content.path)
                self._fill(content, np.empty(content.shape, dtype))
        return {}

    def _pieces_of(
        self, rank: int, node: Any, sizes: tuple[int, ...], part: Box, view: np.ndarray
    ) -> Iterator[Piece]:
        name = node.get("$tensor") if isinstance(node, dict) else None
        if not isinstance(name, str):
            raise StateFormatError(
                f"the file of rank {rank} has a part of a tensor that JAX did not save; load it "
                "with pccheck.torch"
            )
        stored = self._assembly.stored(rank, name)
        dtype, shape = array_type(stored, node.get("dtype"))
        if shape != sizes:
            raise StateFormatError(
                f"the file of rank {rank} has a part of the shape {shape}, expected {sizes}"
            )
        box = DenseBox(stored.payload_offset, sizes, part.offsets, part.sizes, view)
        return split(box, dtype, _Arrays())

    def _part_of(self, view: np.ndarray, box: Box) -> np.ndarray:
        part: np.ndarray = view[slices_of(box)]
        return part


class _Arrays:
    """Arrays of NumPy, which convert what they are given."""

    def place(self, target: np.ndarray, dtype: np.dtype[Any]) -> tuple[None, int]:
        is_direct = target.dtype == dtype and target.flags.c_contiguous
        return None, target.ctypes.data if is_direct else 0

    def filling(
        self, target: np.ndarray, dtype: np.dtype[Any], shape: Sequence[int],
        offsets: Sequence[int], lengths: Sequence[int],
    ) -> Callable[[np.ndarray], object]:  # fmt: skip
        def fill(memory: np.ndarray) -> None:
            rows = memory.view(dtype).reshape(*lengths[:1], *shape[1:])
            within = Box((0, *offsets[1:]), tuple(lengths)) if lengths else Box((), ())
            target[...] = rows[slices_of(within)]

        return fill


class _JaxDecoder(Decoder):
    """Adds what is divided among files."""

    def __init__(
        self, tensors: dict[str, StoredTensor], made: dict[object, Any], filled: dict[int, Any]
    ) -> None:
        super().__init__(tensors, made)
        self._filled = filled

    def decode_other(self, tag: str, document: dict[str, Any]) -> Any:
        """What was filled; None for what nobody wanted."""
        if tag == TAG:
            return self._filled.get(id(document[tag]))
        return super().decode_other(tag, document)
