"""Compares a saved optimizer with the live one.

Parameters are matched by their names where both sides know them, else by their place. A group
takes the settings of the saved group that had its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..._state.comparing import GONE, Comparison, Difference, items_of, with_items
from ..._state.stateful import stateful_objects
from ..objects import (
    GroupNames,
    ParameterNames,
    class_record,
    class_text,
    find_parameters,
    is_same_class,
    recorded_names,
)

# Optimizer state that has the shape of its parameter.
_LIKE_THE_PARAMETER = {
    "exp_avg", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "momentum_buffer", "square_avg",
    "grad_avg", "acc_delta", "sum", "prev", "ax",
}  # fmt: skip
# Settings that some classes have and others lack, in every release of torch.
_DEFINING_SETTINGS = {
    "momentum", "dampening", "nesterov", "betas", "eps", "amsgrad", "rho", "lr_decay",
    "initial_accumulator_value", "alpha", "centered", "etas", "step_sizes", "lambd", "t0",
    "momentum_decay", "max_iter", "history_size", "ns_steps", "d", "beta2_decay",
}  # fmt: skip


@dataclass(frozen=True)
class _Saved:
    """The state of an optimizer as it is in a document."""

    node: dict[str, Any]
    groups: list[dict[str, Any]]
    #: Of each group the numbers that its parameters have in the state.
    numbers: list[list[int]]
    #: Stored key, number of the parameter or another key, and node.
    state: list[tuple[Any, Any, Any]]
    state_node: dict[str, Any]

    @classmethod
    def read(cls, node: Any) -> _Saved | None:
        """None when the node is not what torch's optimizers save."""
        items = {key: child for _, key, child in items_of(node) or []}
        groups, state = items.get("param_groups"), items.get("state")
        state_items = items_of(state)
        if not isinstance(groups, list) or not isinstance(state, dict) or state_items is None:
            return None
        numbers = [_value(group, "params") for group in groups]
        if not all(isinstance(item, list) for item in numbers):
            return None
        return cls(node, groups, numbers, state_items, state)

    def settings(self) -> set[str]:
        return {key for group in self.groups for _, key, _ in items_of(group) or []}

    def checked_names(self, found: Any) -> list[GroupNames] | None:
        """Names of the parameters by group; None when there are none, or in another form."""
        if not isinstance(found, list) or not all(isinstance(group, list) for group in found):
            return None
        if [len(group) for group in found] != [len(group) for group in self.numbers]:
            return None
        groups = [[recorded_names(item) for item in group] for group in found]
        if not all(names is not None for group in groups for names in group):
            return None
        return [[names or () for names in group] for group in groups]


def _value(group: Any, wanted: str) -> Any:
    for _, key, child in items_of(group) or []:
        if key == wanted:
            return child
    return None


def compare_optimizer(
    comparison: Comparison, node: Any, optimizer: torch.optim.Optimizer, name: str
) -> Any:
    """The state that the live optimizer can take, numbered as it numbers its parameters."""
    saved = _Saved.read(node)
    if saved is None:
        if type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict:
            comparison.report.unchecked.append(name)
            comparison.fill_tensor()
            return node
        return comparison.reshaped(name, "something else", "the state of an optimizer")
    record = comparison.objects.get(name, {})
    is_other = _is_of_another_class(saved, record, optimizer)
    if is_other:
        own = class_record(optimizer)
        was = class_text(record, own) if "class" in record else _class_by_settings(saved)
        comparison.report.other_class.append(Difference(name, was, class_text(own, record)))
        if _differing_settings(saved, optimizer):
            return GONE
    matching = _Matching(comparison, saved, record, optimizer, name)
    if not matching.is_possible:
        return GONE
    return matching.pruned(keeps_settings=is_other)


def _differing_settings(saved: _Saved, optimizer: torch.optim.Optimizer) -> set[str]:
    """Settings that say that the classes are not of one kind."""
    return (saved.settings() ^ optimizer.defaults.keys()) & _DEFINING_SETTINGS


def _is_of_another_class(
    saved: _Saved, record: dict[str, Any], optimizer: torch.optim.Optimizer
) -> bool:
    """Goes by the recorded class; in files of older releases, by the settings of the groups."""
    differing = bool(_differing_settings(saved, optimizer)) and bool(saved.groups)
    if "class" in record:
        own = class_record(optimizer)
        return not is_same_class(record, own) or (differing and record["class"] != own["class"])
    # All that Adam and AdamW differ in.
    key = "decoupled_weight_decay"
    is_decoupled = optimizer.defaults.get(key)
    is_adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    return differing or (
        is_adam and any(_value(group, key) not in (None, is_decoupled) for group in saved.groups)
    )


def _class_by_settings(saved: _Saved) -> str:
    settings = sorted(saved.settings() - {"params", "param_names", "initial_lr"})
    return f"a class with the settings {', '.join(settings)}"


class _Matching:
    """Which saved parameter each live one was."""

    def __init__(
        self, comparison: Comparison, saved: _Saved, record: dict[str, Any],
        optimizer: torch.optim.Optimizer, name: str,
    ) -> None:  # fmt: skip
        self._comparison, self._saved = comparison, saved
        self._optimizer, self._name = optimizer, name
        self._live_groups = [group["params"] for group in optimizer.param_groups]
        self._live = [parameter for group in self._live_groups for parameter in group]
        self._group_of_saved = [
            index for index, numbers in enumerate(saved.numbers) for _ in numbers
        ]
        #: For each live parameter the place of the saved one, or None.
        self._sources: list[int | None] = []
        #: Of each live parameter its names.
        self._live_names: GroupNames = [() for _ in self._live]
        self.is_possible = self._match(record)

    # -- matching

    def _match(self, record: dict[str, Any]) -> bool:
        by_name = self._by_recorded_names(record) or self._by_kept_names()
        saved_counts = [len(numbers) for numbers in self._saved.numbers]
        live_counts = [len(group) for group in self._live_groups]
        is_alike = saved_counts == live_counts
        # Groups in another order are no difference where names say which is which.
        if not is_alike and (by_name is None or sorted(saved_counts) != sorted(live_counts)):
            self._comparison.reshaped(
                self._name,
                f"groups of {', '.join(map(str, saved_counts))} parameters",
                f"groups of {', '.join(map(str, live_counts))}",
            )
        if by_name is not None:
            self._sources = by_name
            return self._is_in_order() and any(source is not None for source in by_name)
        self._sources = list(range(len(self._live)))
        if is_alike and self._saved.checked_names(record.get("parameters")) is not None:
            self._note_places()
        return is_alike

    def _note_places(self) -> None:
        """Names were saved, and the modules that have them here were not given: parameters of one
        shape may have changed places."""
        shapes = [parameter.shape for parameter in self._live]
        if len(set(shapes)) < len(shapes) and self._saved.state:
            self._comparison.report.by_place.append(self._name)

    def _by_recorded_names(self, record: dict[str, Any]) -> list[int | None] | None:
        """None when none were recorded, or the live modules are not known."""
        saved = self._saved.checked_names(record.get("parameters"))
        if saved is None:
            return None
        names = ParameterNames(self._comparison.targets)
        return self._by_name(saved, names.of(self._optimizer), names.parameters)

    def _by_kept_names(self) -> list[int | None] | None:
        """By what torch keeps of `named_parameters`; None when it kept none."""
        kept = [_value(group, "param_names") for group in self._saved.groups]
        saved = self._saved.checked_names(kept)
        groups = self._optimizer.param_groups
        if saved is None or not all(group.get("param_names") for group in groups):
            return None
        own: list[GroupNames] = [
            [(str(name),) for name in group["param_names"]] for group in groups
        ]
        flat = [names[0] for group in own for names in group]
        return self._by_name(saved, own, dict(zip(flat, self._live, strict=True)))

    def _by_name(
        self, saved: list[GroupNames], live: list[GroupNames],
        parameters: dict[str, torch.Tensor],
    ) -> list[int | None] | None:  # fmt: skip
        if not all(any(group for group in groups) for groups in (_flat(saved), _flat(live))):
            return None
        self._live_names = _flat(live)
        sources = self._sources_of(find_parameters(_flat(saved), parameters))
        self._match_nameless(saved, live, sources)
        self._report_unmatched(_flat(saved), sources)
        return sources

    def _sources_of(self, found: list[torch.Tensor | None]) -> list[int | None]:
        places = {id(parameter): index for index, parameter in enumerate(self._live)}
        sources: list[int | None] = [None] * len(self._live)
        for place, live in enumerate(found):
            if live is not None and id(live) in places:
                sources[places[id(live)]] = place
        return sources

    def _match_nameless(
        self, saved: list[GroupNames], live: list[GroupNames], sources: list[int | None]
    ) -> None:
        """By their place in the group, when one side has no names for what is left over."""
        taken = {source for source in sources if source is not None}
        first_saved, first_live = 0, 0
        for names, own_names in zip(saved, live, strict=False):
            left = [i for i in range(len(names)) if first_saved + i not in taken]
            own = [i for i in range(len(own_names)) if sources[first_live + i] is None]
            is_nameless = not any(names[i] for i in left) or not any(own_names[i] for i in own)
            if is_nameless and len(left) == len(own):
                for index, place in zip(own, left, strict=True):
                    sources[first_live + index] = first_saved + place
            first_saved, first_live = first_saved + len(names), first_live + len(own_names)

    def _report_unmatched(self, saved: GroupNames, sources: list[int | None]) -> None:
        report = self._comparison.report
        for index, source in enumerate(sources):
            if source is None:
                what = _first(self._live_names[index], index)
                report.missing.append(f"{self._name}.state of {what}")
        for place in sorted(set(range(len(saved))) - set(sources)):
            what = _first(saved[place], place)
            report.unexpected.append(f"{self._name}.state of {what}")

    def _is_in_order(self) -> bool:
        """False when the state of all parameters is one vector, and their order has changed."""
        is_one_vector = isinstance(self._optimizer, torch.optim.LBFGS)
        if not is_one_vector or self._sources == list(range(len(self._group_of_saved))):
            return True
        self._comparison.reshaped(
            self._name, "one vector over its parameters", "other parameters, or in another order"
        )
        return False

    # -- what is kept

    def pruned(self, *, keeps_settings: bool) -> Any:
        """The saved state as the live optimizer accepts it."""
        origins = self._origins()
        if origins != list(range(len(self._saved.groups))):
            self._comparison.regrouped.append(self._optimizer)
        own_names = self._own_names()
        numbers = iter(range(len(self._live)))
        groups = []
        for group, origin in zip(self._live_groups, origins, strict=True):
            own = [next(numbers) for _ in group]
            if origin is None or keeps_settings:
                # It keeps the settings that it has.
                groups.append({"params": own})
            else:
                groups.append(self._group(origin, own, own_names))
        state = self._kept_state()
        if self._saved.state and not state:
            return GONE
        self._comparison.filled_count += 1
        pruned = with_items(self._saved.state_node, state)
        new = {"state": pruned, "param_groups": groups}
        items = items_of(self._saved.node) or []
        return with_items(
            self._saved.node, [(stored, new.get(key, child)) for stored, key, child in items]
        )

    def _group(
        self, origin: int, numbers: list[int], own_names: list[str | None] | None
    ) -> dict[str, Any]:
        """A saved group with the parameters of a live one."""
        node = self._saved.groups[origin]
        new: dict[str, Any] = {"params": numbers}
        if own_names is not None:
            new["param_names"] = [own_names[number] for number in numbers]
        return with_items(
            node,
            [
                (stored, new.get(key, child))
                for stored, key, child in items_of(node) or []
                if key != "param_names" or key in new
            ],
        )

    def _own_names(self) -> list[str | None] | None:
        """The names that torch has kept, for every live parameter; None when some have none."""
        saved: list[Any] = []
        for group, numbers in zip(self._saved.groups, self._saved.numbers, strict=True):
            saved += _value(group, "param_names") or [None] * len(numbers)
        found = [
            next(iter(self._live_names[index]), None) if source is None else saved[source]
            for index, source in enumerate(self._sources)
        ]
        return None if None in found else found

    def _origins(self) -> list[int | None]:
        """For each live group the saved group whose settings it takes; None for its own."""
        sources = iter(self._sources)
        found = []
        for index, group in enumerate(self._live_groups):
            places = [next(sources) for _ in group]
            found.append({self._group_of_saved[place] for place in places if place is not None})
            if not group and self._saved.numbers[index : index + 1] == [[]]:
                # Both are empty.
                found[index].add(index)
        single = [next(iter(groups)) if len(groups) == 1 else None for groups in found]
        origins = [
            index if single.count(index) == 1 and index is not None else None for index in single
        ]
        self._report_groups(found, origins)
        return origins

    def _report_groups(self, found: list[set[int]], origins: list[int | None]) -> None:
        """Groups that were made in another way; in another order, when a scheduler counts them."""
        has_scheduler = any(
            getattr(value, "optimizer", None) is self._optimizer
            for value in stateful_objects(self._comparison.targets)
        )
        for index, (groups, origin) in enumerate(zip(found, origins, strict=True)):
            is_moved = has_scheduler and len(origins) > 1 and origin != index
            if groups and (origin is None or is_moved):
                self._comparison.reshaped(
                    f"{self._name}.param_groups.{index}",
                    "its parameters in group" + ("s " if len(groups) > 1 else " ")
                    + ", ".join(map(str, sorted(groups))),
                    f"in group {index}",
                )  # fmt: skip

    def _kept_state(self) -> list[tuple[Any, Any]]:
        number_of = [number for numbers in self._saved.numbers for number in numbers]
        live_of = {
            number_of[source]: index
            for index, source in enumerate(self._sources)
            if source is not None
        }
        all_numbers = set(number_of)
        reshaped = self._reshaped_parameters()
        kept: list[tuple[Any, Any]] = []
        for stored, key, child in self._saved.state:
            if key in live_of:
                index = live_of[key]
                if self._fits(child, index, key, is_reshaped=index in reshaped):
                    kept.append((index, child))
            elif key not in all_numbers:
                kept.append((stored, child))
        return kept

    def _fits(self, node: Any, index: int, number: int, *, is_reshaped: bool) -> bool:
        """False when the parameter has another shape than when its state was saved."""
        comparison = self._comparison
        memory, report = comparison.memory, comparison.report
        expected = memory.live_leaf(self._live[index])
        fits, count = not is_reshaped, 0
        for _, key, child in items_of(node) or []:
            saved = memory.leaf(child, comparison.tensors) if isinstance(child, dict) else None
            if saved is None:
                continue
            count += 1
            is_alike = expected is None or (saved.shape, saved.sharding) == (
                expected.shape, expected.sharding
            )  # fmt: skip
            if key in _LIKE_THE_PARAMETER and not is_alike:
                path = f"{self._name}.state.{number}.{key}"
                report.reshaped.append(Difference(path, str(saved), f"a parameter {expected}"))
                fits = False
        if fits:
            report.matched_count += count
            comparison.filled_tensor_count += count
        return fits

    def _reshaped_parameters(self) -> set[int]:
        """The live parameters of which the comparison of their module found another shape."""
        reshaped = {item.name for item in self._comparison.report.reshaped}
        return {
            index for index, names in enumerate(self._live_names) if reshaped.intersection(names)
        }


def _flat(groups: list[GroupNames]) -> GroupNames:
    return [names for group in groups for names in group]


def _first(names: tuple[str, ...], number: int) -> str:
    """The name of a parameter for messages."""
    return names[0] if names else f"number {number}"
