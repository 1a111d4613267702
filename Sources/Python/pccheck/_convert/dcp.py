"""Directories of ``torch.distributed.checkpoint``.

Its own reader unpickles whatever is there; this one reads the metadata with an unpickler that
knows nothing but stand-ins for the metadata's classes, and every value with ``weights_only=True``.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import pickle
from collections.abc import Iterable
from typing import IO, Any

from ..errors import CheckpointError, StateFormatError
from . import torch_file
from .failures import DamagedInput, NotTrusted
from .stored import Show

METADATA_NAME = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES = {
    *((_METADATA, name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata",
        "ChunkStorageMetadata", "TensorProperties", "StorageMeta",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
}  # fmt: skip
# Types whose attributes nobody can set.
_FIXED = {("torch", "Size"), ("torch", "device"), ("collections", "OrderedDict")}
_ENCODING = (_METADATA, "_MEM_FORMAT_ENCODING")
_FUNCTIONS = {_ENCODING, ("torch.serialization", "_get_layout")}
_PATHS = {("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"), ("pathlib._local", "PosixPath")}


class _MetadataUnpickler(pickle.Unpickler):
    """A pickle can set attributes of all that it names, so it gets nothing that others use."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._made: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key in _FIXED:
            return super().find_class(module, name)
        if key in _CLASSES | _FUNCTIONS | _PATHS:
            if key not in self._made:
                self._made[key] = self._stand_in(key)
            return self._made[key]
        if key == ("builtins", "getattr"):
            # A new function, like all stand-ins: a pickle can set attributes of it.
            return lambda owner, name: self._member(owner, name)
        torch = torch_file.torch_module("this")
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise _Unknown(f"{module}.{name}")

    def _member(self, owner: Any, name: str) -> Any:
        """Python 3.11.0 to 3.11.3 writes a member of an enumeration as an attribute of it."""
        if owner is not self._made.get(_ENCODING):
            raise _Unknown("builtins.getattr")
        real: Any = super().find_class(*_ENCODING)
        return real[name]

    def _stand_in(self, key: tuple[str, str]) -> Any:
        if key in _PATHS:
            return lambda *parts: os.path.join(*map(str, parts))
        real: Any = super().find_class(*key)
        if key in _FUNCTIONS:
            return lambda value: real(value)
        return type(real.__name__, (real,), {})


class _Unknown(Exception):
    """A name that no metadata needs."""


def read(path: str, show: Show, *, trust: bool = False) -> Any:
    """The state of all ranks, with whole tensors, nested as it was saved."""
    torch = torch_file.torch_module(f"{path}: a checkpoint of torch.distributed.checkpoint")
    # What the metadata is made of.
    importlib.import_module("torch.distributed.checkpoint.filesystem")

    metadata_path = os.path.join(path, METADATA_NAME)
    metadata = _read_metadata(metadata_path, trust)
    try:
        return _Directory(torch, path, metadata, show, trust).state()
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, RecursionError) as error:
        raise DamagedInput(
            f"{metadata_path}: it is damaged ({type(error).__name__}: {error}); copy the directory "
            "again"
        ) from None


def _read_metadata(path: str, trust: bool) -> Any:
    with open(path, "rb") as file:
        try:
            return pickle.load(file) if trust else _MetadataUnpickler(file).load()  # noqa: S301
        except _Unknown as unknown:
            raise NotTrusted(
                f"{path}: it asks for {unknown}, expected only the classes of "
                "torch.distributed.checkpoint: to read it is to run what its writer chose. If you "
                "trust the writer, say --trust"
            ) from None
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise DamagedInput(
                f"{path}: it is no metadata of torch.distributed.checkpoint ({error}), or damaged; "
                "copy the directory again"
            ) from None


class _Directory:
    """A checkpoint whose metadata was read, and is still to be checked."""

    def __init__(self, torch: Any, path: str, metadata: Any, show: Show, trust: bool) -> None:
        self._torch, self._path, self._metadata = torch, path, metadata
        self._show, self._trust = show, trust
        self._done, self._total = 0, 0
        self._files: dict[str, Any] = {}

    def state(self) -> Any:
        """The nest."""
        from .leaves import map_file

        entries = dict(self._metadata.state_dict_metadata)
        places = {
            (index.fqn, None if index.offset is None else tuple(index.offset)): info
            for index, info in self._metadata.storage_data.items()
        }
        for info in places.values():
            self._check_place(info)
            if info.relative_path not in self._files:
                file = os.path.join(self._path, info.relative_path)
                if not os.path.isfile(file):
                    raise DamagedInput(f"{file} is not there, but the metadata names it")
                self._files[info.relative_path] = map_file(file)
        self._total = sum(info.length for info in places.values())
        flat = {str(name): self._value(str(name), entry, places) for name, entry in entries.items()}
        return _nested(flat, self._metadata.planner_data)

    def _check_place(self, info: Any) -> None:
        name = info.relative_path
        parts = name.split("/") if type(name) is str else [".."]
        if ".." in parts or "" in parts or "\0" in name:
            raise DamagedInput(
                f"{self._path}: the metadata names the file {name!r}, expected one in the directory"
            )
        numbers = (info.offset, info.length)
        if any(type(n) is not int or n < 0 for n in numbers):
            raise DamagedInput(f"{self._path}: the metadata has no place for what is in {name}")
        if getattr(info, "transform_descriptors", None):
            raise CheckpointError(
                f"{self._path}: {name} is transformed by {info.transform_descriptors}; load it "
                "with torch.distributed.checkpoint, and save it without the transformation"
            )

    def _value(self, name: str, entry: Any, places: dict[Any, Any]) -> Any:
        if type(entry).__name__ == "BytesStorageMetadata":
            return self._load(name, places[name, None])
        dtype, size = entry.properties.dtype, tuple(entry.size)
        chunks = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]
        self._check_chunks(name, size, chunks)
        if len(chunks) == 1 and chunks[0][1] == size:
            return self._chunk(name, places[name, chunks[0][0]], dtype, size)
        stored = sum(places[name, offsets].length for offsets, _ in chunks)
        if math.prod(size) * dtype.itemsize > stored:
            raise DamagedInput(
                f"{self._path}: '{name}' is stored in {stored} bytes, expected "
                f"{math.prod(size) * dtype.itemsize}"
            )
        parts = (
            (offsets, sizes, self._chunk(name, places[name, offsets], dtype, sizes))
            for offsets, sizes in chunks
        )
        return _joined(f"{self._path}: the parts of '{name}'", size, dtype, parts)

    def _check_chunks(
        self, name: str, size: tuple[int, ...], chunks: list[tuple[Any, Any]]
    ) -> None:
        """The chunks lie in the tensor, and are as much as it."""
        count = 0
        for offsets, sizes in chunks:
            numbers = (*offsets, *sizes)
            if (
                len(offsets) != len(size) or len(sizes) != len(size)
                or any(type(n) is not int or n < 0 for n in numbers)
                or any(o + n > m for o, n, m in zip(offsets, sizes, size, strict=True))
            ):  # fmt: skip
                raise DamagedInput(
                    f"{self._path}: a part of '{name}' reaches outside of its shape {size}"
                )
            count += math.prod(sizes)
        wanted = math.prod(size)
        if count != wanted:
            raise DamagedInput(
                f"{self._path}: the parts of '{name}' have {count} elements, expected {wanted}; a "
                "rank's file may be missing"
            )

    def _chunk(self, name: str, info: Any, dtype: Any, sizes: tuple[int, ...]) -> Any:
        tensor = self._load(name, info)
        if (
            not isinstance(tensor, self._torch.Tensor)
            or tensor.dtype != dtype or tuple(tensor.shape) != sizes
        ):  # fmt: skip
            found = getattr(tensor, "shape", type(tensor).__name__)
            raise DamagedInput(
                f"{self._path}: a part of '{name}' is {found}, expected {sizes} of {dtype}"
            )
        return tensor

    def _load(self, name: str, info: Any) -> Any:
        memory = self._files[info.relative_path]
        if info.offset + info.length > memory.nbytes:
            raise DamagedInput(
                f"{os.path.join(self._path, info.relative_path)}: it has {memory.nbytes} bytes, "
                f"but '{name}' ends at {info.offset + info.length}: it is truncated"
            )
        piece = io.BytesIO(memory[info.offset : info.offset + info.length].tobytes())
        where = f"{self._path}: '{name}'"
        value = torch_file.load_stream(piece, where, trust=self._trust)
        self._done += info.length
        self._show("reading", self._done, self._total)
        return value


def _joined(
    what: str, size: tuple[int, ...], dtype: Any,
    parts: Iterable[tuple[tuple[int, ...], tuple[int, ...], Any]],
) -> Any:
    """A whole tensor from its parts, given by their offsets and sizes."""
    torch = torch_file.torch_module(what)
    whole = torch.empty(size, dtype=dtype)
    # Parts that overlap would leave others unfilled, with whatever was in memory.
    is_filled = torch.zeros(size, dtype=torch.bool)
    for offsets, sizes, part in parts:
        _copy_bits(torch, _part_of(whole, offsets, sizes), part)
        _part_of(is_filled, offsets, sizes).fill_(True)
    if not bool(is_filled.all()):
        raise DamagedInput(f"{what} overlap, or leave gaps")
    return whole


def _part_of(whole: Any, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    for dimension, (start, count) in enumerate(zip(offsets, sizes, strict=True)):
        whole = whole.narrow(dimension, start, count)
    return whole


def _copy_bits(torch: Any, target: Any, part: Any) -> None:
    """Types that torch cannot copy are copied as words."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    word = words.get(target.element_size())
    if word is not None and not target.dtype.is_complex:
        target, part = target.view(word), part.view(word)
    target.copy_(part)


def _nested(flat: dict[str, Any], mapping: Any) -> Any:
    """The nest whose paths the planner kept; a dictionary when it kept none."""
    if not isinstance(mapping, dict):
        return flat
    root: dict[Any, Any] = {}
    for name, value in flat.items():
        path = mapping.get(name, (name,))
        if not path or any(type(key) not in (str, int) for key in path):
            raise ValueError(f"'{name}' has no path")
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"'{name}' lies in a value")
        if path[-1] in node:
            raise ValueError(f"'{name}' lies where another value does")
        node[path[-1]] = _Leaf(value)
    return _with_lists(root)


class _Leaf:
    """A value, which may be a dictionary itself."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _with_lists(node: Any) -> Any:
    """Numbers for keys are the indices of a list."""
    if isinstance(node, _Leaf):
        return node.value
    if not any(type(key) is int for key in node):
        return {key: _with_lists(item) for key, item in node.items()}
    if sorted(key for key in node if type(key) is int) != list(range(len(node))):
        raise ValueError("the indices of a list have gaps")
    return [_with_lists(node[index]) for index in range(len(node))]


def is_of_adapter(state: Any) -> bool:
    """True for what ``pccheck.dcp.StorageWriter`` saved."""
    return isinstance(state, dict) and state.keys() == {"state", "objects", "dcp"}


def of_adapter(state: dict[str, Any], path: str, *, trust: bool = False) -> Any:
    """The nest that was given to ``dcp.save`` in a job of one process."""
    try:
        layout = state["dcp"]
        if layout["world_size"] != 1:
            raise CheckpointError(
                f"{path} has the part of one of {layout['world_size']} processes; load the folder "
                "of all of them with pccheck.dcp.StorageReader"
            )
        flat = {}
        parts: dict[str, list[Any]] = {}
        for item in layout["items"]:
            parts.setdefault(item["fqn"], []).append(item)
        for fqn, items in parts.items():
            if "size" in items[0]:
                what = f"{path}: the parts of '{fqn}'"
                flat[fqn] = _tensor_of_adapter(what, items, state["state"])
                continue
            stream = io.BytesIO(state["objects"][items[0]["key"]])
            flat[fqn] = torch_file.load_stream(stream, f"{path}: '{fqn}'", trust=trust)
        return _nested(flat, layout["planner"])
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise StateFormatError(f"the layout of pccheck.dcp is damaged: {error}") from None


def _tensor_of_adapter(what: str, items: list[Any], tensors: dict[str, Any]) -> Any:
    """A tensor of which one process may have saved several parts."""
    first = tensors[items[0]["key"]]
    if len(items) == 1 and items[0]["sizes"] == items[0]["size"]:
        return first
    if len({item["key"] for item in items}) != len(items):
        raise DamagedInput(f"{what} have one name, so that only one of them is there")
    parts = [(tuple(i["offsets"]), tuple(i["sizes"]), tensors[i["key"]]) for i in items]
    return _joined(what, tuple(items[0]["size"]), first.dtype, parts)


def write(state: Any, path: str) -> None:
    """A directory for ``torch.distributed.checkpoint.load``, written by torch."""
    torch_file.torch_module("a checkpoint of torch.distributed.checkpoint")
    import warnings

    import torch.distributed.checkpoint

    dcp: Any = torch.distributed.checkpoint
    if not isinstance(state, dict):
        raise CheckpointError(
            f"the state is a {type(state).__name__}; torch.distributed.checkpoint saves "
            "dictionaries: convert it with --to pt"
        )
    with warnings.catch_warnings():
        # That there is one process is what is meant.
        warnings.simplefilter("ignore")
        try:
            dcp.save(state, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
        except dcp.CheckpointException as error:
            first = next(iter(error.failures.values()), (error,))[0]
            raise torch_file.write_failure(first) from None
        except ValueError as error:
            raise CheckpointError(f"torch.distributed.checkpoint cannot save it: {error}") from None
