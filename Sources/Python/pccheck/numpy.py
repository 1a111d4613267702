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

    ``save`` returns when the state is *staged*. With ``overlap=True`` you promise that no array
    changes before that, and ``save`` returns at once: call ``wait_staged()`` before you change
    them.
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
        ``numpy.random`` are saved too. With ``urgent`` the engine copies and writes it before
        everything else in flight.
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
        document = encoder.encode_text(parts)
        return self._save_state(step, encoder, document, metadata, urgent, overlap=overlap or None)

    def maybe_save(self, step: int, **state: Any) -> SaveHandle | None:
        """Saves when the policy asks for it, with the arguments of ``save``.

        Call it at the end of every step. A step that is not due costs nothing: nobody looks at the
        state.
        """
        return self.save(step, **state) if self.is_due(step) else None

    def resume(
        self, *, step: int | None = None, rng: bool = True, strict: bool = True, **state: Any
    ) -> int:
        """Fills the parts from the newest intact checkpoint; returns the next step.

        A new file returns 0 and leaves the parts alone. ``step`` resumes from one checkpoint in
        particular; ``NoCheckpoint`` when the file does not hold it any more.

        Arrays are filled in place, straight from the file where they are dense and of the stored
        type; other contents of a dict or list are replaced. PCcheck does not read parts that you
        do not pass.

        Arrays that the checkpoint lacks, or has with another shape or type, raise a
        ``StateMismatch`` that lists all of them, before anything changes. With ``strict=False``
        PCcheck loads what fits, and ``resume_report`` lists the rest. After any other error the
        parts hold unspecified values.
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
