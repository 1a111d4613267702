"""What the demo shows on the terminal: headings, a progress bar, the output of tools."""

from __future__ import annotations

import os
import shutil
import sys
import time

_COLORS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "36"}


class Screen:
    """Writes lines, and keeps one progress bar below them when there is a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._has_color = self._is_terminal and "NO_COLOR" not in os.environ
        self._bar = ""
        self._drawn_at = 0.0

    def styled(self, text: str, *styles: str) -> str:
        """The text in these styles, where the terminal has them."""
        if not self._has_color or not styles:
            return text
        return f"\033[{';'.join(_COLORS[style] for style in styles)}m{text}\033[0m"

    def line(self, text: str = "", *styles: str) -> None:
        """Writes one line above the progress bar."""
        self._erase()
        print(self.styled(text, *styles), flush=True)
        self._draw()

    def heading(self, text: str) -> None:
        """Writes the title of a chapter."""
        self.clear_bar()
        self.line()
        self.line(text, "bold")

    def fact(self, name: str, text: str) -> None:
        """Writes a named fact."""
        self.line(f"  {self.styled(f'{name:<10}', 'blue')}{text}")

    def tool_output(self, command: str, lines: list[str]) -> None:
        """Writes what a tool said, set off from the story."""
        self.line(f"       {self.styled('$ ' + command, 'bold', 'dim')}")
        for text in lines:
            self.line(f"       {text}".rstrip(), "dim")

    def progress(self, done: int, total: int, text: str) -> None:
        """Moves the progress bar."""
        if not self._is_terminal or (done < total and time.monotonic() - self._drawn_at < 0.05):
            return
        self._drawn_at = time.monotonic()
        cells = 34 * 8 * done // max(total, 1)
        full, part = divmod(cells, 8)
        bar = ("█" * full + " ▏▎▍▌▋▊▉"[part] if part else "█" * full).ljust(34, "░")
        width = shutil.get_terminal_size().columns
        plain = f"  {bar}  {done:>4}/{total}  {text}"[: width - 1]
        self._erase()
        self._bar = self.styled(plain[:36], "green") + plain[36:]
        self._draw()

    def clear_bar(self) -> None:
        """Takes the progress bar away."""
        self._erase()
        self._bar = ""

    def _erase(self) -> None:
        if self._bar:
            sys.stdout.write("\r\033[2K")

    def _draw(self) -> None:
        if self._bar:
            sys.stdout.write(self._bar)
            sys.stdout.flush()


def size_text(byte_count: float) -> str:
    """A byte count for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if byte_count < 1024:
            return f"{byte_count:.0f} {unit}"
        byte_count /= 1024
    return f"{byte_count:.1f} GiB"
