"""What torch's optimizers will keep for parameters that they have not stepped yet."""

from __future__ import annotations

from typing import Any

import torch

from .sharded import local_of

# Tensors as large as the parameter, by the class that an optimizer is, or descends from. Options of
# a group add to them.
_MOMENT_COUNTS = {
    "SGD": 0, "RMSprop": 1, "Adagrad": 1, "Muon": 1, "ASGD": 1, "Rprop": 2, "Adadelta": 2,
}  # fmt: skip
# The Adam family, and classes that torch does not know.
_USUAL_MOMENT_COUNT = 2


def room_for_optimizers(objects: list[object]) -> int:
    """Bytes that these optimizers will need once they have stepped every parameter they have.

    A parameter that is frozen now counts: it may be unfrozen.
    """
    return sum(_room(value) for value in objects if isinstance(value, torch.optim.Optimizer))


def _room(optimizer: torch.optim.Optimizer) -> int:
    if isinstance(optimizer, torch.optim.LBFGS):
        return _room_of_history(optimizer)
    return sum(
        _moment_count(optimizer, group) * local_of(parameter).nbytes
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter not in optimizer.state
    )


def _moment_count(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> int:
    names = [kind.__name__ for kind in type(optimizer).__mro__]
    count = next(
        (_MOMENT_COUNTS[name] for name in names if name in _MOMENT_COUNTS), _USUAL_MOMENT_COUNT
    )
    if "SGD" in names or "RMSprop" in names:
        count += bool(group.get("momentum"))
    return count + bool(group.get("centered")) + bool(group.get("amsgrad"))


def _room_of_history(optimizer: torch.optim.LBFGS) -> int:
    """A direction and a step for each iteration that it remembers, and three vectors more."""
    group = optimizer.param_groups[0]
    byte_count = sum(local_of(parameter).nbytes for parameter in group["params"])
    held = sum(
        tensor.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        for tensor in (value if isinstance(value, list) else [value])
        if isinstance(tensor, torch.Tensor)
    )
    return max(0, (2 * int(group["history_size"]) + 3) * byte_count - held)
