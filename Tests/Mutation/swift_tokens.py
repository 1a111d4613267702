"""Cuts Swift source into tokens, as far as it takes to find what can be mutated."""

import re
from dataclasses import dataclass

CODE = re.compile(
    r"(?P<space>\s+)|(?P<comment>//[^\n]*)"
    r"|(?P<number>0x[0-9A-Fa-f_]+|[0-9][0-9_]*)"
    r"|(?P<name>[$`]?[A-Za-z_0-9]+`?)"
    r"|(?P<operator>\.[./=\-+!*%<>&|^~?]*|[/=\-+!*%<>&|^~?]+)"
    r"|(?P<mark>[(){}\[\],:;@#\\])")
CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass
class Token:
    kind: str  # number, name, operator, mark or string
    text: str
    start: int
    end: int
    line: int
    opens_line: bool  # nothing but space before it
    is_spaced: tuple  # space before, space behind
    brackets: str  # the brackets it lies in, outermost first


def string_end(text, start):
    """Behind the literal that begins at `start`, interpolations included."""
    quote = re.match(r'(#*)("""|")', text[start:])
    hashes, marks = quote.groups()
    position = start + quote.end()
    while not text.startswith(marks + hashes, position):
        if text.startswith("\\" + hashes + "(", position):
            position = interpolation_end(text, position + 2 + len(hashes))
        elif text.startswith("\\" + hashes, position):
            position += 2 + len(hashes)
        else:
            position += 1
    return position + len(marks + hashes)


def interpolation_end(text, position):
    depth = 1
    while depth:
        if text[position] == '"':
            position = string_end(text, position)
            continue
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        position += 1
    return position


def tokens(text):
    found, brackets, position, line = [], "", 0, 1
    while position < len(text):
        if re.match(r'#*"', text[position:position + 8]):
            kind, end = "string", string_end(text, position)
        else:
            match = CODE.match(text, position)
            if not match:
                raise ValueError(f"line {line}: no token: {text[position:position + 20]!r}")
            kind, end = match.lastgroup, match.end()
        part = text[position:end]
        if kind not in ("space", "comment"):
            if part in CLOSING.values():
                brackets = brackets[:-1]
            found.append(Token(
                kind, part, position, end, line,
                not text[text.rfind("\n", 0, position) + 1:position].strip(),
                (text[position - 1:position].isspace(), text[end:end + 1].isspace()), brackets))
            if part in CLOSING:
                brackets += part
        line += part.count("\n")
        position = end
    return found
