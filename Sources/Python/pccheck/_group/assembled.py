"""Fills live memory of any placement from the files of all ranks, whatever the framework.

Each live tensor needs boxes of the full one. They are read from the files that hold them, this
rank's own file first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from .._core.reader import CheckpointInfo
from .._state.comparing import Comparison, Leaf, StateMismatch
from .._state.generators import GENERATOR_TYPES
from .._state.loading import load_selected
from .._state.memory import ArrayMemory
from .._state.references import tag_of
from .._state.request import Loading
from .._state.stored import StoredTensor
from ..errors import IncompleteShards
from .assembly import RANDOM_PART, Assembly, Conflict, JoinedManifest, JoinedTensor
from .boxes import Box, uncovered
from .claims import ranks_in_words
from .node import TAG
from .pieces import Piece, PieceReader
from .decision import Candidate
from .restart import CandidateFiles


log = logging.getLogger("pccheck")


def load_assembled(assembly: Assembly, loading: Loading) -> Any:
    """Loads the request from the files of a world; every byte that it reads is verified.

    ``loading`` has an ``Assembled`` memory. As ``load_selected``: a ``StateMismatch`` is raised
    before anything changes. Raises ``IncompleteShards`` when the files lack elements; ``rank`` of
    another error is the rank whose file it concerns.
    """
    memory = loading.memory
    assert isinstance(memory, Assembled)
    manifest = assembly.manifest(loading.part_names)
    memory.begin(assembly, manifest)
    state = load_selected(assembly, loading, manifest)
    if loading.report is None:
        for conflict in manifest.conflicts:
            log.warning("left out: %s", memory.conflict_text(conflict))
    return state


def load_candidate(
    files: CandidateFiles, candidate: Candidate, folder: str, rank: int, world_size: int,
    loading: Loading, *, first_parts: frozenset[str] | None = frozenset(),
) -> tuple[CheckpointInfo, Any]:  # fmt: skip
    """What a rank needs of a checkpoint; of its own file alone where that has all of it.

    Where another world saved, what each rank stored for itself has to be equal on all; or it comes
    from the first of them in ``first_parts``, where None stands for all parts.
    """
    is_own_world = candidate.world_size == world_size
    wanted = [rank] if is_own_world else list(range(candidate.world_size))
    while True:
        info = files.open(wanted)
        own = rank if is_own_world else None
        assembly = Assembly(
            files.readers, candidate.world_size, own, files.paths,
            first_parts=frozenset() if is_own_world else first_parts,
        )  # fmt: skip
        try:
            return info, load_assembled(assembly, loading)
        except IncompleteShards as error:
            wanted = [rank for rank in error.ranks if rank not in files.readers]
            if not wanted:
                raise
        except StateMismatch as mismatch:
            mismatch.report.path, mismatch.report.step = folder, info.step
            raise StateMismatch(mismatch.report) from None
        finally:
            if loading.report is not None:
                loading.report.path, loading.report.step = folder, info.step


class Assembled(ArrayMemory):
    """Memory for the state of several files. Put it before the memory of a framework."""

    #: What belongs to a rank, and to no rank of another world.
    _random_types: tuple[type, ...] = GENERATOR_TYPES
    _assembly: Assembly
    _manifest: JoinedManifest
    #: What is to be read, by the rank whose file has it.
    _pieces: dict[int, list[Piece]]

    def begin(self, assembly: Assembly, manifest: JoinedManifest) -> None:
        """Starts with the files of one checkpoint."""
        self._assembly, self._manifest, self._pieces = assembly, manifest, {}

    # -- comparing

    def leaf(self, node: dict[str, Any], tensors: dict[str, StoredTensor]) -> Leaf | None:
        """Type and shape of the full tensor: how it was spread makes no difference."""
        content = node.get(TAG)
        if isinstance(content, JoinedTensor):
            return Leaf(content.dtype, content.shape)
        return super().leaf(node, tensors)

    def _is_random(self, target: Any) -> bool:
        """True for a random generator, and for a nest of nothing else."""
        if isinstance(target, (dict, list, tuple)) and target:
            items = target.values() if isinstance(target, dict) else target
            return all(map(self._is_random, items))
        return isinstance(target, self._random_types)

    def _leaves_alone(self, comparison: Comparison, target: Any, name: str) -> bool:
        """Whether a target stays as it is, because one process saved what many would get."""
        is_left = self._assembly.is_one_for_many and self._is_random(target)
        if is_left:
            comparison.report.left_alone.append(self._left_alone(name))
        return is_left

    def finish_comparison(self, comparison: Comparison) -> None:
        """Reports what ranks stored for themselves, where there is no rank to give it to."""
        report = comparison.report
        # What only some ranks had may be for others now.
        partial = self._manifest.partial
        report.unexpected = [
            name for name in report.unexpected if name.split(".state of ")[-1] not in partial
        ]
        for conflict in self._manifest.conflicts:
            part = conflict.path.split(".")[0]
            target = comparison.targets.get(conflict.path, comparison.targets.get(part))
            is_random = conflict.path == RANDOM_PART or self._is_random(target)
            where = report.left_alone if is_random else report.ambiguous
            where.append(self.conflict_text(conflict, is_random=is_random))
            below = f"{conflict.path}."
            report.missing = [
                name for name in report.missing
                if name != conflict.path and not name.startswith(below)
            ]  # fmt: skip

    def conflict_text(self, conflict: Conflict, *, is_random: bool = False) -> str:
        """Why what each rank stored for itself is not loaded."""
        if is_random or conflict.path == RANDOM_PART:
            return self._left_alone(conflict.path)
        return self._ambiguous(conflict)

    def _left_alone(self, path: str) -> str:
        count = self._assembly.world_size
        saved = "one rank" if count == 1 else f"{count} ranks"
        return f"{path}: random generators belong to a rank; a world of {saved} saved them"

    def _ambiguous(self, conflict: Conflict) -> str:
        where = "" if conflict.where == conflict.path else f", at {conflict.where}"
        groups = " and ".join(map(ranks_in_words, conflict.ranks))
        return (
            f"{conflict.path}: differs between {groups}{where}; each rank stored its own: declare "
            "the part as shared, leave it out, or give strict=False to leave it as it is"
        )

    # -- reading

    def _pieces_of(
        self, rank: int, node: Any, sizes: tuple[int, ...], part: Box, view: Any
    ) -> Iterable[Piece]:
        """What is to be read of the file of a rank to fill a view with a part of a box."""
        raise NotImplementedError

    def _part_of(self, view: Any, box: Box) -> Any:
        """A view of a part of live memory."""
        raise NotImplementedError

    def _holds(self, content: JoinedTensor, rank: int, left: list[Box]) -> bool:
        """True when the files tell that a rank, whose file is not here, held some boxes."""
        return False

    def _fill_box(self, content: JoinedTensor, needed: Box, view: Any) -> None:
        """Notes the pieces that fill live memory with a box of a tensor."""
        left = [needed]
        for box, rank, node in content.boxes:
            for common in filter(None, [part.within(box) for part in left]):
                self._pieces.setdefault(rank, []).extend(
                    self._pieces_of(
                        rank, node, box.sizes, common.relative_to(box),
                        self._part_of(view, common.relative_to(needed)),
                    )
                )  # fmt: skip
            left = [rest for part in left for rest in uncovered(part, [box])]
            if not left:
                return
        raise self._incomplete(content, needed, left)

    def _incomplete(self, content: JoinedTensor, needed: Box, left: list[Box]) -> IncompleteShards:
        missing = [rank for rank in self._assembly.missing_ranks if rank in content.ranks]
        having = [rank for rank in missing if self._holds(content, rank, left)]
        ranks = having or missing
        held = needed.element_count - sum(box.element_count for box in left)
        reason = (
            f"give the file of {ranks_in_words(ranks)}, which has the rest" if ranks
            else "no rank of this world has them"
        )  # fmt: skip
        return IncompleteShards(
            f"'{content.path}' lacks {', '.join(map(str, left[:3]))}: of {needed.element_count} "
            f"elements these files hold {held}; {reason}. The files of all ranks are those "
            f"of {ranks_in_words(content.ranks)}",
            ranks=ranks,
        )

    def read_divided(self) -> None:
        """Reads the pieces, one file after another."""
        for rank, pieces in self._pieces.items():
            with self._assembly.blamed_on(rank):
                byte_count = self._assembly.payload_byte_count(rank)
                reader = self._assembly.readers[rank]
                PieceReader(reader, byte_count, self.allocate).read(pieces)
        self._pieces = {}


def joined_tensors(node: Any) -> Iterator[JoinedTensor]:
    """The tensors of a document that are divided, in its order."""
    if isinstance(node, dict) and tag_of(node) == TAG:
        if isinstance(node[TAG], JoinedTensor):
            yield node[TAG]
    elif isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from joined_tensors(child)
