"""What is written for people: escaped, within the columns, coloured only on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence
from typing import BinaryIO

from .._core.printable import printable

_CODES = {"red": "31", "yellow": "33"}
# For readers that do not say that they understand UTF-8.
_PLAIN_GLYPHS = str.maketrans("█░…", "#.~")
_DEFAULT_COLUMN_COUNT = 80

#: A part of a line: its text, and how it is shown.
Cell = tuple[str, str | None]


def column_count(text: str) -> int:
    """Terminal columns that a text takes: wide characters are two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def shortened(text: str, limit: int) -> str:
    """Text cut to so many columns, in the middle: both ends of a name tell something."""
    if column_count(text) <= limit or limit < 3:
        return text
    head, tail, room = "", "", limit - 1
    start, end = 0, len(text)
    while start < end:
        is_head = column_count(head) <= column_count(tail)
        character = text[start] if is_head else text[end - 1]
        width = column_count(character)
        if width > room:
            break
        room -= width
        if is_head:
            head, start = head + character, start + 1
        else:
            tail, end = character + tail, end - 1
    return f"{head}…{tail}"


def byte_text(count: int) -> str:
    """``45.8 MiB``."""
    if count < 1024:
        return f"{count} B"
    size, units = float(count), ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    unit = "B"
    while size >= 1024 and units:
        size, unit = size / 1024, units.pop(0)
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {unit}"


def plural(count: int, noun: str) -> str:
    """``1 tensor``, ``1 234 tensors``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}".replace(",", " ")


class Output:
    """A stream for people and programs. A reader that closes the pipe early is no error."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream
        self._is_broken = stream is None
        self._failure: OSError | None = None
        self.is_terminal = stream is not None and stream.isatty()
        environment = os.environ
        is_plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
        self._is_colored = self.is_terminal and not is_plain
        names = ("LC_ALL", "LC_CTYPE", "LANG")
        locale = next((environment[name] for name in names if environment.get(name)), "")
        self._is_unicode = "UTF-8" in locale.upper() or "UTF8" in locale.upper()

    @classmethod
    def standard(cls) -> Output:
        """Standard output."""
        return cls(getattr(sys.stdout, "buffer", None))

    @classmethod
    def diagnostics(cls) -> Output:
        """Standard error."""
        return cls(getattr(sys.stderr, "buffer", None))

    @property
    def width(self) -> int | None:
        """Columns to lay out for; None when nothing is to be cut."""
        if not self.is_terminal:
            return None
        return shutil.get_terminal_size((_DEFAULT_COLUMN_COUNT, 24)).columns

    def line(self, *cells: str | Cell) -> None:
        """One line, made of texts, some of them styled; all are safe to print by now."""
        self.raw(self._rendered(cells) + "\n")

    def error(self, error: BaseException) -> None:
        """Says what went wrong."""
        if isinstance(error, MemoryError) and not str(error):
            message = "memory is too short for this; give it more, or take a format that streams"
        elif isinstance(error, OSError) and error.strerror:
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            message = f"{where}{error.strerror}"
        else:
            message = str(error)
        self.line(("pccheck:", "red"), " " + printable(message))

    def redraw(self, text: str) -> None:
        """Replaces the terminal's current line."""
        self.raw("\r\x1b[2K" + self._rendered([text]))

    def raw(self, text: str) -> None:
        """Text as it is."""
        if self._is_broken or self._failure or self._stream is None:
            return
        try:
            self._stream.write(text.encode("utf-8", "backslashreplace"))
            self._stream.flush()
        except BrokenPipeError:
            self._end()
        except OSError as failure:
            self._failure = failure
            self._end()

    def close(self) -> int:
        """The status that is left to report: 8 when something could not be written."""
        if self._failure is None:
            return 0
        Output.diagnostics().error(self._failure)
        return 8

    def _rendered(self, cells: Sequence[Cell | str]) -> str:
        text = ""
        for cell in cells:
            part, style = (cell, None) if isinstance(cell, str) else cell
            part = part if self._is_unicode else part.translate(_PLAIN_GLYPHS)
            if style and self._is_colored:
                part = f"\x1b[{_CODES[style]}m{part}\x1b[0m"
            text += part
        return text

    def _end(self) -> None:
        """Keeps the interpreter from writing the rest when it exits."""
        self._is_broken = True
        if self._stream is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def _text(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else cell[0]


class Progress:
    """A bar on standard error when that is a terminal, else nothing."""

    _PAUSE_SECONDS = 0.1
    _BAR_COLUMN_COUNT = 24

    def __init__(self, output: Output, is_quiet: bool = False) -> None:
        self._output = output
        self._is_shown = output.is_terminal and not is_quiet
        self._drawn_at = 0.0
        self._is_drawn = False
        self._title = ""
        self._began_at = 0.0

    def __call__(self, title: str, done: int, total: int) -> None:
        """Shows how far the work named ``title`` has come, in bytes."""
        if not self._is_shown:
            return
        now = time.monotonic()
        if title != self._title:
            self._title, self._began_at = title, now
        if now - self._drawn_at < self._PAUSE_SECONDS and done < total:
            return
        self._drawn_at, self._is_drawn = now, True
        share = min(done / total, 1.0) if total else 1.0
        filled = round(share * self._BAR_COLUMN_COUNT)
        bar = "█" * filled + "░" * (self._BAR_COLUMN_COUNT - filled)
        text = f"{printable(title)}  {bar} {int(share * 100)} %"
        elapsed = now - self._began_at
        if elapsed > 0.5 and done:
            text += f"  {byte_text(int(done / elapsed))}/s"
            left = elapsed / share - elapsed
            if left >= 1:
                text += f"  {int(left)} s left"
        self._output.redraw(shortened(text, (self._output.width or _DEFAULT_COLUMN_COUNT) - 1))

    def finish(self) -> None:
        """Removes the bar."""
        if self._is_drawn:
            self._output.redraw("")
        self._is_drawn = False
