"""The Swift program: where it is, and how it takes over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._core.printable import printable
from .terminal import Output

_FAILED = 8
_EXECUTABLE_MAGIC = b"\x7fELF"


def become(name: str, arguments: Sequence[str]) -> int:
    """Replaces this process by the tool ``name``; returns an exit status when none is found.

    The program is all of the tools: the name that it is started under says which.
    """
    tried = []
    for place in _places():
        try:
            _refuse_script(place)
            os.execv(place, [name, *arguments])
        except OSError as error:
            tried.append(f"\n  {printable(place)}: {error.strerror}")
    Output.diagnostics().line(
        ("pccheck:", "red"),
        " the program pccheck cannot be started; install the wheel, which holds it, build it "
        "with `make tools`, or name it in PCCHECK_PROGRAM. Tried:",
        *tried,
    )
    return _FAILED


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
    package = Path(__file__).resolve().parents[1]
    yield str(package / "bin" / "pccheck")
    # Sources/Python/pccheck in a checkout: the build folder is three levels up.
    yield str(package.parents[2] / "build" / "bin" / "pccheck")
    for folder in os.get_exec_path():
        place = os.path.join(folder, "pccheck")
        if os.path.exists(place):
            yield place
