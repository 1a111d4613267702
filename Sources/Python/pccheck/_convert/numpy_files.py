"""NumPy's formats: an ``.npz`` archive, or a directory of ``.npy`` files, as pcextract has them."""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from .._state.stored import STORED_TO_NUMPY
from .._version import VERSION
from .output import StagedDirectory, StagedFile
from .safetensors import bits_of
from .stored import Stored, StoredEntry

#: The member, or the file, that says what the arrays are.
NOTE_KEY = "__pccheck__"
_ALIGNMENT = 64
_UNSAFE_CATEGORIES = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}
# Longer names are too long for a file system.
_FILE_NAME_BYTE_LIMIT = 200


def array_form(tensor: StoredEntry) -> tuple[str, tuple[int, ...], bool]:
    """NumPy's type, the shape, and whether the array only has the bits of the values."""
    known = STORED_TO_NUMPY.get(tensor.stored_dtype)
    if known is not None:
        return known.str, tensor.shape, False
    if tensor.stored_dtype == "C64":
        return "<c8", tensor.shape, False
    bits = bits_of(tensor.stored_dtype)
    if bits in (8, 16):
        return ("<u2" if bits == 16 else "|u1"), tensor.shape, True
    return "|u1", (tensor.byte_count,), True


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The head of a ``.npy`` file, version 1.0."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    fixed = 10
    total = -(-(fixed + len(text) + 1) // _ALIGNMENT) * _ALIGNMENT
    padded = text + " " * (total - fixed - len(text) - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("ascii")


def key_of(name: str) -> str:
    """A tensor's name as a key: what could lead a program that unpacks the archive out of its
    directory, or confuse it, is written as ``%`` and two digits."""
    parts = "".join(map(_safe, name)).split("/")
    key = "/".join(_percents(part) if part in (".", "..") else part for part in parts)
    if key.startswith("/"):
        key = "%2F" + key[1:]
    # NumPy takes the suffix off a key: without this "x.npy" would hide "x".
    if key.endswith(".npy"):
        key = key[:-4] + "%2Enpy"
    if key == NOTE_KEY:
        key = _percents(key[0]) + key[1:]
    return key or "%"


def _safe(character: str) -> str:
    is_hostile = character in "%\\:" or unicodedata.category(character) in _UNSAFE_CATEGORIES
    return _percents(character) if is_hostile else character


def _percents(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _note(stored: Stored, keys: dict[str, str], member: str) -> bytes:
    entries = []
    for name, key in keys.items():
        tensor = stored.tensors[name]
        dtype, _, is_bits = array_form(tensor)
        entries.append(
            {
                member: key, "name": name, "dtype": tensor.stored_dtype,
                "shape": list(tensor.shape), "array_dtype": dtype, "is_bit_pattern": is_bits,
            }
        )  # fmt: skip
    note = {
        "schema_version": 1, "tool": "python -m pccheck", "tool_version": VERSION,
        "step": stored.info.step, "sequence": stored.info.sequence,
        "metadata": stored.metadata, "tensors": entries,
    }  # fmt: skip
    return json.dumps(note, indent=1).encode("ascii")


def write_npz(stored: Stored, names: list[str], staged: StagedFile) -> None:
    """An archive, written as its tensors are read."""
    keys = {name: key_of(name) for name in names}
    archive = zipfile.ZipFile(staged.file, "w", zipfile.ZIP_STORED, allowZip64=True)  # noqa: SIM115
    members = [_Writing(stored.tensors[name], _opener(archive, keys[name])) for name in names]
    try:
        stored.copy([(member.tensor, member) for member in members])
        for member in members:
            member.close()
        note = _note(stored, keys, "key")
        head = npy_header("|u1", (len(note),))
        archive.writestr(zipfile.ZipInfo(f"{NOTE_KEY}.npy"), head + note)
        archive.close()
    except BaseException:
        # An archive with an open member complains when it is dropped; the first failure counts.
        for member in members:
            with suppress(OSError, ValueError):
                member.drop()
        with suppress(OSError, ValueError):
            archive.close()
        raise


def _opener(archive: zipfile.ZipFile, key: str) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True)


def write_npy_directory(stored: Stored, names: list[str], staged: StagedDirectory) -> list[str]:
    """A file for each tensor and ``index.json``; returns their names."""
    files = _file_names(names)
    opened = [
        _Writing(stored.tensors[name], _file_opener(os.path.join(staged.temporary_path, file)))
        for name, file in files.items()
    ]
    stored.copy([(file.tensor, file) for file in opened])
    for file in opened:
        file.close()
    index = os.path.join(staged.temporary_path, "index.json")
    with open(index, "xb") as note:
        note.write(_note(stored, files, "file"))
    return [*files.values(), "index.json"]


def _file_opener(path: str) -> Callable[[], IO[bytes]]:
    return lambda: open(path, "xb")


class _Writing:
    """One array, opened with its first bytes and closed with its last: one is open at a time."""

    def __init__(self, tensor: StoredEntry, open_file: Callable[[], IO[bytes]]) -> None:
        self.tensor = tensor
        self._open_file = open_file
        self._file: IO[bytes] | None = None
        self._left = tensor.byte_count

    def __call__(self, piece: memoryview) -> None:
        """Takes the next bytes."""
        file = self._opened()
        file.write(piece)
        self._left -= piece.nbytes
        if not self._left:
            file.close()

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = self._open_file()
            dtype, shape, _ = array_form(self.tensor)
            self._file.write(npy_header(dtype, shape))
        return self._file

    def drop(self) -> None:
        """Closes what was begun, if it was."""
        if self._file is not None:
            self._file.close()

    def close(self) -> None:
        """Makes the array of a tensor without any bytes."""
        self._opened().close()


def _file_names(names: list[str]) -> dict[str, str]:
    """Different names, also where upper and lower case are one."""
    taken, files = {"index.json"}, {}
    for name in names:
        base = key_of(name).replace("/", "%2F")
        while len(base.encode("utf-8")) > _FILE_NAME_BYTE_LIMIT:
            base = base[:-1]
        if base.startswith("."):
            base = _percents(".") + base[1:]
        file, number = f"{base}.npy", 1
        while file.lower() in taken:
            number += 1
            file = f"{base}~{number}.npy"
        taken.add(file.lower())
        files[name] = file
    return files
