"""Where a group continues, from the reports of its files: spec/GROUP.md, "Restart", step 2."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._core.group import group_decision
from ..errors import CheckpointError, InvalidArgument, NoCheckpoint
from .transport import counted_ranks, ranks_text

log = logging.getLogger("pccheck")

# Problems with files that keep nothing of the group from being used.
_HARMLESS_PROBLEMS = {"unusable", "no-group"}
_SHOWN_COUNT = 4
# Parts with these reasons are in a slot that the superblock names: RECOVERY.md, step 4.
_NAMED = {"anchored", "retained"}


@dataclass(frozen=True)
class Candidate:
    """A group checkpoint of which every rank of its world has a part."""

    attempt: int
    step: int
    world_size: int
    #: Path and sequence of each part, by rank.
    files: list[tuple[str, int]]
    #: Ranks whose superblock does not name the part: nobody has verified it, and a power
    #: cut may have torn it.
    unnamed: frozenset[int] = frozenset()

    def sequence_of(self, rank: int, world_size: int) -> int:
        """The part in the file of this rank; 0 when it is of another world."""
        return self.files[rank][1] if self.world_size == world_size else 0

    def __str__(self) -> str:
        return f"step {self.step} of attempt {self.attempt} ({counted_ranks(self.world_size)})"


@dataclass(frozen=True)
class Wanted:
    """Which checkpoints may be loaded; without a step, every one."""

    step: int | None = None
    #: The step is the newest that training may go back to.
    goes_back: bool = False

    def includes(self, candidate: Candidate) -> bool:
        if self.step is None:
            return True
        return candidate.step <= self.step if self.goes_back else candidate.step == self.step


@dataclass(frozen=True)
class Decision:
    """What follows from the reports of all files: where to continue, or why not."""

    folder: str
    reports: list[dict[str, Any]]
    wanted: Wanted
    found: Mapping[str, Any]
    #: The complete checkpoints, best first.
    complete: list[Candidate]

    @classmethod
    def of(cls, folder: str, reports: list[dict[str, Any]], wanted: Wanted) -> Decision:
        """Decides; `check` raises what a restart raises."""
        found = group_decision(reports)
        complete = [_candidate(item) for item in found["checkpoints"] if item["is_complete"]]
        return cls(folder, reports, wanted, found, complete)

    @property
    def candidates(self) -> list[Candidate]:
        """The complete checkpoints that are wanted, best first."""
        return [item for item in self.complete if self.wanted.includes(item)]

    @property
    def rejections(self) -> list[dict[str, Any]]:
        """What was tried and cannot be used."""
        return [item for item in self.reports if "rejected" in item]

    def without(self, candidate: Candidate, is_void: bool = False) -> Decision:
        """The decision when this one cannot be used: it is void, or a part of it is damaged.

        The next candidate is no substitute for it: a checkpoint that is newer than the next may
        need a file that is missing, which did not matter before. Raises then. Where no candidate is
        left, the caller raises why.
        """
        cause = "void" if is_void else "damaged"
        rejected = {"attempt": candidate.attempt, "step": candidate.step, "cause": cause}
        decision = self.of(self.folder, [*self.reports, {"rejected": rejected}], self.wanted)
        if decision.candidates:
            decision.check()
        return decision

    def check(self) -> None:
        """Raises when the files do not say safely where to continue."""
        refusal = self.refusal
        # A step was named on purpose, although a newer one may come back.
        is_named = any(item.step == self.wanted.step for item in self.complete)
        if refusal is not None and (not is_named or isinstance(refusal, InvalidArgument)):
            raise refusal

    @property
    def refusal(self) -> CheckpointError | None:
        """Why a restart fails."""
        if self.found["outcome"] != "refuse":
            return None
        problems = [
            f"{item['path']}: {item['message']}"
            for item in self.found["problems"]
            if item["kind"] not in _HARMLESS_PROBLEMS
        ]
        if problems:
            return InvalidArgument(f"{self.folder}: " + "; ".join(problems[:_SHOWN_COUNT]))
        older = ""
        if self.complete:
            newest = self.complete[0].step
            older = f", or resume an older step by name ({newest} is the newest)"
        return NoCheckpoint(
            f"{self.folder}: a checkpoint that was durable on all ranks cannot be loaded now: "
            f"{_lost_text(self.found)}; put the missing files back{older}, or start over in "
            "another folder",
            code=7,
        )

    def warn(self) -> None:
        """The log reports what is wrong with files, and what is lost."""
        for item in self.found["problems"]:
            log.warning("%s: %s", item["path"], item["message"])
        if self.found["lost"] is not None:
            log.warning("a newer checkpoint is lost: %s", _lost_text(self.found))


def _candidate(item: Mapping[str, Any]) -> Candidate:
    files = sorted(item["files"], key=lambda file: int(file["rank"]))
    return Candidate(
        int(item["attempt"]), int(item["step"]), int(item["world_size"]),
        [(str(file["path"]), int(file["sequence"])) for file in files],
        frozenset(int(file["rank"]) for file in files if file["reason"] not in _NAMED),
    )  # fmt: skip


def _lost_text(decision: Mapping[str, Any]) -> str:
    """Which checkpoint was lost, and what of it is missing."""
    lost = decision["lost"]
    if lost is None:
        return "; ".join(item["message"] for item in decision["problems"][:_SHOWN_COUNT])
    name = f"step {lost['step']} of attempt {lost['attempt']}"
    found = next(
        (
            item
            for item in decision["checkpoints"]
            if (item["attempt"], item["step"]) == (lost["attempt"], lost["step"])
        ),
        None,
    )
    missing = [] if found is None else found["missing"]
    if not missing:
        missing = [item for world in decision["worlds"] for item in world["missing"]]
    text = "; ".join(
        f"{ranks_text(range(item['rank'], item['last_rank'] + 1))}: {item['reason']}"
        for item in missing[:_SHOWN_COUNT]
    )
    return f"{name} is missing on {text}" if text else name
