"""Checkpoints of JAX pytrees: Flax parameters, optax states, keys, anything that is a tree.

    checkpoints = pccheck.jax.Checkpointer("run.pcc")
    start, state = checkpoints.resume(state)          # the same tree, with what was saved in it
    for step in range(start, steps):
        state = train(state)                          # may donate its buffers
        checkpoints.save(step, state)

``save`` copies the arrays to the host before it returns, so buffers may be donated at once. It
stores full arrays, whatever devices hold them. They come back with the sharding of the tree that
you pass to ``resume``; its leaves may be ``jax.ShapeDtypeStruct``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    import jax
except ImportError as error:
    raise ImportError("pccheck.jax needs the package jax: pip install 'pccheck[jax]'") from error

from ._core.handle import SaveHandle
from ._state.encoder import Encoder
from ._state.loading import load_file
from ._state.memory import ArrayMemory
from ._state.request import Loading
from ._state.stateful import python_and_numpy_random_state, set_python_and_numpy_random_state
from .checkpointer import BaseCheckpointer
from .errors import InvalidArgument

__all__ = ["Checkpointer", "load"]

_TREE = "tree"


class Checkpointer(BaseCheckpointer):
    """Saves a tree, and returns it with the same structure and shardings. For one process."""

    _framework = "jax"

    def save(
        self,
        step: int,
        tree: Any,
        *,
        rng: bool = True,
        metadata: str | Mapping[str, Any] | None = None,
        urgent: bool = False,
    ) -> SaveHandle:
        """Begins a checkpoint of ``tree`` and returns once its arrays are copied to the host.

        With ``rng`` the global generators of ``random`` and NumPy are saved too; JAX's keys are
        leaves. Raises ``TypeError`` with the path of a leaf that cannot be stored, and what
        ``pccheck.Checkpointer.save`` raises.
        """
        self._begin_save()
        leaves = _leaves(tree)
        stored = {name: _stored(name, leaf) for name, leaf in leaves.items()}
        state: dict[str, Any] = {_TREE: stored}
        if rng:
            state["rng"] = python_and_numpy_random_state()
        encoder = Encoder()
        # What came from a device is a copy already.
        encoder.private = {id(stored[name]) for name in leaves if stored[name] is not leaves[name]}
        return self._save_state(step, encoder, encoder.encode_state(state), metadata, urgent)

    def maybe_save(self, step: int, tree: Any, **options: Any) -> SaveHandle | None:
        """Saves when the policy asks for it; call it at the end of every step."""
        return self.save(step, tree, **options) if self.is_due(step) else None

    def resume(
        self, tree: Any, *, step: int | None = None, rng: bool = True, strict: bool = True
    ) -> tuple[int, Any]:
        """Returns the next step, and ``tree`` with the values of the newest intact checkpoint.

        A new file returns ``(0, tree)``. ``step`` resumes from one checkpoint in particular.
        PCcheck passes over a damaged checkpoint and logs why. Leaves that the checkpoint lacks, or
        has with another shape or type, raise a ``StateMismatch`` that lists them all. With
        ``strict=False`` PCcheck loads what fits and leaves the rest alone; ``resume_report`` lists
        both. It does not read what the tree does not have.
        """
        loading = Loading(
            self._memory, {_TREE: _targets(tree)}, parts=[_TREE],
            optional_parts=["rng"] if rng else [], strict=strict,
        )  # fmt: skip
        found = self._resume_state(loading, step)
        if found is None:
            return 0, tree
        next_step, loaded = found
        if rng and "rng" in loaded:
            set_python_and_numpy_random_state(loaded["rng"])
        return next_step, _filled(tree, loaded.get(_TREE, {}))


def load(path: str | os.PathLike[str], tree: Any, step: int | None = None) -> Any:
    """Returns ``tree`` with the values of a step, or of the newest intact checkpoint.

    The file may be open elsewhere for writing. Leaves of another shape or type are an error.
    """
    loading = Loading(ArrayMemory(), {_TREE: _targets(tree)}, parts=[_TREE], strict=True)
    _, loaded = load_file(path, step, loading)
    return _filled(tree, loaded[_TREE])


def _leaves(tree: Any) -> dict[str, Any]:
    """Every leaf under the name of its path, such as ``params.Dense_0.kernel``."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in found:
            raise InvalidArgument(
                f"two leaves of the tree have the name '{name}': a key has a dot in it; rename one"
            )
        found[name] = leaf
    return found


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(name: str, leaf: Any) -> Any:
    """A leaf as it is stored: an array of a device becomes one of the host."""
    if not isinstance(leaf, jax.Array):
        return leaf
    if not leaf.is_fully_addressable:
        raise InvalidArgument(
            f"'{name}' is spread over several processes; PCcheck saves arrays of one process: "
            "gather it with jax.experimental.multihost_utils.process_allgather"
        )
    if _is_key(leaf):
        return {"key_data": np.array(jax.random.key_data(leaf)), "impl": _implementation(leaf)}
    # A copy: what NumPy makes of an array on the CPU is a view of a buffer that may be donated.
    return np.array(leaf)


def _implementation(leaf: Any) -> str:
    return str(jax.random.key_impl(leaf))


def _targets(tree: Any) -> dict[str, Any]:
    """Memory to load into, of the types and shapes that the tree has."""
    return {name: _target(leaf) for name, leaf in _leaves(tree).items()}


def _target(leaf: Any) -> Any:
    if _is_key(leaf):
        if not isinstance(leaf, jax.Array):
            raise InvalidArgument("a tree to load into has keys as they are, not as their types")
        data = jax.random.key_data(leaf)
        return {"key_data": np.empty(data.shape, data.dtype), "impl": _implementation(leaf)}
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return np.empty(leaf.shape, leaf.dtype)
    return np.empty_like(leaf) if isinstance(leaf, np.ndarray) else leaf


def _filled(tree: Any, loaded: dict[str, Any]) -> Any:
    """The tree with the loaded values, on the devices of its leaves."""
    leaves = _leaves(tree)
    values = [
        _placed(name, leaf, loaded[name]) if name in loaded else leaf
        for name, leaf in leaves.items()
    ]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(tree), values)


def _placed(name: str, leaf: Any, value: Any) -> Any:
    if _is_key(leaf):
        if value["impl"] != _implementation(leaf):
            raise InvalidArgument(
                f"'{name}' was saved as a key of {value['impl']}, and the tree has one of "
                f"{_implementation(leaf)}; make the key with jax.random.key(…, impl=…)"
            )
        return jax.device_put(
            jax.random.wrap_key_data(value["key_data"], impl=value["impl"]), leaf.sharding
        )
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return jax.device_put(value, leaf.sharding)
    return value
