"""What ranks claim of the tensors that they hold alike."""

from __future__ import annotations

import pytest

import pccheck
from pccheck._group.claims import Claims, compare


def claims(*items: tuple[str, list[int], str, bytes]) -> bytes:
    made = Claims()
    for name, ranks, form, values in items:
        made.add(name, ranks, form, values)
    return made.encoded()


BOTH = ("model.w", [0, 1], "float32 (2, 3)", b"abc")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (BOTH, None),
        (("model.w", [0, 1], "float32 (2, 3)", b"abd"), "'model.w' has other values on rank 0 th"),
        (("model.w", [0, 1], "float32 (2, 4)", b"abc"), "'model.w' is float32 (2, 3) on rank 0, f"),
        (("model.v", [0, 1], "float32 (2, 3)", b"abc"), "'model.w' is on rank 0 and not on rank 1"),
        # One name for two tensors, where neither rank knows of the other.
        (("model.w", [1, 2], "float32 (2, 3)", b"abd"), "'model.w' has other values on rank 0 th"),
        (("model.w", [1, 2], "float32 (2, 3)", b"abc"), None),
        (("model.v", [1, 2], "float32 (2, 3)", b"abd"), "'model.w' is on rank 0 and not on rank 1"),
    ],
)  # fmt: skip
def test_differences_are_told_with_name_and_ranks(other: object, expected: str | None) -> None:
    message = compare({0: claims(BOTH), 1: claims(other)})  # type: ignore[arg-type]
    assert message is None if expected is None else expected in str(message)


def test_a_rank_that_sent_nothing_is_not_compared() -> None:
    assert compare({0: claims(BOTH)}) is None
    assert "rank 1" in str(compare({0: claims(BOTH), 1: claims()}))


def test_long_values_and_many_differences() -> None:
    many = [(f"model.{index}", [0, 1, 2], "x" * 500, b"") for index in range(9)]
    others = [(name, ranks, form + "y", values) for name, ranks, form, values in many]
    message = compare({0: claims(*many), 1: claims(*others), 2: claims(*many)})
    assert message is not None and len(message) < 1000
    assert "on ranks 0, 2" in message and "and 5 more" in message


def test_damaged_claims() -> None:
    for content in (b"", claims(BOTH)[:-3], b"x" * 40):
        with pytest.raises(pccheck.StateFormatError, match="claims of rank 1"):
            compare({0: claims(BOTH), 1: content})
