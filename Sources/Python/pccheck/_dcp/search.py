"""Which checkpoint of ``pccheck.dcp`` is loaded: of a file, or of the folder of a group."""

from __future__ import annotations

import logging
import os
from typing import TypeAlias

from .._core.damage import describe_damage
from .._core.reader import Reader
from .._group.decision import Candidate, Decision
from .._group.files import names_folder
from .._group.restart import decision_in
from ..errors import (
    Busy,
    Corrupt,
    DeviceError,
    NoCheckpoint,
    StateFormatError,
)
from .files import Files

log = logging.getLogger("pccheck")

#: What costs a checkpoint, but not the load: an older one is taken.
UNUSABLE = (Busy, Corrupt, DeviceError, NoCheckpoint, StateFormatError)

#: Attempt, step, and the sequence in each file: what all ranks that see the same files agree on.
Name: TypeAlias = "tuple[int, int, tuple[int, ...]]"


def name_of(candidate: Candidate) -> Name:
    """What tells a checkpoint from every other one in the same files."""
    sequences = tuple(sequence for _, sequence in candidate.files)
    return candidate.attempt, candidate.step, sequences


def shown_name(name: Name) -> str:
    """How a message calls a checkpoint."""
    attempt, step, _ = name
    return f"step {step} of attempt {attempt}" if attempt else f"step {step}"


def candidates_at(path: str, step: int | None = None) -> list[Candidate]:
    """What may be loaded, best first; an error where something newer may have been lost."""
    if not names_folder(path):
        return _candidates_of_file(path)
    return decision_in(os.path.abspath(path), step).complete


def _candidates_of_file(path: str) -> list[Candidate]:
    """The checkpoints in one file; the log reports damage."""
    with Reader(path) as reader:
        for damage in describe_damage(reader.report()):
            log.warning("%s: %s; run pcfsck to see more", path, damage)
        return [
            Candidate(info.attempt, info.step, 1, [(path, info.sequence)])
            for info in reader.list()
        ]


class Search:
    """The checkpoints that may be loaded, best first, and why some of them cannot be used."""

    def __init__(self, path: str, wanted: int | None) -> None:
        """Raises ``NoCheckpoint`` when there is none; ``wanted`` is the requested step, or None."""
        self._path, self._wanted = path, wanted
        self._decision: Decision | None = None
        if names_folder(path):
            self._decision = decision_in(os.path.abspath(path), wanted)
            held = self._decision.complete
        else:
            held = _candidates_of_file(path)
        steps = ", ".join(str(item.step) for item in held) or "none"
        self._held = f"complete steps: {steps}"
        self._candidates = [item for item in held if wanted is None or item.step == wanted]
        #: Of what may be loaded, in the order in which it is tried.
        self.names = [name_of(item) for item in self._candidates]
        self.passed_over: dict[Name, str] = {}
        if not self._candidates:
            asked = "no step is" if wanted is None else f"step {wanted} is not"
            where = "durable on all ranks" if names_folder(path) else "in the file"
            raise NoCheckpoint(f"{path}: {asked} {where} ({self._held})")

    def next(self) -> Files:
        """Opens the newest checkpoint that was not passed over; raises when none is left."""
        while self._candidates:
            try:
                return Files(self._candidates[0])
            except UNUSABLE as error:
                self.pass_over(self._candidates[0], str(error))
        last = next(reversed(self.passed_over.values()))
        if self._wanted is not None:
            raise Corrupt(f"step {self._wanted} cannot be loaded: {last}")
        raise Corrupt(f"{self._path}: no checkpoint can be loaded ({self._held}): {last}")

    def pass_over(self, candidate: Candidate, failure: str) -> None:
        """Takes a checkpoint out of what may be loaded; the log records why.

        Raises ``NoCheckpoint`` where an older one is no substitute, as a restart does.
        """
        name = name_of(candidate)
        self.passed_over[name] = failure
        self._candidates = [item for item in self._candidates if name_of(item) != name]
        older = next(iter(self._candidates), None)
        log.warning(
            "%s: the checkpoint of %s cannot be used: %s; %s",
            self._path, shown_name(name), failure,
            "no older one is left" if older is None else f"trying {shown_name(name_of(older))}",
        )  # fmt: skip
        if self._decision is not None:
            self._decision = self._decision.without(candidate)
