"""Compares a checkpoint with the live state, before any tensor is read.

The walk goes through the state document and the live state side by side. A strict request fails
and lists every difference. A partial one removes from the document what does not fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .._core.printable import printable
from ..errors import CheckpointError
from . import generators
from .decoder import Decoder
from .nesting import joined

_SHOWN_COUNT = 20
#: Key of the record of objects in the ``__metadata__`` of a payload.
OBJECTS_KEY = "pccheck.objects"
#: Prefixes that wrappers put before every key of a module, and which wrapper it is.
WRAPPERS = {
    "module.": "DistributedDataParallel or DataParallel",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "checkpoint_wrapper",
}
GONE = object()
#: Tags of what has a list of items.
SEQUENCE_TAGS = ("$tuple", "$namedtuple", "$deque")


@dataclass(frozen=True)
class Leaf:
    """A tensor or array by its type and shape."""

    dtype: str
    shape: tuple[int, ...]
    #: How it is spread over processes, and which part is here; nothing for a full tensor.
    sharding: str = ""

    def __str__(self) -> str:
        text = f"{self.dtype} {_shape_text(self.shape)}"
        return f"{text}, {self.sharding}" if self.sharding else text


@dataclass(frozen=True)
class Difference:
    """A value that was saved in another form than the live one has."""

    name: str
    saved: str
    live: str

    def __str__(self) -> str:
        name, saved, live = map(printable, (self.name, self.saved, self.live))
        return f"{name}: saved {saved}, live {live}"


@dataclass
class ResumeReport:
    """What a resume found, and did not find, for the live state.

    ``missing`` is expected by the live state and not in the checkpoint, ``unexpected`` the other
    way round. ``reshaped`` and ``retyped`` are in both, with another shape or structure, or with a
    type whose values the live type cannot all hold; ``converted`` changes type and loses nothing.
    ``other_class`` is the state of an optimizer, a scheduler or the like of another class.
    ``renamed`` are modules whose keys differ only by what wrappers such as ``torch.compile`` put
    before them; that loses nothing either. ``overwritten`` are live tensors that share their memory
    while the checkpoint has two tensors for it: the last one stays. ``by_place`` are optimizers
    whose parameters could not be matched by name. ``ambiguous`` is what each rank of another number
    of ranks saved for itself, and is not the same on all of them; random generators among that are
    ``left_alone``. After a partial resume, what is missing or
    reshaped has its live values still; what is retyped was rounded to the live type when both are
    floats or both are integers.
    """

    path: str = ""
    step: int | None = None
    #: The parts that the checkpoint holds, requested or not.
    held_parts: list[str] = field(default_factory=list)
    #: How many tensors and arrays of the checkpoint fit the live state.
    matched_count: int = 0
    #: Modules that read what was saved in a way of their own; their tensors are not counted.
    unchecked: list[str] = field(default_factory=list)
    #: True when nothing of the checkpoint can be loaded into the live state.
    is_empty: bool = False
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    other_class: list[Difference] = field(default_factory=list)
    reshaped: list[Difference] = field(default_factory=list)
    retyped: list[Difference] = field(default_factory=list)
    converted: list[Difference] = field(default_factory=list)
    renamed: list[Difference] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)
    by_place: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """True when the checkpoint and the live state agree in every name, shape and type."""
        notes = (
            self.converted or self.renamed or self.overwritten or self.by_place or self.left_alone
        )
        return not (self.differs or notes)

    @property
    def differs(self) -> bool:
        """True when a strict resume is refused."""
        return bool(
            self.missing or self.unexpected or self.other_class or self.reshaped or self.retyped
            or self.ambiguous
        )  # fmt: skip

    def __str__(self) -> str:
        return self.text(_SHOWN_COUNT)

    def text(self, shown_count: int | None = None) -> str:
        """All of it, a line for each name; at most ``shown_count`` of each kind."""
        path = printable(self.path)
        where = path if self.step is None else f"{path}, step {self.step}"
        if self.is_exact:
            return f"{where}: {self._fitting()}"
        what = "the checkpoint and the live state differ" if self.differs else self._fitting()
        lines = [f"{where}: {what}"]
        for title, items in (
            ("missing from the checkpoint", self.missing),
            ("unexpected: in the checkpoint, not in the live state", self.unexpected),
            ("of another class", self.other_class),
            ("reshaped", self.reshaped),
            ("retyped", self.retyped),
            ("converted, without loss", self.converted),
            ("renamed by wrappers", self.renamed),
            ("shared here and not in the checkpoint: the last one stays", self.overwritten),
            ("matched by place: give the model, too, to match by name", self.by_place),
            ("of each rank, and saved by another number of ranks", self.ambiguous),
            ("left as they are", self.left_alone),
        ):
            lines += _section(title, items, shown_count)
        lines += self._hints()
        return "\n".join(lines)

    def _fitting(self) -> str:
        """How much of the live state the checkpoint fits."""
        own = ", ".join(map(printable, self.unchecked))
        if not own:
            return f"all {self.matched_count} tensors fit" if self.matched_count else "it fits"
        others = f"{self.matched_count} tensors fit; " if self.matched_count else ""
        return f"{others}{own} reads saved state in its own way"

    def _hints(self) -> Iterator[str]:
        """What may be the reason: another name of a part, the shards of one rank."""
        if any(name not in self.held_parts and "." not in name for name in self.missing):
            held = ", ".join(map(printable, self.held_parts)) or "nothing"
            yield f"  the checkpoint holds: {held}"
        if any("sharded" in item.saved + item.live for item in self.reshaped):
            yield (
                "  a file holds the shards of its rank only; load_full() puts those of all ranks "
                "together"
            )


def _section(title: str, items: list[Any], shown_count: int | None) -> Iterator[str]:
    if not items:
        return
    yield f"  {title} ({len(items)})"
    shown = items if shown_count is None else items[:shown_count]
    for item in shown:
        yield f"    {printable(item) if isinstance(item, str) else item}"
    if len(shown) < len(items):
        yield f"    and {len(items) - len(shown)} more; the report's lists have all of them"


def _shape_text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


class StateMismatch(CheckpointError):
    """The checkpoint does not fit the live state; nothing was read, nothing was changed.

    ``report`` lists everything that differs.
    """

    _has_lines = True

    def __init__(self, report: ResumeReport) -> None:
        advice = "give resume(strict=False) to load what fits"
        if report.is_empty:
            advice = "no tensor fits"
        super().__init__(f"{report}\n  nothing was loaded; {advice}")
        self.report = report


class Comparison:
    """Compares one document with the live state, and prunes it."""

    def __init__(
        self, memory: Any, tensors: dict[str, Any], report: ResumeReport,
        objects: dict[str, Any], targets: dict[str, Any],
    ) -> None:  # fmt: skip
        """`memory` knows the kinds of tensor, `tensors` are the stored ones by name.

        `objects` is what was recorded of the objects of the state, `targets` the live state.
        """
        self.memory = memory
        self.tensors = tensors
        self.report = report
        self.objects = objects
        self.targets = targets
        #: What fills which live memory.
        self._sources: dict[Any, tuple[Any, str]] = {}
        #: How many live tensors, values and objects get something of the checkpoint.
        self.filled_count = 0
        #: Whether live tensors are compared, and how many get something.
        self.wants_tensors = False
        self.filled_tensor_count = 0
        #: Optimizers whose groups are not the saved ones in their order.
        self.regrouped: list[Any] = []
        #: Live values, by name, that would have to become others and cannot.
        self.fixed: list[tuple[str, Any]] = []

    def apart(self) -> Comparison:
        """A comparison of the same states with a report of its own."""
        report = ResumeReport()
        return Comparison(self.memory, self.tensors, report, self.objects, self.targets)

    def add(self, other: Comparison) -> None:
        """Takes over what a comparison apart found, which was no difference."""
        self.report.matched_count += other.report.matched_count
        self.report.converted += other.report.converted
        self.report.overwritten += other.report.overwritten
        self.report.by_place += other.report.by_place
        self.filled_count += other.filled_count
        self.filled_tensor_count += other.filled_tensor_count
        self.wants_tensors = self.wants_tensors or other.wants_tensors

    def parts(self, document: dict[str, Any]) -> dict[str, Any]:
        """The named parts of a state; a part that only the checkpoint has was not requested."""
        kept = {}
        # What an optimizer can take depends on how its parameters fit, and schedulers on that.
        for name in sorted(self.targets, key=self._place):
            if name not in document:
                self.report.missing.append(name)
                continue
            node = self.compare(document[name], self.targets[name], name)
            if node is not GONE:
                kept[name] = node
                self._note_fixed(node, self.targets[name], name)
        return {name: kept[name] for name in self.targets if name in kept}

    def _place(self, name: str) -> int:
        return int(self.memory.place_of_comparing(self.targets[name]))

    def _note_fixed(self, node: Any, target: Any, name: str) -> None:
        """What can neither be filled nor replaced must have the value already."""
        children = _children(node)
        if isinstance(target, tuple) and children is not None and len(children) == len(target):
            for index, (child, item) in enumerate(zip(children, target, strict=True)):
                self._note_fixed(child, item, f"{name}.{index}")
            return
        is_open = isinstance(target, (dict, list, deque, set, bytearray))
        if is_open or self.memory.fills_in_place(target):
            return
        try:
            value = _plain_key(node)
        except CheckpointError:
            value = GONE
        if type(value) is not type(target) or value != target:
            self.fixed.append((name, target))

    def compare(self, node: Any, target: Any, name: str) -> Any:
        """The part of a node that fits the target, or GONE."""
        special = self.memory.compare_object(self, node, target, name)
        if special is not None:
            return special
        live = self.memory.live_leaf(target)
        if live is not None:
            kept = self.leaf(node, live, name)
            if kept is not GONE:
                self._note_sharing(kept, target, name)
            return kept
        if isinstance(target, dict):
            return self.mapping(node, target, name)
        if isinstance(target, (list, tuple, deque)):
            return self._sequence(node, target, name)
        if isinstance(target, generators.GENERATOR_TYPES):
            live_kind = generators.kind_of(target)
            if generators.kind_of_node(node) != live_kind:
                return self.reshaped(name, kind_of(node), generators.describe(live_kind))
        self.filled_count += 1
        return node

    def _note_sharing(self, node: Any, target: Any, name: str) -> None:
        """Two tensors of the checkpoint for one live tensor, such as weights tied since."""
        memory = self.memory.memory_of(target)
        if memory is None:
            return
        other_node, other_name = self._sources.setdefault(memory, (node, name))
        if other_node != node:
            self.report.overwritten.append(f"{other_name} and {name}")

    def leaf(self, node: Any, live: Leaf, name: str) -> Any:
        """Compares a tensor or array with the node that should hold it."""
        self.wants_tensors = True
        saved = self.memory.leaf(node, self.tensors) if isinstance(node, dict) else None
        if saved is None:
            return self.reshaped(name, kind_of(node), f"a tensor {live}")
        if saved.shape != live.shape or saved.sharding != live.sharding:
            return self.reshaped(name, str(saved), str(live))
        if saved.dtype != live.dtype:
            difference = Difference(name, saved.dtype, live.dtype)
            if not self.memory.keeps_values(saved, live):
                self.report.retyped.append(difference)
                if not self.memory.converts(saved, live):
                    return GONE
                self.fill_tensor()
                return node
            self.report.converted.append(difference)
        self.report.matched_count += 1
        self.fill_tensor()
        return node

    def fill_tensor(self) -> None:
        """Notes that a live tensor, or one of an object, gets something."""
        self.filled_count += 1
        self.filled_tensor_count += 1

    @property
    def is_empty(self) -> bool:
        """True when nothing is filled, or no tensor where tensors are wanted."""
        return not self.filled_count or (self.wants_tensors and not self.filled_tensor_count)

    def reshaped(self, name: str, saved: str, live: str) -> Any:
        """Notes a difference of shape or structure."""
        self.report.reshaped.append(Difference(name, saved, live))
        return GONE

    def mapping(
        self, node: Any, target: dict[Any, Any], name: str, *, is_closed: bool = False
    ) -> Any:
        """A dictionary; whatever it holds besides tensors and objects is replaced.

        One that is closed has all keys and no others.
        """
        items = items_of(node)
        if items is None:
            return self.reshaped(name, kind_of(node), f"a dict of {len(target)}")
        kept, found = [], set()
        for stored_key, key, child in items:
            found.add(key)
            path = joined(name, key)
            if key in target:
                child = self.compare(child, target[key], path)
                if child is GONE:
                    continue
            elif is_closed:
                self.report.unexpected.append(path)
                continue
            kept.append((stored_key, child))
        for key, item in target.items():
            if key not in found and (is_closed or self.memory.fills_in_place(item)):
                self.wants_tensors = True
                self.report.missing.append(joined(name, key))
        return with_items(node, kept)

    def _sequence(self, node: Any, target: Any, name: str) -> Any:
        if not self.memory.fills_in_place(target):
            self.filled_count += 1
            return node
        children = _children(node)
        kind = type(target).__name__
        if children is None or len(children) != len(target):
            return self.reshaped(name, kind_of(node), f"a {kind} of {len(target)}")
        kept = [
            self.compare(child, item, f"{name}.{index}")
            for index, (child, item) in enumerate(zip(children, target, strict=True))
        ]
        if any(child is GONE for child in kept):
            # There is no list with a hole: it stays as it is.
            return GONE
        return kept if children is node else {**node, _tag(node): kept}


def _tag(node: Any) -> str:
    return next(iter(node), "") if isinstance(node, dict) else ""


def _children(node: Any) -> list[Any] | None:
    """The nodes of the items of a sequence; None for another node."""
    children = node[_tag(node)] if _tag(node) in SEQUENCE_TAGS else node
    return children if isinstance(children, list) else None


def items_of(node: Any) -> list[tuple[Any, Any, Any]] | None:
    """Stored key, key and node of every item of a dictionary's node; None for another node."""
    if not isinstance(node, dict):
        return None
    tag = next(iter(node), "")
    content = node
    if tag.startswith("$"):
        if tag not in ("$dict", "$ordered", "$counter", "$defaultdict"):
            return None
        content = node[tag]
    if isinstance(content, dict):
        return [(key, key, child) for key, child in content.items()]
    return [(pair[0], _plain_key(pair[0]), pair[1]) for pair in content]


def with_items(node: dict[str, Any], items: list[tuple[Any, Any]]) -> dict[str, Any]:
    """The node of a dictionary with other items."""
    tag = next(iter(node), "")
    if not tag.startswith("$"):
        return dict(items)
    content = node[tag]
    new: Any = dict(items) if isinstance(content, dict) else [list(pair) for pair in items]
    return {**node, tag: new}


def _plain_key(key: Any) -> Any:
    """A stored key as the dictionary has it."""
    return Decoder({}).decode(key)


def kind_of(node: Any) -> str:
    """What a node stands for, in words."""
    if isinstance(node, list):
        return f"a list of {len(node)}"
    if not isinstance(node, dict):
        return "None" if node is None else f"a {type(node).__name__}"
    tag = next(iter(node), "")
    if not tag.startswith("$"):
        return f"a dict of {len(node)}"
    if tag in SEQUENCE_TAGS:
        return f"a {tag[1:]} of {len(node[tag])}"
    generator = generators.kind_of_node(node)
    if generator is not None:
        return generators.describe(generator)
    return f"a {tag[1:]}"
