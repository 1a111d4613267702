"""Asks the modules of torch that read their state in a way of their own what they would accept.

A batch norm accepts files of before it counted batches; observers of quantization accept buffers
of any length. Such a module loads tensors without memory into a shadow of itself: nothing live is
touched, and no byte is read.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..._state.comparing import items_of
from ..._state.decoder import Decoder
from ..types import DTYPES

_Module = torch.nn.Module


class DryRun:
    """What one module, whose parts are all of torch or read as it does, would accept."""

    def __init__(
        self, module: _Module, node: Any, memory: Any, tensors: dict[str, Any]
    ) -> None:
        self._node, self._memory, self._tensors = node, memory, tensors
        self._readers = _topmost_readers(module)
        self._is_accepted: dict[str, bool] = {}

    def accepts(self, key: str) -> bool:
        """True when the key is of a part that accepts everything that was saved for it."""
        for prefix, part in self._readers.items():
            if key.startswith(prefix):
                if prefix not in self._is_accepted:
                    self._is_accepted[prefix] = self._accepts_all(part, prefix)
                return self._is_accepted[prefix]
        return False

    def _accepts_all(self, part: _Module, prefix: str) -> bool:
        state = {
            key: self._stand_in(child)
            for _, key, child in items_of(self._node) or []
            if isinstance(key, str) and key.startswith(prefix)
        }
        if not state:
            return False
        found = items_of(self._node.get("_metadata")) or []
        versions = {key: Decoder({}).decode(child) for _, key, child in found}
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []

        def load(module: _Module, state: dict[str, Any], prefix: str) -> None:
            version = versions.get(prefix[:-1], {})
            module._load_from_state_dict(
                state, prefix, version, True, missing, unexpected, errors
            )
            for name, child in module._modules.items():
                below = f"{prefix}{name}."
                if child is not None:
                    own = {key: value for key, value in state.items() if key.startswith(below)}
                    load(child, own, below)

        try:
            with warnings.catch_warnings():
                # Of copies to tensors without memory.
                warnings.simplefilter("ignore")
                load(_shadow(part, {}), state, prefix)
        except Exception:
            # It wants values, or memory.
            return False
        return not (missing or unexpected or errors)

    def _stand_in(self, node: Any) -> Any:
        """A tensor of the saved type and shape; another value as it is in the document."""
        saved = self._memory.leaf(node, self._tensors) if isinstance(node, dict) else None
        if saved is None or saved.dtype not in DTYPES:
            return node
        return torch.empty(saved.shape, dtype=DTYPES[saved.dtype], device="meta")


def _topmost_readers(module: _Module) -> dict[str, _Module]:
    """The parts with a way to read their state that is not that of every module, by prefix."""
    found: dict[str, _Module] = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        if any(prefix.startswith(other) for other in found):
            continue
        is_single = any(item.dim() == 0 for item in _own_tensors(part))
        if type(part)._load_from_state_dict is not _Module._load_from_state_dict or is_single:
            found[prefix] = part
    return found


def _own_tensors(part: _Module) -> list[torch.Tensor]:
    tables = (part._parameters, part._buffers)
    return [
        tensor for table in tables for tensor in table.values()
        if tensor is not None and not torch.nn.parameter.is_lazy(tensor)
    ]  # fmt: skip


def _shadow(module: _Module, made: dict[int, _Module]) -> _Module:
    """The same module with tensors that have no memory."""
    if id(module) not in made:
        shadow = object.__new__(type(module))
        made[id(module)] = shadow
        shadow.__dict__.update(module.__dict__)
        shadow.__dict__.update(
            _parameters={name: _without_memory(item) for name, item in module._parameters.items()},
            _buffers={name: _without_memory(item) for name, item in module._buffers.items()},
            _modules={
                name: child if child is None else _shadow(child, made)
                for name, child in module._modules.items()
            },
            # What it has besides tensors may be shared with the live module.
            set_extra_state=lambda _: None,
        )
    return made[id(module)]


def _without_memory(tensor: Any) -> Any:
    if tensor is None:
        return None
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
