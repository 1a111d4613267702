"""The types of torch tensors, and how each is stored."""

from __future__ import annotations

import torch

from ..errors import UnsupportedState

# torch types that the safetensors format has a name for, in every release of it.
TORCH_TO_STORED = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16",
    torch.int16: "I16", torch.uint32: "U32", torch.int32: "I32", torch.uint64: "U64",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32",
    torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
STORED_TO_TORCH = {stored: dtype for dtype, stored in TORCH_TO_STORED.items()}
# Complex numbers are stored as pairs, so that any reader can use them.
_COMPLEX_TO_STORED = {torch.complex32: "F16", torch.complex64: "F32", torch.complex128: "F64"}
# Every other type is stored as words of its size, with its name in the document.
_WORDS_BY_SIZE = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}
WORD_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
PLAIN_TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)


def stored_form(dtype: torch.dtype) -> tuple[str, bool, str | None]:
    """Stored type, whether an element is a pair, and the type's name if it needs one."""
    stored = TORCH_TO_STORED.get(dtype)
    if stored is not None:
        return stored, False, None
    name = dtype_name(dtype)
    if dtype in _COMPLEX_TO_STORED:
        return _COMPLEX_TO_STORED[dtype], True, name
    return _WORDS_BY_SIZE[dtype.itemsize], False, name


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type, such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The type of a name."""
    if name not in DTYPES:
        raise UnsupportedState(f"this release of torch has no type {name}; install a newer one")
    return DTYPES[name]


def is_dense(tensor: torch.Tensor) -> bool:
    """True when the tensor's values are its memory, dense and row-major."""
    return (
        tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )
