"""Checkpoint directories of Hugging Face: weights, what the trainer keeps, and all other files.

The state has a part for each file of torch that is known, ``model`` for the weights, and ``files``
for the bytes of everything else.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from typing import Any

from ..errors import CheckpointError, StateFormatError
from . import safetensors, torch_file
from .failures import DamagedInput, UnknownInput
from .leaves import MappedBytes, map_file, parse_json, plain_name
from .output import StagedDirectory, StagedFile
from .stored import Show, Stored

TRAINER_STATE = "trainer_state.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin",
            "adapter_model.bin")  # fmt: skip
_INDEX = ".index.json"
# Files of torch.save that become parts; every other one is kept as it is, and never unpickled.
_PARTS = re.compile(r"(optimizer|scheduler|scaler)\.(pt|bin)|(rng_state(_\d+)?)\.pth")
# What parts are called in files; others get the suffix .pt.
_FILE_NAMES = {
    "rng_state": "rng_state.pth", "random": "rng_state.pth", "lr_scheduler": "scheduler.pt",
}  # fmt: skip
# The part in which pccheck.huggingface keeps what is a file of JSON in a directory.
_TRAINER_PART = "trainer"
_UNSAFE_CATEGORIES = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}


def weights_of(folder: str) -> str | None:
    """The file of the weights, or the index of it; None where there is none."""
    for name in _WEIGHTS:
        for candidate in (name, name + _INDEX):
            path = os.path.join(folder, candidate)
            if os.path.isfile(path):
                return path
    return None


def step_of(folder: str) -> int | None:
    """The step that the trainer says it has come to."""
    path = os.path.join(folder, TRAINER_STATE)
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        document = parse_json(file.read(), path, "the trainer's state")
    step = document.get("global_step") if isinstance(document, dict) else None
    return step if type(step) is int and step >= 0 else None


def read(
    folder: str, show: Show, *, trust: bool = False, ignore_checksums: bool = False
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """The state, the note of where it came from, and whether torch is needed to store it."""
    state: dict[str, Any] = {}
    note: dict[str, Any] = {}
    used = set()
    needs_torch = False
    options = {"trust": trust, "ignore_checksums": ignore_checksums}
    weights = weights_of(folder)
    if weights is not None:
        state["model"], note["model"], files = _read_weights(weights, show, options)
        needs_torch = note["model"]["kind"] == "torch"
        used.update(files)
    parts: dict[str, str] = {}
    kept: dict[str, MappedBytes] = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name in used:
            continue
        if not os.path.isfile(path):
            raise UnknownInput(
                f"{path} is a directory, or no regular file, which a Hugging Face checkpoint does "
                "not need; move it elsewhere"
            )
        match = _PARTS.fullmatch(name)
        if match:
            part = match[1] or match[3]
            if part in parts:
                raise UnknownInput(f"{folder} has both {parts[part]} and {name}; remove one")
            state[part] = torch_file.load(path, show, **options)
            torch_file.check_expansions(state[part], path)
            parts[part], needs_torch = name, True
        else:
            kept[name] = MappedBytes(map_file(path))
    if kept:
        state["files"] = kept
    note["parts"] = parts
    return state, note, needs_torch


def _read_weights(
    path: str, show: Show, options: dict[str, bool]
) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """The weights, where they came from, and the files that they are in."""
    name = os.path.basename(path)
    is_safe = ".safetensors" in name
    if not name.endswith(_INDEX):
        if is_safe:
            opened = safetensors.SafetensorsFile(path)
            header = opened.header.text.decode("utf-8")
            note = {"kind": "safetensors", "files": [{"name": name, "header": header}]}
            return dict(opened.tensors()), note, {name}
        state = _load_weights(path, show, options)
        return state, {"kind": "torch", "files": [{"name": name}]}, {name}
    # The index is kept as it is, with the other files.
    _, shards, weight_map = safetensors.read_index(path)
    names = {os.path.basename(shard) for shard in shards}
    if is_safe:
        tensors, headers = safetensors.read_shards(shards, weight_map)
        return dict(tensors), {"kind": "safetensors", "files": headers}, names
    held: dict[str, Any] = {}
    files: list[dict[str, Any]] = []
    for shard in shards:
        loaded = _load_weights(shard, show, options)
        if held.keys() & loaded.keys():
            raise DamagedInput(f"{shard}: it holds '{min(held.keys() & loaded.keys())}' once more")
        held.update(loaded)
        files.append({"name": os.path.basename(shard), "keys": list(loaded)})
    missing = weight_map.keys() - held.keys()
    if missing:
        raise DamagedInput(f"{path}: the index names '{min(missing)}', which is in no file")
    return held, {"kind": "torch", "files": files}, names


def _load_weights(path: str, show: Show, options: dict[str, bool]) -> dict[str, Any]:
    state = torch_file.load(path, show, **options)
    if not isinstance(state, dict) or any(type(key) is not str for key in state):
        raise UnknownInput(
            f"{path}: it holds a {type(state).__name__}, expected a dictionary of weights by name"
        )
    torch_file.check_expansions(state, path)
    return state


# ---------------------------------------------------------------------------- and back


def write(stored: Stored, staged: StagedDirectory) -> list[str]:
    """Writes the directory of a checkpoint; returns the names of its files."""
    if stored.document is None:
        raise CheckpointError(
            "the checkpoint has no state with parts, which the files of a Hugging Face directory "
            "are made of; convert it to safetensors"
        )
    items = stored.items(stored.document)
    source = stored.source
    note = source if source is not None and source["kind"] == "hugging-face" else None
    folder = _Folder(stored, staged)
    for name, node in items.items():
        if name == "model":
            folder.write_weights(node, note.get("model") if note else None)
        elif name == "files" and note:
            folder.write_kept(node)
        elif name == _TRAINER_PART and not note:
            folder.write_trainer_state()
        else:
            folder.write_part(name, note.get("parts") if note else None)
    return folder.names


class _Folder:
    """A directory that is being filled."""

    def __init__(self, stored: Stored, staged: StagedDirectory) -> None:
        self._stored, self._staged = stored, staged
        self.names: list[str] = []

    def _new(self, name: str) -> StagedFile:
        self.names.append(name)
        return StagedFile(os.path.join(self._staged.temporary_path, name))

    def write_kept(self, node: Any) -> None:
        """Files as they were."""
        parts = []
        for name, child in self._stored.items(node).items():
            with self._new(plain_name(name)) as staged:
                staged.publish()
            path = os.path.join(self._staged.temporary_path, name)
            content = child.get("$bytes") if isinstance(child, dict) else None
            if isinstance(content, dict) and type(content.get("tensor")) is str:
                parts.append((self._stored.tensor(content["tensor"]), _appender(path)))
            elif content != "":
                raise StateFormatError(f"the state document has no bytes for the file '{name}'")
        self._stored.copy(parts)

    def write_part(self, part: str, files: Any) -> None:
        """A part of the state as a file of torch.save."""
        known = files.get(part) if isinstance(files, dict) else None
        name = plain_name(known) if known else _FILE_NAMES.get(
            part, _file_stem(part) + ".pt")  # fmt: skip
        value = self._load(part)
        with self._new(name) as staged:
            torch_file.save(value, staged.file)
            staged.publish()

    def write_trainer_state(self) -> None:
        """As the Trainer writes it."""
        try:
            text = json.dumps(self._load(_TRAINER_PART), indent=2, sort_keys=True) + "\n"
        except (TypeError, ValueError) as error:
            raise StateFormatError(f"the part '{_TRAINER_PART}' is no JSON: {error}") from None
        with self._new(TRAINER_STATE) as staged:
            staged.file.write(text.encode("utf-8", "backslashreplace"))
            staged.publish()

    def _load(self, part: str) -> Any:
        torch_file.torch_module(f"the part '{part}'")
        from .._torch.loading.decoder import TorchMemory

        return self._stored.load_part(TorchMemory(), part)

    def write_weights(self, node: Any, note: Any) -> None:
        """The weights, in the files that they came from; else as safetensors where they fit."""
        if isinstance(note, dict) and isinstance(note.get("files"), list):
            if note.get("kind") == "safetensors":
                names = tensor_names(self._stored, node)
                for entry in note["files"]:
                    name, header = safetensors.header_of_note(entry)
                    self._write_safetensors(name, header, names)
                return
            self._write_torch_weights(note["files"])
            return
        plain = plain_tensors(self._stored, node)
        if plain is None:
            self._write_torch_weights([{"name": "pytorch_model.bin"}])
            return
        header = safetensors.new_header(self._stored, plain, {"format": "pt"})
        self._write_safetensors("model.safetensors", header, plain)

    def _write_safetensors(
        self, name: str, header: safetensors.Header, names: dict[str, str]
    ) -> None:
        with self._new(name) as staged:
            safetensors.write_file(self._stored, header, names, staged)
            staged.publish()

    def _write_torch_weights(self, files: list[Any]) -> None:
        state = self._load("model")
        for entry in files:
            keys = entry.get("keys") if isinstance(entry, dict) else None
            name = plain_name(entry.get("name") if isinstance(entry, dict) else None)
            if keys is not None and (
                not isinstance(keys, list) or any(key not in state for key in map(str, keys))
            ):
                raise StateFormatError(f"the note of the source has no weights for {name}")
            shard = state if keys is None else {key: state[key] for key in keys}
            with self._new(name) as staged:
                torch_file.save(shard, staged.file)
                staged.publish()


def _file_stem(part: str) -> str:
    """A part's name as that of a file: what could lead out of the directory, or confuse a
    terminal, is written as ``%`` and two digits."""
    stem = "".join(map(_safe, part))
    return _percents(stem) if stem in (".", "..") else stem or "%"


def _safe(character: str) -> str:
    is_hostile = character in "%\\:/" or unicodedata.category(character) in _UNSAFE_CATEGORIES
    return _percents(character) if is_hostile else character


def _percents(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _appender(path: str) -> Any:
    def append(piece: memoryview) -> None:
        with open(path, "ab") as file:
            file.write(piece)

    return append


def tensor_names(stored: Stored, node: Any) -> dict[str, str]:
    """The stored tensors of a dictionary of tensors."""
    names = {}
    for name, child in stored.items(node).items():
        stored_name = child.get("$tensor") if isinstance(child, dict) else None
        if type(stored_name) is not str:
            raise StateFormatError(f"the state document has no tensor '{name}'")
        names[name] = stored_name
    return names


def plain_tensors(stored: Stored, node: Any) -> dict[str, str] | None:
    """The same, when every one is a tensor of its own and of a type that has a name; else None."""
    try:
        items = stored.items(node)
    except StateFormatError:
        return None
    if any(not isinstance(child, dict) or set(child) != {"$tensor"} for child in items.values()):
        return None
    names = tensor_names(stored, node)
    return names if len(set(names.values())) == len(names) else None


