"""What saving costs a real training run on the CPU, by way of saving and by how often.

    python -m pccheck.bench.training train_gpt.py DIRECTORY [--steps N] [--rounds R]

It trains the GPT of the example, with AdamW. Each way saves model and optimizer at every step, every
5 and every 10; a round trains without saving, then in every way at every interval. The slowdown is
the time of the steps over that of the same steps without saving in the same round.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .peers import DCP, DCPAsync, Peer, Safetensors, Save, State, TorchSave

INTERVALS = (1, 5, 10)


class Training:
    """The example's run, step by step."""

    def __init__(self, example: Any, steps: int) -> None:
        self.model, self.optimizer, self._schedule, self._loader = example.make_run(steps)
        self._loss = torch.nn.functional.cross_entropy

    def step(self) -> None:
        """One step, as in the example."""
        inputs, targets = self._loader.batch()
        loss = self._loss(self.model(inputs).flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._schedule.step()

    def state(self) -> State:
        """The tensors of model and optimizer, as they lie in memory; tied ones once."""
        tensors = {key: value.detach() for key, value in self.model.named_parameters()}
        tensors |= dict(self.model.named_buffers())
        for number, parameter in enumerate(self.optimizer.state.values()):
            tensors |= {f"optimizer.{number}.{key}": value for key, value in parameter.items()}
        return tensors


class Ours(Peer):
    """As a training loop uses it: the optimizer waits until its tensors are staged."""

    label = "pccheck"
    modules = ("pccheck.torch",)
    takes_many = True

    def __init__(self, directory: Path, state: State, training: Training) -> None:
        super().__init__(directory, state)
        self._training = training
        module: Any = importlib.import_module("pccheck.torch")
        self._checkpointer = module.Checkpointer(directory / "run.pcc", in_flight=2)

    def save(self, step: int) -> Save:
        training = self._training
        handle = self._checkpointer.save(
            step, model=training.model, optimizer=training.optimizer
        )
        return Save(None, lambda: handle.wait().durable)

    def close(self) -> None:
        self._checkpointer.close()


WAYS: list[type[Peer]] = [Ours, Safetensors, TorchSave, DCPAsync, DCP]


def measure(
    training: Training, way: type[Peer] | None, every: int, steps: int, directory: Path
) -> tuple[float, float]:
    """Seconds that the steps took, and how many of them ``save`` and waiting did."""
    folder = Path(tempfile.mkdtemp(dir=directory))
    peer = None
    if way is not None:
        state = training.state()
        peer = Ours(folder, state, training) if way is Ours else way(folder, state)
        # The first save makes files and threads.
        peer.save(0).wait_durable()
    pending: Save | None = None
    blocked = 0.0
    began = time.perf_counter()
    for step in range(1, steps + 1):
        training.step()
        if peer is None or step % every:
            continue
        start = time.perf_counter()
        if pending is not None and not peer.takes_many:
            pending.wait_durable()
        pending = peer.save(step)
        if not peer.takes_many:
            pending.wait_staged()
        blocked += time.perf_counter() - start
        peer.remove_before(step)
    seconds = time.perf_counter() - began
    if pending is not None:
        pending.wait_durable()
    if peer is not None:
        peer.close()
    shutil.rmtree(folder)
    return seconds, blocked


def main() -> int:
    """Writes a table, and as JSON what it was made from."""
    parser = argparse.ArgumentParser(prog="python -m pccheck.bench.training")
    parser.add_argument("example", type=Path, help="train_gpt.py")
    parser.add_argument("directory", type=Path, help="on the disk to measure")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the single figures go")
    options = parser.parse_args()
    specification = importlib.util.spec_from_file_location("train_gpt", options.example)
    assert specification is not None and specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    for way in WAYS:
        for module in way.modules:
            importlib.import_module(module)
    rows: dict[str, list[float]] = {}
    runs = options.rounds * (1 + len(WAYS) * len(INTERVALS)) * options.steps
    training = Training(example, runs + options.steps)
    for _ in range(3):
        training.step()
    size = sum(tensor.nbytes for tensor in training.state().values())
    steps = options.steps
    for number in range(options.rounds):
        alone, _ = measure(training, None, 0, steps, options.directory)
        rows.setdefault("ms a step without saving", []).append(alone / steps * 1000)
        for way in WAYS:
            for every in INTERVALS:
                print(f"\rround {number + 1}: {way.label}, every {every}   ", end="",
                      file=sys.stderr)  # fmt: skip
                seconds, blocked = measure(training, way, every, steps, options.directory)
                rows.setdefault(f"{way.label}, {every}: slowdown", []).append(seconds / alone)
                rows.setdefault(f"{way.label}, {every}: blocked ms a save", []).append(
                    blocked / (steps // every) * 1000
                )
    print(file=sys.stderr)
    median = {name: statistics.median(values) for name, values in rows.items()}
    step_time = median["ms a step without saving"]
    print(f"{size / 2**20:.0f} MiB of model and optimizer, {step_time:.0f} ms a step, medians of "
          f"{options.rounds} rounds of {steps} steps\n")  # fmt: skip
    print("| slowdown (caller blocked, ms a save) | every step | every 5 | every 10 |")
    print("|---|---|---|---|")
    for way in WAYS:
        cells = (
            f"{median[f'{way.label}, {every}: slowdown']:.3f} "
            f"({median[f'{way.label}, {every}: blocked ms a save']:.1f})"
            for every in INTERVALS
        )
        print(f"| {way.label} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
