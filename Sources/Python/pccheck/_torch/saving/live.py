"""The modules and optimizers of a run, to recognise their tensors in a ``state_dict()``.

What ``save`` is given as ``model.state_dict()`` shares its memory with the parameters, and counts
changes with them. It may be read in place like the module itself, if it is known whose it is. Known
are the optimizers that took a step while a checkpointer was open, with their parameters, and every
object that a checkpointer of this process was given.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch

_seen: weakref.WeakSet[object] = weakref.WeakSet()


def note(objects: Iterable[object]) -> None:
    """Remembers modules and optimizers for as long as they live."""
    for value in objects:
        if isinstance(value, (torch.nn.Module, torch.optim.Optimizer)):
            _seen.add(value)


def known(objects: Iterable[object]) -> list[object]:
    """These objects, and those that were noted before; each once."""
    by_identity = {id(value): value for value in [*objects, *list(_seen)]}
    return list(by_identity.values())
