"""One numbering for an optimizer whose ranks have other parameters, as the stages of a pipeline do.

The state of an optimizer numbers its parameters, and so number 0 of one stage is another parameter
than number 0 of the next one. Their names, which a save records, say which is which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .._state.comparing import items_of, with_items
from ..errors import StateFormatError

#: Names of a parameter as they are recorded, as text.
_Groups = list[list[str]]


def with_common_numbers(
    nodes: Mapping[int, Any], records: Mapping[int, Any], name: str
) -> tuple[dict[int, Any], list[list[Any]]] | None:
    """The nodes of an optimizer by rank with one numbering, and the names of the parameters in it;
    None when the ranks number alike, or have no record."""
    groups = {rank: _groups(records.get(rank)) for rank in nodes}
    found = [item for item in groups.values() if item is not None]
    if len(found) < len(nodes):
        if found:
            raise StateFormatError(
                f"'{name}' has the names of its parameters in the files of some ranks only"
            )
        return None
    if all(item == found[0] for item in found):
        return None
    if len({len(item) for item in found}) > 1 or any("null" in group for item in found
                                                     for group in item):  # fmt: skip
        raise StateFormatError(
            f"the ranks had other parameters in '{name}', and its groups or parameters without a "
            "name do not say which is which; save the modules in the same save, and give the "
            "optimizers of all ranks as many groups"
        )
    union = [
        list(dict.fromkeys(item for groups in found for item in groups[index]))
        for index in range(len(found[0]))
    ]
    names = [[json.loads(text) for text in group] for group in union]
    return {
        rank: _renumbered(node, groups[rank] or [], union, name) for rank, node in nodes.items()
    }, names


def _groups(record: Any) -> _Groups | None:
    parameters = record.get("parameters") if isinstance(record, dict) else None
    if not isinstance(parameters, list) or not all(isinstance(item, list) for item in parameters):
        return None
    return [[json.dumps(names) for names in group] for group in parameters]


def _renumbered(node: Any, own: _Groups, union: _Groups, name: str) -> Any:
    items = {key: child for _, key, child in items_of(node) or []}
    groups, state = items.get("param_groups"), items.get("state")
    if not isinstance(groups, list) or items_of(state) is None or len(groups) != len(own):
        raise StateFormatError(f"'{name}' is no state of an optimizer in the file of some rank")
    new_numbers: dict[Any, int] = {}
    new_groups, first = [], 0
    for group, names, all_names in zip(groups, own, union, strict=True):
        group_items = {key: child for _, key, child in items_of(group) or []}
        numbers = group_items.get("params")
        if not isinstance(numbers, list) or len(numbers) != len(names):
            raise StateFormatError(f"'{name}' has other parameters than were recorded of it")
        places = {text: first + place for place, text in enumerate(all_names)}
        new_numbers.update(zip(numbers, (places[text] for text in names), strict=True))
        kept = [
            (stored, list(range(first, first + len(all_names))) if key == "params" else child)
            for stored, key, child in items_of(group) or [] if key != "param_names"
        ]  # fmt: skip
        new_groups.append(with_items(group, kept))
        first += len(all_names)
    new_state = {
        "$dict": [
            [new_numbers.get(key, stored), child] for stored, key, child in items_of(state) or []
        ]
    }
    new = {"state": new_state, "param_groups": new_groups}
    return with_items(
        node, [(stored, new.get(key, child)) for stored, key, child in items_of(node) or []]
    )
