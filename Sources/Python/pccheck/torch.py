"""Checkpoints of PyTorch training: modules, optimizers, schedulers, loaders, random generators.

    ckpt = pccheck.torch.Checkpointer("run.pcc", in_flight=2)
    start = ckpt.resume(model=model, optimizer=optimizer, scheduler=scheduler)
    for step in range(start, steps):
        train(step)
        if step % 10 == 0:
            ckpt.save(step, model=model, optimizer=optimizer, scheduler=scheduler)
    ckpt.close()

What may change while a save is being staged: nothing that only ``optimizer.step()`` changes.
Parameters and optimizer state are read in place, and every optimizer of the process waits, before
its step, until they are staged. All other tensors (buffers, plain state) are copied by ``save``.
Whoever changes parameters in another way calls ``wait_staged()`` before.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ._engine import Pin, SaveHandle, wait_staged_everywhere
from ._loading import ArrayMemory, Loading, Place, part_of
from ._stateful import (
    Restorer,
    collect,
    python_and_numpy_random_state,
    set_python_and_numpy_random_state,
    stateful_objects,
)
from .checkpointer import BaseCheckpointer, load_with
from .errors import CheckpointError, InvalidArgument, OutOfMemory, StateFormatError
from .state import Decoder, Encoder, StoredTensor

__all__ = ["Checkpointer", "load", "load_tensor", "pin_for_cuda"]

log = logging.getLogger("pccheck")

# torch types that the safetensors format has a name for, in every release of it.
_TORCH_TO_STORED = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16",
    torch.int16: "I16", torch.uint32: "U32", torch.int32: "I32", torch.uint64: "U64",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32",
    torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_STORED_TO_TORCH = {stored: dtype for dtype, stored in _TORCH_TO_STORED.items()}
# Complex numbers are stored as pairs, so that any reader can use them.
_COMPLEX_TO_STORED = {torch.complex32: "F16", torch.complex64: "F32", torch.complex128: "F64"}
# Every other type is stored as words of its size, with its name in the document.
_WORDS_BY_SIZE = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}
_WORD_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
_PLAIN_TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)


class TorchEncoder(Encoder):
    """Adds tensors and the values that only torch has."""

    def __init__(self, in_place: set[int]) -> None:
        super().__init__()
        # Storages that only optimizer steps change are read in place, the rest is copied.
        self._in_place = in_place
        self._tensor_names: dict[object, str] = {}

    def encode_other(self, value: object, path: str) -> Any:
        """Tensors, and torch's own kinds of scalar."""
        if isinstance(value, torch.Tensor):
            return self._encode_tensor(value, path)
        if type(value) is torch.Size:
            return {"$torch.Size": list(value)}
        if type(value) is torch.dtype:
            return {"$torch.dtype": str(value).removeprefix("torch.")}
        if type(value) is torch.device:
            return {"$torch.device": str(value)}
        return super().encode_other(value, path)

    def _encode_tensor(self, value: torch.Tensor, path: str) -> Any:
        self._refuse_special(value, path)
        dtype = value.dtype
        stored, pair, tag = _stored_form(dtype)
        shape = tuple(value.shape)
        # Tensors on the same storage, offset, shape and strides are one, and stay one.
        storage = value.untyped_storage().data_ptr()
        key = (
            storage, value.data_ptr(), shape, value.stride(), dtype,
            value.is_conj(), value.is_neg(), value.is_cuda,
        )  # fmt: skip
        name = self._tensor_names.get(key) if storage else None
        if name is None:
            in_place = storage in self._in_place and tag is None and value.is_contiguous()
            dense = value if in_place and value.is_cpu else self._dense(value)
            name = self.add(
                stored, (*shape, 2) if pair else shape, dense.data_ptr(), dense.nbytes, dense, path
            )
            self._tensor_names[key] = name
        return {"$tensor": name, "dtype": tag} if tag else {"$tensor": name}

    def _refuse_special(self, value: torch.Tensor, path: str) -> None:
        if type(value) not in _PLAIN_TENSOR_TYPES:
            raise self.refusal(value, path, "convert this tensor subclass to a plain tensor")
        if value.layout != torch.strided:
            raise self.refusal(value, path, f"its layout is {value.layout}; use to_dense()")
        if value.is_quantized:
            reason = "it is quantized; save its int_repr(), scale and zero point"
            raise self.refusal(value, path, reason)
        if value.device.type == "meta":
            raise self.refusal(value, path, "it is on the meta device and has no data")

    def _dense(self, value: torch.Tensor) -> torch.Tensor:
        """A copy of the values as dense row-major CPU memory."""
        plain = value.detach().resolve_conj().resolve_neg()
        if plain.dtype.is_complex:
            plain = torch.view_as_real(plain)
        elif plain.dtype not in _TORCH_TO_STORED:
            # torch cannot copy some of these types, but it can copy their words.
            plain = plain.view(_WORD_TYPES[plain.dtype.itemsize])
        copy = torch.empty(plain.shape, dtype=plain.dtype, device="cpu")
        return copy.copy_(plain)


class TorchDecoder(Decoder):
    """Adds what TorchEncoder adds; the tensors share the memory that was loaded."""

    def bytes_of(self, tensor: StoredTensor) -> np.ndarray:
        """The memory of a tensor for NumPy."""
        array: np.ndarray = tensor.memory.numpy()
        return array

    def decode_other(self, tag: str, document: dict[str, Any]) -> Any:
        """Tensors, and torch's own kinds of scalar."""
        content = document[tag]
        if tag == "$tensor":
            dtype = document.get("dtype")
            return self.made_once(("torch", content, dtype), lambda: self._make(content, dtype))
        if tag == "$torch.Size":
            return torch.Size(content)
        if tag == "$torch.device":
            return torch.device(content)
        if tag == "$torch.dtype":
            return _dtype(content)
        return super().decode_other(tag, document)

    def _make(self, name: str, tag: str | None) -> torch.Tensor:
        tensor = self.stored(name)
        memory: torch.Tensor = tensor.memory
        if tag is None:
            return memory.view(_STORED_TO_TORCH[tensor.stored_dtype]).view(tensor.shape)
        dtype = _dtype(tag)
        shape = tensor.shape[:-1] if dtype.is_complex else tensor.shape
        return memory.view(dtype).view(shape)


class TorchMemory(ArrayMemory):
    """Memory for torch tensors, and for the arrays that a torch state holds."""

    def allocate(self, byte_count: int) -> tuple[Any, int]:
        """Fresh memory of the CPU."""
        memory = torch.empty(byte_count, dtype=torch.uint8)
        return memory, memory.data_ptr()

    def decoder(self, tensors: dict[str, StoredTensor], made: dict[object, Any]) -> Decoder:
        """The decoder that knows tensors."""
        return TorchDecoder(tensors, made)

    def state_of(self, target: Any) -> Any:
        """Modules and optimizers show their live tensors; other objects may give copies."""
        if isinstance(target, (torch.nn.Module, torch.optim.Optimizer)):
            return target.state_dict()
        return target

    def place(
        self, kind: str, tag: str | None, tensor: StoredTensor, target: Any
    ) -> Place | None:
        """The live memory to load a tensor into, when `target` fits it."""
        if kind == "$array":
            place = super().place(kind, tag, tensor, target)
            return place and replace(place, memory=torch.from_numpy(place.memory))
        if type(target) not in _PLAIN_TENSOR_TYPES:
            return None
        dtype = _STORED_TO_TORCH.get(tensor.stored_dtype) if tag is None else _DTYPES.get(tag)
        if dtype is None or (tag is not None and not dtype.is_complex):
            return None
        shape = tensor.shape[:-1] if dtype.is_complex else tensor.shape
        if target.dtype != dtype or target.shape != shape or not _is_plain_memory(target):
            return None
        dense = target.detach()
        flat = (torch.view_as_real(dense) if dtype.is_complex else dense).view(-1)
        return Place(target, flat.view(torch.uint8), target.data_ptr(), ("torch", tensor.name, tag))


def _is_plain_memory(tensor: torch.Tensor) -> bool:
    """True when the tensor's values are its memory, dense and row-major, on the CPU."""
    return (
        tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _stored_form(dtype: torch.dtype) -> tuple[str, bool, str | None]:
    """Stored type, whether an element is a pair, and the type's name if it needs one."""
    stored = _TORCH_TO_STORED.get(dtype)
    if stored is not None:
        return stored, False, None
    name = str(dtype).removeprefix("torch.")
    if dtype in _COMPLEX_TO_STORED:
        return _COMPLEX_TO_STORED[dtype], True, name
    return _WORDS_BY_SIZE[dtype.itemsize], False, name


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise StateFormatError(f"this release of torch has no type {name}; install a newer one")
    return _DTYPES[name]


class _TorchRestorer(Restorer):
    def restore_other(self, name: str, target: Any, value: Any) -> None:
        if isinstance(target, torch.Tensor):
            if not isinstance(value, torch.Tensor) or value.shape != target.shape:
                shape = tuple(getattr(value, "shape", ()))
                raise CheckpointError(
                    f"'{name}' was saved as {type(value).__qualname__} {shape} and cannot fill a "
                    f"tensor {tuple(target.shape)}"
                )
            with torch.no_grad():
                target.copy_(value)
        elif isinstance(target, torch.Generator):
            target.set_state(value["generator"])
        else:
            super().restore_other(name, target, value)

    def fills_in_place(self, target: object) -> bool:
        return isinstance(target, (torch.Tensor, torch.Generator)) or super().fills_in_place(target)


class Checkpointer(BaseCheckpointer):
    """Saves named parts of a training run, and puts them back where they were."""

    _framework = "pt"
    _memory = TorchMemory()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes what ``pccheck.Checkpointer`` takes.

        The first save sizes the file; for an optimizer without any state yet it leaves room for
        two moments of every parameter, which is what the Adam family will need.

        ``pin=True`` registers the staging pool with CUDA, or raises; ``pin="auto"`` does so where
        CUDA is there and can, and otherwise goes on with a line in the log. A callable is used as
        in ``pccheck.Checkpointer``.
        """
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        super().__init__(*arguments, **options)

    def save(
        self, step: int, *, rng: bool = True, metadata: str | None = None, **state: Any
    ) -> SaveHandle:
        """Begins a checkpoint of the parts given by name and returns at once.

        A part is a module, an optimizer, anything else with ``state_dict()`` and
        ``load_state_dict()``, a ``torch.Generator``, or a nest of containers, scalars, tensors and
        arrays. With ``rng`` the global generators of ``random``, NumPy and torch are saved too.
        ``metadata`` is a short note kept in the slot header.

        Raises ``TypeError`` with the key of what cannot be stored, ``TooLarge``,
        ``StepBackwards``, ``Busy``, ``Closed``.
        """
        self._check_open()
        parts = {name: _collect(value) for name, value in state.items()}
        if rng:
            parts["rng"] = _random_state()
        objects = list(stateful_objects(state))
        encoder = TorchEncoder(_in_place_storages(objects))
        document = encoder.encode_state(parts)
        room = _room_for_moments(objects) if self._engine is None else 0
        handle = self._save_state(step, encoder, document, metadata, room)
        if self._hook is None:
            self._hook = register_optimizer_step_pre_hook(_wait_before_step)
        return handle

    def resume(self, *, rng: bool = True, **state: Any) -> int:
        """Restores the parts from the newest whole checkpoint; returns the step to go on with.

        Returns 0 for a new file, and leaves the parts alone. A damaged checkpoint is passed over,
        with a warning in the log that says why. Parts that were saved but are not asked for are
        not read.

        Tensors of modules and optimizers are filled in place, straight from the file, when they
        are on the CPU, dense and of the stored type; an optimizer that has no state yet takes over
        what was loaded. Nothing is held twice. When an error is raised, the parts hold unspecified
        values: load another checkpoint, or initialize them again.
        """
        loading = Loading(
            self._memory, state, parts=list(state), optional_parts=["rng"] if rng else []
        )
        found = self._resume_state(loading)
        if found is None:
            return 0
        next_step, loaded = found
        restorer = _TorchRestorer()
        for name, target in state.items():
            restorer.restore(name, target, part_of(loaded, name))
        if rng and "rng" in loaded:
            _set_random_state(loaded["rng"])
        return next_step

    def close(self) -> None:
        """Waits until the last checkpoint is durable and closes the file."""
        try:
            super().close()
        finally:
            if self._hook is not None:
                self._hook.remove()
                self._hook = None

    def _pinning(self, pin: bool | str | Pin | None) -> Pin | None:
        if pin is True:
            return pin_for_cuda
        if pin == "auto":
            return _pin_where_possible if torch.cuda.is_available() else None
        if isinstance(pin, str):
            raise InvalidArgument(f"pin is {pin!r}; give True, False, 'auto' or a callable")
        return super()._pinning(pin)


def pin_for_cuda(address: int, byte_count: int) -> Callable[[], object]:
    """Registers memory with CUDA, so that a GPU can copy to it without a detour.

    Returns a callable that undoes it. Raises ``CheckpointError`` without CUDA, and
    ``OutOfMemory`` when the driver refuses.
    """
    if not torch.cuda.is_available():
        raise CheckpointError(
            "pin=True needs CUDA, and torch finds none; use pin='auto' to go on without"
        )
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    result = runtime.cudaHostRegister(address, byte_count, 0)
    if int(result) != 0:
        raise OutOfMemory(
            f"CUDA does not register a staging pool of {byte_count} bytes "
            f"({runtime.cudaGetErrorString(result)}); ask for a smaller pool, or pin=False"
        )
    return lambda: _unregister(runtime, address)


def _unregister(runtime: Any, address: int) -> None:
    result = runtime.cudaHostUnregister(address)
    if int(result) != 0:
        log.warning("CUDA does not unregister the staging pool: error %d", int(result))


def _pin_where_possible(address: int, byte_count: int) -> Callable[[], object]:
    try:
        return pin_for_cuda(address, byte_count)
    except CheckpointError as error:
        log.warning("the staging pool is not pinned: %s", error)
        return lambda: None


def _wait_before_step(*_: object) -> None:
    wait_staged_everywhere()


def _collect(value: Any) -> Any:
    """Like collect(), and generators."""
    if isinstance(value, torch.Generator):
        return {"generator": value.get_state()}
    if type(value) is dict:
        return {key: _collect(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_collect(item) for item in value)
    return collect(value)


def _in_place_storages(objects: list[object]) -> set[int]:
    """The storages of parameters and of optimizer state."""
    tensors: list[torch.Tensor] = []
    for value in objects:
        if isinstance(value, torch.nn.Module):
            tensors += value.parameters()
        elif isinstance(value, torch.optim.Optimizer):
            for state in value.state.values():
                tensors += [item for item in state.values() if isinstance(item, torch.Tensor)]
    return {
        tensor.untyped_storage().data_ptr()
        for tensor in tensors
        if tensor.layout == torch.strided and type(tensor) in _PLAIN_TENSOR_TYPES
    }


def _room_for_moments(objects: list[object]) -> int:
    """Bytes that optimizers without any state will need once they have stepped."""
    return sum(
        2 * parameter.numel() * parameter.element_size()
        for value in objects
        if isinstance(value, torch.optim.Optimizer) and not value.state
        for group in value.param_groups
        for parameter in group["params"]
    )


def _random_state() -> dict[str, Any]:
    state = python_and_numpy_random_state()
    state["torch"] = torch.get_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    set_python_and_numpy_random_state(state)
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def load(path: str | os.PathLike[str], step: int | None = None, *, into: Any = None) -> Any:
    """The state in a file that may be open elsewhere for writing; takes no writer lock.

    ``into`` is a nest like the one that was saved, of modules, optimizers, tensors and arrays,
    which are filled in place where they fit: see ``pccheck.Checkpointer.load``.
    """
    return load_with(TorchMemory(), path, step, into)


def load_tensor(
    path: str | os.PathLike[str],
    name: str,
    step: int | None = None,
    *,
    into: torch.Tensor | None = None,
) -> Any:
    """One tensor by its name, such as ``model.layers.0.weight``; reads only its chunks.

    The tensor ``into`` is filled and returned when it has the stored type and shape and is dense
    and on the CPU; else a new one is returned.
    """
    return load_with(TorchMemory(), path, step, into, name)
