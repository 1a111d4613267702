"""A folder with the files of ranks: the state that all of them have durable, in whole tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._group.decision import Candidate, Decision
from .._group.folder import load_folder, nothing_durable
from .._group.restart import CandidateFiles, decision_in
from .._state.comparing import OBJECTS_KEY
from .._state.manifest import Manifest
from .._state.references import references
from .._state.request import Loading
from ..errors import Busy, CheckpointError, NoCheckpoint
from ..state import Encoder
from . import torch_file
from .failures import DamagedInput
from .leaves import teach

# How often the folder is looked at again because its writers took a step meanwhile.
_ATTEMPT_COUNT = 16


@dataclass
class Joined:
    """The checkpoint of all ranks, as one process would have saved it."""

    state: Any
    encoder: Encoder
    metadata: dict[str, str]
    step: int
    rank_count: int
    #: The tensors that rank 0 knows nothing of, each with the first rank that stored it.
    left_out: dict[str, int]


def newest_step(path: str) -> int:
    """The newest step that is durable on all ranks."""
    return _first(decision_in(path)).step


def read(path: str, step: int | None) -> Joined:
    """The newest checkpoint that is durable on all ranks, or that of a step; never an older one.

    What each rank stored for itself is that of rank 0.
    """
    decision, framework, left_out = _found(path, step)
    if framework == "jax":
        from .._jax.memory import JaxMemory

        loading, encoder = Loading(JaxMemory(reads_rest=True)), teach(Encoder())
    else:
        torch_file.torch_module("the state of a job")
        from .._torch.loading.assembled import AssembledMemory

        loading, encoder = Loading(AssembledMemory()), torch_file.encoder()
    candidate, state = load_folder(path, step, loading)
    wanted = _first(decision)
    if candidate in decision.complete[decision.complete.index(wanted) + 1 :]:
        raise DamagedInput(
            f"{path}: {wanted} is damaged, as the log reports, and {candidate} is older; "
            f"pcfsck {path} lists both, and --step names one of another step"
        )
    metadata = {"format": framework}
    if loading.objects is not None:
        metadata[OBJECTS_KEY] = loading.objects
    return Joined(
        state, encoder, metadata, candidate.step, candidate.world_size, left_out
    )


def _found(path: str, step: int | None) -> tuple[Decision, str, dict[str, int]]:
    """What a restart would choose, the framework that saved it, and what rank 0 lacks of it.

    A job that is running may have a newer one when it is loaded, with the same names.
    """
    failure: CheckpointError | None = None
    for _ in range(_ATTEMPT_COUNT):
        decision = decision_in(path, step)
        try:
            return decision, *_described(_first(decision))
        except (Busy, NoCheckpoint) as error:
            failure = error
    assert failure is not None
    raise failure


def _described(candidate: Candidate) -> tuple[str, dict[str, int]]:
    """The framework, and what the documents of other ranks name and that of rank 0 does not.

    The load reports what cannot be read.
    """
    framework = "pt"
    found: dict[str, int] = {}
    for rank in range(candidate.world_size):
        with CandidateFiles(candidate, None) as files:
            try:
                files.open([rank])
                manifest = Manifest(files.readers[rank])
            except (Busy, NoCheckpoint):
                raise
            except CheckpointError:
                continue
            if rank == 0:
                framework = manifest.metadata.get("format", framework)
            for name, _ in references(manifest.document):
                found.setdefault(name, rank)
    return framework, {name: rank for name, rank in sorted(found.items()) if rank > 0}


def _first(decision: Decision) -> Candidate:
    if not decision.candidates:
        raise nothing_durable(decision)
    return decision.candidates[0]
