"""Has what changes weights in place wait until they are staged.

torch calls a hook before each step of its optimizers. It has no hook before a schedule-free
optimizer or an average swaps the weights of an evaluation in. The methods that do so wait once an
object of their class was given to a save. What stays in the class does nothing while nothing is
being staged.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from ..._core.engine import before_change_everywhere
from ..device import CudaDevices, Devices

#: What knows the current stream of a device.
devices: Devices = CudaDevices()

_MARK = "_waits_until_staged"
# Of schedule-free optimizers: they swap the weights that are trained and those to evaluate.
_OPTIMIZER_SWAPS = ("eval", "train")
# Of averages that are no modules, such as those of torch-ema and diffusers. They write through
# `.data`, which nothing notices.
_AVERAGE_SWAPS = ("copy_to", "restore")


def before_change() -> None:
    """Returns when the caller may change what is saved: memory of the host at once, that of a
    device by what it queues on the current stream."""
    before_change_everywhere(devices.current_stream)


def wait_before_replays() -> None:
    """Has CUDA graphs wait before they run: torch calls no hook of an optimizer in them, and counts
    no change."""
    _wait_in(torch.cuda.CUDAGraph, "replay")


def wait_before_swaps(objects: list[object]) -> None:
    """Has these objects wait before they change what may be read in place."""
    for value in objects:
        if not isinstance(value, torch.nn.Module):
            kind: Any = type(value)
            _wait_in_class(kind, hasattr(value, "param_groups"))
        elif not hasattr(AveragedModel.update_parameters, _MARK) and any(
            isinstance(part, AveragedModel) for part in value.modules()
        ):
            _wait_in(AveragedModel, "update_parameters")


@functools.lru_cache(maxsize=512)
def _wait_in_class(kind: Any, is_optimizer: bool) -> None:
    names: tuple[str, ...] = _OPTIMIZER_SWAPS if is_optimizer else _AVERAGE_SWAPS
    if is_optimizer and not issubclass(kind, torch.optim.Optimizer):
        # One that wraps an optimizer: torch calls its hook when part of the step is done.
        names = (*names, "step")
    for name in names:
        _wait_in(kind, name)


def _wait_in(kind: type, name: str) -> None:
    """Replaces a method where it is defined, once."""
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    function = None if owner is None else vars(owner)[name]
    if isinstance(function, types.FunctionType) and not hasattr(function, _MARK):
        setattr(owner, name, _waiting(function))


def _waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wait_and_call(*arguments: Any, **options: Any) -> Any:
        before_change()
        return function(*arguments, **options)

    setattr(wait_and_call, _MARK, True)
    return wait_and_call
