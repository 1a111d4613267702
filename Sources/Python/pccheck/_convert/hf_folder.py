"""A folder that Hugging Face's ``from_pretrained`` loads: weights, their index, and the config."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InvalidArgument, UnsupportedState
from . import safetensors
from .choosing import Choice
from .hugging_face import tensor_names
from .output import StagedDirectory, StagedFile
from .stored import Stored

#: What a shard holds at most, as ``save_pretrained`` has it.
SHARD_BYTE_COUNT = 5 * 10**9
_CONFIG = "config.json"
# Beside the config: what tokenizers, processors and generation read.
_COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja")
_WEIGHT_INDEXES = ".index.json"
_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Settings:
    """How the folder is made."""

    #: The file ``config.json``, or a directory with it.
    config: str
    part: str
    shard_byte_count: int


def _part_names(stored: Stored, part: str) -> dict[str, str]:
    """The tensors of a part by the keys of its ``state_dict``.

    Two keys of one tensor, as tied weights have them, become one: the first, as
    ``save_pretrained`` leaves out what it ties.
    """
    items = {} if stored.document is None else stored.items(stored.document)
    if part not in items:
        held = ", ".join(items) or "none"
        raise InvalidArgument(f"the checkpoint has no part '{part}'; its parts are {held}")
    nodes = stored.items(items[part])
    for key, node in nodes.items():
        if not isinstance(node, dict) or set(node) != {"$tensor"}:
            raise UnsupportedState(
                f"'{part}.{key}' is no tensor that safetensors can hold alone: a value, or a "
                "view of another tensor; leave it out of the part, or write .pt with pcextract"
            )
    names: dict[str, str] = {}
    for key, stored_name in tensor_names(stored, items[part]).items():
        if stored_name not in names.values():
            names[key] = stored_name
    return names


def write(
    stored: Stored, choice: Choice, settings: Settings, staged: StagedDirectory
) -> list[str]:
    """Writes the folder; returns the names of its files."""
    names = choice.of(_part_names(stored, settings.part))
    folder = staged.temporary_path
    written = _copy_config(settings.config, folder)
    shards = list(_shards(stored, names, settings.shard_byte_count))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with StagedFile(os.path.join(folder, name)) as file:
            header = safetensors.new_header(stored, shard, _METADATA)
            safetensors.write_file(stored, header, shard, file)
            file.publish()
        weight_map.update(dict.fromkeys(shard, name))
        written.append(name)
    if len(shards) > 1:
        total = sum(stored.tensor(name).byte_count for name in names.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        name = f"model{safetensors.INDEX_SUFFIX}"
        with open(os.path.join(folder, name), "x", encoding="utf-8") as text:
            json.dump(index, text, indent=2, sort_keys=True)
        written.append(name)
    return written


def _shards(
    stored: Stored, names: dict[str, str], shard_byte_count: int
) -> Iterator[dict[str, str]]:
    """Runs of tensors that fit a shard, or one that is larger, in the order of the model."""
    shard: dict[str, str] = {}
    byte_count = 0
    for name, stored_name in names.items():
        size = stored.tensor(stored_name).byte_count
        if shard and byte_count + size > shard_byte_count:
            yield shard
            shard, byte_count = {}, 0
        shard[name] = stored_name
        byte_count += size
    yield shard


def check_config(config: str) -> str:
    """The file ``config.json`` that is meant."""
    path = os.path.join(config, _CONFIG) if os.path.isdir(config) else config
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"{path}: it cannot be read as the config of a model ({error}); write one with "
            "model.config.save_pretrained(DIR), and give --config DIR"
        ) from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"{path}: it holds no JSON object, expected the config of a model")
    return path


def _copy_config(config: str, folder: str) -> list[str]:
    path = check_config(config)
    copied = {_CONFIG: path}
    if os.path.isdir(config):
        for name in sorted(os.listdir(config)):
            if name.endswith(_COPIED_SUFFIXES) and not name.endswith(_WEIGHT_INDEXES):
                copied[name] = os.path.join(config, name)
    for name, source in copied.items():
        shutil.copyfile(source, os.path.join(folder, name))
    return list(copied)
