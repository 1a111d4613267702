"""From a ``.pcc`` file into another format: what it came from, or what is asked for."""

from __future__ import annotations

import os
from typing import Any

from .._state.loading import load_selected
from .._state.request import Loading
from ..errors import InvalidArgument, StateFormatError
from . import dcp, hugging_face, safetensors, torch_file
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


def write(
    stored: Stored, kind: str, output: str, *, force: bool = False, trust: bool = False
) -> list[str]:
    """Writes the checkpoint; returns the files in the directory, or an empty name for the one."""
    if kind == "safetensors":
        return _write_safetensors(stored, output, force)
    if kind == "torch":
        refuse_existing(output, force)
        with StagedFile(output, force=force) as staged:
            torch_file.save(_state(stored, trust), staged.file)
            staged.publish()
        return [""]
    with StagedDirectory(output) as directory:
        if kind == "dcp":
            dcp.write(_state(stored, trust), directory.temporary_path)
            names = sorted(os.listdir(directory.temporary_path))
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


def _write_safetensors(stored: Stored, output: str, force: bool) -> list[str]:
    source = stored.source
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


def _tensors_node(stored: Stored) -> Any:
    """The dictionary of the tensors."""
    part = _part(stored)
    if part is None:
        return stored.document
    items = stored.items(stored.document)
    if part not in items:
        raise StateFormatError(f"the state document has no part '{part}'")
    return items[part]
