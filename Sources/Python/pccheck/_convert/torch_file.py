"""Files of ``torch.save``: read without running what is in them, mapped where that can be."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from .._state import unpickling
from .._state.unpickling import BadPickle, Trust
from ..errors import CheckpointError
from ..state import Encoder
from .failures import DamagedInput
from .leaves import teach
from .stored import Show, Stored, StoredEntry

_ZIP_MAGIC = b"PK\x03\x04"
_READ_BYTE_COUNT = 8 << 20
torch_module = unpickling.torch_module


def is_torch_file(head: bytes) -> bool:
    """True when a file that begins so may be one of torch.save, in its new or its old format."""
    return head.startswith(_ZIP_MAGIC) or head[:1] == b"\x80"


def load(path: str, show: Show, *, trust: bool = False, ignore_checksums: bool = False) -> Any:
    """The state in a file; its tensors stay in the file where torch can map it.

    Raises ``NotTrusted`` when the pickle asks for more than tensors and plain values.
    """
    torch_module(f"{path}: a file of torch.save")
    can_map = _check_archive(path, show, ignore_checksums)
    return _load(path, path, trust, can_map)


def load_stream(stream: IO[bytes], where: str, *, trust: bool = False) -> Any:
    """The value that torch.save wrote to a stream; ``where`` is for messages."""
    return _load(stream, where, trust, False)


def _load(source: Any, where: str, trust: bool, can_map: bool) -> Any:
    try:
        return unpickling.load(source, where, Trust(trust, "say --trust"), can_map=can_map)
    except BadPickle as error:
        raise DamagedInput(f"{error}; it is truncated or damaged: copy the file again") from None


def _check_archive(path: str, show: Show, ignore_checksums: bool) -> bool:
    """True for an archive that can be mapped; compares its members with their CRCs."""
    with open(path, "rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = {name for member in members for name in [member.filename.rpartition("/")[2]]}
            if "constants.pkl" in names:
                raise CheckpointError(
                    f"{path} is a TorchScript archive, which is a program; load it with "
                    "torch.jit.load, and save its state_dict() with torch.save"
                )
            if not ignore_checksums:
                _check_members(archive, members, path, show)
            return all(member.compress_type == zipfile.ZIP_STORED for member in members)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise DamagedInput(
            f"{path}: it is truncated or damaged ({type(error).__name__}: {error}); copy the file "
            "again"
        ) from None


def _check_members(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], path: str, show: Show
) -> None:
    done, total = 0, sum(member.file_size for member in members)
    for member in members:
        try:
            with archive.open(member) as content:
                while piece := content.read(_READ_BYTE_COUNT):
                    done += len(piece)
                    show("checking", done, total)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise DamagedInput(
                f"{path}: '{member.filename}' in it is damaged ({error}); copy the file again. "
                "When torch was asked to write no checksums, say --ignore-checksums"
            ) from None


class _EveryStorage(set[int]):
    """Nothing changes the tensors of a file: all are read where they are."""

    def __contains__(self, _: object) -> bool:
        return True


def encoder() -> Encoder:
    """What stores a loaded state without a second copy of it."""
    from .._torch.saving.encoder import TorchEncoder

    return teach(TorchEncoder(_EveryStorage()))


def check_expansions(value: Any, path: str) -> None:
    """Raises when dense copies of views are more than memory holds: a view of one element can
    claim to be any size."""
    torch = torch_module("this")
    room = _available_byte_count()
    total = 0
    for tensor in _tensors(torch, value):
        if tensor.layout == torch.strided and not tensor.is_contiguous():
            total += tensor.numel() * tensor.element_size()
            if total > room:
                raise CheckpointError(
                    f"{path}: a tensor of shape {tuple(tensor.shape)} is a view of "
                    f"{tensor.untyped_storage().nbytes()} bytes; a dense copy needs more memory "
                    f"than the {room} bytes there are"
                )


def _tensors(torch: Any, value: Any) -> Iterator[Any]:
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, (dict, list, tuple)):
            if id(item) in seen:
                continue
            seen.add(id(item))
            pending += item.values() if isinstance(item, dict) else item


def _available_byte_count() -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 40


def save(value: Any, file: IO[bytes]) -> None:
    """Writes a state as ``torch.save`` does."""
    torch = torch_module("a file of torch.save")
    try:
        torch.save(value, _Plain(file))
    except (RuntimeError, pickle.PicklingError) as error:
        raise write_failure(error) from None


def write_failure(error: BaseException) -> Exception:
    """Why torch could not write: it hides the error of the file behind others."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return CheckpointError(f"torch cannot write the state: {error}")


class _Plain:
    """A file that torch only writes to, so that its errors come through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        """Writes all of it."""
        return self._file.write(data)

    def flush(self) -> None:
        """Writes what is buffered."""
        self._file.flush()


def flat_tensors(stored: Stored, names: list[str]) -> dict[str, Any]:
    """Stored tensors by name."""
    torch = torch_module("a state of torch tensors")
    tensors, parts = {}, []
    for name in names:
        tensor = stored.tensors[name]
        memory = torch.empty(tensor.byte_count, dtype=torch.uint8, device="cpu")
        tensors[name] = _typed(memory, tensor)
        parts.append((tensor, _filler(memory)))
    stored.copy(parts)
    return tensors


def _filler(memory: Any) -> Callable[[memoryview], None]:
    target, place = memoryview(memory.numpy()), 0

    def fill(piece: memoryview) -> None:
        nonlocal place
        target[place : place + piece.nbytes] = piece
        place += piece.nbytes

    return fill


def _typed(memory: Any, tensor: StoredEntry) -> Any:
    """The bytes of a stored tensor as torch sees them; bytes where it has no such type."""
    from .._torch.types import STORED_TO_TORCH, dtype_named

    torch = torch_module("this")
    names = {
        "C64": "complex64", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }  # fmt: skip
    dtype = STORED_TO_TORCH.get(tensor.stored_dtype)
    if dtype is None and tensor.stored_dtype in names:
        dtype = dtype_named(names[tensor.stored_dtype])
    if dtype is None:
        return memory
    try:
        return memory.view(dtype).view(torch.Size(tensor.shape))
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"tensor '{tensor.name}' has the shape {tensor.shape}, which torch cannot have "
            f"({str(error).splitlines()[0]}); write it with pcextract"
        ) from None
