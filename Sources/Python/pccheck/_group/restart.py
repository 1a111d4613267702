"""The collective steps of a restart: report, choose, load and confirm, begin.

spec/GROUP.md, "Restart". Every rank makes the same calls, and every wait is bounded.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .._core.group import Base
from .._core.reader import CheckpointInfo, Reader, is_rejection
from .._state.manifest import Manifest
from ..errors import CheckpointError, FileMissing, InvalidArgument, NoCheckpoint, RankFailed
from .claims import Digests, compare_digests
from .decision import Candidate, Decision, Wanted
from .division import GROUP_KEY, claims_in
from .exchange import by_value
from .files import names_of_other_worlds, paths_in, place_of, report_of
from .transport import Transport

log = logging.getLogger("pccheck")

_Value = TypeVar("_Value")

_SHOWN_COUNT = 4
# Files are read one after the other, and their writers may continue meanwhile.
_LOOK_COUNT = 20
_LOOK_AGAIN_SECONDS = 0.05


class CandidateFiles:
    """The files of a group checkpoint, each opened where its part is; a context manager."""

    def __init__(self, candidate: Candidate, fingerprint: bytes | None) -> None:
        self._candidate, self._fingerprint = candidate, fingerprint
        #: By rank of the world that saved.
        self.readers: dict[int, Reader] = {}
        self.paths: dict[int, str] = {}

    def open(self, ranks: Sequence[int]) -> CheckpointInfo:
        """Opens the files of these ranks, and pins the checkpoint there; it is in the last one."""
        info: CheckpointInfo | None = None
        for rank in ranks:
            path, sequence = self._candidate.files[rank]
            reader = Reader(path, self._fingerprint)
            self.readers[rank], self.paths[rank] = reader, path
            info = reader.select(sequence)
            if (info.attempt, info.step) != (self._candidate.attempt, self._candidate.step):
                raise NoCheckpoint(
                    f"{path}: sequence {sequence} is step {info.step} of attempt {info.attempt} "
                    f"now, expected {self._candidate}",
                    code=7,
                )
        assert info is not None, "a rank opens at least one file"
        return info

    def __enter__(self) -> CandidateFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self.readers.values():
            reader.close()


def kept_claims(
    candidate: Candidate, ranks: Iterable[int], fingerprint: bytes | None
) -> dict[int, Digests]:
    """What the files of some ranks keep of their claims. A load reports what cannot be read.

    A rank that made none is left out: it knew that all ranks had compared this layout before.
    Another one may not have known yet, and so have made claims.
    """
    found: dict[int, Digests] = {}
    for rank in ranks:
        with CandidateFiles(candidate, fingerprint) as files:
            try:
                files.open([rank])
                claims = claims_in(Manifest(files.readers[rank]).metadata.get(GROUP_KEY))
            except CheckpointError:
                continue
            if claims is not None:
                found[rank] = claims
    return found


@dataclass(frozen=True)
class Choice:
    """What all ranks decided from the reports of all ranks."""

    run: bytes
    attempt: int
    decision: Decision
    #: Whether every rank has a file of its own, or makes one now.
    have_all_files: bool

    def older_than(self, base: Candidate | None, rank: int, world_size: int) -> list[int]:
        """The sequences of older complete checkpoints in the file of this rank.

        Only of those that its superblock names: nobody has read the others.
        """
        if base is None or base.world_size != world_size:
            return []
        complete = self.decision.complete
        return [
            item.sequence_of(rank, world_size)
            for item in complete[complete.index(base) + 1 :]
            if item.world_size == world_size and rank not in item.unnamed
        ]

    def base(self, chosen: Candidate | None, rank: int, world_size: int) -> Base | None:
        """The chosen checkpoint, as the writer of this rank gets it."""
        if chosen is None:
            return None
        return Base(chosen.attempt, chosen.step, chosen.sequence_of(rank, world_size))


class Meeting:
    """Where the ranks of a group meet."""

    def __init__(self, transport: Transport, folder: str, timeout: float) -> None:
        self._transport, self._folder, self._timeout = transport, folder, timeout

    def exchange(self, value: Any) -> list[Any]:
        """What every rank passed, by rank."""
        data = json.dumps(value).encode("ascii")
        return [json.loads(item) for item in self._transport.gather(data, self._timeout)]

    # -- report and choose

    def choose(
        self,
        own: Mapping[str, Any] | None,
        failure: CheckpointError | None,
        has_file: bool,
        options: Mapping[str, Any],
        new_run: bytes,
    ) -> Choice:
        """Steps 1 and 2. ``own`` is the report of the file of this rank, if there is one;
        ``failure`` is why this rank cannot write it."""
        others = names_of_other_worlds(self._folder, self._transport.world_size)
        said = self.exchange(
            {
                "options": dict(options), "own": own, "others": others,
                "failure": None if failure is None else str(failure), "has_file": has_file,
                "place": place_of(self._folder), "run": new_run.hex(),
            }
        )  # fmt: skip
        _compare_options([item["options"] for item in said])
        reports = [item["own"] for item in said if item["own"] is not None]
        if any(item["others"] for item in said):
            reports += self._reports_of_others(said)
        wanted = Wanted(options.get("step"), goes_back=options.get("call") == "rewind")
        decision = Decision.of(self._folder, reports, wanted)
        decision.check()
        _raise_failures({rank: item["failure"] for rank, item in enumerate(said)}, failure)
        decision.warn()
        found = decision.found
        if found["next_attempt"] is None:
            raise InvalidArgument(f"{self._folder}: the numbers of attempts are used up")
        run = said[0]["run"] if found["run"] is None else found["run"].replace("-", "")
        return Choice(
            bytes.fromhex(run), int(found["next_attempt"]), decision,
            all(item["has_file"] for item in said),
        )  # fmt: skip

    def _reports_of_others(self, said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The reports of the files of other worlds: ranks that see one folder share its files."""
        own_place = said[self._transport.rank]["place"]
        neighbours = [rank for rank, item in enumerate(said) if item["place"] == own_place]
        names = sorted({name for rank in neighbours for name in said[rank]["others"]})
        mine = names[neighbours.index(self._transport.rank) :: len(neighbours)]
        found = self.exchange([report_of(os.path.join(self._folder, name)) for name in mine])
        reports = [report for item in found for report in item]
        return sorted(reports, key=lambda report: str(report["path"]))

    # -- load and confirm

    def agree(self, error: Exception | None) -> None:
        """Returns when no rank has an error; else raises it, on the others as ``RankFailed``."""
        failures = self.exchange(None if error is None else _text_of(error))
        _raise_failures(dict(enumerate(failures)), error)

    def walk(
        self,
        choice: Choice,
        claims_of: Callable[[Candidate], dict[int, Digests]],
        load: Callable[[Candidate], _Value],
    ) -> tuple[Choice, Candidate | None, _Value | None]:
        """Step 3: the first candidate that every rank can load, with what this rank loaded.

        Whenever one is rejected, all ranks decide again. Without a candidate, the attempt may
        begin at the beginning: one that is void because the ranks did not hold the same was never
        durable on all ranks, nor was one that a power cut tore.
        """
        last: CheckpointError | None = None
        while (candidate := next(iter(choice.decision.candidates), None)) is not None:
            difference = compare_digests(self._of_all(claims_of(candidate)))
            if difference is not None:
                choice = self._reject(choice, candidate, difference, is_void=True)
                continue
            loaded: list[_Value] = []
            error: Exception | None = None
            try:
                loaded.append(load(candidate))
            except Exception as failure:
                error = failure
            rejected = self._confirm(error)
            if not rejected:
                return choice, candidate, loaded[0]
            text = "; ".join(f"rank {rank}: {why}" for rank, why in rejected.items())
            if isinstance(error, CheckpointError):
                last = error
            last = last or RankFailed(f"{candidate}: {text}", ranks=list(rejected))
            choice = self._reject(choice, candidate, text)
        refusal = choice.decision.refusal
        if last is not None and (refusal is not None or choice.decision.complete):
            raise last
        if refusal is not None:
            raise refusal
        return choice, None, None

    def _reject(
        self, choice: Choice, candidate: Candidate, why: str, is_void: bool = False
    ) -> Choice:
        log.warning("%s: %s cannot be used: %s; trying an older one", self._folder, candidate, why)
        return replace(choice, decision=choice.decision.without(candidate, is_void))

    def _of_all(self, claims: dict[int, Digests]) -> dict[int, Digests]:
        """What all ranks found of the claims, by the rank that saved."""
        said = self.exchange(list(claims.items()))
        return {rank: found for item in said for rank, found in item}

    def _confirm(self, error: Exception | None) -> dict[int, str]:
        """Why ranks reject a candidate, by rank; raises what is no reason to try another."""
        is_damage = isinstance(error, CheckpointError) and (
            is_rejection(error) or isinstance(error, NoCheckpoint)
        )
        said = self.exchange(
            {"is_damage": is_damage, "error": None if error is None else _text_of(error)}
        )
        fatal = {
            rank: item["error"]
            for rank, item in enumerate(said)
            if item["error"] is not None and not item["is_damage"]
        }
        _raise_failures(fatal, None if is_damage else error)
        return {rank: item["error"] for rank, item in enumerate(said) if item["error"]}


def decision_in(
    folder: str, step: int | None = None, rejections: Sequence[dict[str, Any]] = ()
) -> Decision:
    """What a restart decides from the files of a folder, for a process that reads all of them.

    Raises what a restart raises; ``step`` names one on purpose, and ``rejections`` are those of an
    earlier decision.
    """
    if not os.path.isdir(folder):
        raise FileMissing(f"{folder}: there is no such folder", code=2)

    def decide() -> Decision:
        reports = [report_of(path) for path in paths_in(folder)]
        return Decision.of(folder, [*reports, *rejections], Wanted(step))

    decision = decide()
    for _ in range(_LOOK_COUNT):
        if decision.found["outcome"] != "refuse" and decision.found["lost"] is None:
            break
        # What is missing may be what a rank has saved since its file was read.
        time.sleep(_LOOK_AGAIN_SECONDS)
        before, decision = decision, decide()
        if decision.reports == before.reports:
            break
    if decision.candidates or not rejections:
        decision.check()
    decision.warn()
    return decision


def _text_of(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, CheckpointError) else f"{type(error).__name__}: {text}"


def _compare_options(given: Sequence[Mapping[str, Any]]) -> None:
    for name in given[0]:
        values = {rank: options.get(name) for rank, options in enumerate(given)}
        if len({json.dumps(value) for value in values.values()}) > 1:
            raise InvalidArgument(
                f"the ranks differ in {name}: {by_value(values)}; give the same on all ranks"
            )


def _raise_failures(failures: Mapping[int, str | None], own: Exception | None) -> None:
    """Raises when any rank failed: here its own error, elsewhere one that names the ranks."""
    if own is not None:
        raise own
    found = {rank: text for rank, text in failures.items() if text is not None}
    if found:
        shown = "; ".join(f"rank {rank}: {text}" for rank, text in list(found.items())[:4])
        more = len(found) - _SHOWN_COUNT
        raise RankFailed(
            shown + (f"; and {more} more ranks" if more > 0 else ""), ranks=list(found)
        )
