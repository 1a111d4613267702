"""Tensors and bytes of a foreign file as they lie in it, for the encoder to store."""

from __future__ import annotations

import base64
import json
import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import StateFormatError
from ..state import Encoder
from .failures import DamagedInput, UnknownInput

#: Key in the ``__metadata__`` of a checkpoint that was converted: what it was, in JSON.
SOURCE_KEY = "pccheck.source"
SOURCE_VERSION = 1


@dataclass(frozen=True)
class MappedTensor:
    """A tensor in a mapped file."""

    stored_dtype: str
    shape: tuple[int, ...]
    memory: np.ndarray
    #: The type that it has, when the stored one is a stand-in.
    dtype: str | None = None


@dataclass(frozen=True)
class MappedBytes:
    """A file as it is."""

    memory: np.ndarray


def map_file(path: str) -> np.ndarray:
    """The bytes of a file, which the system reads as they are used."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not os.path.isfile(path):
            raise UnknownInput(f"{path} is not a regular file")
        if size == 0:
            return np.empty(0, np.uint8)
        mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    return np.frombuffer(mapped, np.uint8)


def teach(encoder: Encoder) -> Encoder:
    """An encoder that stores what is mapped where it lies, without a copy."""
    encoder.methods = {
        **encoder.methods, MappedTensor: _encode_tensor, MappedBytes: _encode_bytes,
    }  # fmt: skip
    return encoder


def _encode_tensor(encoder: Encoder, value: MappedTensor, path: str) -> Any:
    name = encoder.add_array(value.memory, value.stored_dtype, value.shape, path)
    return {"$tensor": name, "dtype": value.dtype} if value.dtype else {"$tensor": name}


def _encode_bytes(encoder: Encoder, value: MappedBytes, path: str) -> Any:
    if not value.memory.nbytes:
        return {"$bytes": base64.b64encode(b"").decode("ascii")}
    name = encoder.add_array(value.memory, "U8", value.memory.shape, path)
    return {"$bytes": {"tensor": name}}


def source_text(kind: str, members: dict[str, Any]) -> str:
    """The note that says what a checkpoint was converted from."""
    return json.dumps({"version": SOURCE_VERSION, "kind": kind, **members})


def parse_source(text: str) -> dict[str, Any]:
    """The note of a checkpoint, checked as far as it is common to all kinds."""
    try:
        source = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"the note {SOURCE_KEY} is not JSON: {error}") from None
    if not isinstance(source, dict) or type(source.get("kind")) is not str:
        raise StateFormatError(f"the note {SOURCE_KEY} does not say what it was converted from")
    if source.get("version") != SOURCE_VERSION:
        raise StateFormatError(
            f"the note {SOURCE_KEY} has version {source.get('version')!r}; this package reads "
            f"{SOURCE_VERSION}: install a newer pccheck"
        )
    return source


def plain_name(name: object) -> str:
    """A name that is to become a file in a directory, and nowhere else."""
    if type(name) is not str or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise StateFormatError(f"the checkpoint asks for a file named {name!r}, which is no name")
    return name


def parse_json(data: bytes, path: str, what: str) -> Any:
    """A JSON text of a foreign file, in which no key may stand twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("a key stands in it twice")
        return members

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DamagedInput(f"{path}: {what} is not the JSON that was expected: {error}") from None
