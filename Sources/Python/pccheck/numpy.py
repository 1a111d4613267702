"""Checkpoints of NumPy arrays, filled in place on resume.

    ckpt = pccheck.numpy.Checkpointer("run.pcc")
    start = ckpt.resume(params=params, moments=moments, counters=counters)
    for step in range(start, steps):
        ...
        handle = ckpt.save(step, params=params, moments=moments, counters=counters)
        handle.wait_staged()     # before the arrays change
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ._core.arguments import save_options
from ._core.handle import SaveHandle
from ._core.reader import CheckpointInfo
from ._state.encoder import Encoder
from ._state.loading import load_parts
from ._state.memory import ArrayMemory
from ._state.nesting import endless
from ._state.request import Loading
from ._state.stateful import (
    Restorer,
    collect,
    python_and_numpy_random_state,
    set_python_and_numpy_random_state,
)
from .checkpointer import BaseCheckpointer, load, load_tensor

__all__ = ["Checkpointer", "load", "load_into", "load_tensor"]


class Checkpointer(BaseCheckpointer):
    """Saves named parts of a training state, and puts them back where they were.

    ``save`` returns when the state is *staged*. ``overlap=True`` is your word that no array changes
    before that, and returns at once: call ``wait_staged()`` before changing them.
    """

    def save(
        self,
        step: int,
        *,
        rng: bool = True,
        metadata: str | Mapping[str, Any] | None = None,
        urgent: bool = False,
        overlap: bool = False,
        **state: Any,
    ) -> SaveHandle:
        """Begins a checkpoint of the parts given by name and returns once it is staged.

        A part is an array, a nest of containers and scalars, or an object with ``state_dict()``
        and ``load_state_dict()``. With ``rng`` the global generators of ``random`` and
        ``numpy.random`` are saved too. ``urgent`` has it copied and written before everything
        else in flight.
        """
        save_options(state, metadata, rng=rng, urgent=urgent, overlap=overlap)
        self._begin_save()
        try:
            parts = {name: collect(value) for name, value in state.items()}
        except RecursionError:
            raise endless(state) from None
        if rng:
            parts["rng"] = python_and_numpy_random_state()
        encoder = Encoder()
        document = encoder.encode_state(parts)
        return self._save_state(step, encoder, document, metadata, urgent, overlap=overlap or None)

    def maybe_save(self, step: int, **state: Any) -> SaveHandle | None:
        """Saves when the policy says so; takes what ``save`` takes.

        Call it at the end of every step. It costs nothing when the step is not due: no state is
        looked at.
        """
        return self.save(step, **state) if self.is_due(step) else None

    def resume(
        self, *, step: int | None = None, rng: bool = True, strict: bool = True, **state: Any
    ) -> int:
        """Fills the parts from the newest whole checkpoint; returns the step to go on with.

        Returns 0 for a new file, and leaves the parts alone. ``step`` names a checkpoint that is
        still in the file, to go on from; ``NoCheckpoint`` when it is not.

        Arrays are filled in place, straight from the file where they are dense and of the stored
        type; the other contents of a dict or list are replaced. Parts that were saved but are not
        asked for are not read.

        Arrays that are missing from the checkpoint, or have another shape or type there, are a
        ``StateMismatch`` that lists all of them, before anything is changed. With
        ``strict=False`` what fits is loaded, and ``resume_report`` tells the rest. After any other
        error the parts hold unspecified values.
        """
        loading = Loading(
            self._memory, state, parts=list(state), optional_parts=["rng"] if rng else [],
            strict=strict,
        )  # fmt: skip
        found = self._resume_state(loading, step)
        if found is None:
            return 0
        next_step, loaded = found
        with loading.explained():
            Restorer().restore_parts(state, loaded)
        if rng and "rng" in loaded:
            set_python_and_numpy_random_state(loaded["rng"])
        return next_step


def load_into(
    path: str | os.PathLike[str], step: int | None = None, *, strict: bool = True, **parts: Any
) -> CheckpointInfo:
    """Fills some parts of a run from a file that may be open elsewhere; takes no writer lock.

    As ``pccheck.torch.load_into``, for arrays and nests of them.
    """
    return load_parts(ArrayMemory(), Restorer(), path, step, strict, parts)
