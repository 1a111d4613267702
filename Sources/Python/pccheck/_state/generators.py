"""Random generators as values of a state: how each is stored, made again, and put back."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import CheckpointError

log = logging.getLogger("pccheck")

_BIT_GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64,
    )
}  # fmt: skip
_POOL_SIZE_LIMIT = 1024
#: Live objects that a resume fills.
GENERATOR_TYPES: tuple[type, ...] = (
    np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random,
)  # fmt: skip


def python_state(generator: Any) -> dict[str, Any]:
    """The state of a generator of `random`, or of that module."""
    version, words, gauss = generator.getstate()
    # The words are one array: as numbers in the document they would be its largest part.
    return {"version": version, "words": np.array(words, "<u4"), "gauss": gauss}


def set_python_state(generator: Any, state: dict[str, Any]) -> None:
    """Puts a generator of `random`, or that module, back."""
    generator.setstate((state["version"], tuple(state["words"].tolist()), state["gauss"]))


def class_of(generator: object) -> str:
    """How the document names the class of a generator."""
    module = "random" if isinstance(generator, random.Random) else "numpy.random"
    return f"{module}.{type(generator).__name__}"


def kind_of_node(node: Any) -> tuple[Any, Any] | None:
    """Class and bit generator that a node was made of; None for another node."""
    if not isinstance(node, dict) or "$random" not in node:
        return None
    state = node["$random"]
    bits = state.get("bit_generator") if isinstance(state, dict) else None
    return node.get("class"), bits


def kind_of(generator: Any) -> tuple[str, str | None]:
    """Class and bit generator of a live one."""
    bits = _bits_of(generator)
    return class_of(generator), None if bits is None else type(bits).__name__


def describe(kind: tuple[Any, Any]) -> str:
    """For people."""
    name, bits = kind
    is_plain = bits is None or str(name).endswith(f".{bits}")
    return f"a {name}" if is_plain else f"a {name} of {bits}"


def _bits_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator
    if isinstance(generator, np.random.RandomState):
        return generator._bit_generator
    return generator if isinstance(generator, np.random.BitGenerator) else None


def _state_of(generator: Any) -> dict[str, Any]:
    if isinstance(generator, random.Random):
        return python_state(generator)
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return dict(_bits_of(generator).state)


def _encode(encoder: Any, value: Any, path: str) -> Any:
    bits = _bits_of(value)
    if bits is not None and type(bits).__name__ not in _BIT_GENERATORS:
        name = type(bits).__name__
        raise encoder.refusal(value, path, f"its bit generator {name} is not one of NumPy's")
    node = {"$random": encoder.encode(_state_of(value), path), "class": class_of(value)}
    seed = getattr(bits, "seed_seq", None)
    if type(seed) is np.random.SeedSequence:
        # What `spawn` makes children of.
        node["seed"] = encoder.encode(
            {
                "entropy": seed.entropy, "spawn_key": list(seed.spawn_key),
                "pool_size": seed.pool_size, "spawned": seed.n_children_spawned,
            },
            path,
        )  # fmt: skip
    return node


def _decode(decoder: Any, document: dict[str, Any]) -> Any:
    state, name = decoder.decode(document["$random"]), document["class"]
    if name == "random.Random":
        made = random.Random(0)
        set_python_state(made, state)
        return made
    bits = _BIT_GENERATORS[state["bit_generator"]](_seed(decoder.decode(document.get("seed"))))
    if name == "numpy.random.RandomState":
        legacy = np.random.RandomState(bits)
        legacy.set_state(state)
        return legacy
    bits.state = state
    if name == "numpy.random.Generator":
        return np.random.Generator(bits)
    if name != class_of(bits):
        raise ValueError(f"{name} is no generator")
    return bits


def _seed(document: Any) -> Any:
    if document is None:
        return 0
    if document["pool_size"] > _POOL_SIZE_LIMIT:
        raise ValueError(f"a pool of {document['pool_size']} words")
    return np.random.SeedSequence(
        document["entropy"], spawn_key=tuple(document["spawn_key"]),
        pool_size=document["pool_size"], n_children_spawned=document["spawned"],
    )  # fmt: skip


def restore(name: str, live: Any, value: Any) -> None:
    """Gives a live generator the state of a loaded one."""
    is_same = isinstance(value, GENERATOR_TYPES) and kind_of(value) == kind_of(live)
    if not is_same:
        saved = describe(kind_of(value)) if isinstance(value, GENERATOR_TYPES) else (
            f"a {type(value).__qualname__}"
        )  # fmt: skip
        raise CheckpointError(
            f"'{name}' was saved as {saved}, and cannot continue as {describe(kind_of(live))}"
        )
    if isinstance(live, random.Random):
        live.setstate(value.getstate())
        return
    if isinstance(live, np.random.RandomState):
        live.set_state(value.get_state(legacy=False))
    else:
        _bits_of(live).state = _bits_of(value).state
    _restore_children(name, _bits_of(live), _bits_of(value))


def _restore_children(name: str, live: Any, saved: Any) -> None:
    """Has the next `spawn` make the children that would have come next."""
    now, then = getattr(live, "seed_seq", None), getattr(saved, "seed_seq", None)
    if type(then) is not np.random.SeedSequence or not then.n_children_spawned:
        return
    if type(now) is np.random.SeedSequence and _origin(now) == _origin(then):
        now.spawn(max(0, then.n_children_spawned - now.n_children_spawned))
    else:
        log.warning(
            "'%s' was seeded differently when it was saved: what it spawns from now on are other "
            "generators; take the one that load() returns to continue with the same", name,
        )  # fmt: skip


def _origin(seed: Any) -> tuple[Any, ...]:
    entropy = seed.entropy if isinstance(seed.entropy, int) else list(seed.entropy)
    return entropy, tuple(seed.spawn_key), seed.pool_size


METHODS: dict[type, Callable[[Any, Any, str], Any]] = dict.fromkeys(
    (np.random.Generator, np.random.RandomState, random.Random, *_BIT_GENERATORS.values()), _encode
)
TAGS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {"$random": _decode}
