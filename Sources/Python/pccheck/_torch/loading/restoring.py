"""Puts loaded state into modules, optimizers and generators."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch

from ..._core.printable import printable
from ..._state.stateful import FILLED_TYPES, Restorer
from ...errors import CheckpointError
from ..sharded import is_dtensor, spread_like
from ..types import PLAIN_TENSOR_TYPES

log = logging.getLogger("pccheck")

_SHOWN_COUNT = 4


class TorchRestorer(Restorer):
    """Adds tensors and generators, and modules that take a part of their state."""

    filled_types = (*FILLED_TYPES, torch.Tensor, torch.Generator)

    def __init__(self, strict: bool = True) -> None:
        super().__init__()
        self._strict = strict

    def restore(self, name: str, target: Any, value: Any) -> None:
        """Gives `target` the state `value`."""
        if isinstance(target, torch.nn.Module):
            self._restore_module(name, target, value)
        elif isinstance(target, torch.optim.Optimizer):
            self._restore_optimizer(target, value)
        else:
            super().restore(name, target, value)

    def _restore_module(self, name: str, module: torch.nn.Module, value: Any) -> None:
        """Of a module that nobody compared, torch says what it did not take."""
        value = _spread(module, value)
        try:
            if self._strict:
                module.load_state_dict(value)
                return
            found: Any = module.load_state_dict(value, strict=False)
        except RuntimeError as error:
            reason = " ".join(str(error).split()).rstrip(" .")
            raise CheckpointError(
                f"'{name}' reads saved state in its own way, and refused it: {reason}; its "
                "tensors hold unspecified values now: load another checkpoint into them, or "
                "initialize them again"
            ) from error
        # A method of its own may report nothing.
        if name in self.report.unchecked and hasattr(found, "missing_keys"):
            self._tell_partial(name, module, found)

    def _tell_partial(self, name: str, module: torch.nn.Module, found: Any) -> None:
        """What a module with a way of its own left out of a partial restore."""
        expected = set(module.state_dict())
        if expected and expected <= set(found.missing_keys):
            raise CheckpointError(
                f"{self.report.path}: '{name}' reads saved state in its own way, and accepted "
                f"none of it: saved are {_shown(found.unexpected_keys)}, it has {_shown(expected)}"
            )
        report = self.report
        report.missing += [f"{name}.{key}" for key in found.missing_keys]
        report.unexpected += [f"{name}.{key}" for key in found.unexpected_keys]
        if found.missing_keys or found.unexpected_keys:
            log.warning("%s", report)

    def _restore_optimizer(self, optimizer: torch.optim.Optimizer, value: Any) -> None:
        """Groups without settings keep their own; a partial restore leaves the state of other
        parameters as it is."""
        before: dict[Any, Any] = {} if self._strict else dict(optimizer.state)
        for group, live in zip(value.get("param_groups", []), optimizer.param_groups, strict=False):
            if isinstance(group, dict) and group.keys() == {"params"}:
                group.update(copy.deepcopy({k: v for k, v in live.items() if k != "params"}))
        optimizer.load_state_dict(value)
        _restore_exactly(optimizer, value)
        for parameter, state in before.items():
            if parameter not in optimizer.state:
                optimizer.state[parameter] = state

    def restore_other(self, name: str, target: Any, value: Any) -> None:
        """Tensors and generators."""
        if isinstance(target, torch.Tensor):
            if value is not target:
                _fill(name, target, value)
        elif isinstance(target, torch.Generator):
            target.set_state(value["generator"])
        else:
            super().restore_other(name, target, value)


def _spread(module: torch.nn.Module, value: Any) -> Any:
    """Loaded tensors as the DTensors that the module has under their keys: torch copies no whole
    tensor into one of those."""
    own = (*module.parameters(), *module.buffers())
    if not isinstance(value, dict) or not any(map(is_dtensor, own)):
        return value
    live = {key: item for key, item in module.state_dict().items() if is_dtensor(item)}
    spread = {
        key: spread_like(live[key], item)
        for key, item in value.items()
        if key in live and type(item) is torch.Tensor and item.shape == live[key].shape
    }
    if not spread:
        return value
    # A copy has the versions of the modules too, which some read.
    found = copy.copy(value)
    found.update(spread)
    return found


def _fill(name: str, target: torch.Tensor, value: Any) -> None:
    """Copies into a live tensor that the file could not be read into."""
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(
            f"'{printable(name)}' was saved as a {type(value).__qualname__} and cannot fill a "
            "tensor; pass what it was saved as"
        )
    if target.is_meta and not value.is_meta:
        # torch accepts the copy, and keeps nothing of it.
        raise CheckpointError(
            f"'{printable(name)}' is on the meta device, which holds no values; give it memory "
            "before the resume: torch.empty_like(tensor, device=…)"
        )
    try:
        with torch.no_grad():
            target.copy_(value)
    except RuntimeError as error:
        raise CheckpointError(
            f"'{printable(name)}' cannot be filled with what was saved: {error}"
        ) from error


def _shown(keys: Iterable[str]) -> str:
    """The first of some names."""
    names = sorted(map(printable, keys))
    more = f" and {len(names) - _SHOWN_COUNT} more" if len(names) > _SHOWN_COUNT else ""
    return (", ".join(names[:_SHOWN_COUNT]) or "no others") + more


def _restore_exactly(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Undoes what torch's ``load_state_dict`` does to optimizer state beyond loading it.

    It casts state to the type of its parameter, which rounds fp32 masters and moments of bf16
    weights, and state that was just made is row-major whatever the layout of its parameter, which
    fused steps rely on. An optimizer with hooks or a ``load_state_dict`` of its own is left alone.
    """
    if (
        type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict
        or optimizer._optimizer_load_state_dict_pre_hooks
        or optimizer._optimizer_load_state_dict_post_hooks
    ):
        return
    saved_ids = [index for group in saved["param_groups"] for index in group["params"]]
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(saved_ids, live, strict=False):
        state: Any = optimizer.state.get(parameter)
        if not isinstance(state, dict):
            continue
        for key, value in saved["state"].get(index, {}).items():
            now: Any = state.get(key)
            if isinstance(value, torch.Tensor) and type(now) in PLAIN_TENSOR_TYPES:
                state[key] = _as_saved(now, value, parameter)


def _as_saved(
    now: torch.Tensor, saved: torch.Tensor, parameter: torch.Tensor
) -> torch.Tensor:
    """State of the saved type, in the layout of a parameter of its shape."""
    found = now if now.dtype == saved.dtype else saved.to(now.device)
    is_like = found.shape == parameter.shape and type(parameter) in PLAIN_TENSOR_TYPES
    if not is_like or found.stride() == parameter.stride():
        return found
    like = torch.empty_like(parameter, dtype=found.dtype, device=found.device)
    return found if like.stride() == found.stride() else like.detach().copy_(found)
