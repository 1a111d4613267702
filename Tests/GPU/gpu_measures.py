"""What saving costs on a real device: gpu_measures.py FOLDER SECONDS

Every figure is beside a limit, or another way to save, of the same run. The rows are printed as
they come, and all of them once more as the last thing.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pccheck.torch
from pccheck._torch.saving.waiting import before_change

GIB = 1 << 30
rows: list[tuple[str, str]] = []


def report(name: str, text: str) -> None:
    rows.append((name, text))
    print(f"{name}: {text}", flush=True)


class Blocks(nn.Module):
    """Layers whose step takes as long as that of a transformer of their size."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            value = value + layer(value)
        return value


class Training:
    """A model with Adam of a given size in bytes, and a step of it."""

    def __init__(self, byte_count: int, rows: int) -> None:
        width = 1024
        depth = max(1, byte_count // (3 * 4 * 8 * width * width))
        self.model = Blocks(width, depth).cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batch = torch.randn(rows, width, device="cuda")
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = self.model(self.batch).square().mean()
        loss.backward()
        self.optimizer.step()

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    @property
    def byte_count(self) -> int:
        return 3 * sum(parameter.nbytes for parameter in self.model.parameters())


def seconds_of(steps: int, body: Callable[[int], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for step in range(steps):
        body(step)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def anonymous_byte_count() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def pinned_rate(byte_count: int) -> float:
    """Bytes per second of one plain copy to pinned memory, the best of three."""
    size = min(byte_count, 2 * GIB)
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return size / min(
        seconds_of(1, lambda _: target.copy_(source, non_blocking=True)) for _ in range(4)
    )


def disk_rate(folder: Path) -> float:
    """Bytes per second of plain writes past the page cache, and a flush."""
    path, block = folder / "plain", 8 << 20
    import mmap

    memory = mmap.mmap(-1, block)
    memory.write(os.urandom(block))
    try:
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    except OSError:
        file = os.open(path, os.O_CREAT | os.O_WRONLY)
    began = time.perf_counter()
    for _ in range(128):
        os.write(file, memory)
    os.fsync(file)
    elapsed = time.perf_counter() - began
    os.close(file)
    path.unlink()
    return 128 * block / elapsed


def measure_saves(training: Training, folder: Path, limits: tuple[float, float]) -> None:
    """One save after another: the call, the stall of the stream, both legs, the memory."""
    name = f"{training.byte_count / GIB:.1f} GiB"
    path = folder / "saves.pcc"
    with pccheck.torch.Checkpointer(path, pool="2 GiB") as checkpointer:
        save = {"model": training.model, "optimizer": training.optimizer}
        checkpointer.save(0, **save).wait()
        began_memory, first = anonymous_byte_count(), checkpointer.stats()
        calls, stalls, durable, most = [], [], [], 0
        for step in range(1, 4):
            training.step()
            torch.cuda.synchronize()
            began = time.perf_counter()
            handle = checkpointer.save(step, **save)
            calls.append(time.perf_counter() - began)
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # What the hook of the optimizer does, between two points of the stream.
            before.record()
            before_change()
            after.record()
            outcome = handle.wait()
            most = max(most, anonymous_byte_count())
            after.synchronize()
            stalls.append(before.elapsed_time(after) / 1e3)
            durable.append(outcome.durable_seconds or 0.0)
        stats = checkpointer.stats()
        legs = [
            (stats[leg]["byte_count"] - first[leg]["byte_count"])
            / max(1, stats[leg]["busy_nanoseconds"] - first[leg]["busy_nanoseconds"]) * 1e9
            for leg in ("device_leg", "medium_leg")
        ]  # fmt: skip
        bus, disk = limits
        report(f"{name}: save() returns after", f"{1e3 * statistics.median(calls):.1f} ms")
        report(
            f"{name}: stream held per save",
            f"{1e3 * statistics.median(stalls):.1f} ms "
            f"({stats['staged_wait_nanoseconds'] / 3e6:.1f} ms of them on the host)",
        )
        report(
            f"{name}: device to pool",
            f"{legs[0] / 1e9:.1f} GB/s, {legs[0] / bus:.2f} of a plain pinned copy",
        )
        rate = training.byte_count / statistics.median(durable)
        report(f"{name}: durable", f"{rate / 1e9:.2f} GB/s, {rate / disk:.2f} of plain writes")
        report(f"{name}: host memory beyond the pool", f"{(most - began_memory) >> 20} MiB")
        reason = stats["unpinned_reason"]
        report(f"{name}: pool registered", "yes" if reason is None else reason)
        elapsed = seconds_of(1, lambda _: checkpointer.resume(**save))
        report(f"{name}: resume onto the device", f"{training.byte_count / elapsed / 1e9:.2f} GB/s")
    path.unlink()


# -- a loop, with each way to save


@contextlib.contextmanager
def with_pccheck(training: Training, folder: Path) -> Iterator[Callable[[int], object]]:
    with pccheck.torch.Checkpointer(folder / "loop.pcc", pool="2 GiB") as checkpointer:
        checkpointer.save(0, model=training.model, optimizer=training.optimizer).wait()
        yield lambda step: checkpointer.save(
            step + 1, model=training.model, optimizer=training.optimizer
        )


@contextlib.contextmanager
def with_torch_save(training: Training, folder: Path) -> Iterator[Callable[[int], object]]:
    def save(step: int) -> None:
        with open(folder / "loop.pt", "wb") as file:
            torch.save(training.state, file)
            file.flush()
            os.fsync(file.fileno())

    yield save


@contextlib.contextmanager
def with_dcp(training: Training, folder: Path) -> Iterator[Callable[[int], object]]:
    dcp = importlib.import_module("torch.distributed.checkpoint")
    staging = importlib.import_module("torch.distributed.checkpoint.staging")
    stager: Any = None
    with contextlib.suppress(AttributeError, TypeError):
        stager = staging.BlockingAsyncStager(cache_staged_state_dict=True)
    pending: list[Any] = []

    def save(step: int) -> None:
        while pending:
            pending.pop().result()
        options = {} if stager is None else {"async_stager": stager}
        pending.append(dcp.async_save(training.state, checkpoint_id=str(folder / "dcp"), **options))

    yield save
    while pending:
        pending.pop().result()


@contextlib.contextmanager
def with_safetensors(training: Training, folder: Path) -> Iterator[Callable[[int], object]]:
    safetensors = importlib.import_module("safetensors.torch")

    def save(step: int) -> None:
        tensors = {f"model.{key}": value for key, value in training.model.state_dict().items()}
        for index, item in enumerate(training.optimizer.state.values()):
            for key, value in item.items():
                tensors[f"optimizer.{index}.{key}"] = value
        safetensors.save_file(tensors, folder / "loop.safetensors")
        with open(folder / "loop.safetensors", "rb") as file:
            os.fsync(file.fileno())

    yield save


WAYS = {
    "pccheck": with_pccheck, "DCP async_save": with_dcp, "torch.save": with_torch_save,
    "safetensors": with_safetensors,
}  # fmt: skip


def measure_loops(training: Training, folder: Path, ends: float) -> None:
    """The slowdown of a loop that saves every so many steps."""
    steps = 50
    plain = min(seconds_of(steps, lambda _: training.step()) for _ in range(2)) / steps
    report("a step alone", f"{1e3 * plain:.1f} ms, state {training.byte_count / GIB:.1f} GiB")
    for every in (10, 25, 5, 1):
        for name, way in WAYS.items():
            # A way that blocks takes its whole time for each save.
            if time.monotonic() > ends - 15:
                report(f"{name}, every {every}", "not measured: no time is left")
                continue
            count = steps if every > 1 else 10
            try:
                with way(training, folder) as save:

                    def step(number: int, every: int = every, save: Any = save) -> None:
                        training.step()
                        if number % every == every - 1:
                            save(number)

                    elapsed = seconds_of(count, step)
            except ImportError as error:
                report(f"{name}, every {every}", f"not measured: {error}")
                continue
            report(f"{name}, every {every}", f"slowdown {elapsed / (count * plain):.3f}")


def main(folder: Path, seconds: float) -> int:
    ends = time.monotonic() + seconds
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    report("device", f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    bus, disk = pinned_rate(2 * GIB), disk_rate(folder)
    report("plain copy to pinned memory", f"{bus / 1e9:.1f} GB/s")
    report("plain writes and a flush", f"{disk / 1e9:.2f} GB/s")
    small = Training(int(1.5 * GIB), 16_384)
    measure_saves(small, folder, (bus, disk))
    measure_loops(small, folder, ends - 40)
    del small
    torch.cuda.empty_cache()
    if time.monotonic() < ends - 30:
        measure_saves(Training(8 * GIB, 1024), folder, (bus, disk))
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:{width}}  {text}" for name, text in rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
