"""Where loaded tensors go: straight into memory that the caller has already, or into fresh memory.

A stored tensor goes *in place* when the live one at the same key has its type, its shape and a
dense row-major layout in memory that this process can write. The rest is allocated. Nothing is
ever held twice.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.printable import printable
from ..errors import CheckpointError, Corrupt, InvalidArgument, StateFormatError
from ..state import Decoder
from .comparing import SEQUENCE_TAGS, Comparison, Leaf, ResumeReport, StateMismatch, items_of
from .stateful import fills_in_place, fixed_error, is_stateful
from .stored import StoredTensor, array_type

# Tells "nothing to fill" from a None in the caller's state.
_NOTHING = object()
REFERENCES = ("$tensor", "$array", "$view")
_LISTED_NAME_COUNT = 8


@dataclass(frozen=True)
class Place:
    """Live memory for a stored tensor."""

    #: What decoding gives back.
    value: Any
    #: The same memory, flat and in bytes, of the kind that the decoder works on.
    memory: Any
    address: int
    #: The decoder's key for `value`.
    key: object
    #: Where the memory is not the stored bytes, what fills it from a buffer that holds them.
    fill: Callable[[Any], None] | None = None
    #: Bytes that are changed, from `address`; as many as are stored unless `fill` is given.
    span: int = 0


class ArrayMemory:
    """Memory for NumPy arrays."""

    def allocate(self, byte_count: int) -> tuple[Any, int]:
        """An object that owns `byte_count` bytes, aligned to 64, and their address."""
        base = np.empty(byte_count + 64, np.uint8)
        start = -base.ctypes.data % 64
        memory = base[start : start + byte_count]
        return memory, memory.ctypes.data

    def is_read(self, kind: str) -> bool:
        """True when the bytes behind references of this kind are to be read at once."""
        return True

    def decoder(self, tensors: dict[str, StoredTensor], made: dict[object, Any]) -> Decoder:
        """Builds the state from its document and the loaded tensors."""
        return Decoder(tensors, made)

    def state_of(self, target: Any) -> Any:
        """The nest of live tensors of an object, whose state the document describes."""
        return target

    def prepare(self, target: Any) -> None:
        """Called before places are sought in a target that fits the document."""

    # -- comparing

    def compare_object(self, comparison: Comparison, node: Any, target: Any, name: str) -> Any:
        """The part of a node that fits an object with a state of its own; None for no object."""
        if not is_stateful(target):
            return None
        # What such an object makes of its state is its own affair.
        comparison.filled_count += 1
        return node

    def recorded_objects(self, text: str | None) -> dict[str, Any]:
        """What was recorded of the objects of a state, by key path."""
        return {}

    def place_of_comparing(self, target: Any) -> int:
        """Parts with a higher number are compared after others."""
        return 0

    def leaf(self, node: dict[str, Any], tensors: dict[str, StoredTensor]) -> Leaf | None:
        """Type and shape of the array of a node; None when it is no array."""
        tensor = tensors.get(node.get("$array", ""))
        if tensor is None:
            return None
        dtype, shape = array_type(tensor, node.get("dtype"))
        return Leaf(dtype.name, shape)

    def live_leaf(self, target: Any) -> Leaf | None:
        """Type and shape of a live array."""
        if isinstance(target, np.ndarray):
            return Leaf(target.dtype.name, target.shape)
        return None

    def memory_of(self, target: Any) -> Any:
        """Tells live tensors in the same memory; None for one without."""
        if not isinstance(target, np.ndarray) or not target.size:
            return None
        return target.ctypes.data, target.dtype.str, target.shape, target.strides

    def keeps_values(self, saved: Leaf, live: Leaf) -> bool:
        """True when a type needs no conversion that may lose something."""
        return saved.dtype == live.dtype

    def converts(self, saved: Leaf, live: Leaf) -> bool:
        """True when values may be rounded to the live type where that was asked for."""
        kinds = [np.dtype(leaf.dtype).kind for leaf in (saved, live)]
        return kinds[0] == kinds[1] or set(kinds) <= {"i", "u"}

    def fills_in_place(self, target: Any) -> bool:
        """True when a loaded value goes into this object rather than in its place."""
        return fills_in_place(target)

    def dropped_spans(self, target: Any) -> list[tuple[int, int]]:
        """Live memory that its owner lets go of when it is restored."""
        return []

    # -- in place

    def unwrapped(self, node: dict[str, Any], target: Any) -> tuple[Any, Any] | None:
        """The node and the target inside of ones that wrap a tensor."""
        return None

    def place(
        self, node: dict[str, Any], kind: str, tensor: StoredTensor, target: Any
    ) -> Place | None:
        """The live memory to load a tensor into, when `target` fits it."""
        if kind != "$array" or type(target) is not np.ndarray:
            return None
        tag = node.get("dtype")
        flags = target.flags
        if not (flags.c_contiguous and flags.writeable and flags.aligned):
            return None
        if (target.dtype, target.shape) != array_type(tensor, tag):
            return None
        flat = target.reshape(-1).view(np.uint8)
        return Place(target, flat, flat.ctypes.data, ("array", tensor.name, tag))


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
    ) -> None:
        """`parts` are the top-level keys to load, `tensor` the one tensor; default everything.

        With `strict` the document is compared with `into` first. True refuses what differs, with
        a report of all of it; False loads what fits.
        """
        self.memory = memory
        self._into = into
        self._parts = parts
        self._optional_parts = optional_parts or []
        self._tensor = tensor
        self._strict = strict
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

    def selected(self, document: Any) -> Any:
        """The part of a state document that is asked for."""
        if self._tensor is not None:
            return _reference_to(self._tensor, document)
        if self._parts is None or not isinstance(document, dict) or _tag(document):
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
        if not isinstance(document, dict) or _tag(document):
            raise CheckpointError(
                "the checkpoint holds one value, not parts that have names; read it with load()"
            )
        with _broken_documents_told():
            objects = self.memory.recorded_objects(self.objects)
            comparison = Comparison(self.memory, tensors, self.report, objects, self._into)
            kept = comparison.parts(document)
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
        matching = _Matching(self.memory, tensors)
        with _broken_documents_told():
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

        Only a partial request goes on with a checkpoint that has less. A strict one fails then.
        """
        return bool(places) and self._strict is False

    def begin_filling(
        self, places: dict[str, Place], tensors: dict[str, StoredTensor]
    ) -> None:
        """Called before the first byte of a checkpoint goes into live memory."""
        self._changed |= _spans(places, tensors)

    def check_refilled(
        self, places: dict[str, Place], tensors: dict[str, StoredTensor]
    ) -> None:
        """Raises when live memory holds values of a checkpoint that was rejected."""
        now = _spans(places, tensors)
        if self._changed <= now:
            return
        filled = _merged((start, end) for start, end, _ in now)
        if self._strict:
            # What an optimizer has no state for in the checkpoint, it drops when it is restored.
            filled = _merged([*filled, *self.memory.dropped_spans(self._into)])
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
        """Where what was loaded is given to live objects: an error says what it left behind."""
        try:
            yield
        except Exception as error:
            self.explain(error)
            raise

    def explain(self, failure: Exception) -> None:
        """Says in an error what it left behind."""
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
def _broken_documents_told() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise StateFormatError(f"the state document is broken: {error}") from error


class _Matching:
    """Walks a state document and the live state side by side."""

    def __init__(self, memory: ArrayMemory, tensors: dict[str, StoredTensor]) -> None:
        self.places: dict[str, Place] = {}
        #: True once a stored tensor had anything live at its place, whether it fits or not.
        self.has_met = False
        self._memory = memory
        self._tensors = tensors
        # Ends and starts of the memory given away, sorted: two tensors must not share a byte.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def match(self, node: Any, target: Any) -> None:
        """Finds places for the tensors below a node."""
        self._memory.prepare(target)
        target = self._memory.state_of(target)
        if isinstance(node, list):
            if isinstance(target, list):
                for child, item in zip(node, target, strict=False):
                    self.match(child, item)
            return
        if not isinstance(node, dict):
            return
        tag = _tag(node)
        if tag in REFERENCES:
            self._place(tag, node, target)
        elif tag in SEQUENCE_TAGS:
            if isinstance(target, (tuple, deque)):
                self.match(node[tag], list(target))
        elif isinstance(target, dict):
            for _, key, child in items_of(node) or []:
                if key in target:
                    self.match(child, target[key])
        else:
            inside = self._memory.unwrapped(node, target)
            if inside is not None:
                self.match(*inside)

    def _place(self, kind: str, node: dict[str, Any], target: Any) -> None:
        tensor = self._tensors.get(node[kind])
        self.has_met = self.has_met or self._memory.live_leaf(target) is not None
        if tensor is None or tensor.name in self.places or not tensor.byte_count:
            return
        place = self._memory.place(node, kind, tensor, target)
        if place is not None and self._claim(place.address, place.span or tensor.byte_count):
            self.places[tensor.name] = place

    def _claim(self, start: int, byte_count: int) -> bool:
        end = start + byte_count
        index = bisect.bisect_right(self._ends, start)
        if index < len(self._starts) and self._starts[index] < end:
            return False
        self._starts.insert(index, start)
        self._ends.insert(index, end)
        return True


def _spans(
    places: dict[str, Place], tensors: dict[str, StoredTensor]
) -> set[tuple[int, int, str]]:
    """The live memory of places, from and to."""
    return {
        (place.address, place.address + (place.span or tensors[name].byte_count), name)
        for name, place in places.items()
    }


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same memory in as few runs as there are."""
    runs: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs


def _outline(value: Any) -> str:
    """The first keys of a nest or of its document."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    names = [str(key) for key in value]
    more = ", …" if len(names) > _LISTED_NAME_COUNT else ""
    return "the keys " + ", ".join(map(printable, names[:_LISTED_NAME_COUNT])) + more


def _tag(node: dict[str, Any]) -> str:
    first = next(iter(node), "")
    return first if first.startswith("$") else ""


def references(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stored tensors that a document names, each with the node that names it."""
    pending = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            tag = _tag(node)
            content = node.get(tag)
            if tag in REFERENCES and isinstance(content, str):
                yield content, node
            elif tag in ("$bytes", "$bytearray"):
                if isinstance(content, dict) and isinstance(content.get("tensor"), str):
                    yield content["tensor"], node
            else:
                pending += node.values()


def _reference_to(name: str, document: Any) -> Any:
    names = []
    for found, node in references(document):
        if found == name:
            return node
        names.append(found)
    shown = ", ".join(sorted(names)[:_LISTED_NAME_COUNT]) or "none"
    more = ", …" if len(names) > _LISTED_NAME_COUNT else ""
    raise CheckpointError(
        f"tensor '{name}' is not in the checkpoint, which holds {len(names)} tensors: "
        f"{shown}{more}"
    )


def part_of(loaded: Any, name: str) -> Any:
    """A named part of a loaded state, or of its document."""
    if not isinstance(loaded, dict) or name not in loaded:
        held = ", ".join(loaded) if isinstance(loaded, dict) else type(loaded).__qualname__
        raise CheckpointError(f"'{name}' is not in the checkpoint, which holds: {held}")
    return loaded[name]
