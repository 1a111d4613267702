"""``convert``: other formats into a ``.pcc`` file, and back."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .._convert import back, hf_folder, inputs
from .._convert.choosing import Choice
from .._convert.output import refuse_existing, refuse_itself
from .._convert.stored import with_checkpoint
from .._convert.target import Encoded, Settings, Target
from .._core.arguments import parse_size
from .._core.printable import printable
from .._files.shape import with_room
from .._state.references import LISTED_NAME_COUNT
from ..errors import InvalidArgument
from .outcome import Status, print_json
from .terminal import Output, Progress, byte_text, plural

_RETAIN_LIMIT = 16


def run(options: argparse.Namespace, out: Output, diagnostics: Output) -> Status:
    """Converts in the direction that the inputs say."""
    kinds = [inputs.kind_of(path) for path in options.inputs]
    refuse_itself(options.inputs, options.output)
    progress = Progress(diagnostics, options.quiet)
    try:
        if "pcc" not in kinds:
            return _into(options, kinds, progress, out, diagnostics)
        if len(kinds) > 1:
            raise InvalidArgument("a .pcc file is converted alone; name one, and --step")
        return _back(options, progress, out, diagnostics)
    finally:
        progress.finish()


# ---------------------------------------------------------------------------- into


def _into(
    options: argparse.Namespace, kinds: list[str], progress: Progress, out: Output,
    diagnostics: Output,
) -> Status:  # fmt: skip
    if options.to or not options.output.endswith(".pcc"):
        raise InvalidArgument(
            f"{options.output} does not end in .pcc, and none of the inputs is a .pcc file; "
            "convert into a .pcc file first, and that one back"
        )
    _refuse_options_of_back(options)
    refuse_existing(options.output, options.force)
    work = _ordered(options, kinds)
    reading = inputs.Options(options.trust, options.ignore_checksums)

    def encoded(step: int, path: str, kind: str) -> Encoded:
        named = step if options.step else None
        return Encoded(inputs.open_input(path, kind, reading, progress, named), options.part)

    # One is opened once; of several, all are looked at before the first is written.
    first = encoded(*work[0]) if len(work) == 1 else None
    sizes = [(first or encoded(*each)).byte_count() for each in work]
    capacity = with_room(max(sizes))
    if options.capacity:
        capacity = _capacity(options.capacity, max(sizes))
    retain = options.retain or max(1, len(work))
    if retain < len(work):
        raise InvalidArgument(f"--retain {retain} keeps fewer checkpoints than the {len(work)} "
                              "inputs")  # fmt: skip
    settings = Settings(options.in_flight, retain, options.codec, capacity)
    written: list[dict[str, Any]] = []
    with Target(options.output, settings, force=options.force, show=progress) as target:
        for step, path, kind in work:
            state = first or encoded(step, path, kind)
            # A job that is running may have a newer one by now.
            step = step if state.step is None else state.step
            outcome = target.save(step, state)
            written.append(
                {
                    "input": path, "kind": kind, "step": step, "sequence": outcome.sequence,
                    "payload_byte_count": state.byte_count(), "tensor_count": state.tensor_count,
                    "rank_count": state.rank_count,
                    "left_out": [
                        {"tensor": name, "rank": rank} for name, rank in state.left_out.items()
                    ],
                }
            )  # fmt: skip
        target.publish()
    progress.finish()
    for entry in written:
        if entry["kind"] == "group" and entry["rank_count"] > 1 and not options.quiet:
            diagnostics.line(
                ("pccheck:", "yellow"), f" {printable(entry['input'])}: joined from "
                f"{entry['rank_count']} ranks; what each stored for itself is that of rank 0"
                + _left_out_text(entry["left_out"]),
            )  # fmt: skip
    if options.json:
        print_json(out, "convert", {
            "direction": "into", "output": options.output, "checkpoints": written, "files": [],
            "is_fallback": False,
        })  # fmt: skip
    elif not options.quiet:
        for entry in written:
            size = byte_text(entry["payload_byte_count"])
            out.line(
                f"step {entry['step']}: {size} with {plural(entry['tensor_count'], 'tensor')}, "
                f"from {printable(entry['input'])}, durable in {printable(options.output)}"
            )
    return Status.DONE


def _left_out_text(left_out: list[dict[str, Any]]) -> str:
    if not left_out:
        return ""
    names = [f"{printable(each['tensor'])} (rank {each['rank']})" for each in left_out]
    more = ", …" if len(names) > LISTED_NAME_COUNT else ""
    return (
        f", and {plural(len(names), 'tensor')} that only others have "
        f"{'is' if len(names) == 1 else 'are'} left out: "
        + ", ".join(names[:LISTED_NAME_COUNT]) + more
    )  # fmt: skip


def _refuse_options_of_back(options: argparse.Namespace) -> None:
    for name in ("config", "shard_size", "tensor", "exclude", "strip"):
        if getattr(options, name):
            option = "--" + name.replace("_", "-")
            raise InvalidArgument(f"{option} goes with a .pcc file as INPUT; leave it out")


def _ordered(options: argparse.Namespace, kinds: list[str]) -> list[tuple[int, str, str]]:
    """Step, path and kind of each input, the lowest step first."""
    paths, steps = options.inputs, options.step
    if len(paths) > _RETAIN_LIMIT:
        raise InvalidArgument(f"{len(paths)} inputs were given; a file keeps {_RETAIN_LIMIT}")
    if steps and len(steps) != len(paths):
        raise InvalidArgument(f"{len(steps)} steps were given for {len(paths)} inputs")
    found = steps or [inputs.step_of(p, kind) for p, kind in zip(paths, kinds, strict=True)]
    if len(set(found)) != len(found):
        shown = ", ".join(map(str, found))
        raise InvalidArgument(f"the inputs have the steps {shown}; give each its own with --step")
    return sorted(zip(found, paths, kinds, strict=True))


def _capacity(text: str, needed: int) -> int:
    capacity = parse_size(text)
    if capacity < needed:
        raise InvalidArgument(f"--capacity {text} is less than the {needed} bytes of the largest "
                              "input")  # fmt: skip
    return capacity


# ---------------------------------------------------------------------------- back


def _back(
    options: argparse.Namespace, progress: Progress, out: Output, diagnostics: Output
) -> Status:
    if len(options.step) > 1:
        raise InvalidArgument("one checkpoint is converted at a time; give one --step")
    path, output, request = options.inputs[0], options.output, _request(options)
    if output.endswith(".pcc"):
        raise InvalidArgument(f"{path} is a .pcc file already; copy it with cp")

    def warn(message: str) -> None:
        progress.finish()
        diagnostics.line(("pccheck:", "yellow"), f" {printable(path)}: ", printable(message))

    def work(stored: Any) -> dict[str, Any]:
        kind = back.kind_for(stored, output, options.to)
        files = back.write(stored, kind, output, request)
        return {
            "input": path, "kind": kind, "step": stored.info.step,
            "sequence": stored.info.sequence, "tensor_count": len(stored.tensors),
            "payload_byte_count": stored.info.payload_byte_count, "files": files,
        }  # fmt: skip

    step = options.step[0] if options.step else None
    found, is_fallback = with_checkpoint(path, step, work, progress, warn)
    progress.finish()
    files = found.pop("files")
    if options.json:
        print_json(out, "convert", {
            "direction": "back", "output": output, "checkpoints": [found],
            "files": [os.path.join(output, name) if name else output for name in files],
            "is_fallback": is_fallback,
        })  # fmt: skip
    elif not options.quiet:
        size = byte_text(found["payload_byte_count"])
        out.line(
            f"step {found['step']}: {size} with {plural(found['tensor_count'], 'tensor')}, every "
            f"digest verified, written to {printable(output)}"
        )
    return Status.DAMAGED if is_fallback else Status.DONE


def _request(options: argparse.Namespace) -> back.Request:
    """What is to be written; looked at before the checkpoint is read."""
    choice = Choice(options.tensor, options.exclude, options.strip)
    if options.config is None:
        for name in ("part", "shard_size"):
            if getattr(options, name) is not None:
                option = "--" + name.replace("_", "-")
                raise InvalidArgument(f"{option} goes with --to hf --config")
        return back.Request(options.force, options.trust, choice)
    hf_folder.check_config(options.config)
    settings = hf_folder.Settings(
        options.config, options.part or "model",
        parse_size(options.shard_size or hf_folder.SHARD_BYTE_COUNT),
    )  # fmt: skip
    return back.Request(options.force, options.trust, choice, settings)
