"""The command line: what is asked for, and the help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from .._core.printable import printable
from .._version import VERSION
from .outcome import TOOL, Status
from .terminal import Output

_STATUS = """\
exit status:
   0  done
   4  damage was found
   8  it could not be done, or there is no such checkpoint
  16  wrong usage
  32  cancelled by SIGINT or SIGTERM; the output is as it was before
"""
_LS = """\
examples:
  python -m pccheck ls run.pcc
  python -m pccheck ls run.pcc --step 1000
  python -m pccheck ls rank*.pcc --json
"""
_VERIFY = """\
examples:
  python -m pccheck verify run.pcc
  python -m pccheck verify run.pcc --step 1000 --json
"""
_EXPORT = """\
formats:
  safetensors  the checkpoint's payload, or with --tensor some of its tensors
  npz          arrays by name; types that NumPy lacks are integers with the
               same bits
  npy          a directory with a .npy file for each tensor, and index.json
  pt           for torch.load(weights_only=True): the state nested as it was
               saved, arrays as tensors, NumPy scalars as numbers; needs torch
  hf           a directory for from_pretrained of Hugging Face: one part as
               model.safetensors, in shards where it is large, and --config

The others are written piece by piece; pt holds the state in memory once.

examples:
  python -m pccheck export run.pcc -o model.safetensors --tensor 'model.*'
  python -m pccheck export run.pcc -o step1000.npz --step 1000
  python -m pccheck export run.pcc -o arrays/ --format npy
  python -m pccheck export run.pcc -o model.safetensors --strip model.
  python -m pccheck export run.pcc -o folder --format hf --config gpt2/
"""
_CONVERT = """\
Into a checkpoint file, when OUT ends in .pcc. Each INPUT is one of these, told
by its content; with several, the file holds a checkpoint for each:
  a file of torch.save (.pt, .pth, .bin, .ckpt)
  a safetensors file, or the index of several (model.safetensors.index.json)
  a directory of torch.distributed.checkpoint (with .metadata)
  a Hugging Face checkpoint: model.safetensors or pytorch_model.bin, whole or
  in shards, optimizer.pt, scheduler.pt, rng_state.pth; all other files are
  kept as their bytes

Back, when INPUT is a .pcc file: into what it was converted from, or with --to
into another format. Every bit of every tensor is as it was; safetensors files
are the same byte for byte.

A file of torch.save is a pickle, and a pickle can run any program. Without
--trust only tensors, plain values, and arrays and numbers of NumPy are read
from one.

examples:
  python -m pccheck convert model.safetensors -o model.pcc --part model
  python -m pccheck convert checkpoint-500 checkpoint-1000 -o run.pcc
  python -m pccheck convert a.pt b.pt -o run.pcc --step 100 --step 200
  python -m pccheck convert run.pcc -o checkpoint-1000 --step 1000
"""


class _Refused(Exception):
    """Wrong usage; the message was made by argparse."""


class _Parser(argparse.ArgumentParser):
    """Writes through `Output`, and ends with the status that the tools have."""

    out: Output
    diagnostics: Output

    def error(self, message: str) -> NoReturn:
        """Wrong usage."""
        self.diagnostics.raw(self.format_usage())
        self.diagnostics.line(("pccheck:", "red"), " " + printable(message))
        raise _Refused

    def _print_message(self, message: str, file: Any = None) -> None:
        self.out.raw(message)


def parse(
    arguments: Sequence[str], out: Output, diagnostics: Output
) -> argparse.Namespace | Status:
    """What is asked for; or how the program ends when there is nothing left to do."""
    _Parser.out, _Parser.diagnostics = out, diagnostics
    try:
        return _parser().parse_args(arguments)
    except _Refused:
        return Status.USAGE
    except SystemExit:
        # After --help and --version.
        return Status.DONE


def _parser() -> _Parser:
    parser = _Parser(
        prog=TOOL, description="Lists, verifies, exports and converts checkpoints.",
        epilog=_STATUS, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"{TOOL} {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_ls(commands)
    _add_verify(commands)
    _add_export(commands)
    _add_convert(commands)
    return parser


def _command(commands: Any, name: str, summary: str, epilog: str) -> Any:
    command = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".",
        epilog=f"{epilog}\n{_STATUS}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    return command


def _quiet(command: Any) -> None:
    command.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing when all goes well"
    )


def _step(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


_step.__name__ = "step"


def _add_ls(commands: Any) -> None:
    command = _command(
        commands, "ls", "list the checkpoints of files, or the tensors of one", _LS
    )
    command.add_argument("files", nargs="+", metavar="FILE")
    command.add_argument(
        "--step", type=_step, help="list the tensors of the newest checkpoint of this step"
    )


def _add_verify(commands: Any) -> None:
    command = _command(
        commands, "verify",
        "read every byte, say what is damaged and what a resume would load",
        _VERIFY,
    )  # fmt: skip
    command.add_argument("files", nargs="+", metavar="FILE")
    command.add_argument("--step", type=_step, help="only the newest checkpoint of this step")
    _quiet(command)


def _add_export(commands: Any) -> None:
    command = _command(
        commands, "export",
        "write one checkpoint for other programs, verifying every byte on the way", _EXPORT,
    )  # fmt: skip
    command.add_argument("file", metavar="FILE")
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="where to write")
    command.add_argument(
        "--step", type=_step,
        help="the newest checkpoint of this step; without it the newest that is whole",
    )  # fmt: skip
    command.add_argument(
        "--format", choices=("safetensors", "npz", "npy", "pt", "hf"),
        help="without it, the suffix of OUT decides",
    )  # fmt: skip
    command.add_argument(
        "--tensor", action="append", default=[], metavar="GLOB",
        help="only tensors whose name fits; * is any text; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB",
        help="no tensor whose name fits; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--strip", action="append", default=[], metavar="PREFIX",
        help="only tensors whose name begins with PREFIX, such as model., and without it; may be "
        "repeated; for the formats safetensors and hf",
    )  # fmt: skip
    hf = command.add_argument_group("the format hf")
    hf.add_argument(
        "--part", metavar="NAME",
        help="the part to write by the keys of its state_dict (default: model)",
    )  # fmt: skip
    hf.add_argument(
        "--config", metavar="PATH",
        help="config.json, or a directory with it, whose other small files are copied too",
    )  # fmt: skip
    hf.add_argument(
        "--shard-size", metavar="SIZE",
        help="what a shard holds at most, such as 2GiB (default: 5 GB)",
    )  # fmt: skip
    command.add_argument("--force", action="store_true", help="replace a file that is there")
    _quiet(command)


def _add_convert(commands: Any) -> None:
    command = _command(
        commands, "convert", "turn checkpoints of other formats into a .pcc file, and back",
        _CONVERT,
    )  # fmt: skip
    command.add_argument("inputs", nargs="+", metavar="INPUT")
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="where to write")
    command.add_argument(
        "--step", type=_step, action="append", default=[],
        help="the step of each input, in their order; without it that of trainer_state.json, the "
        "number at the end of a name, or 0. From a .pcc file: the checkpoint to take",
    )  # fmt: skip
    command.add_argument("--force", action="store_true", help="replace a file that is there")
    command.add_argument(
        "--trust", action="store_true",
        help="unpickle whatever a file asks for: it may run any program",
    )  # fmt: skip
    _quiet(command)
    into = command.add_argument_group("into a .pcc file")
    into.add_argument(
        "--part", metavar="NAME",
        help="make the state the part NAME, so that resume(NAME=…) finds it",
    )  # fmt: skip
    into.add_argument(
        "--ignore-checksums", action="store_true",
        help="read .pt files whose members do not match their CRC",
    )  # fmt: skip
    into.add_argument(
        "--codec", choices=("none", "zstd", "planes-zstd"), default="none",
        help="compress (default: none)",
    )  # fmt: skip
    into.add_argument(
        "--in-flight", type=int, default=1, metavar="N",
        help="checkpoints in flight that the file has room for (default: 1)",
    )  # fmt: skip
    into.add_argument(
        "--retain", type=int, metavar="N",
        help="durable checkpoints that it keeps (default: one for each input)",
    )  # fmt: skip
    into.add_argument(
        "--capacity", metavar="SIZE",
        help="largest state that fits, such as 4GiB (default: the largest input's)",
    )  # fmt: skip
    back = command.add_argument_group("from a .pcc file")
    back.add_argument(
        "--to", choices=("pt", "safetensors", "dcp", "hf"),
        help="the format; without it the suffix of OUT, or what it was converted from, decides",
    )  # fmt: skip
