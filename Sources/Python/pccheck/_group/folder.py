"""Loads from the files of all ranks in a folder, for a process that takes no part in the job."""

from __future__ import annotations

import logging
import os
from typing import Any

from .._core.reader import is_rejection
from .._state.request import Loading
from ..errors import Busy, CheckpointError, NoCheckpoint, StateFormatError
from .assembled import load_candidate
from .claims import compare_digests
from .decision import Candidate, Decision
from .restart import CandidateFiles, decision_in, kept_claims

log = logging.getLogger("pccheck")

# How often the folder is looked at again because its writers took a step meanwhile.
_ATTEMPT_COUNT = 256


def load_folder(
    path: str | os.PathLike[str], step: int | None, loading: Loading
) -> tuple[Candidate, Any]:
    """Loads the newest checkpoint that is durable on all ranks, or that of a step.

    What each rank stored for itself comes from the file of rank 0. ``loading`` has an
    ``Assembled`` memory. The log reports why a newer checkpoint was passed over.
    """
    folder = os.path.abspath(os.fsdecode(os.fspath(path)))
    decision = decision_in(folder, step)
    first: CheckpointError | None = None
    failure: CheckpointError | None = None
    for _ in range(_ATTEMPT_COUNT):
        candidate = next(iter(decision.candidates), None)
        if candidate is None:
            raise first or nothing_durable(decision)
        try:
            difference = compare_digests(
                kept_claims(candidate, range(candidate.world_size), None)
            )
            if difference is not None:
                raise StateFormatError(f"{candidate}: {difference}")
            with CandidateFiles(candidate, None) as files:
                # Of no rank of this world.
                _, state = load_candidate(
                    files, candidate, folder, 0, 0, loading, first_parts=None
                )
            return candidate, state
        except (Busy, NoCheckpoint) as error:
            # A writer has used its slot for a newer one.
            failure = error
            decision = decision_in(folder, step, decision.rejections)
        except CheckpointError as error:
            if not is_rejection(error):
                raise
            first = first or error
            log.warning("%s: %s cannot be used: %s; trying an older one", folder, candidate, error)
            decision = decision.without(candidate)
    assert failure is not None
    raise failure


def nothing_durable(decision: Decision) -> NoCheckpoint:
    """The error where no checkpoint that is wanted is durable on all ranks."""
    held = ", ".join(str(item.step) for item in decision.complete) or "none"
    step = decision.wanted.step
    asked = "nothing is" if step is None else f"step {step} is not"
    return NoCheckpoint(
        f"{decision.folder}: {asked} durable on all ranks; these steps are: {held}", code=7
    )
