"""Reads the command line, runs everything in turn, and writes tables and plots."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from . import machine
from .engine import Interrupted
from .peers import PEERS
from .plots import draw
from .report import markdown
from .runs import Plan, Runner

MIB = 1 << 20

FULL = Plan(
    durable_byte_count=1024 * MIB, durable_rounds={"flat": 5, "model": 3},
    loop_byte_count=256 * MIB, loop_rounds=3, loop_steps={1: 30, 5: 30, 10: 40},
    weight_steps=300,
)  # fmt: skip
QUICK = Plan(
    durable_byte_count=32 * MIB, durable_rounds={"model": 1},
    loop_byte_count=16 * MIB, loop_rounds=1, loop_steps={5: 10},
    weight_steps=20,
    tool_arguments=(
        "--rounds", "1", "--size", "16MiB", "4MiB", "--loop-size", "16MiB", "--loop-steps",
        "10", "--interval", "5",
    ),
    engine_rounds=1,
)  # fmt: skip


def main() -> int:
    """The exit status: 0 done, 8 it failed, 32 cancelled."""
    parser = argparse.ArgumentParser(
        prog="python -m Benchmarks",
        description="Measures PCcheck beside other ways to save, on one machine, in one run.",
    )
    parser.add_argument("--directory", type=Path, default=Path("."), help="where the files go")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    parser.add_argument("--tool", type=Path, help="the program pccheck, for its own benchmark")
    parser.add_argument("--example", type=Path, help="train_gpt.py, for real weights")
    parser.add_argument("--quick", action="store_true", help="proves that all of it runs")
    parser.add_argument("--peer", nargs="*", choices=list(PEERS), help="only these")
    parser.add_argument(
        "--only", nargs="*", choices=Plan.parts, default=Plan.parts, help="these parts"
    )
    parser.add_argument("--rounds", type=int, help="of everything")
    parser.add_argument("--bytes", type=int, help="of a durable save")
    parser.add_argument("--loop-bytes", type=int, help="of state in the training loop")
    parser.add_argument(
        "--plot", type=Path, metavar="RESULTS", help="draw results.json again; measure nothing"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.plot:
        results = json.loads(options.plot.read_text())
        return _write(results, options.output)
    plan = (QUICK if options.quick else FULL).changed(
        rounds=options.rounds, durable_byte_count=options.bytes,
        loop_byte_count=options.loop_bytes, parts=tuple(options.only),
    )  # fmt: skip
    peers = options.peer or list(PEERS)
    options.directory.mkdir(parents=True, exist_ok=True)
    problem = plan.lacks(
        shutil.disk_usage(options.directory).free, machine.available_memory_byte_count()
    )
    if problem:
        print(f"error: {options.directory}: {problem}", file=sys.stderr)
        return 8
    folder = Path(tempfile.mkdtemp(prefix="pccheck-bench-", dir=options.directory))
    try:
        runner = Runner(plan, folder, options.output, options.tool, options.example, peers)
        results = runner.run()
    except (Interrupted, KeyboardInterrupt):
        print("\ncancelled; nothing is left behind", file=sys.stderr)
        return 32
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _write(results, options.output)


def _write(results: dict[str, object], output: Path) -> int:
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "results.md").write_text(markdown(results))
    pictures = draw(results, output)
    for path in (output / "results.md", output / "results.json", *pictures):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
