"""Ways to save a state, ours and others, behind one small interface.

The modules that a peer needs are imported when it is made, ahead of the first measurement.
*Staged* means that the caller may change its state again, *durable* that a power cut does not
take the checkpoint away. Where a peer does not flush what it wrote, the flush is added here and
counts: it is part of a durable save.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

State = dict[str, torch.Tensor]


class Save:
    """One save under way."""

    def __init__(
        self, staged: Callable[[], object] | None, durable: Callable[[], object] | None
    ) -> None:
        self._staged = staged
        self._durable = durable

    def wait_staged(self) -> None:
        """Returns when the state may be changed."""
        if self._staged is not None:
            self._staged()

    def wait_durable(self) -> bool:
        """Returns when the checkpoint has ended; False when it did not become durable."""
        return self._durable is None or self._durable() is not False


class Peer:
    """One way to save. Every save but ours goes to a new name; older ones are removed."""

    #: Modules that it imports.
    modules: tuple[str, ...] = ()
    label = ""
    #: Takes a save while others are under way, and decides alone whether to wait.
    takes_many = False
    #: Writes into one file, which is worth keeping from round to round.
    keeps_file = False

    def __init__(self, directory: Path, state: State) -> None:
        self.directory = directory
        self.state = state

    def save(self, step: int) -> Save:
        """Begins a save."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what runs in the background."""

    def target(self, step: int) -> Path:
        """A new name."""
        return self.directory / f"step-{step}"

    def remove_before(self, step: int) -> None:
        """Removes older checkpoints; outside of what is timed."""
        for path in self.directory.glob("step-*"):
            if int(path.name.split("-")[1].split(".")[0]) < step:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        path.unlink()

    @classmethod
    def missing(cls) -> list[str]:
        """What is not installed."""
        packages = {name.split(".")[0] for name in cls.modules}
        return sorted(name for name in packages if importlib.util.find_spec(name) is None)


def fsync_path(path: Path) -> None:
    """Flushes a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Flushes a checkpoint of many files, and the names of all of them."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                fsync_path(Path(folder) / name)
            fsync_path(Path(folder))
    else:
        fsync_path(path)
    fsync_path(path.parent)


class PCcheck(Peer):
    """Ours, from Python, with checksums on; the weights are the parameters of a module."""

    label = "pccheck"
    modules = ("pccheck.torch",)
    takes_many = True
    keeps_file = True
    on_busy = "wait"

    def __init__(self, directory: Path, state: State) -> None:
        super().__init__(directory, state)
        self._module = torch.nn.Module()
        for index, tensor in enumerate(state.values()):
            self._module.register_parameter(
                f"p{index}", torch.nn.Parameter(tensor, requires_grad=False)
            )
        checkpointer: Any = sys.modules["pccheck.torch"]
        self._checkpointer = checkpointer.Checkpointer(
            directory / "run.pcc", in_flight=2, on_busy=self.on_busy
        )

    def save(self, step: int) -> Save:
        handle = self._checkpointer.save(step, rng=False, model=self._module)
        return Save(handle.wait_staged, lambda: handle.wait().durable)

    def close(self) -> None:
        self._checkpointer.close()


class PCcheckSkipping(PCcheck):
    """The same, skipping a save while both slots are in flight."""

    label = "pccheck, policy skip"
    on_busy = "skip"


class TorchSave(Peer):
    """torch.save to a temporary name, fsync, rename, fsync of the directory."""

    label = "torch.save + fsync"

    def save(self, step: int) -> Save:
        path = self.target(step)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        fsync_path(self.directory)
        return Save(None, None)


class Safetensors(Peer):
    """safetensors, fsync, rename, fsync of the directory."""

    label = "safetensors + fsync"
    modules = ("safetensors.torch",)

    def save(self, step: int) -> Save:
        path = self.target(step)
        temporary = path.with_suffix(".tmp")
        sys.modules["safetensors.torch"].save_file(self.state, temporary)
        fsync_path(temporary)
        os.rename(temporary, path)
        fsync_path(self.directory)
        return Save(None, None)


class DCP(Peer):
    """torch.distributed.checkpoint.save."""

    label = "DCP save"
    modules = ("torch.distributed.checkpoint",)

    def __init__(self, directory: Path, state: State) -> None:
        super().__init__(directory, state)
        self._dcp: Any = sys.modules["torch.distributed.checkpoint"]

    def save(self, step: int) -> Save:
        path = self.target(step)
        self._dcp.save(self.state, checkpoint_id=str(path), no_dist=True)
        fsync_tree(path)
        return Save(None, None)


class DCPAsync(DCP):
    """async_save in a thread, with the staging memory kept from save to save."""

    label = "DCP async_save, thread"

    def __init__(self, directory: Path, state: State) -> None:
        super().__init__(directory, state)
        staging = importlib.import_module("torch.distributed.checkpoint.staging")
        # Kept, so that its memory is; the other options need an accelerator.
        self._stager: Any = staging.DefaultStager(
            staging.StagingOptions(False, False, False, False)
        )
        self._flusher = ThreadPoolExecutor(1)

    def _begin(self, path: Path) -> Any:
        return self._dcp.async_save(
            self.state, checkpoint_id=str(path), async_stager=self._stager, no_dist=True
        )

    def save(self, step: int) -> Save:
        path = self.target(step)
        future = self._begin(path)
        upload = getattr(future, "upload_completion", future)
        staging = getattr(future, "staging_completion", None)

        def finish() -> bool:
            upload.result()
            fsync_tree(path)
            return True

        flushed = self._flusher.submit(finish)
        return Save(staging.result if staging else None, flushed.result)

    def close(self) -> None:
        self._flusher.shutdown()


class DCPAsyncProcess(DCPAsync):
    """async_save in a process of its own."""

    label = "DCP async_save, process"

    def __init__(self, directory: Path, state: State) -> None:
        super().__init__(directory, state)
        dist: Any = importlib.import_module("torch.distributed")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self._dist = dist

    def _begin(self, path: Path) -> Any:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        return self._dcp.async_save(
            self.state, checkpoint_id=str(path),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        )  # fmt: skip

    def close(self) -> None:
        super().close()
        self._dist.destroy_process_group()


class TensorStore(Peer):
    """tensorstore: one uncompressed zarr array per tensor; it flushes alone."""

    label = "tensorstore"
    modules = ("tensorstore",)
    _CHUNK_BYTE_COUNT = 16 << 20

    def __init__(self, directory: Path, state: State) -> None:
        super().__init__(directory, state)
        self._tensorstore: Any = sys.modules["tensorstore"]

    def save(self, step: int) -> Save:
        path = self.target(step)
        opened = [
            self._tensorstore.open(self._spec(path / name, tensor))
            for name, tensor in self.state.items()
        ]
        writes = [
            store.result().write(tensor.numpy())
            for store, tensor in zip(opened, self.state.values(), strict=True)
        ]

        def finish() -> bool:
            for write in writes:
                write.commit.result()
            return True

        def staged() -> None:
            for write in writes:
                write.copy.result()

        return Save(staged, finish)

    def _spec(self, path: Path, tensor: torch.Tensor) -> dict[str, Any]:
        shape = list(tensor.shape)
        row_byte_count = tensor.nbytes // max(shape[0], 1)
        rows = max(1, min(shape[0], self._CHUNK_BYTE_COUNT // max(row_byte_count, 1)))
        return {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(path)},
            "metadata": {
                "shape": shape, "chunks": [rows, *shape[1:]], "dtype": "<f4", "compressor": None
            },
            "create": True,
        }  # fmt: skip


PEERS: dict[str, type[Peer]] = {
    "pccheck": PCcheck,
    "pccheck-skip": PCcheckSkipping,
    "tensorstore": TensorStore,
    "safetensors": Safetensors,
    "dcp-async-process": DCPAsyncProcess,
    "dcp-async": DCPAsync,
    "dcp": DCP,
    "torch-save": TorchSave,
}
