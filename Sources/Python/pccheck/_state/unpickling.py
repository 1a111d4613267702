"""The one place where pickles of ``torch.save`` are read, with torch's reader for weights only.

Other pickles are read in ``_convert/dcp.py`` alone: the metadata of a directory of
``torch.distributed.checkpoint``. spec/TRUST.md lists both.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ..errors import CheckpointError, LibraryNotFound, NotTrusted

_LISTED_COUNT = 5
# Names in these modules are types that hold numbers and nothing else.
_NUMPY_TYPE_NAMES = (
    "BoolDType", "ByteDType", "Complex128DType", "Complex64DType", "DateTime64DType",
    "Float16DType", "Float32DType", "Float64DType", "Int16DType", "Int32DType", "Int64DType",
    "Int8DType", "LongDType", "LongLongDType", "ShortDType", "TimeDelta64DType", "UByteDType",
    "UInt16DType", "UInt32DType", "UInt64DType", "UInt8DType", "ULongDType", "ULongLongDType",
    "UShortDType",
)  # fmt: skip


class BadPickle(CheckpointError):
    """torch cannot read a pickle at all: it is truncated, damaged, or no pickle of torch.save."""


@dataclass(frozen=True)
class Trust:
    """Whether the writer of a pickle is trusted, and how the caller states that."""

    is_given: bool
    #: Such as ``say --trust``.
    how: str


def torch_module(what: str) -> Any:
    """torch, which only its own formats need."""
    try:
        import torch
    except ImportError as error:
        raise LibraryNotFound(
            f"{what} needs torch, which cannot be imported here ({error}): pip install torch"
        ) from None
    return torch


def load(
    source: str | IO[bytes], where: str, trust: Trust, *,
    map_location: str | None = "cpu", can_map: bool = False, also: Sequence[Any] = (),
) -> Any:
    """The value that ``torch.save`` wrote to a path or a stream; ``where`` is for messages.

    Raises ``NotTrusted`` when the pickle asks for more than tensors, plain values, and NumPy
    arrays and numbers, and the classes of ``also``; ``BadPickle`` when it cannot be read.
    """
    torch = torch_module(where)
    try:
        with torch.serialization.safe_globals([*_harmless_globals(), *also]):
            return torch.load(
                source, map_location=map_location, weights_only=not trust.is_given, mmap=can_map
            )
    except pickle.UnpicklingError as error:
        if not trust.is_given:
            raise _refusal(torch, source, where, error, trust) from None
        raise _damage(where, error) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # What torch and the unpickler raise on damage: EOFError, RuntimeError, KeyError, …
        if trust.is_given and isinstance(error, (ImportError, AttributeError)):
            raise CheckpointError(
                f"{where}: it asks for something that is not installed here: {error}"
            ) from None
        raise _damage(where, error) from None


def _harmless_globals() -> list[Any]:
    """What the pickles of NumPy arrays and numbers ask for."""
    core: Any = getattr(np, "_core", None) or np.core  # NumPy 1 and 2
    rebuild, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    named = [
        (function, f"numpy.{package}.multiarray.{name}")
        for package in ("core", "_core")
        for name, function in (("_reconstruct", rebuild), ("scalar", scalar))
    ]
    kinds = [getattr(np.dtypes, name, None) for name in _NUMPY_TYPE_NAMES] if hasattr(
        np, "dtypes") else []  # fmt: skip
    return [*named, np.ndarray, np.dtype, *dict.fromkeys(kind for kind in kinds if kind)]


def _refusal(
    torch: Any, source: str | IO[bytes], where: str, error: Exception, trust: Trust
) -> CheckpointError:
    names = re.findall(r"GLOBAL (\S+)", str(error))
    try:
        if isinstance(source, str):
            names += torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except Exception:
        # An old format, or damage: the first name is what there is to report.
        pass
    unknown = list(dict.fromkeys(name for name in names if not name.startswith("numpy")))
    if not unknown:
        return _damage(where, error)
    shown = ", ".join(unknown[:_LISTED_COUNT]) + (", …" if len(unknown) > _LISTED_COUNT else "")
    return NotTrusted(
        f"{where}: it asks for {shown}, expected only tensors and plain values: to read it is to "
        f"run what its writer chose. If you trust the writer, {trust.how}"
    )


def _damage(where: str, error: Exception) -> BadPickle:
    first = str(error).strip().splitlines()[0][:300] if str(error).strip() else "no more is known"
    return BadPickle(f"{where}: torch cannot read it ({type(error).__name__}: {first})")
