"""Kills a training run again and again while it saves, and shows that nothing was lost.

    python demo.py [--steps 200] [--kills 5] [--seed 1] [--output demo-output]

First the run as it would be if nothing happened; then the same run, killed with SIGKILL at random
moments while checkpoints are in flight, looked at by pcfsck and pcinspect, and resumed. At the end
every loss and every bit of the final state must be the same. Exits 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo_plot import Attempt, draw
from demo_screen import Screen, size_text
from safetensors.torch import load_file

import pccheck
import pccheck.torch

EXAMPLES = Path(__file__).resolve().parent
TOOLS = EXAMPLES.parents[2] / "build" / "bin"
# One thread compresses, so that a checkpoint takes longer than the two steps to the next one and
# several are in flight at once.
SAVING = ["--every", "2", "--in-flight", "3", "--codec", "planes-zstd", "--zstd-level", "5",
          "--writer-workers", "1"]  # fmt: skip
SILENCE_LIMIT_SECONDS = 120
# How long the killer waits for the number of checkpoints in flight that it wants to see.
AIM_LIMIT_SECONDS = 3.0


class DemoFailure(Exception):
    """Something did not turn out as it must."""


class Trainer:
    """A training process and what it reports."""

    def __init__(self, path: Path, steps: int, *options: str) -> None:
        command = [sys.executable, str(EXAMPLES / "train_gpt.py"), str(path), "--steps", str(steps)]
        self._errors = open(path.with_suffix(".log"), "a+b")  # noqa: SIM115 (closed in join)
        self._process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=self._errors
        )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        #: Checkpoints in flight, as the process last said.
        self.in_flight = 0
        self.has_ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if event["event"] == "in_flight":
                self.in_flight = event["count"]
            self._events.put(event)
        self.has_ended = True
        self._events.put(None)

    def next_event(self) -> dict[str, Any] | None:
        """The next report; None when the process has ended."""
        try:
            return self._events.get(timeout=SILENCE_LIMIT_SECONDS)
        except queue.Empty:
            self.kill()
            raise DemoFailure(
                f"the trainer said nothing for {SILENCE_LIMIT_SECONDS} s and was ended"
            ) from None

    def kill(self) -> None:
        """Ends the process the way a power cut or the out-of-memory killer would."""
        self._process.send_signal(signal.SIGKILL)

    def join(self) -> int:
        """The exit status, once the process is gone."""
        status = self._process.wait()
        self._thread.join()
        self._errors.seek(0)
        if status not in (0, -signal.SIGKILL):
            raise DemoFailure(
                f"the trainer ended with status {status}:\n{self._errors.read().decode()}"
            )
        self._errors.close()
        return status


@dataclass
class Kill:
    """What one kill left behind."""

    step: int
    in_flight: int
    torn_count: int


class Demo:
    """The story, chapter by chapter."""

    def __init__(self, steps: int, kills: int, seed: int, output: Path) -> None:
        self.steps = steps
        self.kill_count = kills
        self.random = random.Random(seed)
        self.output = output
        self.screen = Screen()
        self.run_path = output / "run.pcc"
        self.reference_path = output / "reference.pcc"
        self.reference: dict[int, float] = {}
        self.reference_step_seconds = 0.0
        self.attempts: list[Attempt] = []
        self.kills: list[Kill] = []
        self.began = time.monotonic()

    def run(self) -> None:
        """All of it."""
        for tool in ("pcfsck", "pcinspect", "pcextract"):
            if not (TOOLS / tool).exists():
                raise DemoFailure(f"{TOOLS / tool} is not built; run `make tools`")
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        self.screen.line()
        self.screen.line("PCcheck: a training run that does not mind being killed", "bold")
        self.undisturbed()
        self.disturbed()
        self.verdict()

    # -- chapter 1

    def undisturbed(self) -> None:
        """Trains to the end, saving nothing but the result."""
        self.screen.heading("1  The run as it should be")
        trainer = Trainer(self.reference_path, self.steps, "--every", "0", "--in-flight", "1")
        seconds: list[float] = []
        while (event := trainer.next_event()) is not None:
            if event["event"] == "start":
                self._introduce(event)
            elif event["event"] == "step":
                loss = float.fromhex(event["loss"])
                self.reference[event["step"]] = loss
                seconds.append(event["compute_seconds"])
                self.screen.progress(event["step"] + 1, self.steps, f"loss {loss:.3f}")
        trainer.join()
        self.screen.clear_bar()
        self.reference_step_seconds = sorted(seconds)[len(seconds) // 2]
        self.screen.fact(
            "trained",
            f"{len(self.reference)} steps of {self.reference_step_seconds * 1000:.0f} ms without "
            f"a checkpoint, loss {self.reference[0]:.3f} → {self.reference[self.steps - 1]:.3f}",
        )

    def _introduce(self, event: dict[str, Any]) -> None:
        million = event["parameter_count"] / 1e6
        self.screen.fact("model", f"GPT over bytes, {million:.1f} million parameters, AdamW")
        self.screen.fact(
            "text", f"Python's standard library, {size_text(event['text_byte_count'])} of source"
        )

    # -- chapter 2

    def disturbed(self) -> None:
        """Trains to the end, however often it has to start again."""
        self.screen.heading(
            f"2  The same run, a checkpoint every 2 steps, killed {self.kill_count} times"
        )
        # One kill in each part of the run, at a random step of that part.
        part = self.steps / self.kill_count
        plan = [
            round((index + self.random.uniform(0.25, 0.85)) * part)
            for index in range(self.kill_count)
        ]
        began = time.monotonic()
        while self._attempt(began, plan):
            pass
        if len(self.kills) < self.kill_count:
            raise DemoFailure(
                f"only {len(self.kills)} of {self.kill_count} kills met a checkpoint in flight"
            )

    def _attempt(self, began: float, plan: list[int]) -> bool:
        """One process, to its end or to its kill; true when it was killed."""
        trainer = Trainer(self.run_path, self.steps, *SAVING)
        attempt = Attempt(start=0, began=time.monotonic() - began)
        self.attempts.append(attempt)
        killer: threading.Thread | None = None
        while (event := trainer.next_event()) is not None:
            now = time.monotonic() - began
            if event["event"] == "start":
                attempt.start, attempt.began = event["step"], now
                if event["step"] > 0:
                    self._say_resumed(event)
            elif event["event"] == "step":
                self._note_step(event, attempt, now, trainer.in_flight)
                if plan and event["step"] >= plan[0] and killer is None:
                    delay = self.random.uniform(0, 2 * self.reference_step_seconds)
                    aim = self.random.choice((1, 2, 2, 3))
                    killer = threading.Thread(
                        target=_kill_in_flight, args=(trainer, self.run_path, delay, aim)
                    )
                    killer.start()
        if killer is not None:
            killer.join()
        attempt.was_killed = trainer.join() == -signal.SIGKILL
        attempt.ended = time.monotonic() - began
        if attempt.was_killed:
            plan.pop(0)
            attempt.in_flight = trainer.in_flight
            if not self._examine(attempt):
                # It came too late to count; there will be another.
                last = attempt.points[-1][0] if attempt.points else 0
                plan.insert(0, min(last + self.random.randrange(2, 8), self.steps - 3))
        return attempt.was_killed

    def _note_step(
        self, event: dict[str, Any], attempt: Attempt, now: float, in_flight: int
    ) -> None:
        step, loss = event["step"], float.fromhex(event["loss"])
        attempt.points.append((step, now, loss))
        if loss != self.reference[step]:
            raise DemoFailure(
                f"step {step} has loss {loss!r}; the undisturbed run had {self.reference[step]!r}"
            )
        self.screen.progress(
            step + 1, self.steps, f"loss {loss:.3f}  {'●' * in_flight:<3} in flight"
        )

    def _say_resumed(self, event: dict[str, Any]) -> None:
        start = event["step"]
        lost = self.kills[-1].step + 1 - start if self.kills else 0
        self.screen.line(
            f"  {self.screen.styled('▶', 'green', 'bold')} resumed from the checkpoint of step "
            f"{start - 1} in {event['resume_seconds'] * 1000:.0f} ms; "
            f"{lost} step{'s' * (lost != 1)} to repeat"
        )

    def _examine(self, attempt: Attempt) -> bool:
        """Looks at what a kill left; true when it left a checkpoint that was on its way."""
        self.screen.clear_bar()
        slots = pccheck.report(self.run_path)["slots"]
        torn = [slot for slot in slots if slot["reason"] == "writing"]
        unanchored = [slot for slot in slots if slot["reason"] == "unanchored"]
        step = attempt.points[-1][0] if attempt.points else attempt.start
        mark = self.screen.styled("✖", "red", "bold")
        if not torn and not unanchored:
            self.screen.line(f"  {mark} killed after step {step}, just too late to meet a save")
            return False
        attempt.in_flight = max(attempt.in_flight, len(torn) + len(unanchored))
        self.kills.append(Kill(step, attempt.in_flight, len(torn)))
        left = [f"step {slot['step']} is torn in slot {slot['slot']}" for slot in torn]
        left += [f"step {slot['step']} is complete in slot {slot['slot']}" for slot in unanchored]
        self.screen.line()
        self.screen.line(
            f"  {mark} kill {len(self.kills)} after step {step}, with {attempt.in_flight} "
            f"checkpoint{'s' * (attempt.in_flight != 1)} in flight: {', '.join(left)}"
        )
        self._show_tools()
        return True

    def _show_tools(self) -> None:
        check = _run_tool("pcfsck", self.run_path)
        self.screen.tool_output("pcfsck run.pcc", check.stdout.splitlines())
        if check.returncode != 0:
            raise DemoFailure(f"pcfsck ended with {check.returncode}; 0 was expected")
        lines = _run_tool("pcinspect", self.run_path).stdout.splitlines()
        table = next((i for i, line in enumerate(lines) if line.startswith("  slot ")), 0)
        self.screen.tool_output("pcinspect run.pcc", lines[table:])

    # -- chapter 3

    def verdict(self) -> None:
        """Compares everything, and draws the picture."""
        self.screen.heading("3  What is different now")
        losses = {step: loss for attempt in self.attempts for step, _, loss in attempt.points}
        if losses != self.reference:
            raise DemoFailure("the loss curves differ")
        good = self.screen.styled("identical", "green", "bold")
        self.screen.fact("losses", f"{len(losses)} steps: {good}, to the last bit")

        reference = pccheck.torch.load(self.reference_path)
        state = pccheck.torch.load(self.run_path)
        tensors: list[torch.Tensor] = []
        difference = first_difference(reference, state, "state", tensors)
        if difference:
            raise DemoFailure(f"the final states differ: {difference}")
        byte_count = sum(tensor.nbytes for tensor in tensors)
        self.screen.fact(
            "state",
            f"weights, Adam moments, schedule, loader, random generators: {good} "
            f"({len(tensors)} tensors, {size_text(byte_count)})",
        )
        self._extract(state["model"], good)
        path = self.output / "loss.png"
        draw(path, self.reference, self.attempts, "every loss and every weight identical")
        self.screen.fact("picture", _shown(path))
        self._sum_up()

    def _extract(self, model: dict[str, torch.Tensor], good: str) -> None:
        path = self.output / "model.safetensors"
        made = _run_tool("pcextract", self.run_path, "-o", path, "--tensor", "model.*", "--quiet")
        if made.returncode != 0:
            raise DemoFailure(f"pcextract ended with {made.returncode}: {made.stderr}")
        extracted = load_file(path)
        addresses = {tensor.data_ptr() for tensor in model.values()}
        same = [name for name, tensor in extracted.items()
                if torch.equal(tensor, model[name.removeprefix("model.")])]  # fmt: skip
        if len(same) != len(extracted) or len(extracted) != len(addresses):
            raise DemoFailure("the extracted model differs from the trained one")
        self.screen.fact(
            "extracted",
            f"{_shown(path)}, read by the safetensors library: {good} ({len(extracted)} tensors)",
        )

    def _sum_up(self) -> None:
        repeated = sum(len(attempt.points) for attempt in self.attempts) - self.steps
        torn = sum(kill.torn_count for kill in self.kills)
        in_flight = sum(kill.in_flight for kill in self.kills)
        self.screen.line()
        self.screen.line(
            f"  {len(self.kills)} kills met {in_flight} checkpoints in flight and left {torn} torn "
            f"slots. {repeated} steps were repeated, nothing was lost.", "bold",
        )  # fmt: skip
        self.screen.line(f"  All of this took {time.monotonic() - self.began:.0f} s.")


def _kill_in_flight(trainer: Trainer, path: Path, delay: float, aim: int) -> None:
    """Kills the trainer when it has `aim` checkpoints in flight, or after a while at least one.

    The file must confirm it: a slot header records `writing` from the moment on at which a
    checkpoint may have overwritten what the slot held before.
    """
    time.sleep(delay)
    limit = time.monotonic() + AIM_LIMIT_SECONDS
    while not trainer.has_ended:
        # Once the limit has passed, one in flight is enough.
        wanted = aim if time.monotonic() < limit else 1
        if trainer.in_flight >= wanted or time.monotonic() > limit + AIM_LIMIT_SECONDS:
            slots = pccheck.report(path)["slots"]
            if any(slot["reason"] == "writing" for slot in slots):
                trainer.kill()
                return
        time.sleep(0.001)


def _run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TOOLS / name), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def _shown(path: Path) -> str:
    return os.path.relpath(path)


def first_difference(left: Any, right: Any, where: str, tensors: list[torch.Tensor]) -> str | None:
    """Where two nests of state differ in a type, a value or a bit; None when they do not."""
    if type(left) is not type(right):
        return f"{where} is a {type(left).__name__} and a {type(right).__name__}"
    if isinstance(left, torch.Tensor):
        tensors.append(left)
        same = left.dtype == right.dtype and left.shape == right.shape
        same = same and left.numpy().tobytes() == right.numpy().tobytes()
        return None if same else where
    if isinstance(left, dict):
        if list(left) != list(right):
            return f"{where} has other keys"
        pairs = [(left[key], right[key], f"{where}.{key}") for key in left]
    elif isinstance(left, (list, tuple)):
        if len(left) != len(right):
            return f"{where} has another length"
        pairs = [(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(left, right, strict=True))]
    elif hasattr(left, "tobytes"):
        return None if left.tobytes() == right.tobytes() else where
    else:
        return None if left == right else f"{where} is {left!r} and {right!r}"
    for a, b, name in pairs:
        if difference := first_difference(a, b, name, tensors):
            return difference
    return None


def main() -> int:
    """Reads the command line and tells the story."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    arguments = parser.parse_args()
    demo = Demo(**vars(arguments))
    try:
        demo.run()
    except DemoFailure as failure:
        demo.screen.clear_bar()
        demo.screen.line(f"  FAILED: {failure}", "red", "bold")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
