"""The node of a tensor that is divided among files: spec/STATE.md, "Sharded tensors"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import StateFormatError
from .boxes import Box

TAG = "$sharded"
#: Sizes are below this, as in views; so are the numbers of ranks.
_LIMIT = 1 << 48


@dataclass(frozen=True)
class ShardedNode:
    """What one file holds of a tensor, and what the tensor is."""

    shape: tuple[int, ...]
    #: Name of torch's type, such as ``bfloat16``.
    dtype: str
    #: The ranks whose files hold the tensor together.
    ranks: tuple[int, ...]
    #: The parts that are in this file, each with the node of a tensor.
    boxes: tuple[tuple[Box, Any], ...]
    #: Of a DTensor, how the live one was placed.
    placement: dict[str, Any] | None = None

    @classmethod
    def parsed(cls, content: Any) -> ShardedNode:
        """The content of a node; raises ``StateFormatError`` for what cannot be one."""
        try:
            shape = counts(content["shape"])
            placement = content.get("placement")
            boxes = tuple(_box(item, shape) for item in content["boxes"])
            dtype = content["dtype"]
            if type(dtype) is not str or not isinstance(placement, (dict, type(None))):
                raise ValueError("its type or its placement")
            return cls(shape, dtype, counts(content["ranks"]), boxes, placement)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateFormatError(f"the state document has a damaged {TAG}: {error}") from None

    def document(self) -> dict[str, Any]:
        """The node."""
        boxes = [
            {"offsets": list(box.offsets), "sizes": list(box.sizes), "local": node}
            for box, node in self.boxes
        ]
        content: dict[str, Any] = {
            "shape": list(self.shape), "dtype": self.dtype, "ranks": list(self.ranks),
            "boxes": boxes,
        }  # fmt: skip
        if self.placement is not None:
            content["placement"] = self.placement
        return {TAG: content}


def _box(item: Any, shape: Sequence[int]) -> tuple[Box, Any]:
    box = Box(counts(item["offsets"]), counts(item["sizes"]))
    is_inside = len(box.offsets) == len(box.sizes) == len(shape) and all(
        start + count <= extent
        for start, count, extent in zip(box.offsets, box.sizes, shape, strict=True)
    )
    if not is_inside:
        raise ValueError(f"{box} is no part of a tensor of {tuple(shape)}")
    return box, item["local"]


def counts(values: Any) -> tuple[int, ...]:
    """A list of numbers that are not negative; raises ``ValueError``."""
    found = tuple(values)
    if not all(type(value) is int and 0 <= value < _LIMIT for value in found):
        raise ValueError(f"{values!r} are not counts")
    return found
