"""The command line of ``convert``: what is asked for, and the help."""

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
_CONVERT = """\
Into a checkpoint file, when OUT ends in .pcc. Each INPUT is one of these, told
by its content; with several, the file holds a checkpoint for each:
  a file of torch.save (.pt, .pth, .bin, .ckpt)
  a safetensors file, or the index of several (model.safetensors.index.json)
  a directory of torch.distributed.checkpoint (with .metadata)
  a folder with the files of ranks: the newest checkpoint that is durable on
  all of them, or that of --step, in whole tensors
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
  python -m pccheck convert run.pcc -o model.safetensors --strip model.
  python -m pccheck convert run.pcc -o folder --to hf --config gpt2/
  python -m pccheck convert run/ -o whole.pcc
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
        prog=f"{TOOL} convert",
        description="Turns checkpoints of other formats into a .pcc file, and back.",
        epilog=f"{_CONVERT}\n{_STATUS}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=VERSION)
    _add_common(parser)
    _add_into(parser.add_argument_group("into a .pcc file"))
    _add_back(parser.add_argument_group("from a .pcc file"))
    _add_names(parser.add_argument_group("to safetensors, or to hf with --config"))
    return parser


def _step(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


_step.__name__ = "step"


def _add_common(parser: _Parser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="where to write")
    parser.add_argument(
        "--step", type=_step, action="append", default=[],
        help="the step of each input, in their order; without it that of trainer_state.json, the "
        "number at the end of a name, or 0. From a .pcc file or a folder of ranks: the checkpoint "
        "to take",
    )  # fmt: skip
    parser.add_argument(
        "--part", metavar="NAME",
        help="make the state the part NAME, so that resume(NAME=…) finds it. With --config: the "
        "part to write (default: model)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--trust", action="store_true",
        help="unpickle whatever a file asks for: it may run any program",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing when all goes well"
    )


def _add_into(into: Any) -> None:
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


def _add_back(back: Any) -> None:
    back.add_argument(
        "--to", choices=("pt", "safetensors", "dcp", "hf"),
        help="the format; without it the suffix of OUT, or what it was converted from, decides",
    )  # fmt: skip
    back.add_argument(
        "--config", metavar="PATH",
        help="with --to hf, write one part as a directory for from_pretrained: PATH is "
        "config.json, or a directory with it, whose other small files are copied too",
    )  # fmt: skip
    back.add_argument(
        "--shard-size", metavar="SIZE",
        help="with --config, what a file of weights holds at most, such as 2GiB (default: 5 GB)",
    )  # fmt: skip


def _add_names(names: Any) -> None:
    names.add_argument(
        "--tensor", action="append", default=[], metavar="GLOB",
        help="only tensors whose name fits; * is any text; may be repeated",
    )  # fmt: skip
    names.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB",
        help="no tensor whose name fits; may be repeated",
    )  # fmt: skip
    names.add_argument(
        "--strip", action="append", default=[], metavar="PREFIX",
        help="only tensors whose name begins with PREFIX, such as model., and without it; may be "
        "repeated",
    )  # fmt: skip
