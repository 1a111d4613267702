"""Stock storage of DCP and PCcheck's behind one face, so that one scenario runs over both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from pccheck.dcp import StorageReader, StorageWriter


class Storage:
    """Saves and loads steps in a directory."""

    def __init__(
        self, directory: str, kind: str, place: str = "run.pcc", **options: Any
    ) -> None:
        """``place`` is what PCcheck writes, ``options`` are those of its writer."""
        self.kind = kind
        self._path = os.path.join(directory, place)
        self._directory = directory
        self._options = {"retain": 3, **options}
        self._writer: Any = None

    def writer(self, step: int, kind: type[Any] | None = None, **options: Any) -> Any:
        """A writer; ``kind`` makes one of its class another one."""
        if self.kind == "stock":
            options.setdefault("overwrite", True)
            return (kind or dcp.FileSystemWriter)(self._stock(step), **options)
        if kind is not None:
            return kind(self._path, **self._options)
        if self._writer is None:
            self._writer = StorageWriter(self._path, **self._options)
        return self._writer

    def reader(self, step: int, kind: type[Any] | None = None) -> Any:
        """A reader of a step."""
        if self.kind == "stock":
            return (kind or dcp.FileSystemReader)(self._stock(step))
        return (kind or StorageReader)(self._path, step)

    def save(self, state: Any, step: int, writer: Any = None, **options: Any) -> Any:
        """Saves and waits."""
        writer = writer or self.writer(step)
        return dcp.save(
            state, checkpoint_id=self.checkpoint_id(step), storage_writer=writer, **options
        )

    def start(self, state: Any, step: int, **options: Any) -> Any:
        """Saves in the background."""
        return dcp.async_save(
            state, checkpoint_id=self.checkpoint_id(step), storage_writer=self.writer(step),
            **options,
        )  # fmt: skip

    def load(self, state: Any, step: int, reader: Any = None, **options: Any) -> None:
        """Loads into a state."""
        dcp.load(state, storage_reader=reader or self.reader(step), **options)

    def close(self) -> None:
        """Lets others write."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def checkpoint_id(self, step: int) -> Any:
        """What DCP is given for a step."""
        return self._stock(step) if self.kind == "stock" else step

    def classes(self) -> tuple[type[Any], type[Any]]:
        """The writer and the reader, to be derived from."""
        if self.kind == "stock":
            return dcp.FileSystemWriter, dcp.FileSystemReader
        return StorageWriter, StorageReader

    def _stock(self, step: int) -> str:
        return os.path.join(self._directory, f"step{step}")


def storage_of(directory: str, **options: Any) -> Storage:
    """The storage that the environment names."""
    warnings.simplefilter("ignore")
    return Storage(directory, os.environ["DCP_STORAGE"], "run/", **options)


def failing(
    base: type[Any], method: str, is_failing: bool, error: Callable[[], BaseException]
) -> type[Any]:
    """A class of storage one method of which fails on some ranks, as long as it is armed."""

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        if is_failing and self.is_armed:
            raise error()
        return getattr(base, method)(self, *arguments, **options)

    return type(f"Failing{base.__name__}", (base,), {method: fail, "is_armed": True})


def failures_of(call: Callable[[], object]) -> dict[int, BaseException]:
    """The errors by rank with which DCP ends a call; none when it ends well."""
    try:
        call()
    except CheckpointException as error:
        return {rank: failure[0] for rank, failure in error.failures.items()}
    return {}
