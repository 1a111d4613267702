"""Values of Python's library: stored under tags, back as they were, in place where they live."""

from __future__ import annotations

import enum
import json
import random
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from conftest import ROOT
from test_state import round_trip, same

import pccheck
import pccheck.numpy
from pccheck import StateFormatError, UnsupportedState
from pccheck._state.kinds import SavedEnum, class_named
from pccheck.state import Decoder, Encoder


class Phase(enum.Enum):
    WARM_UP = "warm-up"
    TRAIN = 2
    ALIAS = 2
    ODD = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Text(str, enum.Enum):
    A = "a"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3
    RUN = 8


class Bits(enum.IntFlag):
    X = 1


class Point(NamedTuple):
    x: float
    y: Any = None


class Below(Point):
    def norm(self) -> float:
        return abs(self.x)


class Outer:
    Inner = namedtuple("Inner", "a")
    Inner.__qualname__ = "Outer.Inner"


VALUES = [
    Path("runs/a b"), Path("/"), Path("."), PurePosixPath("x\udcff"), PureWindowsPath("c:\\a\\b"),
    date(2020, 2, 29), date.min, datetime(2020, 1, 2, 3, 4, 5, 6), datetime.max,
    datetime(2020, 1, 1, tzinfo=timezone.utc), datetime(2021, 10, 31, 2, 30, fold=1),
    datetime(2021, 10, 31, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), time(1, 2, 3, 4),
    time(0, fold=1, tzinfo=timezone(timedelta(hours=-3, seconds=1), "odd")), timedelta.min,
    timedelta(days=-1, microseconds=3), timezone.utc, timezone(timedelta(hours=5, minutes=30)),
    ZoneInfo("UTC"), Decimal("1.50"), Decimal("-0"), Decimal("NaN123"), Decimal("1E+1000"),
    Decimal(10) ** 50, Fraction(-1, 3), Fraction(10**400, 7), UUID(int=5), range(3),
    range(2**80, -5, -(2**70)), slice(None), slice(1, -1, 2), slice("a", (1,), None),
    deque(), deque([1, [2], deque([3], 4)]), deque([1, 2], 2), deque([], 0),
    defaultdict(list, {"a": [1], "b": []}), defaultdict(None, {1: 2}), defaultdict(Counter),
    defaultdict(float, {("t", 1): 0.5, Phase.TRAIN: 2.0}), Phase.WARM_UP, Phase.TRAIN, Phase.ODD,
    Phase.ALIAS, Level.LOW, Text.A, Rights.READ, Rights.BOTH, Rights(0), Rights.READ | Rights.RUN,
    ~Rights.READ, Bits.X, Bits(0), Point(1.5), Point(2, {"m": [2]}), Below(1, 2),
    Outer.Inner(np.int8(3)), {Path("a"): 1, date(2020, 1, 1): 2, Point(1, 2): 3, frozenset({1}): 4},
    {Phase.TRAIN, Path("x"), UUID(int=1), frozenset({frozenset({1}), "a"})},
    np.float64(0.1),
]  # fmt: skip


def alike(left: Any, right: Any) -> bool:
    """As `same`, for the types of this page."""
    if isinstance(left, defaultdict) and left.default_factory is not right.default_factory:
        return False
    if isinstance(left, deque):
        return left.maxlen == right.maxlen and alike(list(left), list(right))
    if isinstance(left, slice):
        return alike([left.start, left.stop, left.step], [right.start, right.stop, right.step])
    if isinstance(left, (datetime, time)):
        return (
            type(left) is type(right) and repr(left) == repr(right)
            and left.fold == right.fold and type(left.tzinfo) is type(right.tzinfo)
        )  # fmt: skip
    if isinstance(left, (Decimal, timezone, ZoneInfo)):
        return type(left) is type(right) and repr(left) == repr(right)
    if isinstance(left, enum.Enum):
        return left is right
    if type(left) is type(right) and isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(alike, left, right))
    if type(left) is type(right) and isinstance(left, dict):
        return len(left) == len(right) and all(
            alike(a, c) and alike(b, d)
            for (a, b), (c, d) in zip(left.items(), right.items(), strict=True)
        )
    return same(left, right)


def _name(value: Any) -> str:
    """The elements of a set have another order in each process, and so would the test's name."""
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, set) else repr(value)


@pytest.mark.parametrize("value", VALUES, ids=_name)
def test_value_comes_back_exactly(value: Any) -> None:
    result = round_trip({"key": value, "list": [value]})
    assert alike(result["key"], value), result["key"]
    assert alike(result["list"], [value])


def _has_hash(value: Any) -> bool:
    """False also for a tuple that holds something without one."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("value", [value for value in VALUES if _has_hash(value)], ids=repr)
def test_value_comes_back_as_a_key(value: Any) -> None:
    state = {value: 1, "other": 2}
    if isinstance(value, slice):
        with pytest.raises(TypeError, match="a dict key or set item of type slice"):
            round_trip(state)
        return
    result = round_trip({"d": state, "s": {value}})
    assert alike(list(result["d"])[0], value) and alike(list(result["s"])[0], value)


def test_values_of_a_file_that_were_saved_come_back(path: Path) -> None:
    with pccheck.Checkpointer(path) as ckpt:
        ckpt.save(1, VALUES).wait()
    assert alike(pccheck.load(path), VALUES)


# ---------------------------------------------------------------- classes that are not here


def test_a_class_that_is_not_imported_has_a_stand_in(tmp_path: Path) -> None:
    """And nothing that a file names is imported."""
    (tmp_path / "shapes.py").write_text(
        "import enum, collections\n"
        "print('imported')\n"
        "class Kind(enum.Enum):\n    ROUND = 1\n"
        "class Both(enum.Flag):\n    A = 1\n    B = 2\n    C = 4\n"
        "Size = collections.namedtuple('Size', 'w h')\n"
    )
    writing = (
        "import pccheck, shapes\n"
        "with pccheck.Checkpointer('run.pcc') as ckpt:\n"
        "    ckpt.save(1, {'kind': shapes.Kind.ROUND, 'both': shapes.Both.A | shapes.Both.C,\n"
        "              'size': shapes.Size(3, 4), shapes.Kind.ROUND: 1})\n"
    )
    assert child(writing, tmp_path) == "imported\n"
    reading = (
        "import pccheck, sys\n"
        "state = pccheck.load('run.pcc')\n"
        "assert 'shapes' not in sys.modules\n"
        "kind = pccheck.SavedEnum('shapes:Kind', 'ROUND', 1)\n"
        "assert state['kind'] == kind and state[kind] == 1, state\n"
        "assert state['both'].name == ('A', 'C'), state\n"
        "size = state['size']\n"
        "assert size == (3, 4) and size.w == 3 and size._fields == ('w', 'h'), size\n"
        "assert repr(size) == 'Size(w=3, h=4)'\n"
        "with pccheck.Checkpointer('again.pcc') as ckpt:\n"
        "    ckpt.save(1, state).wait()\n"
        "again = pccheck.load('again.pcc')\n"
        "assert again == state and type(again['size']) is type(size)\n"
        "import shapes\n"
        "state = pccheck.load('again.pcc')\n"
        "assert state['kind'] is shapes.Kind.ROUND and type(state['size']) is shapes.Size\n"
        "assert state['both'] == shapes.Both.A | shapes.Both.C\n"
    )
    assert child(reading, tmp_path) == "imported\n"


def test_a_stand_in_can_be_copied_and_pickled() -> None:
    import copy
    import pickle

    node = {"$namedtuple": [1, [2]], "class": "gone:Pair", "fields": ["a", "b"]}
    made = Decoder({}).decode([node, {"$enum": "A", "class": "gone:Kind", "value": 1}])
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made and [type(item) for item in again] == [type(item) for item in made]
    assert round_trip(made) == made and type(round_trip(made)[0]) is type(made[0])


PCEXTRACT = ROOT / "build" / "bin" / "pcextract"


@pytest.mark.skipif(not PCEXTRACT.exists(), reason="needs the tools")
def test_pcextract_writes_what_torch_loads_by_default(path: Path) -> None:
    import torch

    import pccheck.torch

    with pccheck.torch.Checkpointer(path) as ckpt:
        ckpt.save(1, rng=False, values=VALUES, sampler=np.random.default_rng(1)).wait()
    out = path.with_suffix(".pt")
    subprocess.run([PCEXTRACT, path, "-o", out], check=True, capture_output=True)
    state = torch.load(out, weights_only=True)
    values = dict(zip(map(repr, VALUES), state["values"], strict=True))
    assert values[repr(Path("/"))] == "/" and values[repr(Phase.TRAIN)] == "TRAIN"
    assert values[repr(range(3))] == (0, 3, 1) and values[repr(Point(1.5))] == (1.5, None)
    assert values[repr(deque([1, 2], 2))] == [1, 2]
    assert state["sampler"]["bit_generator"] == "PCG64"


def child(code: str, folder: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:eval", "pathlib:Path.cwd", "no.such:Thing", "", ":", "os", "a:b:c",
     "test_kinds:Phase.WARM_UP", "sys:modules.os"],
)  # fmt: skip
def test_only_classes_are_found(name: str) -> None:
    assert class_named(name) is None or isinstance(class_named(name), type)
    node = {"$enum": "A", "class": name, "value": 1}
    assert Decoder({}).decode(node) == SavedEnum(name, "A", 1)
    made = Decoder({}).decode({"$namedtuple": [1], "class": name, "fields": ["a"]})
    assert made == (1,) and made.a == 1


def test_a_lazy_module_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attributes are programs."""
    import types

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"asked for {name}")

    monkeypatch.setitem(sys.modules, "lazy_one", Lazy("lazy_one"))
    assert class_named("lazy_one:Thing") is None


class Loud(namedtuple("Loud", "a")):
    def __new__(cls, *values: Any) -> Any:
        raise AssertionError("was called")


def test_the_class_of_a_named_tuple_is_not_called() -> None:
    node = {"$namedtuple": [1], "class": f"{__name__}:Loud", "fields": ["a"]}
    made = Decoder({}).decode(node)
    assert type(made) is Loud and made.a == 1


def test_a_class_that_has_changed() -> None:
    node = {"$namedtuple": [1, 2], "class": f"{__name__}:Point", "fields": ["x", "z"]}
    made = Decoder({}).decode(node)
    assert made.z == 2 and type(made) is not Point
    with pytest.raises(UnsupportedState, match="has no member 'GONE' any more"):
        Decoder({}).decode({"$enum": "GONE", "class": f"{__name__}:Phase"})


BROKEN = [
    {"$path": 3, "class": "PosixPath"}, {"$path": "a", "class": "Path"}, {"$path": "a"},
    {"$date": "x"}, {"$date": 5}, {"$datetime": "2020-01-01T00:00:00+01:00"},
    {"$datetime": "2020-01-01T00:00:00", "zone": 3}, {"$time": "25:00"},
    {"$time": "00:00:00", "fold": 7}, {"$timedelta": [1, 2]}, {"$timedelta": [1, 2, 0.5]},
    {"$timedelta": [10**10, 0, 0]}, {"$timezone": [9, 0, 0]}, {"$timezone": [0, 0, 0], "name": 1},
    {"$zone": "../../etc/passwd"}, {"$zone": 3}, {"$decimal": "x"}, {"$decimal": 1},
    {"$fraction": [1, 0]}, {"$fraction": [1]}, {"$fraction": [1, 0.5]}, {"$uuid": "zz"},
    {"$range": [0, 1, 0]}, {"$range": [0, 1]}, {"$range": [0, 1.5, 1]}, {"$slice": [1]},
    {"$deque": 3}, {"$deque": [1, 2], "maxlen": 1}, {"$deque": [], "maxlen": -1},
    {"$deque": [], "maxlen": "x"}, {"$defaultdict": {}, "factory": "eval"}, {"$defaultdict": {}},
    {"$defaultdict": [[1]], "factory": None}, {"$enum": 3, "class": "a:b"}, {"$enum": "A"},
    {"$enum": [1], "class": "a:b"}, {"$enum": ["TRAIN"], "class": f"{__name__}:Phase"},
    {"$namedtuple": [1], "class": "a:b", "fields": []}, {"$namedtuple": [1], "class": "a:b"},
    {"$namedtuple": [1], "class": "a:b", "fields": ["__class__"]},
    {"$namedtuple": [1], "class": "a:b", "fields": ["x, __import__('os')"]},
    {"$namedtuple": [1], "class": 3, "fields": ["a"]}, {"$random": {}, "class": "random.Random"},
    {"$random": {"bit_generator": "os"}, "class": "numpy.random.Generator"},
    {"$random": {"bit_generator": "PCG64", "state": {}}, "class": "numpy.random.Generator"},
    {"$random": 3, "class": "numpy.random.PCG64"},
    {"$random": {"bit_generator": "PCG64"}, "class": "numpy.random.PCG64",
     "seed": {"entropy": 1, "spawn_key": [], "pool_size": 2**40, "spawned": 0}},
]  # fmt: skip


@pytest.mark.parametrize("node", BROKEN, ids=json.dumps)
def test_broken_nodes(node: Any) -> None:
    with pytest.raises(StateFormatError):
        Decoder({}).decode([node])


# ---------------------------------------------------------------- random generators


def generators() -> list[Any]:
    made = [
        np.random.default_rng(3), np.random.default_rng(), np.random.RandomState(5),
        np.random.Generator(np.random.MT19937(7)), np.random.Generator(np.random.Philox(7)),
        np.random.Generator(np.random.SFC64([1, 2])), np.random.Generator(np.random.PCG64DXSM(1)),
        random.Random(9), np.random.RandomState(np.random.PCG64(1)),
    ]  # fmt: skip
    for generator in made:
        generator.random()
        if isinstance(generator, random.Random):
            generator.gauss(0, 1)
        else:
            # Half of a pair, or of a word, is kept for the next call.
            generator.standard_normal()
            generator.bytes(3)
    return made


def drawn(generator: Any) -> list[Any]:
    if isinstance(generator, random.Random):
        return [generator.random(), generator.gauss(0, 1), generator.getrandbits(99)]
    return [generator.random(), generator.standard_normal(), generator.bytes(7)]


@pytest.mark.parametrize("index", range(len(generators())))
def test_a_generator_goes_on_where_it_was(index: int, path: Path) -> None:
    generator = generators()[index]
    loaded = round_trip({"a": generator, "b": [generator]})
    assert type(loaded["a"]) is type(generator)
    expected = [drawn(generator) for _ in range(3)]
    assert [drawn(loaded["a"]) for _ in range(3)] == expected
    assert [drawn(loaded["b"][0]) for _ in range(3)] == expected


@pytest.mark.parametrize("index", range(len(generators())))
def test_a_live_generator_is_filled(index: int, path: Path) -> None:
    generator, other = generators()[index], generators()[index]
    with pccheck.numpy.Checkpointer(path) as ckpt:
        ckpt.save(1, sampler=generator, nest={"inner": [generator, 3]}).wait()
    expected = [drawn(generator) for _ in range(3)]
    held = generators()[index]
    drawn(other), drawn(held)
    nest = {"inner": [held, 4]}
    with pccheck.numpy.Checkpointer(path) as ckpt:
        assert ckpt.resume(sampler=other, nest=nest) == 2
    assert nest["inner"][0] is held and nest["inner"][1] == 3
    assert [drawn(other) for _ in range(3)] == expected
    assert [drawn(held) for _ in range(3)] == expected


def test_bit_generators_alone() -> None:
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64):
        bits = kind(3)
        bits.random_raw(5)
        loaded = round_trip(bits)
        assert type(loaded) is kind and loaded.random_raw() == bits.random_raw()


def test_two_generators_stay_two() -> None:
    first, second = (np.random.Generator(np.random.MT19937(seed)) for seed in (1, 2))
    loaded = round_trip([first, second, first])
    assert [g.random() for g in loaded[:2]] == [first.random(), second.random()]


def test_spawning_goes_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generator = np.random.default_rng(11)
    generator.spawn(3)
    with pccheck.numpy.Checkpointer(path) as ckpt:
        ckpt.save(1, sampler=generator).wait()
    loaded = pccheck.load(path)["sampler"]
    live, other = np.random.default_rng(11), np.random.default_rng(12)
    expected = generator.spawn(1)[0].random()
    assert loaded.spawn(1)[0].random() == expected
    with pccheck.numpy.Checkpointer(path) as ckpt:
        ckpt.resume(sampler=live)
        assert live.spawn(1)[0].random() == expected
        assert "spawns" not in caplog.text
        ckpt.resume(sampler=other)
        assert "'sampler' was seeded differently" in caplog.text


def test_another_kind_of_generator_is_refused_before_anything_changes(path: Path) -> None:
    with pccheck.numpy.Checkpointer(path) as ckpt:
        ckpt.save(1, x=np.ones(3), sampler=np.random.default_rng(1)).wait()
    x = np.zeros(3)
    with pccheck.numpy.Checkpointer(path) as ckpt:
        for live, shown in (
            (np.random.Generator(np.random.MT19937(1)), "a numpy.random.Generator of MT19937"),
            (random.Random(1), "a random.Random"), (np.random.PCG64(1), "a numpy.random.PCG64"),
        ):  # fmt: skip
            with pytest.raises(pccheck.StateMismatch) as caught:
                ckpt.resume(x=x, sampler=live)
            saved = "saved a numpy.random.Generator of PCG64"
            assert f"sampler: {saved}, live {shown}" in str(caught.value)
        with pytest.raises(pccheck.StateMismatch, match="missing"):
            ckpt.resume(x=x, other=np.random.default_rng(1))
    assert not x.any()


def test_generators_that_have_no_state_are_refused() -> None:
    with pytest.raises(TypeError, match="key 'a': a random.SystemRandom cannot be stored"):
        Encoder().encode_state({"a": random.SystemRandom()})


# ---------------------------------------------------------------- a resume in place


def test_containers_are_filled_in_place(path: Path) -> None:
    def state() -> dict[str, Any]:
        return {
            "queue": deque([1, 2], 5), "groups": defaultdict(list, {"a": [1]}), "seen": {1, 2},
            "raw": bytearray(b"ab"), "pair": Point(np.arange(3.0), np.ones(2)),
            "order": OrderedDict(a=np.arange(2.0)), "arrays": deque([np.arange(2.0)]),
            "phase": {"now": Phase.TRAIN, "since": date(2020, 1, 1)},
        }  # fmt: skip

    saved, live = state(), state()
    saved["queue"].append(3), saved["groups"]["b"].append(2), saved["seen"].add(3)
    saved["raw"].extend(b"c")
    with pccheck.numpy.Checkpointer(path) as ckpt:
        ckpt.save(1, **saved).wait()
    for array in (*live["pair"], live["order"]["a"], live["arrays"][0]):
        array[:] = -1
    live["phase"].update(now=Phase.WARM_UP)
    before = dict(live)
    held = [*live["pair"], live["order"]["a"], live["arrays"][0]]
    with pccheck.numpy.Checkpointer(path) as ckpt:
        assert ckpt.resume(**live) == 2
    assert all(live[key] is before[key] for key in live)
    for key in ("queue", "groups", "seen", "raw", "phase"):
        assert alike(live[key], saved[key]), key
    assert [a.tolist() for a in held] == [[0, 1, 2], [1, 1], [0, 1], [0, 1]]
    assert held[0] is live["pair"].x and held[3] is live["arrays"][0]
    assert live["groups"]["new"] == []


@pytest.mark.parametrize("value", [3, 2.5, "text", None, (1, 2), Path("a"), Phase.TRAIN, b"x"])
def test_a_value_that_cannot_change_is_told_before_anything_changes(
    value: Any, path: Path
) -> None:
    with pccheck.numpy.Checkpointer(path) as ckpt:
        ckpt.save(1, x=np.ones(3), flag=value).wait()
    x = np.zeros(3)
    with pccheck.numpy.Checkpointer(path) as ckpt:
        assert ckpt.load()["flag"] == value
        for strict in (True, False):
            with pytest.raises(TypeError, match="'flag' is of type .* cannot be changed in place"):
                ckpt.resume(x=x, flag="another", strict=strict)
            assert not x.any()
        assert ckpt.resume(x=x, flag=value) == 2
    assert x.all()


# ---------------------------------------------------------------- refusals


def local() -> Any:
    class Local(enum.Enum):
        A = 1

    return Local.A


Hidden = namedtuple("Other", "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (local(), "an? .*Local .*its class cannot be found by its name"),
        (Hidden(1), "its class cannot be found by its name"),
        (defaultdict(lambda: 1), "a collections.defaultdict .*its default_factory is none of int"),
        (ZoneInfo.from_file(open("/usr/share/zoneinfo/UTC", "rb"))  # noqa: SIM115
         if Path("/usr/share/zoneinfo/UTC").exists() else random.SystemRandom(), "has no name|Sys"),
        (type("MyPath", (PurePosixPath,), {})("a"), "a .*MyPath .*save os.fspath"),
        (type("MyDate", (date,), {})(2020, 1, 1), "a .*MyDate cannot be stored"),
    ],
    ids=["local", "hidden", "factory", "zone", "path", "date"],
)  # fmt: skip
def test_what_has_no_stored_form_is_refused(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=r"key 'outer\.1': " + f".*({message})"):
        Encoder().encode_state({"outer": [0, value]})


@pytest.mark.parametrize("state", [{"a": "x\ud83d\ude00"}, {"\ud83d\ude00": 1}, ["\ud83d\ude00"]])
def test_both_halves_of_a_pair_are_no_character(path: Path, state: Any) -> None:
    with pccheck.Checkpointer(path) as ckpt:
        with pytest.raises(TypeError, match="both halves of a surrogate pair"):
            ckpt.save(1, state)
        for text in ("\U0001f600", "\ud83d", "\ude00\ud83d"):
            ckpt.save(1, {"a": text, text: 1}).wait()
            assert ckpt.load() == {"a": text, text: 1}
