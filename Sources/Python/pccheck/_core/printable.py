"""Text of paths, keys and files on its way to people: nothing in it steers a terminal."""

from __future__ import annotations

import logging
import unicodedata

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """Text on one line that cannot move the cursor, colour the terminal, or turn the direction of
    reading, and that every encoding of Unicode can write."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE:
        return character
    return _SHORT_ESCAPES.get(character) or f"\\u{{{ord(character):x}}}"


def printable_lines(text: str) -> str:
    """The same for text that has several lines of its own."""
    return "\n".join(map(printable, text.split("\n")))


class _PrintableArguments(logging.Filter):
    """Escapes what is put into the messages of a logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                printable(item) if isinstance(item, str) else item for item in record.args
            )
        return True


_LOGGER = logging.getLogger("pccheck")
if not any(isinstance(known, _PrintableArguments) for known in _LOGGER.filters):
    _LOGGER.addFilter(_PrintableArguments())
