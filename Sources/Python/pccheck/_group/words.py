"""The words of the exchanges: spec/GROUP.md, "While training". No I/O, no clock.

Over the ranks an AND joins them. What all ranks must have alike travels as a value and its
complement: the ANDs of both, joined by OR, have all bits exactly when all ranks gave one value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .._core.arguments import U64_MAXIMUM

_ALL = U64_MAXIMUM
_BIT_COUNT = 64
#: More than every interval that the word can say: not now.
NOT_NOW = _BIT_COUNT


def _pair(value: int) -> tuple[int, int]:
    return value, ~value & _ALL


def _is_one(value: int, complement: int) -> bool:
    return value | complement == _ALL


def _low_bits(count: int) -> int:
    return (1 << min(max(count, 0), _BIT_COUNT)) - 1


@dataclass(frozen=True)
class EndWords:
    """What the ranks say when save number ``number`` has ended on each of them."""

    is_durable: bool
    has_same_layout: bool
    have_same_step: bool
    have_same_number: bool

    @staticmethod
    def of(is_durable: bool, has_same_layout: bool, step: int, number: int) -> list[int]:
        """The words of one rank."""
        flags = _ALL & ~3 | int(is_durable) | int(has_same_layout) << 1
        return [flags, *_pair(step), *_pair(number)]

    @staticmethod
    def joined(words: Sequence[int]) -> EndWords:
        """What holds for all ranks."""
        return EndWords(
            bool(words[0] & 1), bool(words[0] & 2), _is_one(words[1], words[2]),
            _is_one(words[3], words[4]),
        )  # fmt: skip

    @property
    def is_complete(self) -> bool:
        """Whether the checkpoint is durable on all ranks, and nothing is to be compared."""
        return (
            self.is_durable
            and self.has_same_layout
            and self.have_same_step
            and self.have_same_number
        )


@dataclass(frozen=True)
class CallWords:
    """What the ranks said at the same call, for decisions that depend on time."""

    #: Whether SIGTERM came to any rank.
    must_end: bool
    #: The smallest number of free slots, at most 64.
    free_slot_count: int
    #: The longest interval that a rank wants, in quarter octaves of steps; or ``NOT_NOW``.
    interval: int
    have_same_step: bool

    @staticmethod
    def of(must_end: bool, free_slot_count: int, interval: int, step: int) -> list[int]:
        """The words of one rank."""
        return [
            _ALL & ~1 | int(not must_end),
            _low_bits(free_slot_count),
            ~_low_bits(interval) & _ALL,
            *_pair(step),
        ]

    @staticmethod
    def joined(words: Sequence[int]) -> CallWords:
        """What holds for all ranks."""
        return CallWords(
            not words[0] & 1,
            words[1].bit_count(),
            (~words[2] & _ALL).bit_count(),
            _is_one(words[3], words[4]),
        )


def quarter_octaves(steps: int) -> int:
    """The number that says an interval of so many steps, rounded up; or ``NOT_NOW``."""
    number = math.ceil(4 * math.log2(max(1, steps)))
    # The logarithm may be off by the last digit.
    while number > 0 and steps_of(number - 1) >= steps:
        number -= 1
    while number < NOT_NOW and steps_of(number) < steps:
        number += 1
    return min(number, NOT_NOW)


def steps_of(number: int) -> int:
    """The interval that a number says, in steps."""
    return math.floor(2 ** (number / 4))
