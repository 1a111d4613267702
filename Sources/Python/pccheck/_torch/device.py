"""Tensors on a CUDA device: where they are, and on which stream they change.

    current stream   … step n │ save: event              │ optimizer hook: waits   step n+1 …
    engine's stream           └ waits │ copies, chunk by chunk, into the pool ┘

The engine copies device memory itself, behind all work that was queued before ``save``. ``save``
waits for no device, and neither does the host at the next step of the optimizer: the current stream
does, until the copies are made. The copies take no device memory, unless a tensor is not
contiguous.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from .._core import native
from .._core.tensors import DevicePlace
from ..errors import InvalidArgument


class Devices(Protocol):
    """The devices whose memory the engine reads and fills itself; CUDA's, or in a test another."""

    def locate(self, tensor: torch.Tensor) -> tuple[DevicePlace, int] | None:
        """The device of a tensor, without a stream, and its address there; None for one that the
        engine does not read on a device."""
        ...

    def are_host(self, tensors: Sequence[torch.Tensor]) -> bool:
        """True when `locate` knows none of them, and all are on the CPU."""
        ...

    def current_stream(self, place: DevicePlace) -> int | None:
        """The stream of a device on which the calling thread queues its work; None while that
        records a graph."""
        ...


class CudaDevices:
    """What torch knows of CUDA. Everything here is cheap, and waits for nothing."""

    def locate(self, tensor: torch.Tensor) -> tuple[DevicePlace, int] | None:
        """The place of a tensor on a CUDA device. ROCm, which torch calls CUDA too, is not one."""
        if not tensor.is_cuda or torch.version.hip is not None:
            return None
        return _place(tensor.device.index), tensor.data_ptr()

    def are_host(self, tensors: Sequence[torch.Tensor]) -> bool:
        """All are on the CPU."""
        return all([tensor.is_cpu for tensor in tensors])

    def current_stream(self, place: DevicePlace) -> int | None:
        """The current stream of torch; graphs are recorded by one thread at a time."""
        if torch.cuda.is_current_stream_capturing():
            return None
        return int(torch.cuda.current_stream(place.ordinal).cuda_stream)


@functools.lru_cache(maxsize=64)
def _place(ordinal: int) -> DevicePlace:
    """One object for all tensors of a device."""
    return DevicePlace(native.DEVICE_CUDA, ordinal)


def with_stream(devices: Devices, place: DevicePlace) -> DevicePlace:
    """The place with its current stream; raises while that records a graph."""
    stream = devices.current_stream(place)
    if stream is None:
        raise InvalidArgument(
            "save() or load() was called while a CUDA graph is recorded, when no tensor has its "
            "values; call it after the capture"
        )
    return replace(place, stream=stream)
