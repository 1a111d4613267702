"""Arguments, checked where the message can name them: ctypes cuts integers to their type."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..errors import InvalidArgument

#: The largest values of the types that the library takes.
U32_MAXIMUM = (1 << 32) - 1
U64_MAXIMUM = (1 << 64) - 1
_STEP_MAXIMUM = (1 << 63) - 1

_SIZE_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SHOWN_DIGIT_COUNT = 40
#: Beside those of ``save``.
_OPTIONS_OF_LOADING = {"path", "strict", "map_location"}


def whole(value: Any, what: str, low: int = 0, high: int = U64_MAXIMUM) -> int:
    """An integer from ``low`` to ``high``; a bool is none, and a float is never rounded."""
    if isinstance(value, bool):
        raise TypeError(f"{what} is {value}; give an integer from {low} to {high}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{what} is {_shown(value)}, of type {type(value).__qualname__}; give an integer from "
            f"{low} to {high}"
        ) from None
    if not low <= number <= high:
        raise InvalidArgument(f"{what} is {_shown(number)}, expected {low} to {high}")
    return number


def step_number(step: Any) -> int:
    """The number of a step, as it is stored."""
    return whole(step, "step", 0, _STEP_MAXIMUM)


def seconds(value: Any, what: str) -> float:
    """A duration of at least 0 seconds; infinite is without a bound."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} is {_shown(value)}; give a number of seconds")
    number = float(value)
    if not number >= 0:
        raise InvalidArgument(f"{what} is {value}; give a number of seconds, at least 0")
    return number


def parse_size(size: int | str, what: str = "size", maximum: int = U64_MAXIMUM) -> int:
    """A byte count, given as a number or as text such as ``"512 MiB"`` or ``"2G"``."""
    if not isinstance(size, str):
        return whole(size, what, 0, maximum)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:ib|b)?\s*", size.lower())
    if match is None:
        raise InvalidArgument(
            f"{what} is {_shown(size)}, which is not a size; write for example '512 MiB' or '2G'"
        )
    number, unit = match.groups()
    if len(number) > _SHOWN_DIGIT_COUNT:
        raise InvalidArgument(f"{what} is {_shown(size)}, expected 0 to {maximum}")
    return whole(math.ceil(Fraction(number) * (1 << _SIZE_UNITS[unit])), what, 0, maximum)


def switch(value: Any, what: str, advice: str) -> bool:
    """Checks that a value is a bool, because another value was meant as something else."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{what} is of type {type(value).__qualname__}, expected True or False; {advice}"
        )
    return value


def save_options(
    parts: dict[str, Any], metadata: object, **switches: object
) -> None:
    """Refuses a part named like an option of ``save``, ``resume`` or ``load_into``.

    PCcheck would read its value as that option, or no resume could name it.
    """
    advice = "a part cannot have this name: give it another one"
    for what, value in switches.items():
        switch(value, what, advice)
    if metadata is not None and not isinstance(metadata, (str, Mapping)):
        raise TypeError(
            f"metadata is of type {type(metadata).__qualname__}, expected a short text, or values "
            f"by name; {advice}"
        )
    for name in parts:
        if name in _OPTIONS_OF_LOADING:
            raise InvalidArgument(
                f"a part cannot be named '{name}', which is an option of resume and load_into; "
                "give it another name"
            )
        if name.startswith("$"):
            raise InvalidArgument(
                f"the part name '{name}' begins with '$'; give it another name"
            )


def choice(what: str, value: str, choices: dict[str, int]) -> int:
    """The number of one of a few names."""
    if value not in choices:
        raise InvalidArgument(f"{what} is {value!r}; choose one of {', '.join(choices)}")
    return choices[value]


def _shown(value: object) -> str:
    """A value on one line. Python refuses to print integers of more than a few thousand digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= _SHOWN_DIGIT_COUNT else text[:_SHOWN_DIGIT_COUNT] + "…"
