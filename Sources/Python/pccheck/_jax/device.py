"""Arrays on one CUDA device, which the engine copies from there itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from .._core import native
from .._core.tensors import DevicePlace
from .._group.boxes import Box


class Devices(Protocol):
    """The devices whose memory the engine reads itself; CUDA's, or in a test another."""

    def locate(self, array: jax.Array) -> tuple[DevicePlace, int] | None:
        """Where the values of an array are, once they are computed; None for one that the engine
        does not read on a device."""
        ...


class CudaDevices:
    """What JAX knows of CUDA."""

    def locate(self, array: jax.Array) -> tuple[DevicePlace, int] | None:
        """The place of an array that is on one CUDA device as a whole."""
        if not (array.is_fully_addressable and len(array.devices()) == 1):
            return None
        (device,) = array.devices()
        is_cuda = device.platform in ("gpu", "cuda") and "cuda" in device.client.platform_version
        ordinal = device.local_hardware_id
        if not (is_cuda and ordinal is not None and is_dense(array)):
            return None
        return DevicePlace(native.DEVICE_CUDA, ordinal), address_of(array)


def address_of(array: jax.Array) -> int:
    """The address of the only buffer of an array, which then has its values."""
    return int(array.block_until_ready().unsafe_buffer_pointer())


def is_dense(array: jax.Array) -> bool:
    """True when the buffer of an array is its elements, row by row; False where an older JAX
    cannot tell."""
    form: Any = getattr(array, "format", None)
    layout = getattr(form, "layout", None)
    return layout is not None and (
        tuple(layout.major_to_minor) == tuple(range(array.ndim))
        and not layout.tiling
        and array.on_device_size_in_bytes() == array.nbytes
    )


@dataclass(frozen=True)
class OnDevice:
    """Rows of an array that stay where they are while they are saved."""

    array: jax.Array
    place: DevicePlace
    address: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, devices: Devices, array: jax.Array) -> OnDevice | None:
        """All of an array; None where the engine does not read it on a device."""
        located = devices.locate(array) if array.nbytes else None
        return located and cls(array, *located, tuple(array.shape))

    def part(self, box: Box) -> OnDevice | None:
        """A box that is a run of rows; None for one that is not one piece of memory."""
        if box.sizes[1:] != self.shape[1:]:
            return None
        row_byte_count = math.prod(self.shape[1:]) * self.array.dtype.itemsize
        start = box.offsets[0] * row_byte_count if box.offsets else 0
        return OnDevice(self.array, self.place, self.address + start, box.sizes)

    @property
    def byte_count(self) -> int:
        """Bytes of the rows."""
        return math.prod(self.shape) * self.array.dtype.itemsize
