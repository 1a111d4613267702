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
from .restart import Candidate, CandidateFiles, complete_in, kept_claims

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
    rejected: dict[tuple[int, int], CheckpointError] = {}
    failure: CheckpointError | None = None
    for _ in range(_ATTEMPT_COUNT):
        candidate = _next(folder, step, rejected)
        try:
            difference = compare_digests(
                kept_claims(candidate, range(candidate.world_size), None)
            )
            if difference is not None:
                raise StateFormatError(f"{candidate}: {difference}")
            with CandidateFiles(candidate, None) as files:
                # Of no rank of this world.
                _, state = load_candidate(
                    files, candidate, folder, 0, 0, loading, prefers_first=True
                )
            return candidate, state
        except (Busy, NoCheckpoint) as error:
            # A writer has used its slot for a newer one.
            failure = error
        except CheckpointError as error:
            if not is_rejection(error):
                raise
            rejected[candidate.attempt, candidate.step] = error
            log.warning("%s: %s cannot be used: %s; trying an older one", folder, candidate, error)
    assert failure is not None
    raise failure


def _next(
    folder: str, step: int | None, rejected: dict[tuple[int, int], CheckpointError]
) -> Candidate:
    complete = complete_in(folder, step)
    for candidate in complete:
        if step in (None, candidate.step) and (candidate.attempt, candidate.step) not in rejected:
            return candidate
    if rejected:
        raise next(iter(rejected.values()))
    held = ", ".join(str(item.step) for item in complete) or "none"
    asked = "nothing is" if step is None else f"step {step} is not"
    raise NoCheckpoint(
        f"{folder}: {asked} durable on all ranks; these steps are: {held}", code=7
    )

