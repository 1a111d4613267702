"""Compares saved modules, schedulers and other objects with the live ones."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..._state.comparing import (
    GONE,
    WRAPPERS,
    Comparison,
    Difference,
    Leaf,
    items_of,
    kind_of,
    with_items,
)
from ..objects import (
    bare_name,
    class_record,
    class_text,
    has_recorded_class,
    is_same_class,
)
from .dry_run import DryRun

_EXTRA_STATE = "_extra_state"
_PLACE_KEEPING = ("torch.distributed.fsdp", "torch.distributed.algorithms._checkpoint")
#: What schedulers hold a value of for each group of their optimizer.
_PER_GROUP = ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs")


def compare_module(comparison: Comparison, node: Any, module: torch.nn.Module, name: str) -> Any:
    """Key by key; what differs is left to a module with its own way to read what was saved."""
    live = module.state_dict()
    node = _without_wrappers(comparison, node, module, live, name)
    if not _reads_in_its_own_way(module):
        return _compare_keys(comparison, node, module, live, name)
    apart = comparison.apart()
    _compare_keys(apart, node, module, live, name)
    if apart.report.differs:
        comparison.report.unchecked.append(name)
        comparison.fill_tensor()
    else:
        comparison.add(apart)
    return node


def _compare_keys(
    comparison: Comparison, node: Any, module: torch.nn.Module, live: dict[str, Any], name: str
) -> Any:
    """What fits under the keys of the module."""
    items = items_of(node)
    if items is None:
        return comparison.reshaped(name, kind_of(node), f"a dict of {len(live)}")
    dry_run = DryRun(module, node, comparison.memory, comparison.tensors)
    kept, found = [], set()
    for stored_key, key, child in items:
        if key not in live and not dry_run.accepts(key):
            comparison.report.unexpected.append(f"{name}.{key}")
            continue
        found.add(key)
        # The module alone decides what it does with its extra state.
        is_own = key not in live or key.endswith(_EXTRA_STATE)
        if is_own or (not _fits(comparison, child, live[key]) and dry_run.accepts(key)):
            comparison.fill_tensor()
        else:
            child = comparison.compare(child, live[key], f"{name}.{key}")
            if child is GONE:
                continue
        kept.append((stored_key, child))
    for key in live:
        if key not in found and not dry_run.accepts(key):
            comparison.wants_tensors = True
            comparison.report.missing.append(f"{name}.{key}")
    return with_items(node, kept)


def _fits(comparison: Comparison, node: Any, target: Any) -> bool:
    live: Leaf | None = comparison.memory.live_leaf(target)
    saved = comparison.memory.leaf(node, comparison.tensors) if isinstance(node, dict) else None
    return live is None or (saved is not None and saved.shape == live.shape)


def _reads_in_its_own_way(module: torch.nn.Module) -> bool:
    """True when the module may accept keys and shapes that are not its own."""
    return any(
        part._load_state_dict_pre_hooks
        or not _is_of_torch(type(part).load_state_dict)
        or not _is_of_torch(type(part)._load_from_state_dict)
        for part in module.modules()
    )


def moves_what_it_reads(module: torch.nn.Module) -> bool:
    """True when the module may put saved values elsewhere than under their keys: it must be given
    them apart from its own memory."""
    return any(
        any(not _keeps_places(hook) for hook in part._load_state_dict_pre_hooks.values())
        or not _is_of_torch(type(part).load_state_dict)
        or not _is_of_torch(type(part)._load_from_state_dict)
        for part in module.modules()
    )


def _is_of_torch(function: Any) -> bool:
    return str(function.__module__).split(".")[0] == "torch"


def _keeps_places(hook: Any) -> bool:
    """True for hooks of torch that put each value where ``state_dict`` shows it: those of FSDP only
    spread tensors, those of ``checkpoint_wrapper`` only add the prefix that it took away."""
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith(_PLACE_KEEPING)


# -- wrappers


def _without_wrappers(
    comparison: Comparison, node: Any, module: torch.nn.Module, live: dict[str, Any], name: str
) -> Any:
    """The node with the keys of the live module, when wrappers are what makes them differ."""
    items = items_of(node)
    keys = [key for _, key, _ in items or [] if isinstance(key, str)]
    if items is None or len(keys) != len(items) or not set(keys) - live.keys():
        return node
    live_by_bare = {bare_name(key): key for key in live}
    saved_by_bare = {bare_name(key): key for key in keys}
    if len(live_by_bare) != len(live) or len(saved_by_bare) != len(keys):
        return node
    new = {key: live_by_bare.get(bare_name(key), key) for key in keys}
    common = len(set(new.values()) & live.keys())
    is_bijection = saved_by_bare.keys() == live_by_bare.keys()
    if common <= len(set(keys) & live.keys()) or not (
        is_bijection or not _reads_in_its_own_way(module)
    ):
        return node
    pairs = [(saved, now) for saved, now in new.items() if saved != now]
    comparison.report.renamed.append(_renaming(name, *pairs[0]))
    renamed = with_items(node, [(new[key], child) for _, key, child in items])
    return _with_versions(renamed, [path for path, _ in module.named_modules()])


def _renaming(name: str, saved: str, live: str) -> Difference:
    sides = []
    for key in (saved, live):
        around = [prefix for prefix in WRAPPERS if f".{prefix}" in f".{key}"]
        kinds = " and ".join(WRAPPERS[prefix] for prefix in around)
        sides.append(f"{key} inside {kinds}" if around else key)
    return Difference(name, *sides)


def _with_versions(node: Any, paths: list[str]) -> Any:
    """The node with the versions of its modules under the live paths of those."""
    versions = items_of(node.get("_metadata")) if "_metadata" in node else None
    if versions is None:
        return node
    # Of a wrapper and what is inside, the longer path is that of what is inside.
    by_bare = {bare_name(key): child for _, key, child in sorted(versions, key=_length)}
    kept = [(path, by_bare[bare_name(path)]) for path in paths if bare_name(path) in by_bare]
    return {**node, "_metadata": with_items(node["_metadata"], kept)}


def _length(item: tuple[Any, Any, Any]) -> int:
    return len(str(item[1]))


# -- other objects


def compare_other(comparison: Comparison, node: Any, target: Any, name: str) -> Any:
    """Schedulers, scalers and other objects, which make of their state what they like."""
    if has_recorded_class(target):
        record, own = comparison.objects.get(name), class_record(target)
        if _is_of_another_class(record, own, node, target):
            saved = class_text(record, own) if record else "another class"
            difference = Difference(name, saved, class_text(own, record or {}))
            comparison.report.other_class.append(difference)
            return GONE
        unfit = _unfit(node, target)
        optimizer = getattr(target, "optimizer", None)
        if any(optimizer is item for item in comparison.regrouped):
            unfit = "values for other groups", "an optimizer whose groups differ"
        if unfit is not None:
            return comparison.reshaped(name, *unfit)
    comparison.filled_count += 1
    return node


def _is_of_another_class(
    record: dict[str, Any] | None, own: dict[str, Any], node: Any, target: Any
) -> bool:
    if record is not None and "class" in record:
        return not is_same_class(record, own)
    if not isinstance(target, torch.optim.lr_scheduler.LRScheduler):
        return False
    # Files of older releases: each of two classes has settings that the other lacks.
    saved = {key for _, key, _ in items_of(node) or [] if not str(key).startswith("_")}
    live = {key for key in target.state_dict() if not key.startswith("_")}
    return bool(saved - live) and bool(live - saved)


def _unfit(node: Any, target: Any) -> tuple[str, str] | None:
    """What was saved and what is live of an object of the right class that cannot take it."""
    items = {key: child for _, key, child in items_of(node) or []}
    is_enabled = getattr(target, "is_enabled", None)
    if inspect.ismethod(is_enabled) and type(target).__name__ == "GradScaler":
        # An enabled one raises an error for what a disabled one has saved.
        if is_enabled() and not items:
            return "the state of a disabled GradScaler", "an enabled one"
    if isinstance(target, torch.optim.lr_scheduler.LRScheduler):
        for key in _PER_GROUP:
            saved, live = items.get(key), target.__dict__.get(key)
            if isinstance(saved, list) and isinstance(live, list) and len(saved) != len(live):
                return f"{key} of {len(saved)} groups", f"an optimizer with {len(live)}"
    return None
