"""Tensors that several processes share: what this one holds of them, and how it is described.

A DTensor is stored as the boxes of its local tensor, with the global shape, the placements and the
mesh. A replica that is divided among ranks is stored as boxes too. The files of all ranks together
hold the tensor, whatever their number is at the next start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._group.boxes import Box, LocalBox, Placement, holders, local_boxes
from .._group.node import ShardedNode, counts
from ..errors import CheckpointError, StateFormatError
from .types import dtype_name


def is_dtensor(value: object) -> bool:
    """True for a DTensor; does not import what defines them."""
    kind = type(value)
    return kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed.")


def local_of(value: torch.Tensor) -> torch.Tensor:
    """The tensor that this process holds of a DTensor, or the tensor itself."""
    if not is_dtensor(value):
        return value
    local: torch.Tensor = value.detach().to_local()  # type: ignore[attr-defined]
    return local


@dataclass(frozen=True)
class Sharding:
    """How a tensor is spread over a mesh of processes, and which part of it is here."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    #: Such as ``S(0)``, ``R``, ``SS(0,2)``; one for each dimension of the mesh.
    placements: tuple[str, ...]
    mesh_shape: tuple[int, ...]
    mesh_names: tuple[str, ...] | None
    mesh_ranks: tuple[int, ...]
    #: Where this process stands in the mesh.
    coordinate: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any) -> Sharding:
        """The sharding of a live DTensor."""
        mesh = tensor.device_mesh
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            raise CheckpointError(
                "this process is not part of the mesh of a DTensor, and so has nothing of it to "
                "save or load"
            )
        names = mesh.mesh_dim_names
        return cls(
            tuple(tensor.shape), tuple(tensor.stride()), tuple(map(_placement, tensor.placements)),
            tuple(mesh.mesh.shape), tuple(names) if names else None,
            tuple(mesh.mesh.flatten().tolist()), tuple(coordinate),
        )  # fmt: skip

    @classmethod
    def decoded(cls, node: ShardedNode) -> Sharding | None:
        """The sharding that a document describes; None for replicas."""
        if node.placement is None:
            return None
        try:
            mesh = node.placement["mesh"]
            names = mesh["names"]
            sharding = cls(
                node.shape, counts(node.placement["stride"]),
                tuple(str(item) for item in node.placement["placements"]), counts(mesh["shape"]),
                None if names is None else tuple(str(name) for name in names),
                counts(mesh["ranks"]), counts(mesh["coordinate"]),
            )  # fmt: skip
            sharding.boxes()
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise StateFormatError(f"the state document has a damaged $sharded: {error}") from None
        return sharding

    def document(self) -> dict[str, Any]:
        """What is stored of it besides the shape."""
        return {
            "placements": list(self.placements), "stride": list(self.stride),
            "mesh": {
                "shape": list(self.mesh_shape),
                "names": None if self.mesh_names is None else list(self.mesh_names),
                "ranks": list(self.mesh_ranks), "coordinate": list(self.coordinate),
            },
        }  # fmt: skip

    @property
    def mesh(self) -> tuple[object, ...]:
        """What two meshes must have in common to be the same."""
        return self.mesh_shape, self.mesh_names, self.mesh_ranks, self.coordinate

    def __str__(self) -> str:
        names = self.mesh_names or ("dim",) * len(self.mesh_shape)
        mesh = ", ".join(
            f"{name} {place + 1} of {count}"
            for name, place, count in zip(names, self.coordinate, self.mesh_shape, strict=True)
        )
        return f"sharded {' '.join(self.placements)} on ranks {ranks_text(self.mesh_ranks)}, {mesh}"

    def boxes(
        self, coordinate: Sequence[int] | None = None
    ) -> tuple[tuple[int, ...], list[LocalBox]]:
        """The shape of the local tensor at a coordinate, here by default, and its boxes."""
        placements = [Placement.parsed(text) for text in self.placements]
        place = self.coordinate if coordinate is None else coordinate
        return local_boxes(self.shape, placements, self.mesh_shape, place)

    def holders(self) -> tuple[int, ...]:
        """The ranks that hold the same boxes as this one."""
        placements = [Placement.parsed(text) for text in self.placements]
        return holders(placements, self.mesh_shape, self.mesh_ranks, self.coordinate)


@dataclass(frozen=True)
class Pieces:
    """The parts of a tensor that this process stores."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    #: The ranks that store the tensor together.
    ranks: tuple[int, ...]
    #: Boxes of the full tensor, and their values.
    parts: tuple[tuple[Box, torch.Tensor], ...]
    sharding: Sharding | None = None

    def document(self, nodes: Sequence[Any]) -> dict[str, Any]:
        """The node, with those of the parts."""
        boxes = tuple((box, node) for (box, _), node in zip(self.parts, nodes, strict=True))
        placement = None if self.sharding is None else self.sharding.document()
        return ShardedNode(
            self.shape, dtype_name(self.dtype), self.ranks, boxes, placement
        ).document()


def pieces_of_dtensor(tensor: torch.Tensor) -> Pieces:
    """All that this process holds of a DTensor. Raises ``TypeError`` for one without boxes."""
    sharding = Sharding.of(tensor)
    parts = tuple((item.box, part) for item, part in parts_of_local(sharding, local_of(tensor)))
    return Pieces(sharding.shape, tensor.dtype, sharding.mesh_ranks, parts, sharding)


def parts_of_local(
    sharding: Sharding, local: torch.Tensor
) -> list[tuple[LocalBox, torch.Tensor]]:
    """The boxes of a local tensor as views of it. Raises ``TypeError`` when it is not laid out as
    its placements say."""
    shape, boxes = sharding.boxes()
    if tuple(local.shape) != shape and (boxes or local.numel()):
        raise TypeError(
            f"its local tensor has the shape {tuple(local.shape)}, expected {shape} for "
            f"{sharding}; make it with distribute_tensor, or give from_local its shape and stride"
        )
    return [(item, view_of(local, item.local)) for item in boxes]


def view_of(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    """A part of a tensor; the tensor itself when that is all of it."""
    view = tensor.detach()
    for axis, (start, count) in enumerate(zip(box.offsets, box.sizes, strict=True)):
        if count != view.shape[axis]:
            view = view.narrow(axis, start, count)
    return view


@dataclass(frozen=True)
class LocalShard:
    """What one rank saved of a tensor, when there is no live one to fill."""

    #: Boxes of the full tensor, and their values.
    parts: tuple[tuple[Box, torch.Tensor], ...]
    #: Of the full tensor.
    shape: tuple[int, ...]
    dtype: torch.dtype
    #: None for a part of a replica.
    sharding: Sharding | None

    @property
    def local(self) -> torch.Tensor:
        """The local tensor of a DTensor, or the one part of a replica."""
        if self.sharding is None:
            if len(self.parts) != 1:
                raise CheckpointError(
                    f"this file holds {len(self.parts)} parts of a tensor of {self.shape}; use "
                    ".parts, or join the files of all ranks with load_full"
                )
            return self.parts[0][1]
        shape, boxes = self.sharding.boxes()
        places = {item.box: item.local for item in boxes}
        if places.keys() != {box for box, _ in self.parts}:
            raise CheckpointError(
                f"this file holds a part only of what its rank had of a tensor {self.sharding}; "
                "join the files of all ranks with load_full"
            )
        if len(self.parts) == 1:
            return self.parts[0][1]
        device = self.parts[0][1].device if self.parts else None
        local = torch.empty(shape, dtype=self.dtype, device=device)
        for box, part in self.parts:
            view_of(local, places[box]).copy_(part)
        return local

    def to_dtensor(self, mesh: Any) -> torch.Tensor:
        """A DTensor on a live mesh of the same ranks."""
        if self.sharding is None:
            raise CheckpointError("this part of a replica was no DTensor; distribute the full one")
        return dtensor(self.local, mesh, self.sharding)


def dtensor(local: torch.Tensor, mesh: Any, sharding: Sharding) -> torch.Tensor:
    """A DTensor from its local part; no process talks to another."""
    from torch.distributed.tensor import DTensor

    placements = [_placement_named(text) for text in sharding.placements]
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(sharding.shape),
        stride=sharding.stride,
    )  # fmt: skip


def spread_like(live: Any, full: torch.Tensor) -> torch.Tensor:
    """A DTensor of the values of a full tensor, spread as a live one of its shape."""
    sharding = Sharding.of(live)
    local = torch.empty_like(local_of(live), dtype=full.dtype)
    for item, view in parts_of_local(sharding, local):
        view.copy_(view_of(full, item.box))
    return dtensor(local, live.device_mesh, sharding)


def _placement(placement: Any) -> str:
    kind = type(placement).__name__
    if kind == "Shard":
        return f"S({placement.dim})"
    if kind == "_StridedShard":
        return f"SS({placement.dim},{placement.split_factor})"
    if kind == "Replicate":
        return "R"
    raise TypeError(
        f"a DTensor with the placement {placement} cannot be stored in a checkpoint; redistribute "
        "it to Shard or Replicate"
    )


def _placement_named(text: str) -> Any:
    from torch.distributed import tensor as module

    placement = Placement.parsed(text)
    if placement.axis is None:
        return module.Replicate()
    if text.startswith("SS"):
        from torch.distributed.tensor.placement_types import _StridedShard

        return _StridedShard(placement.axis, split_factor=placement.factor)
    return module.Shard(placement.axis)


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks as a message names them."""
    if len(ranks) > 1 and tuple(ranks) == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]} to {ranks[-1]}"
    return ", ".join(map(str, ranks))
