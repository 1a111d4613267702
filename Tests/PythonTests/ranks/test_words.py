"""The words of the exchanges, joined over ranks as gloo joins them."""

from __future__ import annotations

from functools import reduce

import pytest

from pccheck._group.exchange import judge
from pccheck._group.words import NOT_NOW, CallWords, EndWords, quarter_octaves, steps_of


def joined(*ranks: list[int]) -> list[int]:
    return [reduce(lambda x, y: x & y, column) for column in zip(*ranks, strict=True)]


def test_a_checkpoint_is_complete_when_all_ranks_say_the_same() -> None:
    words = EndWords.joined(joined(*[EndWords.of(True, True, 7, 3)] * 3))
    assert words.is_complete


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (EndWords.of(False, True, 7, 3), "is_durable"),
        (EndWords.of(True, False, 7, 3), "has_same_layout"),
        (EndWords.of(True, True, 6, 3), "have_same_step"),
        (EndWords.of(True, True, 8, 3), "have_same_step"),
        (EndWords.of(True, True, 7, 2), "have_same_number"),
        (EndWords.of(True, True, (1 << 63) - 1, 3), "have_same_step"),
    ],
)
def test_one_rank_that_differs_is_seen(other: list[int], field: str) -> None:
    words = EndWords.joined(joined(EndWords.of(True, True, 7, 3), other))
    assert not words.is_complete
    names = ("is_durable", "has_same_layout", "have_same_step", "have_same_number")
    assert [name for name in names if not getattr(words, name)] == [field]


def test_a_call_joins_the_least_and_the_most() -> None:
    words = joined(CallWords.of(False, 3, 5, 9), CallWords.of(False, 1, 11, 9))
    assert CallWords.joined(words) == CallWords(False, 1, 11, True)
    words = joined(CallWords.of(False, 0, NOT_NOW, 9), CallWords.of(True, 99, 0, 10))
    assert CallWords.joined(words) == CallWords(True, 0, NOT_NOW, False)


def test_an_interval_is_never_rounded_down() -> None:
    for steps in range(1, 5000):
        number = quarter_octaves(steps)
        assert steps <= steps_of(number) <= max(steps, steps * 2 ** 0.25)
    assert quarter_octaves(1 << 40) == NOT_NOW


def test_ranks_behind_are_named_and_the_newest_step_wins() -> None:
    said = [
        {"step": 10, "number": 4, "failure": None, "claims": None},
        {"step": 20, "number": 4, "failure": None, "claims": None},
        {"step": 10, "number": 5, "failure": "disk full", "claims": None},
    ]
    found = judge(said, lambda claims: None, False)
    assert (found.step, found.number, found.ranks) == (20, 5, [0, 2])
    assert found.reason == (
        "the ranks saved different steps: 10 on ranks 0, 2; 20 on rank 1"
    )


def test_the_failures_of_all_ranks_are_in_the_reason() -> None:
    said = [
        {"step": 10, "number": 4, "failure": None, "claims": None},
        {"step": 10, "number": 4, "failure": "no space", "claims": None},
    ]
    found = judge(said, lambda claims: None, False)
    assert found.reason == "rank 1: no space"
    assert found.ranks == [1]
