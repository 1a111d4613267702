"""What the tests of the packaging share: the tools, their options, and a file to try them on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccheck

ROOT = Path(__file__).resolve().parents[2]
# Another folder of tools may be tried, such as an unpacked package's.
TOOLS = Path(os.environ.get("PCCHECK_TOOLS", ROOT / "build" / "bin"))
NAMES = ["pccheck", "pcfsck", "pcinspect", "pcextract"]
MANUAL = ROOT / "Sources" / "CheckpointCommands" / "man"


@dataclass
class Command:
    """A tool, or one of its subcommands, as the parser of its arguments knows it."""

    name: str
    options: set[str] = field(default_factory=set)
    subcommands: list[Command] = field(default_factory=list)

    def all(self) -> Iterator[Command]:
        yield self
        for subcommand in self.subcommands:
            yield from subcommand.all()


def _command(dump: dict[str, Any]) -> Command:
    command = Command(dump["commandName"])
    for argument in dump.get("arguments", []):
        if argument["shouldDisplay"]:
            for name in argument.get("names", []):
                dash = "--" if name["kind"] == "long" else "-"
                command.options.add(dash + name["name"])
    for subcommand in dump.get("subcommands", []):
        if subcommand["shouldDisplay"] and subcommand["commandName"] != "help":
            command.subcommands.append(_command(subcommand))
    return command


@cache
def command(tool: str) -> Command:
    """What the tool itself says of its options."""
    said = subprocess.run(
        [TOOLS / tool, "--experimental-dump-help"], capture_output=True, check=True, timeout=60
    )
    return _command(json.loads(said.stdout)["command"])


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file with a checkpoint in each slot, the newest one of step 120."""
    path = tmp_path_factory.mktemp("sample") / "run.pcc"
    numbers = np.arange(100_000, dtype=np.float32)
    with pccheck.Checkpointer(path, in_flight=2, retain=2, chunk="64 KiB") as checkpointer:
        for step in (90, 100, 110, 120):
            layer = {"weight": numbers + step, "bias": numbers[:100]}
            state = {"model": {"layers": {"0": layer, "1": layer}}, "step": step}
            checkpointer.save(step, state, metadata=f"step {step}").wait()
    return path
