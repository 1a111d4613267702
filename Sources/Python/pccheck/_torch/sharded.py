"""Tensors that several processes share: each saves its own shard, and records where it belongs.

A DTensor is stored as the local tensor of this rank, with the global shape, the placements and
the mesh. It comes back into a live DTensor of the same sharding, or as a ``LocalShard``; the files
of all ranks together make full tensors again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._state.nesting import joined as key_path
from ..errors import CheckpointError, StateFormatError


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
    #: Such as ``S(0)``, ``R``, ``P(sum)``, ``SS(0,2)``; one for each dimension of the mesh.
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
    def decoded(cls, content: Any) -> Sharding:
        """The sharding that a document describes."""
        try:
            mesh = content["mesh"]
            names = mesh["names"]
            sharding = cls(
                _counts(content["shape"]), _counts(content["stride"]),
                tuple(str(item) for item in content["placements"]), _counts(mesh["shape"]),
                None if names is None else tuple(str(name) for name in names),
                _counts(mesh["ranks"]), _counts(mesh["coordinate"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise StateFormatError(f"the state document has a damaged $dtensor: {error}") from None
        dimensions = len(sharding.mesh_shape)
        if len(sharding.placements) != dimensions or len(sharding.coordinate) != dimensions:
            raise StateFormatError(
                f"the state document has a damaged $dtensor: {len(sharding.placements)} placements "
                f"and {len(sharding.coordinate)} coordinates for a mesh of {dimensions} dimensions"
            )
        return sharding

    def document(self) -> dict[str, Any]:
        """What is stored besides the local tensor."""
        return {
            "shape": list(self.shape), "stride": list(self.stride),
            "placements": list(self.placements),
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
        return f"sharded {' '.join(self.placements)} on ranks {_ranks(self.mesh_ranks)}, {mesh}"

    def window(self) -> tuple[slice, ...] | None:
        """The part of the full tensor that is here; None when it is no block of it."""
        starts, sizes = [0] * len(self.shape), list(self.shape)
        for placement, count, place in zip(
            self.placements, self.mesh_shape, self.coordinate, strict=True
        ):
            if placement == "R":
                continue
            if not placement.startswith("S("):
                return None
            axis = int(placement[2:-1])
            block = -(-sizes[axis] // count)
            start = min(block * place, sizes[axis])
            starts[axis] += start
            sizes[axis] = min(block, sizes[axis] - start)
        return tuple(
            slice(start, start + size) for start, size in zip(starts, sizes, strict=True)
        )


@dataclass(frozen=True)
class LocalShard:
    """What one rank saved of a DTensor, when there is no live one to fill."""

    local: torch.Tensor
    sharding: Sharding

    def to_dtensor(self, mesh: Any) -> torch.Tensor:
        """A DTensor on a live mesh of the same ranks."""
        return dtensor(self.local, mesh, self.sharding)


def dtensor(local: torch.Tensor, mesh: Any, sharding: Sharding) -> torch.Tensor:
    """A DTensor from its local part; no process talks to another."""
    from torch.distributed.tensor import DTensor

    placements = [_placement_named(text) for text in sharding.placements]
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(sharding.shape),
        stride=sharding.stride,
    )  # fmt: skip


def _placement(placement: Any) -> str:
    kind = type(placement).__name__
    if kind == "Shard":
        return f"S({placement.dim})"
    if kind == "_StridedShard":
        return f"SS({placement.dim},{placement.split_factor})"
    if kind == "Replicate":
        return "R"
    if kind == "Partial":
        return f"P({placement.reduce_op})"
    raise TypeError(
        f"a DTensor with the placement {placement} cannot be stored in a checkpoint; redistribute "
        "it to Shard or Replicate"
    )


def _placement_named(text: str) -> Any:
    from torch.distributed import tensor as module

    kind, _, rest = text.partition("(")
    arguments = rest.removesuffix(")").split(",")
    if kind == "R":
        return module.Replicate()
    if kind == "S":
        return module.Shard(int(arguments[0]))
    if kind == "P":
        return module.Partial(arguments[0])
    if kind == "SS":
        from torch.distributed.tensor.placement_types import _StridedShard

        return _StridedShard(int(arguments[0]), split_factor=int(arguments[1]))
    raise StateFormatError(f"the state document has the unknown placement {text!r}")


def _counts(values: Any) -> tuple[int, ...]:
    counts = tuple(values)
    if not all(type(value) is int and 0 <= value < 1 << 48 for value in counts):
        raise ValueError(f"{values!r} are not counts")
    return counts


def _ranks(ranks: tuple[int, ...]) -> str:
    if len(ranks) > 1 and ranks == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]} to {ranks[-1]}"
    return ", ".join(map(str, ranks))


# -- full tensors again


def joined(values: Sequence[Any], path: str = "") -> Any:
    """One nest from those of all ranks: shards are put together, the rest is the first one's."""
    first = values[0]
    if isinstance(first, LocalShard):
        return _whole(values, path)
    if isinstance(first, dict):
        _expect_alike(values, path, len(first))
        # A copy has what is not among its items, such as what a defaultdict makes.
        result = first.copy()
        for key in first:
            result[key] = joined([value[key] for value in values], key_path(path, key))
        return result
    if isinstance(first, (list, tuple, deque)) and type(first) is not torch.Size:
        _expect_alike(values, path, len(first))
        items = [
            joined([value[index] for value in values], key_path(path, index))
            for index in range(len(first))
        ]
        if isinstance(first, deque):
            return deque(items, first.maxlen)
        return items if isinstance(first, list) else tuple.__new__(type(first), items)
    return first


def _expect_alike(values: Sequence[Any], path: str, count: int) -> None:
    if any(type(value) is not type(values[0]) or len(value) != count for value in values):
        raise CheckpointError(
            f"'{path or 'the state'}' has not the same keys in the files of all ranks"
        )


def _whole(shards: Sequence[Any], path: str) -> torch.Tensor:
    """Every element comes from the shard that holds it; one that none holds is an error."""
    if not all(isinstance(shard, LocalShard) for shard in shards):
        raise CheckpointError(f"'{path}' is sharded in the files of some ranks only")
    sharding = shards[0].sharding
    whole = torch.empty(
        sharding.shape, dtype=shards[0].local.dtype, device=shards[0].local.device
    )
    windows = set()
    for shard in shards:
        window = shard.sharding.window()
        if window is None or shard.sharding.shape != sharding.shape:
            raise CheckpointError(
                f"'{path}' is {shard.sharding}, which is not made of blocks; load it into the same "
                "sharding"
            )
        if whole[window].shape != shard.local.shape:
            raise CheckpointError(
                f"'{path}' is {shard.sharding}, but its part has the shape "
                f"{tuple(shard.local.shape)}, expected {tuple(whole[window].shape)}"
            )
        whole[window] = shard.local
        windows.add(tuple((part.start, part.stop) for part in window))
    held = sum(_element_count(window) for window in windows)
    if held != whole.numel():
        raise CheckpointError(
            f"'{path}' has {whole.numel()} elements, and these files hold {held} of them; give the "
            f"files of all ranks: {_ranks(sharding.mesh_ranks)}"
        )
    return whole


def _element_count(window: tuple[tuple[int, int], ...]) -> int:
    count = 1
    for start, stop in window:
        count *= stop - start
    return count
