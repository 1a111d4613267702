"""Arguments: what does not fit is refused by its name, and never cut to something else."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccheck
import pccheck.numpy
from pccheck import InvalidArgument
from pccheck._core import native

STATE = {"x": np.arange(8)}


def checkpointer(path: Path, **options: Any) -> pccheck.Checkpointer:
    return pccheck.Checkpointer(path, capacity="1 MiB", **options)


# ---------------------------------------------------------------- numbers

#: What takes an integer: its name, and a call with it.
NUMBERS: dict[str, Callable[[Path, Any], object]] = {
    "save step": lambda path, n: checkpointer(path).save(n, STATE),
    "rewind step": lambda path, n: checkpointer(path).rewind(n),
    "load step": lambda path, n: saved(path).load(n),
    "resume step": lambda path, n: saved(path).resume(step=n),
    "module load step": lambda path, n: pccheck.load(closed(path), n),
    "load_tensor step": lambda path, n: pccheck.numpy.load_tensor(closed(path), "x", n),
    "is_due step": lambda path, n: checkpointer(path, policy=1).is_due(n),
    "in_flight": lambda path, n: checkpointer(path, in_flight=n),
    "retain": lambda path, n: checkpointer(path, retain=n),
    "chunk": lambda path, n: checkpointer(path, chunk=n),
    "capacity": lambda path, n: pccheck.Checkpointer(path, capacity=n),
    "pool": lambda path, n: checkpointer(path, pool=n),
    "rank": lambda path, n: checkpointer(path, rank=n),
    "world_size": lambda path, n: checkpointer(path, world_size=n),
    "zstd_level": lambda path, n: checkpointer(path, codec="zstd", zstd_level=n),
    "snapshot_workers": lambda path, n: checkpointer(path, snapshot_workers=n),
    "writer_workers": lambda path, n: checkpointer(path, writer_workers=n),
    "policy steps": lambda path, n: checkpointer(path, policy=n),
    "min_steps": lambda path, n: pccheck.policies.Auto(min_steps=n),
    "max_steps": lambda path, n: pccheck.policies.Auto(max_steps=n),
}


def saved(path: Path) -> pccheck.Checkpointer:
    ckpt = checkpointer(path)
    ckpt.save(0, STATE).wait()
    return ckpt


def closed(path: Path) -> Path:
    saved(path).close()
    return path


@pytest.fixture(autouse=True)
def closed_files(tmp_path: Path) -> Any:
    """Before the folder goes."""
    yield
    pccheck.close_all()


@pytest.mark.parametrize("what", NUMBERS)
@pytest.mark.parametrize(
    "number",
    [2**32, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 10**5000, -(2**63), -(2**64) + 1, -(10**5000)],
    ids=["2**32", "2**63-1", "2**63", "2**64", "2**64+1", "huge", "-2**63", "1-2**64", "-huge"],
)
def test_numbers_are_never_cut(what: str, number: int, path: Path) -> None:
    """Either it is a number that this argument can have, or the error has its name."""
    if what == "save step" and 0 <= number < 2**63:
        ckpt = checkpointer(path)
        ckpt.save(number, STATE).wait()
        assert ckpt.steps() == [number]
        return
    if "step" in what and 0 <= number < (2**64 if "steps" in what else 2**63):
        return
    if what in ("capacity", "pool") and 0 <= number < 2**33:
        # Such a file, and such a pool, can be had.
        return
    with pytest.raises(pccheck.CheckpointError) as caught:
        NUMBERS[what](path, number)
    if what in ("capacity", "pool") and 0 <= number < 2**64:
        # Such a number is understood, and there is no room for it.
        assert str(number) in str(caught.value) or "memory" in str(caught.value)
    else:
        assert isinstance(caught.value, InvalidArgument)
        assert what.split()[-1] in str(caught.value)
    assert not what.startswith("save") or not saved_steps(path)


def saved_steps(path: Path) -> list[int]:
    pccheck.close_all()
    return [info.step for info in pccheck.checkpoints(path)] if path.exists() else []


@pytest.mark.parametrize("what", NUMBERS)
@pytest.mark.parametrize("value", [True, 1.0, math.nan, "x", [1]], ids=repr)
def test_what_is_no_integer_is_none(what: str, value: Any, path: Path) -> None:
    if value == "x" and what in ("chunk", "capacity", "pool"):
        with pytest.raises(InvalidArgument, match=f"{what} is 'x', which is not a size"):
            NUMBERS[what](path, value)
        return
    with pytest.raises(TypeError, match=what.split()[-1] + " is "):
        NUMBERS[what](path, value)


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.int64])
def test_integers_of_numpy_are_integers(kind: Any, path: Path) -> None:
    ckpt = checkpointer(path, in_flight=kind(3), pool=np.int64(16 << 20))
    ckpt.save(kind(5), STATE).wait()
    assert ckpt.steps() == [5]


@pytest.mark.parametrize(
    ("text", "byte_count"),
    [
        ("9007199254740993", 9007199254740993), ("1.5k", 1536), ("0.1g", 107374183),
        ("16777215.999999999 t", 18446744073709550517), (" 2 MiB ", 2 << 20), ("7b", 7),
    ],
)  # fmt: skip
def test_sizes_are_exact(text: str, byte_count: int) -> None:
    from pccheck._core.arguments import parse_size

    assert parse_size(text) == byte_count


@pytest.mark.parametrize("text", ["9" * 400 + "T", "16777216T", "-1", "1e3", "", "1 x", "٣"])
def test_sizes_that_are_none(text: str) -> None:
    from pccheck._core.arguments import parse_size

    with pytest.raises(InvalidArgument, match="pool is"):
        parse_size(text, "pool")


@pytest.mark.parametrize("value", [math.nan, -1, -math.inf])
def test_durations_are_at_least_zero(value: float, path: Path) -> None:
    with pytest.raises(InvalidArgument, match="busy_timeout is .*; give a number of seconds"):
        checkpointer(path, busy_timeout=value)
    handle = saved(path).save(1, STATE)
    for wait in (handle.wait, handle.wait_staged):
        with pytest.raises(InvalidArgument, match="timeout is"):
            wait(value)


@pytest.mark.parametrize("value", [1e300, math.inf, 2**80, np.float32(5), None])
def test_durations_may_be_long(value: float, path: Path) -> None:
    ckpt = checkpointer(path, busy_timeout=value)
    handle = ckpt.save(1, STATE)
    handle.wait_staged(value)
    assert handle.wait(value).durable


@pytest.mark.parametrize("value", ["1", True, [1]])
def test_durations_are_numbers(value: Any, path: Path) -> None:
    with pytest.raises(TypeError, match="busy_timeout is"):
        checkpointer(path, busy_timeout=value)
    with pytest.raises(TypeError, match="grace is"):
        checkpointer(path, on_sigterm="save", grace=value)
    with pytest.raises(TypeError, match="timeout is"):
        saved(path).save(1, STATE).wait(value)


# ---------------------------------------------------------------- the C functions

STRUCTURES = [
    native.Error, native.CreateOptions, native.WriterOptions, native.Tensor,
    native.SaveOptions, native.CheckpointInfo, native.ReaderOptions, native.LoadOptions,
    native.Destination,
]  # fmt: skip
INTEGERS = {ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_size_t}


def range_of(kind: Any) -> tuple[int, int]:
    bits = 8 * ctypes.sizeof(kind)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind(-1).value < 0 else (0, (1 << bits) - 1)


def test_every_integer_of_every_struct_keeps_its_value() -> None:
    count = 0
    for kind in STRUCTURES:
        for name, item in kind._fields_:
            if item not in INTEGERS:
                continue
            count += 1
            low, high = range_of(item)
            for number in (low, high, np.int64(5), True):
                assert getattr(kind(**{name: number}), name) == number
            for number in (low - 1, high + 1, 1 << 64):
                with pytest.raises(InvalidArgument, match=f"{name} is {number}, expected {low}"):
                    kind(**{name: number})
            with pytest.raises(TypeError, match=name):
                kind(**{name: 1.5})
    assert count > 40


def test_every_integer_of_every_function_keeps_its_value() -> None:
    """A bare integer type would drop the bits that do not fit: ctypes does not mind."""
    library = native.library()
    count = 0
    for name, _, arguments in native._FUNCTIONS:
        for index, argument in enumerate(arguments):
            assert argument not in INTEGERS, f"argument {index} of {name}"
            if not isinstance(argument, native.Whole):
                continue
            count += 1
            low, high = range_of(argument.kind)
            # Other integers before it are 0, and no call is made: it is refused on the way.
            given: list[Any] = [
                0 if isinstance(other, native.Whole) else None for other in arguments
            ]
            for number in (low - 1, high + 1):
                given[index] = number
                with pytest.raises(InvalidArgument, match=f"{number}, expected {low}"):
                    getattr(library, name)(*given)
    assert count >= 10


def test_an_interrupt_during_a_call_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes would make an ArgumentError of one that strikes while it converts an argument."""
    library = native.library()
    assert library.pcc_status_name(native.BUSY)

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        library.pcc_status_name(native.BUSY)


# ---------------------------------------------------------------- names of parts


@pytest.mark.parametrize("name", ["rng", "urgent", "overlap"])
@pytest.mark.parametrize("value", [3, {"a": 1}, np.zeros(2), None], ids=repr)
def test_a_part_is_not_taken_for_a_switch(name: str, value: Any, path: Path) -> None:
    with pccheck.numpy.Checkpointer(path) as ckpt:
        with pytest.raises(TypeError, match=f"{name} is of type .*a part cannot have this name"):
            ckpt.save(1, x=np.zeros(2), **{name: value})
        with pytest.raises(TypeError, match="metadata is of type .*a part cannot have this name"):
            ckpt.save(1, metadata=np.zeros(2))  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize("name", ["strict", "path"])
def test_a_part_that_no_resume_could_ask_for(name: str, path: Path) -> None:
    with pccheck.numpy.Checkpointer(path) as ckpt:
        with pytest.raises(InvalidArgument, match=f"a part cannot be named '{name}'"):
            ckpt.save(1, **{name: np.zeros(2)})
        with pytest.raises(InvalidArgument, match="the part name '\\$tuple' begins with"):
            ckpt.save(1, **{"$tuple": np.zeros(2)})


@pytest.mark.parametrize(
    "name", ["", ".", "a.b", "a/b", "nul\0", "\ud800", "x" * 5000, "_orig_mod", "metadata ", "__"]
)
def test_odd_names_of_parts_come_back(name: str, path: Path) -> None:
    with pccheck.numpy.Checkpointer(path) as ckpt:
        ckpt.save(1, **{name: {"x": np.arange(3), "n": 5}}).wait()
    live = {"x": np.zeros(3, int), "n": 0}
    with pccheck.numpy.Checkpointer(path) as ckpt:
        assert list(ckpt.load()) == [name, "rng"]
        assert ckpt.resume(**{name: live}) == 2
    assert live["n"] == 5 and live["x"].tolist() == [0, 1, 2]
