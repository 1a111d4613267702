"""The parts of a JAX array that its processes hold, and memory of the host to load parts into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .._group.boxes import Box


def box_of(index: Any, shape: Sequence[int]) -> Box:
    """The box that an index of a shard is, a slice for each dimension."""
    spans = [part.indices(extent) for part, extent in zip(index, shape, strict=True)]
    return Box(
        tuple(start for start, _, _ in spans),
        tuple(max(0, end - start) for start, end, _ in spans),
    )


def slices_of(box: Box) -> tuple[Any, ...]:
    """The index of a box, which is a view also of an array without dimensions."""
    spans = zip(box.offsets, box.sizes, strict=True)
    return (*(slice(start, start + count) for start, count in spans), ...)


def holders_of(sharding: Any, shape: tuple[int, ...]) -> dict[Box, tuple[int, ...]]:
    """The processes that hold each box of an array, alike on all of them and in one order."""
    found: dict[Box, set[int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        found.setdefault(box_of(index, shape), set()).add(device.process_index)
    order = sorted(found.items(), key=lambda item: (item[0].offsets, item[0].sizes))
    return {box: tuple(sorted(processes)) for box, processes in order}


class Target:
    """Memory of the host for what the devices of this process get of an array."""

    def __init__(self, leaf: Any) -> None:
        """``leaf`` is an array, or a ``jax.ShapeDtypeStruct``."""
        self.shape: tuple[int, ...] = tuple(leaf.shape)
        self.dtype = np.dtype(leaf.dtype)
        self._sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
            jax.local_devices()[0]
        )
        self._devices = {
            device: box_of(index, self.shape)
            for device, index in self._sharding.addressable_devices_indices_map(self.shape).items()
        }
        #: Each box once, whatever number of devices gets it.
        self.parts = {
            box: np.empty(box.sizes, self.dtype) for box in dict.fromkeys(self._devices.values())
        }

    def array(self, leaf: Any) -> Any:
        """The array on the devices of its leaf."""
        if is_free(leaf):
            return jax.device_put(next(iter(self.parts.values())))
        singles = [jax.device_put(self.parts[box], item) for item, box in self._devices.items()]
        return jax.make_array_from_single_device_arrays(
            self.shape, self._sharding, singles, dtype=self.dtype
        )


def is_free(leaf: Any) -> bool:
    """Whether an array is on a device by default only, so that JAX may use it with others."""
    return isinstance(leaf, jax.Array) and not leaf.committed


def placed(value: np.ndarray, leaf: Any) -> Any:
    """An array of the host on the devices of a leaf, of which some may be of other processes."""
    if is_free(leaf):
        return jax.device_put(value)
    if leaf.sharding is None or leaf.sharding.is_fully_addressable:
        return jax.device_put(value, leaf.sharding)
    return jax.make_array_from_callback(
        value.shape, leaf.sharding, lambda index: value[slices_of(box_of(index, value.shape))],
        dtype=value.dtype,
    )  # fmt: skip
