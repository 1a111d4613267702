"""What a load asks for, and what became of it: the report, and which live memory changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._core.printable import printable
from ..errors import CheckpointError, Corrupt, InvalidArgument, StateFormatError
from .comparing import Comparison, ResumeReport, StateMismatch
from .memory import ArrayMemory, Place
from .placing import Matching, merged, spans_of
from .references import LISTED_NAME_COUNT, part_of, reference_to, tag_of
from .stateful import fixed_error
from .stored import StoredTensor

# Tells "nothing to fill" from a None in the caller's state.
_NOTHING = object()


class Loading:
    """One request: what to load, and what of it goes into live memory."""

    def __init__(
        self,
        memory: ArrayMemory,
        into: Any = _NOTHING,
        *,
        parts: list[str] | None = None,
        optional_parts: list[str] | None = None,
        tensor: str | None = None,
        strict: bool | None = None,
        proves_rest: bool = False,
    ) -> None:
        """`parts` are the top-level keys to load, `tensor` the one tensor; default everything.

        With `strict` the document is compared with `into` first. True refuses what differs, with
        a report of all of it; False loads what fits. With `proves_rest`, a checkpoint of a group
        is rejected also for damage in what is not wanted, because a second load takes that.
        """
        self.memory = memory
        self._into = into
        self._parts = parts
        self._optional_parts = optional_parts or []
        self._tensor = tensor
        self._strict = strict
        self.proves_rest = proves_rest
        self._held_parts: list[str] = []
        #: What was recorded of the objects of the state, as it is in the checkpoint.
        self.objects: str | None = None
        #: What the comparison found; None when nothing was compared.
        self.report: ResumeReport | None = None
        #: What was passed over before the checkpoint that was loaded.
        self.rejections: list[dict[str, Any]] = []
        # Live memory, from and to, with the name of its tensor, that was filled, or may have been,
        # from whatever checkpoint: one that is rejected later leaves it behind.
        self._changed: set[tuple[int, int, str]] = set()

    @property
    def part_names(self) -> list[str] | None:
        """The top-level keys that are wanted; None for all."""
        return None if self._parts is None else [*self._parts, *self._optional_parts]

    def selected(self, document: Any) -> Any:
        """The requested part of a state document."""
        if self._tensor is not None:
            return reference_to(self._tensor, document)
        if self._parts is None or not isinstance(document, dict) or tag_of(document):
            return document
        self._held_parts = list(document)
        names = self._parts + [name for name in self._optional_parts if name in document]
        if self._strict is not None:
            return {name: document[name] for name in names if name in document}
        return {name: part_of(document, name) for name in names}

    def compared(self, document: Any, tensors: dict[str, StoredTensor]) -> Any:
        """The document without what does not fit; raises before anything is changed."""
        if self._strict is None:
            return document
        self.report = ResumeReport(held_parts=self._held_parts)
        if not isinstance(document, dict) or tag_of(document):
            raise CheckpointError(
                "the checkpoint holds one value, not parts that have names; read it with load()"
            )
        with _damaged_documents_reported():
            objects = self.memory.recorded_objects(self.objects)
            comparison = Comparison(self.memory, tensors, self.report, objects, self._into)
            kept = comparison.parts(document)
            self.memory.finish_comparison(comparison)
        if comparison.fixed and not (self.report.differs and self._strict):
            raise fixed_error(*comparison.fixed[0])
        # A partial request that gets nothing has another reason than a part that was added.
        self.report.is_empty = self.report.differs and comparison.is_empty
        if self.report.differs and (self._strict or self.report.is_empty):
            raise StateMismatch(self.report)
        others = {name: document[name] for name in self._optional_parts if name in document}
        return {**others, **kept}

    def places(self, document: Any, tensors: dict[str, StoredTensor]) -> dict[str, Place]:
        """By name, the tensors that go into live memory."""
        if self._into is _NOTHING:
            return {}
        matching = Matching(self.memory, tensors)
        with _damaged_documents_reported():
            matching.match(document, self._into)
        if self._strict is None and not matching.has_met and tensors:
            if self.memory.fills_in_place(self._into):
                raise InvalidArgument(
                    "into= holds nothing at the places where tensors were saved: the checkpoint "
                    f"has {_outline(document)}, into has {_outline(self._into)}; give the same "
                    "nest, or take the state that load() returns"
                )
        return matching.places

    def must_prove(self, places: dict[str, Place]) -> bool:
        """True when what is filled may not be filled again by an older checkpoint.

        Only a partial request continues with a checkpoint that has less. A strict one fails then.
        """
        return bool(places) and self._strict is False

    def begin_filling(
        self, places: dict[str, Place], tensors: dict[str, StoredTensor]
    ) -> None:
        """Called before the first byte of a checkpoint goes into live memory."""
        self._changed |= spans_of(places, tensors)

    def check_refilled(
        self, places: dict[str, Place], tensors: dict[str, StoredTensor]
    ) -> None:
        """Raises when live memory holds values of a checkpoint that was rejected."""
        now = spans_of(places, tensors)
        if self._changed <= now:
            return
        filled = merged((start, end) for start, end, _ in now)
        if self._strict:
            # What an optimizer has no state for in the checkpoint, it drops when it is restored.
            filled = merged([*filled, *self.memory.dropped_spans(self._into)])
        left = sorted(
            name
            for start, end, name in self._changed
            if not any(low <= start and end <= high for low, high in filled)
        )
        if left:
            others = f" and {len(left) - 1} more have" if len(left) > 1 else " has"
            raise CheckpointError(
                f"'{left[0]}'{others} no value in this checkpoint, but one of a newer checkpoint "
                "that turned out damaged later"
            )

    def mismatch_after_change(
        self, mismatch: StateMismatch, rejections: list[dict[str, Any]]
    ) -> CheckpointError:
        """The error for a checkpoint that does not fit; when a newer one was at work before it,
        what is wrong with that one comes first."""
        if not self._changed or not rejections:
            return mismatch
        newer = rejections[0]
        return Corrupt(
            f"{mismatch.report.path}: step {newer['step']} is damaged ({newer['message']}), and "
            f"step {mismatch.report.step} does not fit: "
            + "; ".join(line.strip() for line in str(mismatch.report).splitlines())
        )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """While live objects receive what was loaded: an error reports what it left behind."""
        try:
            yield
        except Exception as error:
            self.explain(error)
            raise

    def explain(self, failure: Exception) -> None:
        """Adds to an error what it left behind."""
        if not self._changed:
            return
        text = (
            "the tensors that were to be filled in place hold unspecified values now: load another "
            "checkpoint into them, or initialize them again"
        )
        # An error of torch keeps its own words where it can.
        add_note = getattr(failure, "add_note", None)
        if isinstance(failure, CheckpointError) or add_note is None:
            words = f"{failure}; {text}"
            if isinstance(failure, CheckpointError):
                failure.reword(words)
            else:
                failure.args = (words,)
        else:
            add_note(text)


@contextmanager
def _damaged_documents_reported() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise StateFormatError(f"the state document is damaged: {error}") from error


def _outline(value: Any) -> str:
    """The first keys of a nest or of its document."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    names = [str(key) for key in value]
    more = ", …" if len(names) > LISTED_NAME_COUNT else ""
    return "the keys " + ", ".join(map(printable, names[:LISTED_NAME_COUNT])) + more
