"""The parts of a torch training run: their state, their storages, the random generators."""

from __future__ import annotations

import gc
from typing import Any

import torch

from .._state.stateful import (
    PLAIN_TYPES,
    collect,
    is_stateful,
    mapped,
    python_and_numpy_random_state,
    set_python_and_numpy_random_state,
)
from .sharded import local_of
from .trainable import Trainable
from .types import PLAIN_TENSOR_TYPES

class CollectionPutOff:
    """Pauses the garbage collector while a large state is described.

    The description makes many small objects and no garbage, which the collector would search
    again and again. An interrupt at the wrong moment leaves the collector off; the next use turns
    it on again.
    """

    #: A save of fewer tensors takes no time worth this.
    LEAST_TENSOR_COUNT = 10_000
    _is_off = False

    def __init__(self, tensor_count: int) -> None:
        self._is_wanted = tensor_count >= self.LEAST_TENSOR_COUNT

    def __enter__(self) -> None:
        if CollectionPutOff._is_off:
            self._turn_on()
        if self._is_wanted and gc.isenabled():
            CollectionPutOff._is_off = True
            gc.disable()

    def __exit__(self, *_: object) -> None:
        if CollectionPutOff._is_off:
            self._turn_on()

    @staticmethod
    def _turn_on() -> None:
        gc.enable()
        CollectionPutOff._is_off = False


_PLAIN_TYPES = PLAIN_TYPES | {torch.Tensor, torch.nn.Parameter}


def collect_parts(value: Any) -> Any:
    """Like collect(), and generators."""
    if isinstance(value, torch.Generator):
        return {"generator": value.get_state()}
    if is_stateful(value):
        return collect(value)
    return mapped(value, collect_parts, _PLAIN_TYPES)


def in_place_storages(objects: list[object]) -> set[int]:
    """The storages of parameters and of optimizer state.

    Steps of optimizers wait until they are staged, and torch counts what else changes them.
    """
    tensors: list[torch.Tensor] = []
    for value in objects:
        if isinstance(value, (torch.nn.Module, Trainable)):
            tensors += value.parameters()
        elif isinstance(value, torch.optim.Optimizer):
            for group in value.param_groups:
                tensors += group["params"]
            _add_tensors(value.state, tensors)
    return _counted_storages(
        [item if type(item) in PLAIN_TENSOR_TYPES else local_of(item) for item in tensors]
    )


def _add_tensors(value: object, found: list[torch.Tensor]) -> None:
    """The tensors in a nest; LBFGS and others keep lists of them."""
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, dict):
        # A copy: a step in another thread may add to it.
        for item in list(value.values()):
            _add_tensors(item, found)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add_tensors(item, found)


def _counted_storages(tensors: list[torch.Tensor]) -> set[int]:
    """The storages of the tensors for which torch counts whatever changes them: not in inference
    mode, and not where other processes share the memory."""
    counted = [
        tensor
        for tensor in tensors
        if tensor.layout is torch.strided
        and type(tensor) in PLAIN_TENSOR_TYPES
        and not tensor.is_inference()
    ]
    storages = [tensor.untyped_storage() for tensor in counted]
    return {
        storage.data_ptr()
        for tensor, storage in zip(counted, storages, strict=True)
        if not (tensor.is_cpu and storage.is_shared())
    }


def random_state() -> dict[str, Any]:
    state = python_and_numpy_random_state()
    state["torch"] = torch.get_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    set_python_and_numpy_random_state(state)
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
