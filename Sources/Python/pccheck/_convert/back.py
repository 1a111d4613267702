"""From a ``.pcc`` file into another format: what it came from, or what is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .._state.loading import load_selected
from .._state.request import Loading
from ..errors import InvalidArgument, StateFormatError
from . import dcp, hf_folder, hugging_face, safetensors, torch_file
from .choosing import Choice
from .leaves import plain_name
from .output import StagedDirectory, StagedFile, refuse_existing, refuse_existing_directory
from .stored import Stored

_KINDS = {"pt": "torch", "safetensors": "safetensors", "dcp": "dcp", "hf": "hugging-face"}
_SUFFIXES = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".bin": "torch",
             ".ckpt": "torch"}  # fmt: skip


def kind_for(stored: Stored, output: str, wanted: str | None) -> str:
    """The format to write."""
    if wanted:
        return _KINDS[wanted]
    by_suffix = _SUFFIXES.get(os.path.splitext(output)[1].lower())
    if by_suffix:
        return by_suffix
    kind = stored.source["kind"] if stored.source else None
    if kind not in _KINDS.values():
        raise InvalidArgument(
            f"nothing says which format {output} is to have; say --to pt, safetensors, dcp or hf"
        )
    return str(kind)


@dataclass(frozen=True)
class Request:
    """How a checkpoint is to be written."""

    force: bool = False
    trust: bool = False
    choice: Choice = Choice()
    #: For ``from_pretrained``; without it a directory of Hugging Face has every part.
    folder: hf_folder.Settings | None = None


def check(request: Request, kind: str) -> None:
    """Raises for what the format has no use for."""
    if request.folder is not None and kind != "hugging-face":
        raise InvalidArgument("--config, --shard-size and --part go with --to hf --config")
    if not request.choice.is_everything and kind != "safetensors" and request.folder is None:
        raise InvalidArgument(
            "--tensor, --exclude and --strip go with --to safetensors, or with --to hf --config"
        )


def write(stored: Stored, kind: str, output: str, request: Request) -> list[str]:
    """Writes the checkpoint; returns the files in the directory, or an empty name for the one."""
    check(request, kind)
    if kind == "safetensors":
        return _write_safetensors(stored, output, request)
    if kind == "torch":
        refuse_existing(output, request.force)
        with StagedFile(output, force=request.force) as staged:
            torch_file.save(_state(stored, request.trust), staged.file)
            staged.publish()
        return [""]
    with StagedDirectory(output) as directory:
        if kind == "dcp":
            dcp.write(_state(stored, request.trust), directory.temporary_path)
            names = sorted(os.listdir(directory.temporary_path))
        elif request.folder is not None:
            names = hf_folder.write(stored, request.choice, request.folder, directory)
        else:
            names = hugging_face.write(stored, directory)
        directory.publish()
    return names


def _state(stored: Stored, trust: bool) -> Any:
    """The whole state, every value of the type that it had."""
    torch_file.torch_module("the state")
    from .._torch.loading.decoder import TorchMemory

    if stored.document is None:
        return torch_file.flat_tensors(stored, list(stored.tensors))
    part = _part(stored)
    if part is not None:
        return stored.load_part(TorchMemory(), part)
    state = load_selected(stored.reader, Loading(TorchMemory()))
    return dcp.of_adapter(state, stored.path, trust=trust) if dcp.is_of_adapter(state) else state


def _part(stored: Stored) -> str | None:
    """The part that the state was made when it was converted."""
    part = (stored.source or {}).get("part")
    if part is not None and type(part) is not str:
        raise StateFormatError("the note of the source names no part")
    return part


def _write_safetensors(stored: Stored, output: str, request: Request) -> list[str]:
    source, force = stored.source, request.force
    if not request.choice.is_everything:
        refuse_existing(output, force)
        _write_chosen(stored, output, request)
        return [""]
    if source is None or source["kind"] != "safetensors":
        refuse_existing(output, force)
        with StagedFile(output, force=force) as staged:
            stored.copy_payload(staged.file.write)
            staged.publish()
        return [""]
    files = source.get("files")
    if not isinstance(files, list) or not files:
        raise StateFormatError("the note of the source names no files")
    headers = [safetensors.header_of_note(entry) for entry in files]
    names = hugging_face.tensor_names(stored, _tensors_node(stored))
    index = source.get("index")
    if index is None and len(headers) == 1:
        refuse_existing(output, force)
        with StagedFile(output, force=force) as staged:
            safetensors.write_file(stored, headers[0][1], names, staged)
            staged.publish()
        return [""]
    if not isinstance(index, dict) or type(index.get("text")) is not str:
        raise StateFormatError("the note of the source has no index")
    refuse_existing_directory(output)
    with StagedDirectory(output) as directory:
        for name, header in headers:
            with StagedFile(os.path.join(directory.temporary_path, name)) as staged:
                safetensors.write_file(stored, header, names, staged)
                staged.publish()
        index_name = plain_name(index.get("name"))
        with StagedFile(os.path.join(directory.temporary_path, index_name)) as staged:
            staged.file.write(index["text"].encode("utf-8"))
            staged.publish()
        directory.publish()
    return [*(name for name, _ in headers), index_name]


def _write_chosen(stored: Stored, output: str, request: Request) -> None:
    names = request.choice.of({name: name for name in stored.tensors})
    # What the state looked like is said by the names that the tensors had.
    metadata = {"format": "pt"} if request.choice.prefixes else stored.metadata
    header = safetensors.new_header(stored, names, metadata)
    with StagedFile(output, force=request.force) as staged:
        safetensors.write_file(stored, header, names, staged)
        staged.publish()


def _tensors_node(stored: Stored) -> Any:
    """The dictionary of the tensors."""
    part = _part(stored)
    if part is None:
        return stored.document
    items = stored.items(stored.document)
    if part not in items:
        raise StateFormatError(f"the state document has no part '{part}'")
    return items[part]
