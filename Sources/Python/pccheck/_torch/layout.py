"""Which tensors of a state the ranks hold together, and which part of each this rank stores.

A part of a save is *shared* or *own*. Shared: one key is one tensor, on every rank that has it.
Own: it belongs to this rank. spec/STATE.md, "Sharded tensors", states the rules.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .._group.boxes import Box, LocalBox
from .._group.claims import Claims, digest_of
from .._group.division import Division, group_metadata, is_split
from .._group.plan import Replica, Sharing
from .._state.nesting import joined
from .._state.stateful import is_stateful, mapped, named_objects
from ..errors import InvalidArgument
from .objects import ParameterNames
from .sharded import (
    Pieces,
    Sharding,
    is_dtensor,
    local_of,
    parts_of_local,
    view_of,
)
from .trainable import Trainable
from .types import PLAIN_TENSOR_TYPES, WORD_TYPES, dtype_name

#: How many elements of a tensor are compared between the ranks that hold it.
_SAMPLE_COUNT = 64

#: Ranks of the job, in order.
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Replicated:
    """A module that several ranks hold alike, as inside of DistributedDataParallel."""

    module: torch.nn.Module
    ranks: Ranks
    #: The rank that sends its buffers to the others; None where each has its own.
    buffer_source: int | None
    #: Names of parameters and buffers that are each rank's own.
    ignored: frozenset[str] = frozenset()

    @classmethod
    def of(cls, wrapper: torch.nn.parallel.DistributedDataParallel) -> Replicated:
        """What is inside of a wrapper."""
        # The first rank sends its buffers before each forward pass.
        ranks = group_ranks(wrapper.process_group)
        ignored = frozenset(wrapper.parameters_to_ignore)
        return cls(wrapper.module, ranks, ranks[0] if wrapper.broadcast_buffers else None, ignored)


@dataclass
class _Held:
    """A tensor that this rank holds with others."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    #: The ranks that hold it together.
    ranks: Ranks
    #: The ranks that hold just what this rank holds.
    holders: Ranks
    #: What this rank holds, and where.
    parts: list[tuple[LocalBox, torch.Tensor]]
    sharding: Sharding | None = None
    #: The one rank whose values count, for what the others will receive from it.
    source: int | None = None
    #: What the ranks call it among each other; its path unless that is no name.
    label: str = ""
    #: False where the caller says that the ranks need not agree.
    is_claimed: bool = True
    #: What this rank stores: views of its parts.
    stored: list[tuple[Box, torch.Tensor]] = field(default_factory=list)

    @property
    def structure(self) -> list[Any]:
        boxes = [[box.box.offsets, box.box.sizes] for box, _ in self.parts]
        return [
            self.path, self.shape, dtype_name(self.dtype), self.ranks, self.holders, self.source,
            boxes,
        ]  # fmt: skip

    def pieces(self) -> Pieces:
        return Pieces(self.shape, self.dtype, self.ranks, tuple(self.stored), self.sharding)


class Layout:
    """Divides the states of one job, save after save. Talks to no other rank."""

    def __init__(
        self, rank: int, world_size: int,
        shared: Collection[str] | Mapping[str, Any] = (), replicas: str = "split",
    ) -> None:  # fmt: skip
        """`shared` names parts that are the same on all ranks, or maps a name to a process group
        of the ranks that hold it; None and True are all ranks, False is a part of each rank's own
        although it looks shared.

        With `replicas="whole"` every rank stores all that it holds, for disks that no other
        machine reads. With ``split`` what several ranks hold is divided among them.
        """
        if isinstance(shared, str):
            raise InvalidArgument(f"shared is {shared!r}; give the names of parts in a tuple")
        self._rank, self._world_size = rank, world_size
        self._replicas, self._is_split = replicas, is_split(replicas)
        groups = shared if isinstance(shared, Mapping) else dict.fromkeys(shared)
        #: The ranks of declared parts; empty for each rank's own.
        self._declared: dict[str, Ranks] = {
            name: self._ranks_of(name, group) for name, group in groups.items()
        }
        self._planned: tuple[bytes, list[list[list[Box]]]] = b"", []
        #: Modules and optimizers whose tensors are in the states, where the states do not have
        #: them or their wrappers as objects.
        self.replicated: list[Replicated] = []
        self.optimizers: list[torch.optim.Optimizer] = []

    def _ranks_of(self, name: str, group: Any) -> Ranks:
        if group is False:
            return ()
        if group is None or group is True:
            return tuple(range(self._world_size))
        ranks = group_ranks(group)
        if self._rank not in ranks:
            raise InvalidArgument(
                f"shared={{'{name}': …}} is a group of ranks {ranks}, and this is rank "
                f"{self._rank}; give a group that has it, or False for each rank's own"
            )
        return ranks

    def divide(
        self, state: Mapping[str, Any], parts: Mapping[str, Any], *, sample: bool
    ) -> Division:
        """What this rank stores of the parts, which were collected from a state.

        All ranks that hold a tensor come to the same division. `sample` makes claims, which take
        some elements of each tensor that other ranks hold too. Raises ``InvalidArgument`` for a
        declared part that is not in the state, ``TypeError`` for a DTensor that has no boxes.
        """
        unknown = [name for name in self._declared if name not in parts]
        if unknown:
            raise InvalidArgument(
                f"'{unknown[0]}' is declared as shared, and the save has no such part: it has "
                + ", ".join(parts)
            )
        replicas = _Replicas([*self.replicated, *_replicated_in(state)], self.optimizers)
        finding = _Finding(self._declared, state, replicas, has_values=sample)
        for name, value in parts.items():
            finding.part(name, state.get(name), value)
        structure = digest_of(
            [[item.structure for item in finding.held], finding.ties, self._is_split]
        )
        self._store(finding.held, structure)
        claims = _claims(finding) if sample else None
        return Division(
            {name: _with_pieces(value, finding.found[name]) for name, value in parts.items()},
            group_metadata(
                self._rank, self._world_size, self._replicas, parts, finding.shared, claims
            ),
            structure,
            None if claims is None else claims.encoded(),
            _share(finding.held),
        )

    def _store(self, held: list[_Held], structure: bytes) -> None:
        """Decides which part of each tensor this rank stores."""
        if self._planned[0] != structure:
            self._planned = structure, self._plan(held)
        for item, planned in zip(held, self._planned[1], strict=True):
            item.stored = [
                (_shifted(piece, local.box.offsets), view_of(part, piece))
                for (local, part), boxes in zip(item.parts, planned, strict=True)
                for piece in boxes
            ]

    def _plan(self, held: list[_Held]) -> list[list[list[Box]]]:
        """For each tensor and each of its parts the boxes of the part that this rank stores."""
        sharing = Sharing(self._rank, is_split=self._is_split)
        return [
            [
                sharing.stored(Replica(local.box.sizes, part.itemsize), item.holders, item.source)
                for local, part in item.parts
            ]
            for item in held
        ]


def group_ranks(group: Any) -> Ranks:
    """The ranks of a process group, as the whole job numbers them."""
    import torch.distributed as dist

    return tuple(dist.get_process_group_ranks(group))


def _share(held: list[_Held]) -> float:
    byte_count = sum(part.nbytes for item in held for _, part in item.parts)
    stored = sum(part.nbytes for item in held for _, part in item.stored)
    return stored / byte_count if byte_count else 1.0


def _shifted(box: Box, offsets: tuple[int, ...]) -> Box:
    return Box(tuple(a + b for a, b in zip(box.offsets, offsets, strict=True)), box.sizes)


class _Finding:
    """The tensors of a collected state that other ranks hold too."""

    def __init__(
        self, declared: Mapping[str, Ranks], state: Mapping[str, Any], replicas: _Replicas, *,
        has_values: bool,
    ) -> None:  # fmt: skip
        self._declared = declared
        self._has_values = has_values
        self._state = dict(state)
        self._names: ParameterNames | None = None
        self.held: list[_Held] = []
        #: By part, and the identity of a tensor of the collected state, which lives as long.
        self.found: dict[str, dict[int, _Held]] = {}
        self._found: dict[int, _Held] = {}
        #: Memory that was met: tied weights are planned once.
        self._by_memory: dict[object, _Held] = {}
        #: Path of a tensor, and of the one that it is tied to.
        self.ties: list[tuple[str, str]] = []
        #: Names of parts with something shared.
        self.shared: set[str] = set()
        #: Path, holders and text of other values that these hold alike.
        self.values: list[tuple[str, Ranks, str]] = []
        self._replicas = replicas

    def part(self, name: str, live: Any, collected: Any) -> None:
        """Notes what is shared of a part."""
        self._found = self.found[name] = {}
        declared = self._declared.get(name)
        if declared is None:
            self._walk(live, collected, name)
        else:
            # Of one that is declared as own, DTensors only.
            count = len(self.held)
            self._everything(collected, name, declared)
            for held in self.held[count:]:
                held.is_claimed = bool(declared)
        if declared or self._found:
            self.shared.add(name)

    def _walk(self, live: Any, collected: Any, path: str) -> None:
        """Follows the live objects and what was collected of them."""
        if isinstance(live, torch.optim.Optimizer) and isinstance(collected, dict):
            self._optimizer(live, collected, path)
        elif is_stateful(live):
            self._everything(collected, path, None)
        elif isinstance(live, dict) and isinstance(collected, dict):
            for key, item in live.items():
                self._walk(item, collected.get(key), joined(path, key))
        elif isinstance(live, (list, tuple, deque)):
            for index, (item, value) in enumerate(zip(live, collected, strict=True)):
                self._walk(item, value, joined(path, index))
        else:
            self._everything(collected, path, None)

    def _optimizer(
        self, optimizer: torch.optim.Optimizer, collected: dict[str, Any], path: str
    ) -> None:
        """The state of a parameter belongs to the ranks of the parameter."""
        parameters = [item for group in optimizer.param_groups for item in group["params"]]
        state = collected.get("state")
        if not isinstance(state, dict):
            return self._everything(collected, path, None)
        # A number stands for another parameter in each stage of a pipeline.
        names = self._names_of(optimizer)
        for number, value in state.items():
            ranks: Ranks = ()
            count = len(self.held)
            if isinstance(number, int) and number < len(parameters):
                ranks = self._replicas.of_parameter.get(id(parameters[number]), ())
            before = f"{path}.state.{number}"
            self._everything(value, before, ranks)
            for held in self.held[count:]:
                if number in names:
                    held.label = f"{path}.state of {names[number]}{held.path[len(before) :]}"
        of_all = {
            Sharding.of(parameter).mesh_ranks if is_dtensor(parameter)
            else self._replicas.of_parameter.get(id(parameter), ())
            for parameter in parameters
        }  # fmt: skip
        ranks = next(iter(of_all), ())
        if len(of_all) == 1 and len(ranks) > 1:
            settings = [
                {key: value for key, value in group.items() if key not in ("params", "param_names")}
                for group in collected.get("param_groups", [])
            ]
            self._note_value(settings, f"{path}.param_groups", ranks)

    def _names_of(self, optimizer: torch.optim.Optimizer) -> dict[int, str]:
        """The parameters of an optimizer by their numbers, where claims are made."""
        if not self._has_values:
            return {}
        if self._names is None:
            self._names = ParameterNames(self._state)
        names = [names for group in self._names.of(optimizer) for names in group]
        return {number: found[0] for number, found in enumerate(names) if found}

    # -- tensors

    def _everything(self, value: Any, path: str, ranks: Ranks | None) -> None:
        """Every tensor of a nest: DTensors by their placement; others on the ranks, or by their
        memory for None."""
        if isinstance(value, torch.Tensor):
            if is_dtensor(value):
                self._dtensor(value, path)
            elif ranks is None:
                self._whole(value, path, *self._replicas.holders_of(value))
            else:
                self._whole(value, path, ranks)
        elif isinstance(value, dict):
            for key, item in value.items():
                self._everything(item, joined(path, key), ranks)
        elif isinstance(value, (list, tuple, deque)):
            for index, item in enumerate(value):
                self._everything(item, joined(path, index), ranks)
        elif ranks is not None and len(ranks) > 1:
            self._note_value(value, path, ranks)

    def _whole(
        self, value: torch.Tensor, path: str, ranks: Ranks, source: int | None = None
    ) -> None:
        """A tensor of which each rank has all elements."""
        if len(ranks) > 1 and _is_divisible(value):
            shape = tuple(value.shape)
            whole = Box.whole(shape)
            parts = [(LocalBox(whole, whole), value.detach())] if value.numel() else []
            held = _Held(path, shape, value.dtype, ranks, ranks, parts, source=source)
            self._add(value, held)

    def _note_value(self, value: Any, path: str, ranks: Ranks) -> None:
        text = _text(value) if self._has_values else None
        if text is not None:
            self.values.append((path, ranks, text))

    def _dtensor(self, value: torch.Tensor, path: str) -> None:
        try:
            sharding = Sharding.of(value)
            parts = parts_of_local(sharding, local_of(value))
        except TypeError as error:
            raise TypeError(f"'{path}' cannot be stored in a checkpoint: {error}") from None
        ranks, holders = sharding.mesh_ranks, sharding.holders()
        self._add(value, _Held(path, sharding.shape, value.dtype, ranks, holders, parts, sharding))

    def _add(self, value: torch.Tensor, held: _Held) -> None:
        local = local_of(value)
        key = (
            local.device, local.data_ptr(), local.shape, local.stride(), local.dtype, held.shape,
            held.sharding, held.ranks,
        ) if local.numel() else id(value)  # fmt: skip
        found = self._by_memory.setdefault(key, held)
        if found is held:
            self.held.append(held)
        else:
            self.ties.append((held.path, found.path))
        self._found[id(value)] = found


class _Replicas:
    """Which tensors are in modules that several ranks hold alike."""

    def __init__(
        self, replicated: Iterable[Replicated], optimizers: Iterable[torch.optim.Optimizer]
    ) -> None:
        #: The ranks of a parameter, by its identity.
        self.of_parameter: dict[int, Ranks] = {}
        # By memory, because wrappers and hooks rename keys: the ranks that hold a tensor, and the
        # rank whose values count. Whatever else a module stores is each rank's own.
        self._holders: dict[object, tuple[Ranks, int | None]] = {}
        for item in replicated:
            self._add_module(item)
        for optimizer in optimizers:
            for parameter, state in optimizer.state.items():
                ranks = self.of_parameter.get(id(parameter), ())
                for tensor in state.values() if isinstance(state, dict) else []:
                    if ranks and isinstance(tensor, torch.Tensor):
                        self._holders[_memory_of(tensor)] = ranks, None

    def _add_module(self, item: Replicated) -> None:
        for name, parameter in item.module.named_parameters(remove_duplicate=False):
            if name not in item.ignored:
                self.of_parameter[id(parameter)] = item.ranks
                self._holders[_memory_of(parameter)] = item.ranks, None
        if item.buffer_source is None:
            return
        for name, buffer in item.module.named_buffers(remove_duplicate=False):
            if name not in item.ignored:
                self._holders[_memory_of(buffer)] = item.ranks, item.buffer_source

    def holders_of(self, tensor: torch.Tensor) -> tuple[Ranks, int | None]:
        """The ranks that hold a tensor, none for one rank's own; and the rank whose values count,
        if the others' do not."""
        if not tensor.numel():
            # All that are empty have one address.
            return (), None
        return self._holders.get(_memory_of(tensor), ((), None))


def _replicated_in(state: Mapping[str, Any]) -> Iterator[Replicated]:
    """The wrappers among the objects of a state."""
    for _, value in named_objects(dict(state)):
        module = value.model if isinstance(value, Trainable) else value
        if isinstance(module, torch.nn.Module):
            for part in module.modules():
                if isinstance(part, torch.nn.parallel.DistributedDataParallel):
                    yield Replicated.of(part)


def _memory_of(tensor: torch.Tensor) -> object:
    local = local_of(tensor)
    return local.device, local.data_ptr(), tuple(local.shape), local.dtype


def _is_divisible(value: torch.Tensor) -> bool:
    """True for a tensor of values in memory; the encoder refuses or stores others."""
    return (
        type(value) in PLAIN_TENSOR_TYPES
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta or value.is_nested)
    )


def _text(value: Any) -> str | None:
    """A value of Python as text that is the same on all ranks; None for another one."""
    try:
        return json.dumps(value, sort_keys=True, default=_text_of_other)
    except (TypeError, ValueError, RecursionError):
        return None


def _text_of_other(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.numel() == 1:
        # Such as a learning rate.
        return value.item()
    raise TypeError


def _with_pieces(value: Any, found: Mapping[int, _Held]) -> Any:
    """A collected nest with pieces in place of what is divided."""
    if isinstance(value, torch.Tensor):
        held = found.get(id(value))
        return value if held is None else held.pieces()
    return mapped(value, lambda item: _with_pieces(item, found))


# -- claims


def _claims(finding: _Finding) -> Claims:
    """What the other holders must have as well."""
    claims = Claims()
    claimed = [item for item in finding.held if item.is_claimed]
    samples = _samples([part for item in claimed for _, part in item.parts])
    for item in claimed:
        form = f"{dtype_name(item.dtype)} {item.shape}"
        if not item.parts:
            # Every holder has nothing of it.
            claims.add(f"{item.label or item.path} (nothing)", item.holders, form)
        for local, _ in item.parts:
            is_whole = local.box.sizes == item.shape
            name = item.label or item.path
            name = name if is_whole else f"{name}{local.box}"
            values = next(samples)
            claims.add(name, item.holders, form, values if item.source is None else b"")
    for path, other in finding.ties:
        claims.add(path, (), f"the same as {other}")
    for path, ranks, text in finding.values:
        claims.add(path, ranks, text)
    return claims


def _samples(tensors: list[torch.Tensor]) -> Any:
    """Some elements of each tensor, equally spaced, as bytes; one copy for each device."""
    chosen: list[torch.Tensor] = []
    with torch.no_grad():
        for tensor in tensors:
            chosen.append(_bytes_of(_some(tensor)))
        by_device: dict[torch.device, list[int]] = {}
        for index, item in enumerate(chosen):
            by_device.setdefault(item.device, []).append(index)
        found: dict[int, bytes] = {}
        for indices in by_device.values():
            flat = torch.cat([chosen[index] for index in indices]).cpu().numpy().tobytes()
            start = 0
            for index in indices:
                count = chosen[index].numel()
                found[index] = flat[start : start + count]
                start += count
    return iter([found[index] for index in range(len(tensors))])


def _some(tensor: torch.Tensor) -> torch.Tensor:
    """At most 64 elements, as a dense vector."""
    count = tensor.numel()
    if tensor.is_contiguous():
        step = max(1, count // _SAMPLE_COUNT)
        return tensor.reshape(-1)[::step][: _SAMPLE_COUNT + 1].contiguous()
    # Without a copy of all of it: along each dimension some places.
    per_axis = max(2, int(_SAMPLE_COUNT ** (1 / max(1, tensor.dim()))))
    for axis, extent in enumerate(tensor.shape):
        step = max(1, extent // per_axis)
        tensor = tensor[(slice(None),) * axis + (slice(None, None, step),)]
    return tensor.reshape(-1)


def _bytes_of(values: torch.Tensor) -> torch.Tensor:
    values = values.resolve_conj().resolve_neg()
    if values.dtype.is_complex:
        values = torch.view_as_real(values)
    if values.dtype.itemsize in WORD_TYPES:
        values = values.view(WORD_TYPES[values.dtype.itemsize])
    return values.contiguous().view(-1).view(torch.uint8)
