"""Tensors of a checkpoint that are read on request."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..._core.engine import wait_staged_everywhere
from ..._core.reader import Reader
from ..._state.decoder import Decoder
from ..._state.loading import load_from
from ..._state.request import Loading
from ..._state.stored import StoredTensor
from ...errors import InvalidArgument
from .decoder import TorchDecoder, TorchMemory, tensor_type


class LazyTensor:
    """One stored tensor: its type and shape at once, its values on request.

    Every byte that a load returns was verified. Tied tensors are one LazyTensor, and are read
    once for each call of ``load``.
    """

    def __init__(
        self, reader: Reader, tensor: StoredTensor, tag: str | None, device: torch.device | None
    ) -> None:
        self._reader = reader
        self._tensor = tensor
        self._device = device
        self._tag = tag
        #: Name of the stored tensor, such as ``model.layers.0.weight``.
        self.name = tensor.name
        dtype, shape = tensor_type(tensor, tag)
        self.dtype = dtype
        self.shape = torch.Size(shape)

    def __repr__(self) -> str:
        return f"<LazyTensor {self.name!r} {self.dtype} {tuple(self.shape)}>"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without dimensions has no length")
        return self.shape[0]

    @property
    def meta(self) -> torch.Tensor:
        """A tensor of this type and shape on the meta device."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def load(self, into: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor; ``into`` is filled and returned, whatever its type, layout and device.

        What is dense, on the CPU and of the stored type is read straight into its memory.
        """
        if into is None:
            return self._read(0, self._tensor.byte_count, self.shape)
        if into.shape != self.shape:
            raise InvalidArgument(
                f"'{self.name}' has the shape {tuple(self.shape)}, the tensor to fill "
                f"{tuple(into.shape)}"
            )
        # It may be read by a save.
        wait_staged_everywhere()
        node = {"$tensor": self.name, **({"dtype": self._tag} if self._tag else {})}
        place = TorchMemory().place(node, "$tensor", self._tensor, into)
        if place is not None and place.fill is None:
            size = self._tensor.byte_count
            row = (self._tensor.payload_offset, size, place.address)
            self._reader.read([row], [place.device])
            return into
        with torch.no_grad():
            return into.copy_(self._read(0, self._tensor.byte_count, self.shape))

    def __getitem__(self, rows: int | slice) -> torch.Tensor:
        """Rows along the first dimension; only their chunks are read."""
        count = len(self)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(count)
            if step != 1:
                raise InvalidArgument(f"rows of '{self.name}' are read in steps of 1, not {step}")
            stop = max(start, stop)
            return self._rows(start, stop)
        start = rows + count if rows < 0 else rows
        if not 0 <= start < count:
            raise IndexError(f"row {rows} of '{self.name}', which has {count}")
        return self._rows(start, start + 1)[0]

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        size = self._tensor.byte_count // len(self) if len(self) else 0
        shape = torch.Size((stop - start, *self.shape[1:]))
        return self._read(start * size, (stop - start) * size, shape)

    def _read(self, offset: int, byte_count: int, shape: torch.Size) -> torch.Tensor:
        memory, address = TorchMemory().allocate(byte_count)
        if byte_count:
            self._reader.read([(self._tensor.payload_offset + offset, byte_count, address)])
        tensor: torch.Tensor = memory.view(self.dtype).view(shape)
        return tensor if self._device is None else tensor.to(self._device)


class LazyMemory(TorchMemory):
    """Reads arrays and bytes, and leaves tensors in the file."""

    def __init__(self, reader: Reader, device: torch.device | None) -> None:
        super().__init__(device)
        self._reader = reader

    def is_read(self, kind: str) -> bool:
        """Views are small parts of what they share, and stay views: they are read."""
        return kind != "$tensor"

    def decoder(self, tensors: dict[str, StoredTensor], made: dict[object, Any]) -> Decoder:
        """The decoder that makes LazyTensors."""
        return _LazyDecoder(tensors, made, self.device, self._reader)


class _LazyDecoder(TorchDecoder):
    def __init__(
        self,
        tensors: dict[str, StoredTensor],
        made: dict[object, Any],
        device: torch.device | None,
        reader: Reader,
    ) -> None:
        super().__init__(tensors, made, device)
        self._reader = reader

    def _make(self, name: str, tag: str | None) -> Any:
        return LazyTensor(self._reader, self.stored(name), tag, self._device)


def load_lazily(
    path: str | os.PathLike[str], step: int | None, device: torch.device | None
) -> Any:
    """The state with a LazyTensor for every tensor; they keep the file open and pinned."""
    reader = Reader(path)
    try:
        return load_from(os.fspath(path), reader, step, Loading(LazyMemory(reader, device)))[1]
    except BaseException:
        # The error may be kept; it must not keep the slot pinned.
        reader.close()
        raise
