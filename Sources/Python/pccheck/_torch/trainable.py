"""The part of a model that training changes, when a frozen base is left out of its checkpoints."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch

from .._state.comparing import GONE, Comparison, Difference, items_of
from .sharded import local_of

log = logging.getLogger("pccheck")

#: The key in the part's state that records its base.
BASE_KEY = "pccheck.base"
# So many elements of each frozen tensor, spread over it, distinguish one base from another.
_SAMPLE_COUNT = 1024


class Trainable:
    """What of a module is saved and restored: parameters with ``requires_grad``, and buffers."""

    def __init__(self, model: torch.nn.Module, buffers: bool = True) -> None:
        self.model = model
        self._has_buffers = buffers

    def _frozen(self) -> dict[str, torch.nn.Parameter]:
        return {
            name: parameter
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad
        }

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that are saved."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def absent(self) -> list[str]:
        """The names of frozen parameters: they are no part of a checkpoint, on purpose."""
        return list(self._frozen())

    def tensors(self) -> dict[str, Any]:
        """What is saved, by the keys of the module's own ``state_dict``."""
        left_out = set(self._frozen())
        if not self._has_buffers:
            left_out.update(name for name, _ in self.model.named_buffers(remove_duplicate=False))
        state = self.model.state_dict()
        return {key: value for key, value in state.items() if key not in left_out}

    def base(self) -> dict[str, Any]:
        """A fingerprint of the frozen parameters: names, types, shapes, and a sample of values.

        Computed each time: nothing reports what went through ``.data``, as when adapters are
        merged into their base.
        """
        frozen = self._frozen()
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in sorted(frozen.items()):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(_sample(parameter))
        return {
            "fingerprint": digest.hexdigest(), "tensor_count": len(frozen),
            "byte_count": sum(parameter.nbytes for parameter in frozen.values()),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """What is saved, and the fingerprint of the base."""
        return {**self.tensors(), BASE_KEY: self.base()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Fills the module; what is frozen stays."""
        values = {key: value for key, value in state.items() if key != BASE_KEY}
        self.model.load_state_dict(values, strict=False)
        base = self.base()
        if base["tensor_count"]:
            log.info(
                "%d frozen tensors (%.1f MB) are the base's, and on purpose not in the checkpoint",
                base["tensor_count"], base["byte_count"] / 1e6,
            )  # fmt: skip


def trainable(model: torch.nn.Module, *, buffers: bool = True) -> Trainable:
    """A part for ``save`` and ``resume`` without the frozen parameters of a model, as for LoRA.

        ckpt.save(step, model=pcc.trainable(model), optimizer=optimizer)

    Parameters with ``requires_grad`` are saved under their own names, and with ``buffers`` the
    persistent buffers. A fingerprint of the frozen ones is saved too: resuming onto another base is
    a ``StateMismatch``, which ``strict=False`` turns into a warning. It is made of a sample of
    each tensor, and distinguishes models, not every changed value.
    """
    return Trainable(model, buffers)


def compare_trainable(comparison: Comparison, node: Any, target: Trainable, name: str) -> Any:
    """Key by key; the frozen parameters are not missed, but the base must be the same."""
    found = {key: child for _, key, child in items_of(node) or []}
    kept = comparison.mapping(node, {**target.tensors(), BASE_KEY: {}}, name, is_closed=True)
    if kept is GONE or BASE_KEY not in found:
        return kept
    saved = {key: child for _, key, child in items_of(found[BASE_KEY]) or []}
    live = target.base()
    if saved.get("fingerprint") != live["fingerprint"]:
        comparison.report.reshaped.append(
            Difference(f"{name}.{BASE_KEY}", _base_text(saved), _base_text(live))
        )
    return kept


def _base_text(base: dict[str, Any]) -> str:
    count, text = base.get("tensor_count"), str(base.get("fingerprint"))
    return f"a base of {count} frozen tensors with fingerprint {text[:12]}"


def _sample(parameter: torch.Tensor) -> bytes:
    """Some bytes of the values; none where there are none, as on the meta device."""
    tensor = local_of(parameter).detach()
    if tensor.is_meta or not tensor.numel() or tensor.layout != torch.strided:
        return b""
    flat = tensor.reshape(-1)
    stride = max(1, flat.numel() // _SAMPLE_COUNT)
    chosen = flat[::stride][:_SAMPLE_COUNT].cpu().contiguous()
    return chosen.view(torch.uint8).numpy().tobytes()
