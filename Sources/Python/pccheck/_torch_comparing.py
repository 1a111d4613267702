"""What a checkpoint holds of modules and optimizers, beside the live ones."""

from __future__ import annotations

from typing import Any

import torch

from ._comparing import Comparison, Difference, items_of, with_items

# Optimizer state that has the shape of its parameter.
_LIKE_THE_PARAMETER = {
    "exp_avg", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "momentum_buffer", "square_avg",
    "grad_avg", "acc_delta", "sum", "prev", "ax",
}  # fmt: skip


def compare_module(comparison: Comparison, node: Any, module: torch.nn.Module, name: str) -> Any:
    """Key by key, unless the module has its own way to read what was saved."""
    if _reads_in_its_own_way(module):
        comparison.filled_count += 1
        return node
    return comparison.mapping(node, module.state_dict(), name, is_closed=True)


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
    them apart from its own memory. The hooks of FSDP only change how tensors are spread."""
    return any(
        any(not _is_of_fsdp(hook) for hook in part._load_state_dict_pre_hooks.values())
        or not _is_of_torch(type(part).load_state_dict)
        or not _is_of_torch(type(part)._load_from_state_dict)
        for part in module.modules()
    )


def _is_of_torch(function: Any) -> bool:
    return str(function.__module__).split(".")[0] == "torch"


def _is_of_fsdp(hook: Any) -> bool:
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.distributed.fsdp")


def compare_optimizer(
    comparison: Comparison, node: Any, optimizer: torch.optim.Optimizer, name: str
) -> Any:
    """Groups must agree; the moments of a parameter are taken when they have its shape."""
    items = {key: child for _, key, child in items_of(node) or []}
    saved_groups, saved_state = items.get("param_groups"), items.get("state")
    if not isinstance(saved_groups, list) or not isinstance(saved_state, dict):
        return comparison.reshaped(name, "something else", "the state of an optimizer")
    saved = [_parameter_count(group) for group in saved_groups]
    live = [len(group["params"]) for group in optimizer.param_groups]
    if saved != live:
        return comparison.reshaped(
            name,
            f"groups of {', '.join(map(str, saved))} parameters",
            f"groups of {', '.join(map(str, live))}",
        )
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    kept = []
    for stored_key, index, child in items_of(saved_state) or []:
        if type(index) is int and 0 <= index < len(parameters):
            path = f"{name}.state.{index}"
            if not _fits(comparison, child, parameters[index], path):
                continue
        kept.append((stored_key, child))
    comparison.filled_count += 1
    pruned = with_items(saved_state, kept)
    return with_items(
        node,
        [(key, pruned if key == "state" else child) for key, _, child in items_of(node) or []],
    )


def _parameter_count(group: Any) -> int:
    for _, key, child in items_of(group) or []:
        if key == "params" and isinstance(child, list):
            return len(child)
    return -1


def _fits(comparison: Comparison, node: Any, parameter: torch.Tensor, path: str) -> bool:
    """False when a moment has another shape than its parameter."""
    memory, report = comparison.memory, comparison.report
    expected = memory.live_leaf(parameter)
    fits = True
    for _, key, child in items_of(node) or []:
        saved = memory.leaf(child, comparison.tensors) if isinstance(child, dict) else None
        if saved is None:
            continue
        is_alike = expected is None or (saved.shape, saved.sharding) == (
            expected.shape, expected.sharding
        )  # fmt: skip
        if key in _LIKE_THE_PARAMETER and not is_alike:
            report.reshaped.append(
                Difference(f"{path}.{key}", str(saved), f"a parameter {expected}")
            )
            fits = False
        else:
            report.matched_count += 1
    return fits

