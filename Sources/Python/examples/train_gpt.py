"""Trains a small GPT on Python's standard library, with a checkpoint every few steps.

    python train_gpt.py run.pcc --steps 160

Start it again after any kind of end: it continues from the newest valid checkpoint. Everything that
decides the result is part of the checkpoint: weights, Adam moments, learning rate schedule, the
loader's position, and the random generators that dropout draws from.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

# Checkpoint threads share the cores with training. By default torch's threads wait for each other
# by spinning, and while they spin on a core that another thread holds, everything stands still.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import pccheck.torch

CONTEXT = 64
BATCH = 6
WIDTH = 320
LAYERS = 4
HEADS = 5
DROPOUT = 0.1
TEXT_BYTE_LIMIT = 8 << 20


def python_text() -> torch.Tensor:
    """The sources of the standard library, as bytes: real text that every machine has."""
    parts: list[bytes] = []
    byte_count = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(path.read_bytes())
        byte_count += len(parts[-1])
        if byte_count >= TEXT_BYTE_LIMIT:
            break
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)


class Loader:
    """Random pieces of a text. It can say where it is, and go there."""

    def __init__(self, text: torch.Tensor, seed: int) -> None:
        self.text = text
        self.batch_count = 0
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs, and the same shifted by one as targets."""
        self.batch_count += 1
        starts = torch.randint(len(self.text) - CONTEXT - 1, (BATCH,), generator=self.generator)
        rows = torch.stack([self.text[start : start + CONTEXT + 1] for start in starts.tolist()])
        return rows[:, :-1].long(), rows[:, 1:].long()

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"batch_count": self.batch_count, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        self.batch_count = state["batch_count"]
        self.generator.set_state(state["generator"])


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.norm_feed = nn.LayerNorm(WIDTH)
        self.feed = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(DROPOUT)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, HEADS, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = self.project(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        x = x + functional.dropout(mixed, DROPOUT, self.training)
        return x + self.feed(self.norm_feed(x))


class GPT(nn.Module):
    """A language model over bytes. The output layer shares its weights with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)
        self.apply(self._initialize)
        self.head.weight = self.bytes.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        x = functional.dropout(x, DROPOUT, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)


def make_run(steps: int) -> tuple[GPT, torch.optim.Optimizer, Any, Loader]:
    """Everything that training changes, as it is before the first step."""
    random.seed(20)
    np.random.seed(20)
    torch.manual_seed(20)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, amsgrad=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    return model, optimizer, schedule, Loader(python_text(), seed=7)


def report(event: str, **fields: object) -> None:
    """One line for the people who watch this run, in one write so that a kill cannot cut it."""
    line = json.dumps({"event": event, "time": time.time(), **fields}) + "\n"
    os.write(sys.stdout.fileno(), line.encode())


def watch(checkpointer: pccheck.torch.Checkpointer, stop: threading.Event) -> None:
    """Reports how many checkpoints are in flight, whenever that changes."""
    last = 0
    while not stop.wait(0.005):
        count = checkpointer.stats().get("in_flight_count", 0)
        if count != last:
            report("in_flight", count=count)
            last = count


def train(path: str, steps: int, every: int, **options: Any) -> None:
    """Resumes or starts, and trains to the end. With `every` 0 only the end is saved."""
    model, optimizer, schedule, loader = make_run(steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        began = time.perf_counter()
        start = checkpointer.resume(**parts)
        report(
            "start", step=start, resume_seconds=time.perf_counter() - began,
            parameter_count=sum(parameter.numel() for parameter in model.parameters()),
            text_byte_count=len(loader.text), loader_position=loader.batch_count,
        )  # fmt: skip
        stop = threading.Event()
        watcher = threading.Thread(target=watch, args=(checkpointer, stop), daemon=True)
        watcher.start()
        for step in range(start, steps):
            began = time.perf_counter()
            inputs, targets = loader.batch()
            loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            computed = time.perf_counter()
            if not math.isfinite(loss.item()):
                raise SystemExit(f"the loss of step {step} is {loss.item()}")
            if (every and step % every == 0) or step == steps - 1:
                checkpointer.save(step, **parts)
            report(
                "step", step=step, loss=loss.item().hex(), compute_seconds=computed - began,
                save_seconds=time.perf_counter() - computed,
            )  # fmt: skip
        stop.set()
        watcher.join()
    report("end", step=steps)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="checkpoint file; created when missing, else resumed from")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=2, help="steps between checkpoints; 0: end")
    parser.add_argument("--in-flight", type=int, default=3)
    parser.add_argument("--retain", type=int, default=1)
    parser.add_argument("--codec", default="none")
    parser.add_argument("--zstd-level", type=int, default=1)
    parser.add_argument("--writer-workers", type=int, default=None)
    arguments = parser.parse_args()
    train(**vars(arguments))


if __name__ == "__main__":
    main()
