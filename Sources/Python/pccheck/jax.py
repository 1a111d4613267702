"""Checkpoints of JAX pytrees: Flax parameters, optax states, keys, anything that is a tree.

    checkpoints = pccheck.jax.Checkpointer("run.pcc")     # of several processes: a folder, "run/"
    start, state = checkpoints.resume(state)          # the same tree, with what was saved in it
    for step in range(start, steps):
        state = train(state)                          # may donate its buffers
        checkpoints.save(step, state)

``save`` copies the arrays to the host before it returns, so buffers may be donated at once. They
come back with the sharding of the tree that you pass to ``resume``; its leaves may be
``jax.ShapeDtypeStruct``.

A file is for one process, and has full arrays, whatever devices hold them. A folder is for any
number of processes, which ``jax.distributed.initialize`` connects: each of them stores the parts of
arrays that its devices have, and a restart continues from the newest step that is durable on all of
them, on any number of processes and any mesh. spec/GROUP.md has the rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

try:
    import jax
except ImportError as error:
    raise ImportError("pccheck.jax needs the package jax: pip install 'pccheck[jax]'") from error

from ._core.handle import SaveHandle
from ._group.files import names_folder
from ._group.folder import load_folder
from ._group.handle import GroupHandle, GroupOutcome
from ._group.transport import LocalTransport, Transport
from ._jax.arrays import Target, placed
from ._jax.device import CudaDevices, Devices, OnDevice
from ._jax.layout import JaxEncoder, Layout
from ._jax.memory import JaxMemory
from ._jax.transport import JaxTransport, process_count
from ._state.loading import load_file, loading_of
from ._state.memory import ArrayMemory
from ._state.request import Loading
from ._state.stateful import python_and_numpy_random_state, set_python_and_numpy_random_state
from .checkpointer import BaseCheckpointer
from .errors import InvalidArgument
from .group_checkpointer import TIMEOUT_SECONDS, GroupCheckpointer

__all__ = [
    "Checkpointer", "FolderCheckpointer", "GroupHandle", "GroupOutcome", "JaxTransport",
    "LocalTransport", "Transport", "load",
]  # fmt: skip

_TREE = "tree"


class Checkpointer(BaseCheckpointer):
    """Saves a tree, and returns it with the same structure and shardings.

    With the path of a folder, such as ``run/``, it is a ``FolderCheckpointer``.
    """

    _framework = "jax"
    #: The devices whose memory the engine reads itself.
    _devices: Devices = CudaDevices()

    def __new__(
        cls, path: str | os.PathLike[str], *arguments: Any, **options: Any
    ) -> Checkpointer:
        if issubclass(cls, FolderCheckpointer):
            return super().__new__(cls)
        if cls is Checkpointer and names_folder(path):
            return object.__new__(FolderCheckpointer)
        count = process_count()
        if count > 1:
            raise InvalidArgument(
                f"{os.fspath(path)!r} is a file, and the job has {count} processes, each of which "
                "stores a part; give a folder, with a slash at its end, such as 'run/'"
            )
        return super().__new__(cls)

    def save(
        self,
        step: int,
        tree: Any,
        *,
        rng: bool = True,
        metadata: str | Mapping[str, Any] | None = None,
        urgent: bool = False,
    ) -> SaveHandle:
        """Begins a checkpoint of ``tree`` and returns once its arrays are copied.

        The engine copies an array that is on one CUDA device from there into the staging pool.
        Others are copied to memory of the host first.

        With ``rng`` the global generators of ``random`` and NumPy are saved too; JAX's keys are
        leaves. Raises ``TypeError`` with the path of a leaf that cannot be stored, and what
        ``pccheck.Checkpointer.save`` raises.
        """
        self._begin_save()
        state: dict[str, Any] = {
            _TREE: {name: _without_key(leaf) for name, leaf in _leaves(tree).items()}
        }
        if rng:
            state["rng"] = python_and_numpy_random_state()
        state, record = self._divided(state)
        encoder = JaxEncoder()
        encoder.metadata.update(record)
        state[_TREE] = self._readable(state[_TREE], encoder.private)
        document = encoder.encode_text(state)
        # A buffer of a device may be donated as soon as save() returns.
        has_places = any(entry.place is not None for entry in encoder.entries)
        return self._save_state(
            step, encoder, document, metadata, urgent, overlap=False if has_places else None
        )

    def _readable(self, value: Any, private: set[int]) -> Any:
        """A tree with arrays that stay on their device, and copies of the others: what NumPy makes
        of an array on the CPU is a view of a buffer that may be donated. Nobody else has the
        copies, which ``private`` notes."""
        if isinstance(value, dict):
            return {key: self._readable(item, private) for key, item in value.items()}
        if not isinstance(value, jax.Array):
            return value
        on_device = OnDevice.of(self._devices, value)
        if on_device is not None:
            return on_device
        copy = np.array(value)
        private.add(id(copy))
        return copy

    def _divided(self, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """What this process stores of a state, and how that is described."""
        return state, {}

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
            self._memory_of_tree(), {_TREE: _targets(tree, self._target)}, parts=[_TREE],
            optional_parts=["rng"] if rng else [], strict=strict,
        )  # fmt: skip
        found = self._resume_state(loading, step)
        if found is None:
            return 0, tree
        next_step, loaded = found
        if rng and "rng" in loaded:
            set_python_and_numpy_random_state(loaded["rng"])
        return next_step, _filled(tree, loaded.get(_TREE, {}))

    def _memory_of_tree(self) -> ArrayMemory:
        """What fills the targets of a tree."""
        return self._memory

    def _target(self, leaf: Any) -> Any:
        """Memory of the host for the values of an array."""
        return np.empty(leaf.shape, leaf.dtype)


class FolderCheckpointer(GroupCheckpointer, Checkpointer):
    """Saves a tree on all processes of a job, and returns it on any number of them."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        transport: Transport | None = None,
        replicas: Literal["split", "whole"] = "split",
        timeout: float = TIMEOUT_SECONDS,
        **options: Any,
    ) -> None:
        """Prepares the file of this process in the folder ``path``; ``resume`` opens it.

        Accepts the options of ``pccheck.Checkpointer`` except ``rank`` and ``world_size``, which
        JAX knows. ``in_flight`` and ``retain`` are 2 by default.

        - ``transport``: another network in place of the coordination service of JAX.
        - ``replicas``: ``split`` divides what several processes have alike among them, and a
          restart reads the files of other processes for it. With ``whole`` each process stores all
          that it has, for folders that no other machine reads.
        - ``timeout``: how many seconds any call waits for other processes. The error then names
          those that did not come.

        An array with devices of several processes is one array; any other leaf is each process's
        own. The first ``resume``, ``load``, ``save``, ``maybe_save`` or ``is_due`` is
        *collective*: every process makes the same call. So are ``rewind`` and ``close``.
        """
        if transport is None:
            transport = JaxTransport() if process_count() > 1 else LocalTransport()
        self._layout = Layout(transport.rank, transport.world_size, replicas, self._devices)
        self._alike_options = {"replicas": replicas}
        super().__init__(path, transport=transport, timeout=timeout, **options)

    def save(self, step: int, tree: Any, **options: Any) -> GroupHandle:
        """Begins a checkpoint on this process; every process saves the same steps.

        Accepts the options of ``Checkpointer.save``. ``wait()`` on the handle is for this process;
        ``wait_group()`` returns when the checkpoint is durable on all of them. A save that fails
        on one process is void on all of them, and what was durable on all of them stays.
        """
        save = super().save
        urgent = bool(options.get("urgent"))
        return self._save_together(step, urgent, lambda: save(step, tree, **options))

    def maybe_save(self, step: int, tree: Any, **options: Any) -> SaveHandle | None:
        """Saves when the policy asks for it; call it at the end of every step, everywhere."""
        return self._maybe_save(step, lambda: self.save(step, tree, **options))

    def _divided(self, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        division = self._divide(lambda sample: self._layout.divide(state, _TREE, sample=sample))
        return dict(division.parts), division.metadata

    def load(self, step: int | None = None, *, into: Any = None) -> Any:
        """The state of a step by the names of its leaves, with full arrays of the host.

        ``resume`` puts it back into a tree, and reads what this process needs of it.
        """
        return self._load(step, loading_of(JaxMemory(reads_rest=True), into))

    def _memory_of_tree(self) -> ArrayMemory:
        return JaxMemory(reads_rest=False)

    def _target(self, leaf: Any) -> Any:
        return Target(leaf)


def load(path: str | os.PathLike[str], tree: Any, step: int | None = None) -> Any:
    """Returns ``tree`` with the values of a step, or of the newest intact checkpoint.

    The file may be open elsewhere for writing. Of a folder it is the newest checkpoint that is
    durable on all processes; this one takes no part in the job. Leaves of another shape or type
    are an error.
    """
    if names_folder(path):
        wanted = {_TREE: _targets(tree, Target)}
        memory = JaxMemory(reads_rest=False)
        _, loaded = load_folder(path, step, Loading(memory, wanted, parts=[_TREE], strict=True))
        return _filled(tree, loaded[_TREE])
    targets = _targets(tree, lambda leaf: np.empty(leaf.shape, leaf.dtype))
    loading = Loading(ArrayMemory(), {_TREE: targets}, parts=[_TREE], strict=True)
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


def _without_key(leaf: Any) -> Any:
    """A leaf without the types of JAX that are no plain arrays."""
    if isinstance(leaf, jax.Array) and _is_key(leaf):
        return {"key_data": jax.random.key_data(leaf), "impl": _implementation(leaf)}
    return leaf


def _implementation(leaf: Any) -> str:
    return str(jax.random.key_impl(leaf))


def _targets(tree: Any, target: Callable[[Any], Any]) -> dict[str, Any]:
    """Memory to load into, of the types and shapes that the tree has."""
    return {name: _target_of(leaf, target) for name, leaf in _leaves(tree).items()}


def _target_of(leaf: Any, target: Callable[[Any], Any]) -> Any:
    if _is_key(leaf):
        if not isinstance(leaf, jax.Array):
            raise InvalidArgument("a tree to load into has keys as they are, not as their types")
        return {"key_data": target(jax.random.key_data(leaf)), "impl": _implementation(leaf)}
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return target(leaf)
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
        data = _placed(name, jax.random.key_data(leaf), value["key_data"])
        return jax.random.wrap_key_data(data, impl=value["impl"])
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return value
    return value.array(leaf) if isinstance(value, Target) else placed(value, leaf)
