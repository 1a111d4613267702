"""``export``: one checkpoint for other programs."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
from collections.abc import Callable
from typing import Any

from .._convert import hf_folder, numpy_files, safetensors, torch_file
from .._convert.output import StagedDirectory, StagedFile, refuse_existing, refuse_itself
from .._convert.stored import Stored, with_checkpoint
from .._core.arguments import parse_size
from .._core.printable import printable
from .._state.loading import load_selected
from .._state.request import Loading
from ..errors import InvalidArgument
from .outcome import Status, print_json
from .terminal import Output, Progress, byte_text, plural

_SUFFIXES = {
    ".safetensors": "safetensors", ".npz": "npz", ".pt": "pt", ".pth": "pt", ".bin": "pt",
    ".ckpt": "pt",
}  # fmt: skip


def run(options: argparse.Namespace, out: Output, diagnostics: Output) -> Status:
    """Writes what was asked for."""
    kind = options.format or format_of(options.output)
    if kind == "pt":
        torch_file.torch_module("the format pt")
    output = options.output
    _check_options(kind, options)
    if kind in ("npy", "hf"):
        # Looked at before the work, not after it.
        StagedDirectory(output)
    else:
        refuse_existing(output, options.force)
    if os.path.exists(options.file):
        refuse_itself([options.file], output)
    progress = Progress(diagnostics, options.quiet)

    def warn(message: str) -> None:
        progress.finish()
        diagnostics.line(("pccheck:", "yellow"), f" {printable(options.file)}: ",
                         printable(message))  # fmt: skip

    def work(stored: Stored) -> dict[str, Any]:
        names = _chosen(stored, kind, options)
        files = _write(stored, kind, names, options)
        return {
            "step": stored.info.step, "sequence": stored.info.sequence, "slot": stored.info.slot,
            "tensor_count": len(names),
            "tensor_byte_count": sum(stored.tensor(name).byte_count for name in names.values()),
            "files": files,
        }  # fmt: skip

    try:
        found, is_fallback = with_checkpoint(options.file, options.step, work, progress, warn)
    finally:
        progress.finish()
    if options.json:
        members = {"file": options.file, "output": output, "format": kind, **found}
        print_json(out, "export", {**members, "is_fallback": is_fallback})
    elif not options.quiet:
        size = byte_text(found["tensor_byte_count"])
        out.line(
            f"step {found['step']} from slot {found['slot']}: {size} with "
            f"{plural(found['tensor_count'], 'tensor')}, every digest verified, written to ",
            printable(output),
        )
    return Status.DAMAGED if is_fallback else Status.DONE


def _check_options(kind: str, options: argparse.Namespace) -> None:
    """Raises for what the format has no use for, before anything is read."""
    if options.strip and kind not in ("safetensors", "hf"):
        raise InvalidArgument(f"--strip is for the formats safetensors and hf, not for {kind}")
    if kind == "hf":
        if options.config is None:
            raise InvalidArgument(
                "the format hf needs --config: config.json of the model, or a directory with it; "
                "model.config.save_pretrained(DIR) writes one"
            )
        hf_folder.check_config(options.config)
        return
    for name in ("part", "config", "shard_size"):
        if getattr(options, name) is not None:
            option = "--" + name.replace("_", "-")
            raise InvalidArgument(f"{option} is for the format hf, not for {kind}")


def _chosen(stored: Stored, kind: str, options: argparse.Namespace) -> dict[str, str]:
    """The tensors to write: the names that they get, and those that they have."""
    if kind != "hf":
        names = {name: name for name in chosen(stored, options.tensor, options.exclude)}
        return stripped(names, options.strip)
    named = stripped(hf_folder.part_names(stored, options.part or "model"), options.strip)
    wanted, unwanted = _matcher(options.tensor), _matcher(options.exclude)
    names = {
        name: stored_name for name, stored_name in named.items()
        if (not options.tensor or wanted(name)) and not unwanted(name)
    }  # fmt: skip
    if not names:
        raise InvalidArgument(
            f"no tensor of the part fits; it has {len(named)}, such as {', '.join([*named][:3])}"
        )
    return names


def stripped(names: dict[str, str], prefixes: list[str]) -> dict[str, str]:
    """Those that begin with one of the prefixes, without it; all of them when there is none."""
    if not prefixes:
        return names
    found: dict[str, str] = {}
    origins: dict[str, str] = {}
    for name, stored_name in names.items():
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
        if prefix is None:
            continue
        short = name[len(prefix) :]
        if short in found:
            raise InvalidArgument(
                f"'{origins[short]}' and '{name}' would both be '{short}'; give fewer --strip"
            )
        found[short], origins[short] = stored_name, name
    if not found:
        raise InvalidArgument(
            f"no tensor begins with {' or '.join(prefixes)}; there are {len(names)}, such as "
            f"{', '.join([*names][:3])}"
        )
    if "" in found:
        raise InvalidArgument(f"nothing is left of '{origins['']}'; give a shorter --strip")
    return found


def format_of(path: str) -> str:
    """The format that a name asks for."""
    if path.endswith("/") or os.path.isdir(path):
        return "npy"
    found = _SUFFIXES.get(os.path.splitext(path)[1].lower())
    if found is None:
        raise InvalidArgument(
            f"{path} has no suffix that names a format; say --format safetensors, npz, npy, pt "
            "or hf"
        )
    return found


def chosen(stored: Stored, patterns: list[str], exclusions: list[str]) -> list[str]:
    """The tensors whose names fit, in the order of the payload."""
    wanted, unwanted = _matcher(patterns), _matcher(exclusions)
    names = [
        name for name in stored.tensors
        if (not patterns or wanted(name)) and not unwanted(name)
    ]  # fmt: skip
    if not names and (patterns or exclusions):
        held = ", ".join(list(stored.tensors)[:3])
        raise InvalidArgument(
            f"no tensor fits; the checkpoint has {len(stored.tensors)}, such as {held}; see "
            f"python -m pccheck ls --step {stored.info.step}"
        )
    return names


def _matcher(patterns: list[str]) -> Callable[[str], bool]:
    # Not fnmatch itself, which takes case and slashes as the system does.
    compiled = [re.compile(fnmatch.translate(pattern), re.S) for pattern in patterns]
    return lambda name: any(pattern.match(name) for pattern in compiled)


def _write(
    stored: Stored, kind: str, names: dict[str, str], options: argparse.Namespace
) -> list[str]:
    """Writes the files; returns their paths."""
    output = options.output
    own_names = list(names)
    is_whole = len(names) == len(stored.tensors) and not options.strip
    if kind in ("npy", "hf"):
        with StagedDirectory(output) as directory:
            if kind == "npy":
                written = numpy_files.write_npy_directory(stored, own_names, directory)
            else:
                size = parse_size(options.shard_size or hf_folder.SHARD_BYTE_COUNT)
                written = hf_folder.write(stored, names, options.config, size, directory)
            directory.publish()
        return [os.path.join(output, name) for name in written]
    with StagedFile(output, force=options.force) as staged:
        if kind == "npz":
            numpy_files.write_npz(stored, own_names, staged)
        elif kind == "pt":
            torch_file.save(_state(stored, own_names, is_whole), staged.file)
        elif is_whole:
            stored.copy_payload(staged.file.write)
        else:
            # What the state looked like is said by the names that the tensors had.
            metadata = {"format": "pt"} if options.strip else stored.metadata
            header = safetensors.new_header(stored, names, metadata)
            safetensors.write_file(stored, header, names, staged)
        staged.publish()
    return [output]


def _state(stored: Stored, names: list[str], is_whole: bool) -> Any:
    """The state as it was saved, or some tensors of it by name."""
    from .._torch.loading.decoder import TorchMemory

    if is_whole and stored.document is not None:
        loaded = load_selected(stored.reader, Loading(TorchMemory()))
        return torch_file.for_weights_only(loaded)
    return torch_file.flat_tensors(stored, names)
