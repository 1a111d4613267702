"""Made-up states of everything that can be stored come back with every type and value; one thing in
them that cannot be stored is refused by its key. `PCCHECK_TEST_SEED` replays one."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import io
import os
import pathlib
import random
import sys
import threading
import types
import weakref
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from test_kinds import Below, Level, Phase, Point, Rights, Text, alike
from test_state import ODD_NAN, round_trip, same
from torch import nn

import pccheck
import pccheck.torch
from pccheck.state import Encoder

SEEDS = [int(os.environ["PCCHECK_TEST_SEED"])] if "PCCHECK_TEST_SEED" in os.environ else range(150)
NAMES = ["a", "b.c", "", "$x", "$dict", "nul\0", "\ud800", "ü", "\x1b[2J", "1", "x" * 300, "rng"]

SCALARS: list[Callable[[random.Random], Any]] = [
    lambda r: None, lambda r: r.random() < 0.5,
    lambda r: r.choice([0, -1, 2**53 - 1, 2**53, -(2**63), 2**64, 10**5000, r.getrandbits(300)]),
    lambda r: r.choice([0.0, -0.0, float("inf"), float("-inf"), float("nan"), ODD_NAN, 5e-324,
                        1e16, r.uniform(-1e9, 1e9)]),
    lambda r: r.choice(NAMES), lambda r: r.randbytes(r.choice([0, 1, 30, 3000])),
    lambda r: bytearray(r.randbytes(r.choice([0, 5, 2000]))),
    lambda r: complex(r.choice([-0.0, float("nan"), 1.5]), r.choice([float("inf"), -2.5])),
    lambda r: r.choice([Phase.TRAIN, Phase.ODD, Level.LOW, Text.A, Rights(0), Rights.BOTH,
                        Rights.READ | Rights.RUN]),
    lambda r: r.choice([Path("a/b"), pathlib.PurePosixPath("/x"),
                        pathlib.PureWindowsPath("c:\\y"), Path("\udcff")]),
    lambda r: r.choice([date(2020, 2, 29), datetime.max, time(3, 4, fold=1),
                        datetime(2021, 10, 31, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris")),
                        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=-5), "EST")),
                        timedelta(r.randrange(-999, 999), r.randrange(86400), 7), timezone.utc]),
    lambda r: r.choice([Decimal("-1.50"), Decimal("NaN"), Fraction(r.randrange(-9, 9), 7),
                        UUID(int=r.getrandbits(128)), range(r.randrange(9), 2**70, 3)]),
    lambda r: r.choice([np.float32, np.float16, np.int8, np.uint64, np.bool_, np.float64])(
        r.randrange(100)),
    lambda r: r.choice([np.complex64(1j), np.datetime64("2020-01-01"), np.timedelta64(5, "s"),
                        np.datetime64("NaT")]),
]  # fmt: skip


def generator(r: random.Random) -> Any:
    seed = r.getrandbits(32)
    made = r.choice([np.random.default_rng, np.random.RandomState, random.Random])(seed)
    made.random()
    return made


def array(r: random.Random) -> Any:
    shape = tuple(r.randrange(4) for _ in range(r.randrange(4)))
    name = r.choice(["?", "i1", "u2", "i8", "f2", "f4", "f8", "c8", ">f4", ">i2", "M8[ms]"])
    made = np.zeros(shape, name)
    if name not in ("?", "M8[ms]"):
        made[...] = r.randrange(100)
    return made.T if r.random() < 0.3 else made


LEAVES = [*SCALARS, array, generator,
          lambda r: slice(r.randrange(3), None, r.choice([None, 2]))]  # fmt: skip


def key(r: random.Random, depth: int = 0) -> Any:
    if depth < 2 and r.random() < 0.2:
        items = [key(r, depth + 1) for _ in range(r.randrange(3))]
        return r.choice([tuple, frozenset])(items)
    made = r.choice(SCALARS)(r)
    return "k" if isinstance(made, bytearray) else made


def value(r: random.Random, depth: int, leaves: list[Any] | None = None) -> Any:
    """A nest of everything, not deeper than that."""
    leaves = leaves or LEAVES
    if depth == 0 or r.random() < 0.25:
        return r.choice(leaves)(r)

    def items() -> list[Any]:
        return [value(r, depth - 1, leaves) for _ in range(r.randrange(4))]

    def pairs() -> list[tuple[Any, Any]]:
        names = [r.choice(NAMES) if r.random() < 0.5 else key(r) for _ in range(r.randrange(5))]
        return [(name, value(r, depth - 1, leaves)) for name in names]

    makers: list[Callable[[], Any]] = [
        lambda: items(), lambda: tuple(items()), lambda: dict(pairs()),
        lambda: OrderedDict(pairs()), lambda: deque(items(), r.choice([None, 9])),
        lambda: defaultdict(r.choice([None, int, list, dict, set]), pairs()),
        lambda: Counter({key(r): r.randrange(9) for _ in range(3)}),
        lambda: {key(r) for _ in range(4)}, lambda: frozenset(key(r) for _ in range(3)),
        lambda: r.choice([Point, Below])(value(r, depth - 1, leaves), value(r, depth - 1, leaves)),
    ]  # fmt: skip
    return r.choice(makers)()


def equal(left: Any, right: Any) -> bool:
    """Equal in every type and value, also where a NaN is a key."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, deque) and left.maxlen != right.maxlen:
        return False
    if isinstance(left, defaultdict) and left.default_factory is not right.default_factory:
        return False
    if isinstance(left, (deque, list, tuple)) and not isinstance(left, torch.Size):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            equal(a, c) and equal(b, d)
            for (a, b), (c, d) in zip(left.items(), right.items(), strict=True)
        )
    if isinstance(left, (set, frozenset)):
        rest = list(right)
        for item in left:
            found = next((n for n, other in enumerate(rest) if equal(item, other)), None)
            if found is None:
                return False
            del rest[found]
        return not rest
    if isinstance(left, np.random.Generator):
        return same(*(g.bit_generator.state for g in (left, right)))
    if isinstance(left, np.random.RandomState):
        return same(left.get_state(legacy=False), right.get_state(legacy=False))
    if isinstance(left, random.Random):
        return left.getstate() == right.getstate()
    return alike(left, right)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_state_comes_back(seed: int) -> None:
    state = value(random.Random(seed), 4)
    assert equal(round_trip(state), state), f"PCCHECK_TEST_SEED={seed}"


TENSORS = [
    *LEAVES, lambda r: torch.full((r.randrange(4), 2), r.random(), dtype=r.choice(
        [torch.float32, torch.bfloat16, torch.float64, torch.complex64])),
    lambda r: torch.tensor(r.randrange(9)), lambda r: torch.Size([1, r.randrange(9)]),
    lambda r: r.choice([torch.float16, torch.bool]), lambda r: torch.device("cuda", r.randrange(3)),
]  # fmt: skip


@pytest.mark.parametrize("seed", list(SEEDS)[:40])
def test_a_state_of_a_file_comes_back(seed: int, path: Path) -> None:
    """Through the file, and for torch too; `load` of the other package reads it as well."""
    r = random.Random(seed)
    plain, parts = value(r, 3), {"one": value(r, 3, TENSORS), "two": value(r, 3, TENSORS)}
    with pccheck.Checkpointer(path, capacity="4 MiB", retain=2) as ckpt:
        ckpt.save(1, plain).wait()
    with pccheck.torch.Checkpointer(path) as ckpt:
        ckpt.save(2, rng=False, **parts).wait()
        assert equal(ckpt.load(), parts), f"PCCHECK_TEST_SEED={seed}"
    assert equal(pccheck.load(path, 1), plain), f"PCCHECK_TEST_SEED={seed}"
    pccheck.load(path, 2)


# ---------------------------------------------------------------- what cannot be stored


@dataclasses.dataclass
class Settings:
    rate: float = 0.1


class MyDict(dict):
    pass


class MyList(list):
    pass


class MyText(str):
    __slots__ = ()


class MyNumber(int):
    pass


class MyBytes(bytes):
    pass


class MyPoint(Point):
    pass


class Odd:
    def __repr__(self) -> str:
        return "\x1b[2J" * 1000


MyPoint.__qualname__ = "Elsewhere"


def with_attribute(container: Any) -> Any:
    container.extra = 1
    return container


UNSUPPORTED: list[tuple[Callable[[], Any], str]] = [
    (io.BytesIO, r"an io\.BytesIO .*value\.getvalue"),
    (io.StringIO, r"an io\.StringIO .*value\.getvalue"),
    (lambda: open(os.devnull, "rb"), r"an io\.BufferedReader .*its path and its position"),
    (lambda: (n for n in range(3)), "a generator .*how far it has come"),
    (lambda: iter([1]), "a list_iterator .*how far it has come"),
    (threading.Lock, r"a.* (threading|_thread)\.lock .*leave it out"),
    (threading.Event, r"a threading\.Event .*leave it out"),
    (lambda: lambda: 1, "a function .*save its name"),
    (lambda: len, "a builtin_function_or_method .*save its name"),
    (lambda: random.Random().random, "a builtin_function_or_method .*save its name"),
    (lambda: os, "a module .*save its name"),
    (lambda: Settings, "a type .*save its name"),
    (lambda: weakref.ref(Settings), r"weakref\.ReferenceType .*"),
    (Settings, r"a .*Settings .*save dataclasses\.asdict\(value\)"),
    (lambda: argparse.Namespace(a=1), r"an argparse\.Namespace .*save vars\(value\)"),
    (lambda: types.SimpleNamespace(a=1), r"a types\.SimpleNamespace .*save vars\(value\)"),
    (object, "an object .*supported are"),
    (Odd, r"an? .*Odd .*supported are"),
    (lambda: MyDict(a=1), r"a .*MyDict .*save dict\(value\)"),
    (lambda: MyList([1]), r"a .*MyList .*save list\(value\)"),
    (lambda: MyText("a"), r"a .*MyText .*save str\(value\)"),
    (lambda: MyNumber(3), r"a .*MyNumber .*save int\(value\)"),
    (lambda: MyBytes(b"a"), r"a .*MyBytes .*save bytes\(value\)"),
    (lambda: MyPoint(1), r"its class cannot be found by its name"),
    (lambda: with_attribute(OrderedDict()), r"collections\.OrderedDict .*its attribute 'extra'"),
    (lambda: with_attribute(Counter()), r"collections\.Counter .*its attribute 'extra'"),
    (lambda: UserDict(a=1), r"a collections\.UserDict .*save dict\(value\)"),
    (lambda: types.MappingProxyType({}), r"a mappingproxy .*save dict\(value\)"),
    (lambda: {}.keys(), r"a dict_keys .*save set\(value\)"),
    (lambda: {}.values(), r"a dict_values .*"),
    (lambda: sys.implementation.version, r"a sys\.version_info .*|a .*version_info.*"),
    (lambda: np.str_("a"), r"a numpy\.str_ .*save str\(value\)"),
    (lambda: np.bytes_(b"a"), r"a numpy\.bytes_ .*save bytes\(value\)"),
    (lambda: np.longdouble(1), r"a numpy\.longdouble .*no portable stored form"),
    (lambda: np.void(b"abc"), r"a numpy\.void .*no portable stored form"),
    (lambda: np.array(["a"]), r"a numpy\.ndarray .*its type"),
    (lambda: np.array([None]), r"a numpy\.ndarray .*its type object"),
    (lambda: np.zeros(2, [("a", "i4")]), r"a numpy\.ndarray .*its type"),
    (lambda: np.ma.masked_array([1]), r"a.*MaskedArray .*plain ndarray"),
    (lambda: NotImplemented, "NotImplementedType"),
    (lambda: ..., "an ellipsis"),
    (lambda: ValueError("x"), "a ValueError"),
    (lambda: enum, "a module"),
]


# Named by what they say alone: the address of a function is another one in each process.
@pytest.mark.parametrize(
    ("make", "message"), UNSUPPORTED, ids=[message[:30] for _, message in UNSUPPORTED]
)
def test_what_cannot_be_stored_is_refused_by_its_key(
    make: Callable[[], Any], message: str, path: Path
) -> None:
    """Wherever it stands; and the file is as it was, and goes on."""
    where = {
        "plain": lambda v: {"x": [0, v]}, "tuple": lambda v: {"x": (0, v)},
        "deque": lambda v: {"x": deque([0, v])},
        "ordered": lambda v: {"x": OrderedDict([(1, v)])},
        "default": lambda v: {"x": defaultdict(list, {1: v})},
        "named": lambda v: {"x": Point(0, v)},
    }  # fmt: skip
    made = make()
    for name, nest in where.items():
        at = r"x\.1" if name != "named" else r"x\.(1|y)"
        with pytest.raises(TypeError, match=f"key '{at}': .*({message})") as caught:
            Encoder().encode_state(nest(made))
        assert len(str(caught.value)) < 600
    with pccheck.torch.Checkpointer(path, capacity="1 MiB") as ckpt:
        ckpt.save(1, a=1).wait()
        with pytest.raises(TypeError, match=r"key 'x\.1': "):
            ckpt.save(2, x=[0, made])
        assert ckpt.save(3, a=2).wait().durable and ckpt.steps()[0] == 3
    if isinstance(made, io.IOBase):
        made.close()


@pytest.mark.parametrize("seed", range(60))
def test_one_thing_in_a_state_is_found(seed: int) -> None:
    """A marker is put somewhere into a made-up state; the error has its key."""
    r = random.Random(seed)
    state: Any = [value(r, 3), object(), value(r, 3)]
    path = ["1"]
    for _ in range(r.randrange(6)):
        inner = {"k": state} if r.random() < 0.5 else [state]
        path.insert(0, "k" if isinstance(inner, dict) else "0")
        state = inner
    with pytest.raises(TypeError) as caught:
        Encoder().encode_state(state)
    assert f"key '{'.'.join(path)}': an object" in str(caught.value), f"PCCHECK_TEST_SEED={seed}"


# ---------------------------------------------------------------- torch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)],
                                            layout=torch.jagged), "nested"),
        (lambda: torch.ones(2, 2).to_sparse(), r"its layout is torch\.sparse_coo"),
        (lambda: torch.ones(2, device="meta"), "meta device"),
        (lambda: torch.ones(2).max(0), r"return_types\.max .*save tuple\(value\)"),
        (lambda: torch.cuda.Stream if torch.cuda.is_available() else nn.Linear, "save its name"),
        (lambda: torch.jit.script(nn.Linear(1, 1)).forward, "ScriptMethod"),
    ],
)  # fmt: skip
def test_what_torch_has_and_no_file_holds(
    make: Callable[[], Any], message: str, path: Path
) -> None:
    with pccheck.torch.Checkpointer(path, capacity="1 MiB") as ckpt:
        with pytest.raises(TypeError, match=rf"key 'x\.1': .*({message})"):
            ckpt.save(1, x=[0, make()])
        assert ckpt.save(2, y=1).wait().durable


# ---------------------------------------------------------------- depth

NESTS: dict[str, Callable[[Any], Any]] = {
    "list": lambda v: [v], "tuple": lambda v: (v,), "dict": lambda v: {"a": v},
    "dict of int": lambda v: {1: v}, "ordered": lambda v: OrderedDict(a=v),
    "deque": lambda v: deque([v]), "default": lambda v: defaultdict(list, a=v),
    "named": lambda v: Point(v), "frozenset": lambda v: frozenset([v]),
    "key": lambda v: (v,) if isinstance(v, tuple) else ("end",),
}  # fmt: skip


def deeply(count: int, call: Callable[[], Any]) -> Any:
    """Calls with so many frames on the stack."""
    return call() if count == 0 else deeply(count - 1, call)


@pytest.mark.parametrize("name", NESTS)
def test_a_state_that_can_be_saved_can_be_loaded(name: str, path: Path) -> None:
    """Also where the stack is fuller than when it was saved."""
    state: Any = 1
    for _ in range(127):
        state = NESTS[name](state)
    parts = {"s": {state: 1} if name == "key" else state}
    with pccheck.torch.Checkpointer(path, capacity="1 MiB", retain=2) as ckpt:
        if name == "key":
            parts = {"s": {(state[0]): 1}}
        ckpt.save(1, rng=False, **parts).wait()
    assert deeply(200, lambda: pccheck.load(path)) == parts
    with pccheck.torch.Checkpointer(path) as ckpt:
        assert deeply(200, lambda: ckpt.resume(rng=False, **parts)) == 2
        more = {"s": {NESTS[name](NESTS[name](state)): 1} if name == "key" else
                NESTS[name](NESTS[name](state))}  # fmt: skip
        with pytest.raises(ValueError, match="deep, more than 128"):
            ckpt.save(2, rng=False, **more)
        assert ckpt.save(3, rng=False, **parts).wait().durable


@pytest.mark.parametrize("name", ["list", "dict", "ordered", "deque", "default"])
def test_a_state_that_contains_itself(name: str) -> None:
    state = NESTS[name](None)
    if isinstance(state, (list, deque)):
        state[0] = [state]
    else:
        state["a"] = [state]
    with pytest.raises(ValueError, match=r"key '(x\.)?.*': the state contains itself"):
        Encoder().encode_state({"x": state})
