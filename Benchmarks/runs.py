"""The runs, in turn: within a round everything that is compared comes one after the other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import engine, machine
from .engine import Interrupted
from .peers import PEERS

MIB = 1 << 20
_WORKER_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Plan:
    """What to measure, how large and how often."""

    durable_byte_count: int
    #: Rounds by kind of state.
    durable_rounds: dict[str, int]
    loop_byte_count: int
    loop_rounds: int
    #: Steps of the loop by interval between saves.
    loop_steps: dict[int, int]
    #: Training steps of the model whose weights the codecs are given.
    weight_steps: int
    #: Arguments of `pccheck bench` for its own parts.
    tool_arguments: tuple[str, ...] = ()
    #: Rounds of the sweep and of the codecs.
    engine_rounds: int = 3
    #: Which parts to run.
    parts: tuple[str, ...] = ("durable", "loop", "training", "tool", "device")

    def changed(
        self, rounds: int | None, durable_byte_count: int | None, loop_byte_count: int | None,
        parts: tuple[str, ...] | None = None,
    ) -> Plan:  # fmt: skip
        """The same with other sizes, or less of it."""
        plan = self if parts is None else replace(self, parts=parts)
        if rounds:
            counts = {state: rounds for state in self.durable_rounds}
            plan = replace(plan, durable_rounds=counts, loop_rounds=rounds)
        if durable_byte_count:
            plan = replace(plan, durable_byte_count=durable_byte_count)
        if loop_byte_count:
            plan = replace(plan, loop_byte_count=loop_byte_count)
        return plan

    def lacks(self, disk_byte_count: int, memory_byte_count: int) -> str | None:
        """What there is too little of, if anything."""
        # Three slots for each of our files, the file of fio, and two checkpoints of a peer; the
        # sweep needs most: nine slots and a plain file, or three of four times the state.
        disk = 13 * self.durable_byte_count + 12 * self.loop_byte_count
        # State, staging memory, and what some peers take besides.
        memory = 5 * self.durable_byte_count
        for what, needed, there in (
            ("disk space", disk, disk_byte_count), ("memory", memory, memory_byte_count)
        ):  # fmt: skip
            if there < needed:
                return (
                    f"{there / MIB:.0f} MiB of {what} are free, and the benchmark needs "
                    f"{needed / MIB:.0f} MiB; choose another directory, or a smaller --bytes"
                )
        return None


@dataclass
class Task:
    """One run of a child."""

    label: str
    #: A first guess, which is corrected as the runs go by.
    seconds: float
    action: Callable[[], None]


class Runner:
    """Runs a plan and collects its results."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        output: Path,
        tool: Path | None,
        example: Path | None,
        peers: list[str],
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.output = output
        self.tool = tool
        self.example = example
        self.peers = peers
        self.results: dict[str, Any] = {
            "schema_version": 1,
            "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "machine": machine.describe(folder),
            "settings": {
                "durable_byte_count": plan.durable_byte_count,
                "loop_byte_count": plan.loop_byte_count,
                "loop_step_seconds": 0.05,
            },
            "peers": {name: PEERS[name].label for name in peers},
            "fio": [], "durable": [], "loop": [], "training": [], "skipped": {}, "tool": {},
            "sweep": [], "codecs": [], "device": [],
        }  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Everything, in turn."""
        self._leave_out_what_is_missing()
        tasks = self._tasks()
        total = sum(task.seconds for task in tasks)
        print(f"{len(tasks)} runs, about {_minutes(total)}", file=sys.stderr)
        began = time.monotonic()
        done = 0.0
        for number, task in enumerate(tasks, 1):
            gone = time.monotonic() - began
            # The guesses are for a fast machine; what was seen says how this one compares.
            scale = gone / done if done > total / 50 else 1.0
            self._show(
                f"[{number}/{len(tasks)}] {task.label} · {_minutes(gone)} gone, about "
                f"{_minutes((total - done) * scale)} left"
            )
            task.action()
            done += task.seconds
        self._show(f"done in {_minutes(time.monotonic() - began)}")
        if sys.stderr.isatty():
            print(file=sys.stderr)
        return self.results

    def _show(self, line: str) -> None:
        if sys.stderr.isatty():
            columns = shutil.get_terminal_size().columns
            print(f"\r\x1b[2K{line[: columns - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _leave_out_what_is_missing(self) -> None:
        for name in self.peers:
            missing = PEERS[name].missing()
            if missing:
                self.skip(name, f"not installed: {', '.join(missing)}")
        if self.results["machine"]["fio"] is None:
            self.skip("fio", "not installed")

    def skip(self, name: str, reason: str) -> None:
        """Leaves something out from now on, visibly."""
        self.results["skipped"][name] = reason
        self._show(f"left out: {name}: {reason}")
        if sys.stderr.isatty():
            print(file=sys.stderr)

    # -- what there is to do

    def _tasks(self) -> list[Task]:
        plan = self.plan
        tasks = []
        if "durable" in plan.parts:
            for state, rounds in plan.durable_rounds.items():
                for number in range(1, rounds + 1):
                    tasks += self._durable_tasks(state, number, rounds)
        for part in ("loop", "training"):
            if part in plan.parts:
                for number in range(1, plan.loop_rounds + 1):
                    tasks += self._loop_tasks(part, number)
        if self.tool is not None and "tool" in plan.parts:
            tasks += self._tool_tasks()
        if self.tool is not None and "device" in plan.parts:
            tasks.append(Task("from a GPU and back", 20, self._device))
        return tasks

    def _durable_tasks(self, state: str, number: int, rounds: int) -> list[Task]:
        byte_count = self.plan.durable_byte_count
        label = f"durable save, {state} state of {byte_count // MIB} MiB, round {number}/{rounds}"
        gigabytes = byte_count / 1e9
        tasks = [
            Task(f"{label}: fio", 3 * gigabytes, lambda: self._fio(state, number, byte_count))
        ]
        for name in _rotated(self._of_a_durable_save(), number):
            seconds = 4 + gigabytes * (14 if name == "dcp-async-process" else 6)
            tasks.append(
                Task(
                    f"{label}: {PEERS[name].label}", seconds,
                    lambda name=name: self._durable(name, state, number),  # type: ignore[misc]
                )
            )  # fmt: skip
        return tasks

    def _of_a_durable_save(self) -> list[str]:
        # Alone in flight, both policies are the same.
        return [name for name in self.peers if name != "pccheck-skip"]

    def _loop_tasks(self, part: str, number: int) -> list[Task]:
        tasks = []
        # What a step takes on these cores follows from the size of its state.
        is_real = part == "training"
        step_seconds = self.plan.loop_byte_count / 1e9 if is_real else 0.05
        what = "real training" if is_real else "training loop"
        for interval, steps in self.plan.loop_steps.items():
            for name in _rotated(self.peers, number):
                saves = steps / interval
                slowness = self.plan.loop_byte_count / 4e8
                seconds = 4 + (20 + steps) * step_seconds + saves * slowness
                tasks.append(
                    Task(
                        f"{what}, saving every {interval}, round "
                        f"{number}/{self.plan.loop_rounds}: {PEERS[name].label}",
                        seconds,
                        lambda name=name, interval=interval, steps=steps: (  # type: ignore[misc]
                            self._loop(part, name, interval, steps, number)
                        ),
                    )
                )
        return tasks

    def _tool_tasks(self) -> list[Task]:
        is_small = self.plan.durable_byte_count < 256 * MIB
        tasks = []
        weights: list[Path] = []
        if self.example is not None:
            tasks.append(
                Task(
                    f"training a GPT for {self.plan.weight_steps} steps, for its weights",
                    5 + 0.2 * self.plan.weight_steps,
                    lambda: weights.extend(self._train()),
                )
            )
        parts: list[tuple[str, float, Callable[[], None]]] = [
            ("its own parts", 300, self._tool),
            ("a parameter at a time", 900, self._sweep),
        ]
        if self.example is not None:
            parts.append(("codecs on real weights", 60, lambda: self._codecs(weights)))
        else:
            self.skip("codecs", "no real weights: give --example train_gpt.py")
        for name, seconds, action in parts:
            tasks.append(Task(f"the engine: {name}", 20 if is_small else seconds, action))
        return tasks

    # -- doing it

    def _fio(self, state: str, number: int, byte_count: int) -> None:
        if "fio" in self.results["skipped"]:
            return
        path = self.folder / "fio.dat"
        if not path.exists():
            # Only what overwrites written blocks is a limit for a file that does the same.
            machine.fio_rate(path, byte_count, "4M", 4)
        for block, depth in machine.FIO_SETTINGS:
            rate = machine.fio_rate(path, byte_count, block, depth)
            if rate is None:
                self.skip("fio", "it failed; is libaio refused here?")
                return
            self.results["fio"].append(
                {
                    "state": state, "round": number, "setting": f"{block} qd{depth}",
                    "megabytes_per_second": rate,
                }
            )  # fmt: skip

    def _durable(self, name: str, state: str, number: int) -> None:
        answer = self._worker(
            name, f"{name}-{state}", "durable", "--bytes", self.plan.durable_byte_count,
            "--state", state,
        )  # fmt: skip
        if answer is None:
            return
        shared = {key: answer[key] for key in ("byte_count", "tensor_count")}
        for row in answer["saves"]:
            self.results["durable"].append(
                {"peer": name, "state": state, "round": number, **shared, **row}
            )

    def _loop(self, part: str, name: str, interval: int, steps: int, number: int) -> None:
        answer = self._worker(
            name, f"{name}-{part}", part, "--bytes", self.plan.loop_byte_count,
            "--interval", interval, "--steps", steps,
        )  # fmt: skip
        if answer is not None:
            self.results[part].append({"peer": name, "round": number, **answer})

    def _worker(self, name: str, folder: str, *arguments: object) -> dict[str, Any] | None:
        """The answer of one peer in a process of its own; None when it is not available."""
        if name in self.results["skipped"]:
            return None
        part, *rest = map(str, arguments)
        command = [
            sys.executable, "-m", "Benchmarks.worker", part, "--peer", name,
            "--directory", str(self.folder / folder), *rest,
        ]  # fmt: skip
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=_WORKER_TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired:
            self.skip(name, f"no answer in {_WORKER_TIMEOUT_SECONDS} s")
            return None
        finally:
            if not PEERS[name].keeps_file:
                shutil.rmtree(self.folder / folder, ignore_errors=True)
        if result.returncode == -2:
            raise Interrupted
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
            self.skip(name, f"it failed: {lines[-1]}")
            return None
        answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return answer

    def _train(self) -> list[Path]:
        from .weights import train_and_write

        assert self.example is not None
        report = train_and_write(self.example, self.output, self.plan.weight_steps)
        self.results["weights"] = report
        return [Path(path) for path in report["files"]]

    def _tool(self) -> None:
        assert self.tool is not None
        try:
            measured = engine.bench(self.tool, self.folder, list(self.plan.tool_arguments))
        except RuntimeError as error:
            self.skip("pccheck bench", str(error))
            return
        self.results["tool"] = measured

    def _device(self) -> None:
        assert self.tool is not None
        rounds = ["--rounds", str(max(self.plan.durable_rounds.values()))]
        arguments = ["--only", "device", "--size", str(self.plan.durable_byte_count), *rounds]
        try:
            self.results["device"] = engine.bench(self.tool, self.folder, arguments)["device"]
        except RuntimeError as error:
            self.skip("device", str(error))

    def _sweep(self) -> None:
        assert self.tool is not None
        try:
            self.results["sweep"] = engine.sweep(
                self.tool, self.folder, self.plan.loop_byte_count,
                4 * self.plan.durable_byte_count, self.plan.engine_rounds, self._show,
            )  # fmt: skip
        except RuntimeError as error:
            self.skip("sweep", str(error))

    def _codecs(self, weights: list[Path]) -> None:
        self.results["codecs"] = [
            engine.codecs(path, self.folder, self.plan.engine_rounds) for path in weights
        ]


def _rotated(names: list[str], number: int) -> list[str]:
    """Another one first in every round, so that nobody always follows the same one."""
    shift = (number - 1) % len(names) if names else 0
    return names[shift:] + names[:shift]


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
