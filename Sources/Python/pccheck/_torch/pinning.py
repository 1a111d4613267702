"""Registering the staging pool with CUDA."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ..errors import CheckpointError, OutOfMemory

log = logging.getLogger("pccheck")


def pin_for_cuda(address: int, byte_count: int) -> Callable[[], object]:
    """Registers memory with CUDA, so that a GPU can copy to it without a detour.

    Returns a callable that undoes it. Raises ``CheckpointError`` without CUDA, and
    ``OutOfMemory`` when the driver refuses.
    """
    if not torch.cuda.is_available():
        raise CheckpointError(
            "pin=True needs CUDA, and torch finds none; use pin='auto' to continue without it"
        )
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    result = runtime.cudaHostRegister(address, byte_count, 0)
    if int(result) != 0:
        raise OutOfMemory(
            f"CUDA does not register a staging pool of {byte_count} bytes "
            f"({runtime.cudaGetErrorString(result)}); ask for a smaller pool, or pin=False"
        )
    return lambda: _unregister(runtime, address)


def _unregister(runtime: Any, address: int) -> None:
    result = runtime.cudaHostUnregister(address)
    if int(result) != 0:
        log.warning("CUDA does not unregister the staging pool: error %d", int(result))


def pin_where_possible(address: int, byte_count: int) -> Callable[[], object]:
    try:
        return pin_for_cuda(address, byte_count)
    except CheckpointError as error:
        log.warning("the staging pool is not pinned: %s", error)
        return lambda: None
