"""The commands of ``python -m pccheck``, and the scripts of an environment.

``convert`` is Python, because it reads and writes formats that are Python's own. Everything else
is the Swift program that the package brings, and starting that must be fast. So this module is
beside the package: importing anything of the package imports NumPy, and an interrupt meanwhile
would end a tool with a traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence

_FAILED = 8
_USAGE = 16
_EXECUTABLE_MAGIC = b"\x7fELF"
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
        from pccheck._cli.command import run

        return run(arguments[1:])
    if command in _REPLACED:
        _complain(
            f" {command} is no longer a command; use python -m pccheck {_REPLACED[command]}"
        )
        return _USAGE
    return become("pccheck", arguments)


def script() -> int:
    """The tool under whose name this program was started, for the scripts of an environment.

    Under any other name, such as that of a symbolic link, it is pccheck, as the program is.
    """
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
    return become(name, arguments) if name in _TOOLS else main(arguments)


def become(name: str, arguments: Sequence[str]) -> int:
    """Replaces this process by the tool ``name``; returns an exit status when none is found.

    The program is all of the tools: the name that it is started under says which.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # An interrupt before the program handles it ends the process, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    tried = []
    for place in _places():
        try:
            _refuse_script(place)
            os.execv(place, [name, *arguments])
        except OSError as error:
            tried.append((place, error.strerror))
    from pccheck._core.printable import printable

    _complain(
        " the program pccheck cannot be started; install the wheel, which holds it, build it "
        "with `make tools`, or name it in PCCHECK_PROGRAM. Tried:",
        *(f"\n  {printable(place)}: {reason}" for place, reason in tried),
    )
    return _FAILED


def _complain(*texts: str) -> None:
    from pccheck._cli.terminal import Output

    Output.diagnostics().line(("pccheck:", "red"), *texts)


def _refuse_script(place: str) -> None:
    """A script may be that of a Python environment, which would come back here without end."""
    with open(place, "rb") as file:
        is_program = file.read(len(_EXECUTABLE_MAGIC)) == _EXECUTABLE_MAGIC
    if not is_program:
        raise OSError(errno.ENOEXEC, "not the program, which is an ELF file")


def _places() -> Iterator[str]:
    """Where the program may be, best first."""
    override = os.environ.get("PCCHECK_PROGRAM")
    if override:
        # The only one tried, as with PCCHECK_LIBRARY.
        yield override
        return
    here = os.path.dirname(os.path.realpath(__file__))
    yield os.path.join(here, "pccheck", "bin", "pccheck")
    # Sources/Python in a checkout: the build folder is two levels up.
    yield os.path.join(os.path.dirname(os.path.dirname(here)), "build", "bin", "pccheck")
    for folder in os.get_exec_path():
        place = os.path.join(folder, "pccheck")
        if os.path.exists(place):
            yield place
