"""A CUDA device for tests where there is none: the engine's real code over the stand-in driver.

A tensor here is memory that both sides know under an address of their own. Torch has one that the
host can read, so that "kernels", which are functions that run late on a stream's thread, can work
on it. PCcheck gets the address on the device, at which the host faults.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pccheck._core import native
from pccheck._core.tensors import DevicePlace

LIBRARY = Path(__file__).resolve().parents[2] / "build" / "tests" / "fakecuda" / "libcuda.so.1"
_KERNEL = c.CFUNCTYPE(None, c.c_void_p)


class StandIn:
    """The devices of one process: see `pccheck._torch.device.Devices`."""

    def __init__(self) -> None:
        # By its soname, the engine then finds this library in place of the driver.
        self.driver = c.CDLL(str(LIBRARY))
        self.driver.fakecuda_view.restype = c.c_void_p
        self.driver.fakecuda_view.argtypes = [c.c_uint64]
        for name in ("fakecuda_copied_bytes", "fakecuda_unpinned_copies", "fakecuda_calls"):
            getattr(self.driver, name).restype = c.c_uint64
        self._call("cuInit", c.c_uint(0))
        self._contexts: dict[int, c.c_uint64] = {}
        self._streams: dict[int, int] = {}
        #: Host address, size, device and its address, of each piece of memory.
        self._memory: list[tuple[int, int, int, int]] = []
        self._kernels: list[Any] = []

    def _call(self, name: str, *arguments: Any) -> None:
        error = getattr(self.driver, name)(*arguments)
        assert error == 0, f"{name} failed: {error}"

    @contextlib.contextmanager
    def _on(self, ordinal: int) -> Iterator[None]:
        context = self._contexts.get(ordinal)
        if context is None:
            context = self._contexts[ordinal] = c.c_uint64()
            self._call("cuDevicePrimaryCtxRetain", c.byref(context), ordinal)
        self._call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", c.byref(c.c_uint64()))

    # -- memory and work

    def empty(
        self, *shape: int, dtype: torch.dtype = torch.float32, ordinal: int = 0
    ) -> torch.Tensor:
        """A tensor on a device, with what was in its memory."""
        used = math.prod(shape) * dtype.itemsize
        byte_count = max(1, used)
        address = c.c_uint64()
        with self._on(ordinal):
            self._call("cuMemAlloc_v2", c.byref(address), c.c_size_t(byte_count))
        host = self.driver.fakecuda_view(address)
        assert host
        self._memory.append((host, byte_count, ordinal, address.value))
        memory = (c.c_uint8 * byte_count).from_address(host)
        return torch.frombuffer(memory, dtype=torch.uint8)[:used].view(dtype).view(shape)

    def put(self, tensor: torch.Tensor, ordinal: int = 0) -> torch.Tensor:
        """A copy of a tensor on a device."""
        made = self.empty(*tensor.shape, dtype=tensor.dtype, ordinal=ordinal)
        return made.copy_(tensor)

    def stream(self, ordinal: int = 0) -> int:
        """The stream that trains."""
        if ordinal not in self._streams:
            self._streams[ordinal] = self.new_stream(ordinal)
        return self._streams[ordinal]

    def new_stream(self, ordinal: int = 0) -> int:
        """Another stream, which does not wait for the one that trains."""
        stream = c.c_uint64()
        with self._on(ordinal):
            self._call("cuStreamCreate", c.byref(stream), c.c_uint(1))
        return stream.value

    def launch(
        self, kernel: Callable[[], object], changes: Sequence[torch.Tensor] = (), ordinal: int = 0
    ) -> None:
        """Queues work. As with a device, torch counts the changes now and they happen later."""
        for tensor in changes:
            torch.autograd.graph.increment_version(tensor)
        function = _KERNEL(lambda _: kernel() and None)
        self._kernels.append(function)
        with self._on(ordinal):
            self._call(
                "cuLaunchHostFunc", c.c_uint64(self.stream(ordinal)), function, c.c_void_p()
            )

    def fill(self, tensor: torch.Tensor, value: float, ordinal: int = 0) -> None:
        """Queues a kernel that fills a tensor."""
        array = numbers(tensor)
        self.launch(lambda: array.fill(value), [tensor], ordinal)

    def synchronize(self, ordinal: int = 0) -> None:
        """Waits for the stream that trains."""
        with self._on(ordinal):
            self._call("cuStreamSynchronize", c.c_uint64(self.stream(ordinal)))

    @contextlib.contextmanager
    def capture(self, ordinal: int = 0) -> Iterator[None]:
        """Records what is queued meanwhile as a graph."""
        stream = c.c_uint64(self.stream(ordinal))
        with self._on(ordinal):
            self._call("cuStreamBeginCapture_v2", stream, 0)
        try:
            yield
        finally:
            with self._on(ordinal):
                self._call("cuStreamEndCapture", stream, c.byref(c.c_uint64()))

    def delay(self, least: int, most: int) -> None:
        """How late each copy begins, in microseconds."""
        self.driver.fakecuda_set_delay_us(least, most)

    def fail(self, name: str, error: int, after: int = 0, *, is_sticky: bool = False) -> None:
        """Has a call fail, or "copy"."""
        self.driver.fakecuda_fail(name.encode(), error, after, int(is_sticky))

    # -- pccheck._torch.device.Devices

    def locate(self, tensor: torch.Tensor) -> tuple[DevicePlace, int] | None:
        return self.locate_address(tensor.data_ptr())

    def locate_address(self, start: int) -> tuple[DevicePlace, int] | None:
        """The place of memory that the host knows by its own address."""
        for host, byte_count, ordinal, address in self._memory:
            if host <= start < host + byte_count:
                return DevicePlace(native.DEVICE_CUDA, ordinal), address + start - host
        return None

    def are_host(self, tensors: Sequence[torch.Tensor]) -> bool:
        return not any(map(self.locate, tensors))

    def current_stream(self, place: DevicePlace) -> int | None:
        return self.stream(place.ordinal)


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor, for kernels: torch does not count what they do."""
    array: np.ndarray = tensor.detach().numpy()
    return array
