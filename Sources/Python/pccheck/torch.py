"""Checkpoints of PyTorch training: modules, optimizers, schedulers, loaders, random generators.

    ckpt = pccheck.torch.Checkpointer("run.pcc", in_flight=2)
    start = ckpt.resume(model=model, optimizer=optimizer, scheduler=scheduler)
    for step in range(start, steps):
        train(step)
        if step % 10 == 0:
            ckpt.save(step, model=model, optimizer=optimizer, scheduler=scheduler)
    ckpt.close()

What may change while a save is being staged: nothing that only ``optimizer.step()`` changes.
Parameters and optimizer state are read in place, and every optimizer of the process waits, before
its step, until they are staged; averages and schedule-free optimizers that are saved do so before
they swap weights (see ``_torch.saving.waiting``). The same tensors out of a ``state_dict()`` are
recognised. All others (buffers, plain state) are copied into the pool before ``save`` returns.
Tensors on a CUDA device are read there. Nobody waits for them but the stream that would change
them: see ``_torch.device``.
Call ``wait_staged()`` before you change parameters in another way.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ._core.arguments import save_options, step_number
from ._core.engine import Pin, refuse_reentry
from ._core.handle import SaveHandle
from ._core.reader import CheckpointInfo, Reader, is_rejection
from ._core.saver import changes_nothing
from ._group.assembled import load_assembled
from ._group.assembly import Assembly
from ._group.division import Division
from ._state.loading import load_parts, load_with
from ._state.nesting import endless
from ._state.request import Loading
from ._state.stateful import stateful_objects
from ._torch.copies import Arenas, Copies
from ._torch.device import CudaDevices, Devices
from ._torch.loading.assembled import AssembledMemory
from ._torch.loading.decoder import TorchDecoder, TorchMemory
from ._torch.loading.lazy import LazyTensor, load_lazily
from ._torch.loading.restoring import TorchRestorer
from ._torch.objects import objects_metadata
from ._torch.parts import (
    CollectionPutOff,
    collect_parts,
    in_place_storages,
    random_state,
    set_random_state,
)
from ._torch.pinning import pin_for_cuda, pin_where_possible
from ._torch.room import room_for_optimizers
from ._torch.saving.encoder import TorchEncoder
from ._torch.saving.live import known, note
from ._torch.saving.plan import Plan
from ._torch.saving.waiting import before_change, wait_before_replays, wait_before_swaps
from ._torch.sharded import LocalShard, Sharding
from ._torch.trainable import Trainable, trainable
from .checkpointer import BaseCheckpointer, checkpoints
from .errors import Busy, CheckpointError, InvalidArgument, NoCheckpoint

__all__ = [
    "Checkpointer", "LazyTensor", "LocalShard", "Sharding", "TorchDecoder", "TorchEncoder",
    "TorchMemory", "Trainable", "load", "load_full", "load_into", "load_tensor", "pin_for_cuda",
    "trainable",
]  # fmt: skip

log = logging.getLogger("pccheck")
changes_nothing(__file__)

# How often the files of a run are looked at again because their writers took a step meanwhile.
_LOAD_FULL_ATTEMPT_COUNT = 256


class Checkpointer(BaseCheckpointer):
    """Saves named parts of a training run, and puts them back where they were."""

    _framework = "pt"
    _memory = TorchMemory()
    #: The devices whose memory the engine reads itself.
    _devices: Devices = CudaDevices()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Accepts the options of ``pccheck.Checkpointer``.

        The first save sizes the file. It leaves room for the state that the optimizers will hold
        for parameters that they have not stepped yet: two moments for the Adam family, a third
        with ``amsgrad``, the history of ``LBFGS``. The file grows when averages and other parts
        come later.

        ``pin=True`` registers the staging pool with CUDA, or raises. ``pin="auto"`` registers it
        where CUDA is available and able to, and otherwise continues with a line in the log. A
        callable is used as in ``pccheck.Checkpointer``.
        """
        # The plan is for one save at a time.
        self._save_lock = threading.RLock()
        self._plan = Plan()
        self._arenas = Arenas()
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        super().__init__(*arguments, **options)
        # Optimizers wait, before a step, until what they change is staged.
        self._hook = register_optimizer_step_pre_hook(_before_step)
        if torch.cuda.is_available():
            wait_before_replays()
        # Where nobody calls close().
        weakref.finalize(self, self._hook.remove)

    def save(
        self,
        step: int,
        *,
        rng: bool = True,
        metadata: str | Mapping[str, Any] | None = None,
        urgent: bool = False,
        overlap: bool = True,
        **state: Any,
    ) -> SaveHandle:
        """Begins a checkpoint of the parts given by name.

        A part is a module, an optimizer, anything else with ``state_dict()`` and
        ``load_state_dict()``, a ``torch.Generator``, or a nest of containers, scalars, tensors and
        arrays. With ``rng`` the global generators of ``random``, NumPy and torch are saved too.
        ``metadata`` is a short note kept in the slot header: a text, or values by name such as
        ``{"loss": 0.5}``, stored as JSON. With ``urgent`` the engine copies and writes it before
        everything else in flight, once it has a slot; it waits for one whatever ``on_busy`` is.

        The engine reads the tensors of modules and optimizers, also out of their
        ``state_dict()``, in place while training continues. A step of a torch optimizer waits.
        Any other change that torch counts before the tensor is staged fails that checkpoint with
        ``StateChanged``. Buffers, plain tensors and arrays are in the pool when ``save`` returns,
        and may change. ``overlap=False`` returns once everything is staged.

        Raises ``TypeError`` with the key of what cannot be stored, ``TooLarge``,
        ``StepBackwards``, ``Busy``, ``Closed``.
        """
        refuse_reentry(self, self._path)
        self._check_open()
        # Until what describes the state is gone again.
        with self._save_lock, CollectionPutOff(self._plan.tensor_count):
            return self._save(step, rng, metadata, urgent, overlap, state)

    def _adopt(self) -> None:
        super()._adopt()
        # A thread that exists only in the parent may hold the old one.
        self._save_lock = threading.RLock()

    def _save(
        self, step: int, rng: bool, metadata: str | Mapping[str, Any] | None, urgent: bool,
        overlap: bool, state: dict[str, Any],
    ) -> SaveHandle:
        save_options(state, metadata, rng=rng, urgent=urgent, overlap=overlap)
        # Whatever was staged meanwhile returns its memory.
        self._begin_save()
        try:
            parts = {name: collect_parts(value) for name, value in state.items()}
            objects = list(stateful_objects(state))
        except RecursionError:
            raise endless(state) from None
        if rng:
            parts["rng"] = random_state()
        wait_before_swaps(objects)
        note(objects)
        in_place = in_place_storages(known(objects))
        record = objects_metadata(state)
        division, share = self._divided(state, parts), 1.0
        if division is not None:
            parts, share = division.parts, division.share
            record = {**record, **division.metadata}
        return self._save_parts(
            step, parts, in_place, metadata, urgent,
            lambda: math.ceil(room_for_optimizers(objects) * share), overlap, record,
        )  # fmt: skip

    def _divided(self, state: dict[str, Any], parts: dict[str, Any]) -> Division | None:
        """What this rank stores of the collected parts; None for all of them as they are."""
        return None

    def _save_parts(
        self,
        step: int,
        parts: dict[str, Any],
        in_place: set[int],
        metadata: str | Mapping[str, Any] | None = None,
        urgent: bool = False,
        room: Callable[[], int] = lambda: 0,
        overlap: bool = True,
        record: dict[str, str] | None = None,
    ) -> SaveHandle:
        """Begins a checkpoint of a state that holds no objects; after ``_begin_save``.

        Tensors whose storage is in ``in_place`` are read where they are until they are staged.
        ``record`` says what the state was taken out of.
        """
        # In debug mode the entries outlive the call, and cannot be used again.
        plan = None if self._engine_options.is_debugging else self._plan
        encoder = TorchEncoder(in_place, plan, self._devices, Copies(self._arenas))
        encoder.metadata.update(record or {})
        try:
            document = encoder.encode_text(parts)
            return self._save_state(
                step, encoder, document, metadata, urgent, room,
                overlap=None if overlap else False,
                guard=encoder.guard() if overlap else None,
            )  # fmt: skip
        finally:
            self._plan.release()

    def maybe_save(self, step: int, **state: Any) -> SaveHandle | None:
        """Saves when the policy asks for it, with the arguments of ``save``.

        Call it at the end of every step. A step that is not due costs nothing: nobody looks at the
        state.
        """
        return self.save(step, **state) if self.is_due(step) else None

    def resume(
        self,
        *,
        step: int | None = None,
        rng: bool = True,
        strict: bool = True,
        map_location: str | torch.device | None = None,
        **state: Any,
    ) -> int:
        """Restores the parts from the newest intact checkpoint; returns the next step.

        A new file returns 0 and leaves the parts alone. ``step`` resumes from one checkpoint in
        particular; ``NoCheckpoint`` when the file does not hold it any more. PCcheck passes over
        a damaged checkpoint and logs why. It does not read parts that you do not pass.

        PCcheck compares the checkpoint with the parts before it reads a tensor. Whatever is
        missing, unexpected, or of another shape, class or type raises a ``StateMismatch`` that
        lists all of it. Optimizer state is matched by the names of parameters, so pass the model
        with it; prefixes of wrappers such as ``torch.compile`` make no difference. With
        ``strict=False`` PCcheck loads what fits and leaves the rest alone; ``resume_report`` and
        the log list both. A module that changes its keys while it loads (by hooks, or a
        ``load_state_dict`` of its own) still does so.

        Tensors of modules and optimizers are filled in place: straight from the file when they
        are on the CPU, dense and of the stored type, else through a buffer of 64 MiB. Parameters
        and buffers on the meta device get memory first, on ``map_location``; make the optimizer
        afterwards. An optimizer without state adopts the loaded one. Nothing is held twice. After
        any error but a mismatch the parts hold unspecified values: load another checkpoint, or
        initialize them again.
        """
        loading = Loading(
            self._filled_memory(map_location), state, parts=list(state),
            optional_parts=["rng"] if rng else [], strict=strict,
        )  # fmt: skip
        found = self._resume_state(loading, step)
        if found is None:
            return 0
        next_step, loaded = found
        note(stateful_objects(state))
        with loading.explained():
            TorchRestorer(strict).restore_parts(state, loaded, loading.report)
        if rng and "rng" in loaded:
            set_random_state(loaded["rng"])
        return next_step

    def load(
        self,
        step: int | None = None,
        *,
        into: Any = None,
        map_location: str | torch.device | None = None,
    ) -> Any:
        """Returns the state of a step, or the newest intact one; every byte is verified.

        As in ``pccheck.Checkpointer.load``; tensors that are not filled in place go to the device
        ``map_location``, ``meta`` for only their types and shapes.
        """
        if into is None:
            return self._load(step, Loading(self._memory_on(device_of(map_location))))
        return self._load(step, Loading(self._filled_memory(map_location), into))

    def _filled_memory(self, map_location: str | torch.device | None) -> TorchMemory:
        """For a load that fills live parts."""
        return self._memory_on(filled_device_of(map_location))

    def _memory_on(self, device: torch.device | None) -> TorchMemory:
        """What knows the tensors of a load."""
        return TorchMemory(device)

    def close(self) -> None:
        """Waits until the last checkpoint is durable and closes the file."""
        try:
            super().close()
        finally:
            if self._hook is not None:
                self._hook.remove()
                self._hook = None

    def _pinning(self, pin: bool | str | Pin | None) -> Pin | None:
        if pin is True:
            return pin_for_cuda
        if pin == "auto":
            return pin_where_possible if torch.cuda.is_available() else None
        if isinstance(pin, str):
            raise InvalidArgument(f"pin is {pin!r}; give True, False, 'auto' or a callable")
        return super()._pinning(pin)


def _before_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    note([optimizer])
    before_change()


def load(
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    into: Any = None,
    map_location: str | torch.device | None = None,
    lazy: bool = False,
) -> Any:
    """The state in a file that may be open elsewhere for writing; takes no writer lock.

    ``into`` is a nest like the one that was saved, of modules, optimizers, tensors and arrays,
    which are filled in place where they fit: see ``pccheck.Checkpointer.load``. The other tensors
    go to the device ``map_location``; on ``meta`` they have types and shapes, and no byte of them
    is read.

    With ``lazy=True`` every tensor is a ``LazyTensor``, which reads all or some of its rows on
    request. The checkpoint stays pinned in the file while one of them lives.
    """
    if lazy:
        if into is not None:
            raise InvalidArgument("lazy=True reads nothing, so it has no use for into=")
        return load_lazily(path, step, device_of(map_location))
    device = (device_of if into is None else filled_device_of)(map_location)
    return load_with(TorchMemory(device), path, step, into)


def load_into(
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    strict: bool = True,
    map_location: str | torch.device | None = None,
    **parts: Any,
) -> CheckpointInfo:
    """Fills some parts of a run, for inference or evaluation; takes no writer lock.

        model = Model()
        info = pccheck.torch.load_into("run.pcc", model=model)

    Name the parts as they were saved. PCcheck reads only what they need, from the newest intact
    checkpoint or that of ``step``, also while a writer is running. Whatever is missing,
    unexpected, or of another shape or type raises a ``StateMismatch`` before anything changes;
    with ``strict=False`` PCcheck loads what fits and the log lists the rest. Random generators
    stay as they are. Returns the checkpoint that was loaded.
    """
    memory = TorchMemory(filled_device_of(map_location))
    return load_parts(memory, TorchRestorer(strict), path, step, strict, parts)


def load_full(paths: Sequence[str | os.PathLike[str]], step: int | None = None) -> Any:
    """Joins what is divided among the files of all ranks to full tensors.

    Loads ``step``, or the newest step that every file holds, to the CPU. What each rank stored for
    itself comes from the first file. Raises ``IncompleteShards`` when none of the files holds an
    element.
    """
    if not paths:
        raise InvalidArgument("no files were given; name those of all ranks")
    if step is not None:
        return _joined(paths, step_number(step))
    rejected: dict[int, CheckpointError] = {}
    failure: CheckpointError | None = None
    for _ in range(_LOAD_FULL_ATTEMPT_COUNT):
        newest = _newest_common_step(paths, rejected)
        try:
            return _joined(paths, newest)
        except (Busy, NoCheckpoint) as error:
            # A writer has taken it for a newer one.
            failure = error
        except CheckpointError as error:
            if not is_rejection(error):
                raise
            rejected[newest] = error
            log.warning("step %d cannot be used: %s; trying an older one", newest, error)
    assert failure is not None
    raise failure


def _joined(paths: Sequence[str | os.PathLike[str]], step: int) -> Any:
    """The state of one step out of the files of all ranks."""
    with ExitStack() as stack:
        readers: dict[int, Reader] = {}
        names: dict[int, str] = {}
        for path in paths:
            reader = stack.enter_context(Reader(path))
            reader.select_newest(step)
            candidates = itertools.chain([reader.report()["rank"]], itertools.count())
            rank = next(number for number in candidates if number not in readers)
            readers[rank], names[rank] = reader, os.fspath(path)
        world = max(*(reader.report()["world_size"] for reader in readers.values()), *readers)
        assembly = Assembly(readers, world, None, names, first_parts=None)
        return load_assembled(assembly, Loading(AssembledMemory()))


def _newest_common_step(
    paths: Sequence[str | os.PathLike[str]], rejected: dict[int, CheckpointError]
) -> int:
    """Of the checkpoints that every file holds the one that was begun last."""
    held = [[info.step for info in checkpoints(path)] for path in paths]
    common = [step for step in held[0] if all(step in steps for steps in held)]
    for step in common:
        if step not in rejected:
            return step
    if rejected:
        raise next(iter(rejected.values()))
    found = "; ".join(
        f"{os.fspath(path)}: {', '.join(map(str, steps)) or 'none'}"
        for path, steps in zip(paths, held, strict=True)
    )
    raise NoCheckpoint(f"no step is in the files of all ranks ({found})")


def filled_device_of(map_location: str | torch.device | None) -> torch.device | None:
    """The device for a load that fills live parts: what goes to ``meta`` would have no values."""
    device = device_of(map_location)
    if device is not None and device.type == "meta":
        raise InvalidArgument(
            "map_location is 'meta', where tensors have no values to fill live parts with; give "
            "a device that has memory, or take types and shapes from load(map_location='meta')"
        )
    return device


def device_of(map_location: str | torch.device | None) -> torch.device | None:
    """The requested device; None for the CPU."""
    if map_location is None:
        return None
    if not isinstance(map_location, (str, torch.device)):
        raise InvalidArgument(
            f"map_location is a {type(map_location).__qualname__}; give a device, such as 'cuda:0':"
            " a checkpoint does not say on which devices its tensors were"
        )
    device = torch.device(map_location)
    return None if device.type == "cpu" else device


def load_tensor(
    path: str | os.PathLike[str],
    name: str,
    step: int | None = None,
    *,
    into: torch.Tensor | None = None,
) -> Any:
    """One tensor by its name, such as ``model.layers.0.weight``; reads only its chunks.

    The tensor ``into`` is filled and returned when it has the stored type and shape and is dense
    and on the CPU; else a new one is returned.
    """
    return load_with(TorchMemory(), path, step, into, name)
