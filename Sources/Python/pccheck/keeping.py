"""What stays: copies of checkpoints that the file itself would overwrite."""

from __future__ import annotations

import json
import logging
import math
import operator
import os
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ._core.handle import SaveHandle
from ._files.copies import Copies, KeepHandle
from ._files.keep_record import Entry, Record
from ._files.owner import FileOwner
from ._files.place import usable_path
from .errors import Busy, InvalidArgument, NoCheckpoint

__all__ = ["Keep", "KeepHandle"]

log = logging.getLogger("pccheck")

_PATIENCE_SECONDS = 300.0
_SUFFIXES = (".pcc", ".safetensors")


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay, each copied to a file of its own in the background.

        keep = Keep(every=1000, best=3, by="loss")
        with pcc.Checkpointer("run.pcc", keep=keep) as ckpt:
            ckpt.save(step, model=model, metadata={"loss": loss})

    ``every`` keeps the first checkpoint at or after each multiple of so many steps, for good.
    ``best`` keeps that many checkpoints of the lowest value (``mode="max"``: the highest) of
    ``by`` in the ``metadata`` of their save; when a better one is durable in its file, the worst
    is removed. A value that is not finite is never among the best, and of two equal ones the
    earlier stays.

    The files are named ``step-000001000.pcc``, or ``.safetensors`` with that ``suffix``. They are
    in ``folder``, by default ``run-kept`` beside ``run.pcc``, with a list of them, ``kept.json``.
    Only files of that list, unchanged since, are ever removed or replaced. A failure is logged and
    ends nothing. ``close`` waits for copies for at most ``patience`` seconds.
    """

    every: int | None = None
    best: int | None = None
    by: str | None = None
    mode: Literal["min", "max"] = "min"
    folder: str | os.PathLike[str] | None = None
    suffix: str = ".pcc"
    patience: float = _PATIENCE_SECONDS

    def __post_init__(self) -> None:
        if self.every is None and self.best is None:
            raise InvalidArgument("Keep keeps nothing; give every=, or best= with by=")
        for name in ("every", "best"):
            number = getattr(self, name)
            if number is not None and operator.index(number) < 1:
                raise InvalidArgument(f"{name} is {number}; it must be at least 1")
        if (self.best is None) != (self.by is None):
            raise InvalidArgument("best and by go together, such as best=3, by='loss'")
        if self.mode not in ("min", "max"):
            raise InvalidArgument(f"mode is {self.mode!r}; give 'min' or 'max'")
        if self.suffix not in _SUFFIXES:
            raise InvalidArgument(f"suffix is {self.suffix!r}; give one of {_SUFFIXES}")


def note_text(metadata: str | Mapping[str, Any] | None) -> str | None:
    """The note that a slot header keeps: a text, or values by name as JSON."""
    if metadata is None or isinstance(metadata, str):
        return metadata

    def plain(value: Any) -> Any:
        found = _plain(value)
        if found is value:
            raise TypeError(
                f"metadata holds a {type(value).__qualname__}; give texts, numbers, and nests of "
                "them"
            )
        return found

    return json.dumps(dict(metadata), default=plain)


def _plain(value: Any) -> Any:
    """The number in a scalar of NumPy, torch or JAX; anything else as it is."""
    is_scalar = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if is_scalar else value


class Keeper:
    """Makes the copies that ``keep`` requests, and those that a `Keep` wants."""

    def __init__(
        self,
        source: str,
        fingerprint: bytes | None,
        allow_network: bool,
        keep: Keep | None,
        in_flight: int,
    ) -> None:
        self._copies = Copies(source, fingerprint, allow_network)
        self._keep = keep
        # Each copy holds a slot, and training needs one to write to.
        self._copy_limit = max(1, in_flight - 1)
        self._patience = _PATIENCE_SECONDS if keep is None else keep.patience
        self._record: Record | None = None
        self._last_bucket: int | None = None
        self._tried: set[int] = set()
        self._is_told = False
        if keep is not None:
            self._record = Record(_folder(keep, source), keep.best, keep.mode)
        self._finalizer = weakref.finalize(self, _close, self._copies, self._patience)

    def begin(
        self, step: int, path: str | os.PathLike[str], save: SaveHandle | None, replace: bool
    ) -> KeepHandle:
        """Begins a requested copy."""
        handle = self._copies.begin(step, usable_path(path), save=save, replace=replace)
        if save is None:
            self._copies.pin()
        return handle

    def before_save(self, loaded_step: int | None) -> None:
        """Called before each save; ``loaded_step`` is where this process continued from."""
        self._copies.pin()
        every = None if self._keep is None else self._keep.every
        if every is not None and self._last_bucket is None and loaded_step is not None:
            self._last_bucket = loaded_step // every

    def saved(self, save: SaveHandle, metadata: str | Mapping[str, Any] | None) -> None:
        """Called after each save: begins a copy of what is to stay."""
        record = self._record
        if record is None or save.state == "skipped":
            return
        reasons, value = [], self._value(save.step, metadata)
        if self._is_milestone(save.step):
            reasons.append("every")
        if value is not None and record.would_be_best(save.step, value):
            reasons.append("best")
        if not reasons:
            return
        busy = self._copies.active
        if len(busy) >= self._copy_limit:
            log.warning(
                "step %d is not kept, as the copy of step %d is still under way; save less often, "
                "or create the file with more slots in flight", save.step, busy[0].step,
            )  # fmt: skip
            return
        self._begin(record, save, value, reasons)

    def _begin(
        self, record: Record, save: SaveHandle, value: float | None, reasons: list[str]
    ) -> None:
        assert self._keep is not None
        every = self._keep.every
        bucket = None if every is None else save.step // every
        if bucket is not None and "every" in reasons:
            self._tried.add(bucket)
        name = f"step-{save.step:09d}{self._keep.suffix}"
        entry = Entry(name, save.step, value, reasons)
        if not record.expect(entry):
            return

        def ended(handle: KeepHandle) -> None:
            record.forget(entry)
            if isinstance(handle._error, (Busy, NoCheckpoint)) and bucket is not None:
                # The next step of the same thousand may have more luck.
                self._tried.discard(bucket)

        self._copies.begin(
            save.step, os.path.join(record.folder, name), save=save, replace=record.owns(name),
            before=partial(record.begin, entry), after=partial(record.finish, entry), ended=ended,
        )  # fmt: skip

    def _is_milestone(self, step: int) -> bool:
        """Whether it is the first one saved at or after a multiple of ``every`` steps."""
        assert self._keep is not None and self._record is not None
        every = self._keep.every
        if every is None:
            return False
        bucket, previous = step // every, self._last_bucket
        self._last_bucket = bucket
        if previous is not None and bucket != previous:
            self._tried.discard(bucket)
        elif self._record.has_milestone(bucket * every, (bucket + 1) * every):
            return False
        return bucket > 0 and bucket not in self._tried

    def _value(self, step: int, metadata: str | Mapping[str, Any] | None) -> float | None:
        """What ``best`` goes by; None for a checkpoint that is not to be compared."""
        assert self._keep is not None
        by = self._keep.by
        if by is None:
            return None
        value = metadata.get(by) if isinstance(metadata, Mapping) else None
        try:
            number = float(_plain(value))
        except (TypeError, ValueError, OverflowError):
            if not self._is_told:
                self._is_told = True
                log.warning(
                    "step %d has no number %r in its metadata, and is not among the best; save "
                    "with metadata={%r: …}", step, by, by,
                )  # fmt: skip
            return None
        if math.isfinite(number):
            return number
        log.warning("step %d has a %s of %s, and is not among the best", step, by, number)
        return None

    def hurry(self) -> None:
        """The process is about to end: `close` cancels the copies under way."""
        self._finalizer.detach()
        self._patience = 0.0
        self._finalizer = weakref.finalize(self, _close, self._copies, 0.0)

    def close(self) -> None:
        """Waits for the copies under way, with a bound; a second call does nothing."""
        self._finalizer.detach()
        self._copies.close(self._patience)


class KeepsCheckpoints(FileOwner):
    """An owner of a file who also copies checkpoints to files of their own."""

    _keeper: Keeper

    def keep(
        self, step: int, path: str | os.PathLike[str], *, replace: bool = False
    ) -> KeepHandle:
        """Begins a verified copy of the newest checkpoint of ``step``, which may be in flight.

        The copy is made in the background while training continues: a checkpoint file of its own,
        or with the suffix ``.safetensors`` the tensors. It appears under its name when it is
        complete and durable; with ``replace`` it replaces a file there. Its slot is
        pinned meanwhile. A failure is logged, and is the handle's ``error``.
        """
        self._check_open()
        step = operator.index(step)
        save = None
        with self._open_lock:
            if self._engine is not None:
                self._engine.check_open()
                save = self._engine.in_flight(step)
        return self._keeper.begin(step, path, save, replace)


def _folder(keep: Keep, source: str) -> str:
    """Where the files go: beside the run's, unless that is a device."""
    if keep.folder is not None:
        return os.path.abspath(os.fsdecode(keep.folder))
    if os.path.exists(source) and stat.S_ISBLK(os.stat(source).st_mode):
        raise InvalidArgument(
            f"{source} is a block device, and nothing is kept beside it; give Keep(folder=…)"
        )
    return os.path.splitext(source)[0] + "-kept"


def _close(copies: Copies, patience: float) -> None:
    copies.close(patience)
