"""The commands of ``python -m pccheck``.

``convert`` is Python, because it reads and writes formats that are Python's own. Everything else
is the Swift program that the package brings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .program import become
from .terminal import Output

_USAGE = 16
#: The other names of the program.
_TOOLS = ("pcfsck", "pcinspect", "pcextract")
#: Commands that Python had of its own, and what does the same now.
_REPLACED = {
    "ls": "inspect FILE, or for the tensors: inspect tensors FILE",
    "verify": "fsck --verify full FILE",
    "export": "extract FILE -o OUT, or with --strip PREFIX, or --to hf --config DIR: "
    "convert FILE -o OUT",
}


def main(arguments: Sequence[str]) -> int:
    """Runs ``convert`` and returns its exit status; every other command takes the place of this
    process."""
    command = arguments[0] if arguments else ""
    if command == "convert":
        # Only now: it needs more of Python than it takes to start another program.
        from .command import run

        return run(arguments[1:])
    if command in _REPLACED:
        Output.diagnostics().line(
            ("pccheck:", "red"),
            f" {command} is no longer a command; use python -m pccheck {_REPLACED[command]}",
        )
        return _USAGE
    return become("pccheck", arguments)


def script() -> int:
    """The tool under whose name this program was started, for the scripts of an environment.

    Under any other name, such as that of a symbolic link, it is pccheck, as the program is.
    """
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
    return become(name, arguments) if name in _TOOLS else main(arguments)
