"""Every recipe of spec/PYTHON.md runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from ports import free_port
from recipe_page import BLOCK, FRAMEWORKS, PAGE, PRELUDE, recipes

import pccheck

#: Loops that save every step, and go on bit for bit.
LOOPS = [
    "Steps that begin at one", "Gradient accumulation", "In the middle of an epoch",
    "Reinforcement learning", "A loop that saves before its step",
]  # fmt: skip
PLAIN = [recipe for recipe in recipes() if recipe[0] not in FRAMEWORKS]


def test_the_page_has_recipes() -> None:
    assert len(recipes()) >= 9
    for _, code in recipes():
        assert all(len(line) <= 128 for line in code.splitlines())


@pytest.mark.parametrize(("title", "code"), PLAIN, ids=[title for title, _ in PLAIN])
def test_recipe(
    title: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "init_process_group" in code:
        run_alone(code)
        return
    names: dict[str, Any] = {}
    exec(compile(PRELUDE, "prelude", "exec"), names)
    if title != "A training loop":
        # Most recipes go on with the file of the first.
        exec(compile(recipes()[0][1], "first", "exec"), dict(names))
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), names)


@pytest.mark.parametrize("title", LOOPS)
def test_a_loop_goes_on_bit_for_bit(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = next(code for name, code in recipes() if name == title)

    def trained(folder: str, *ends: int) -> list[torch.Tensor]:
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        names: dict[str, Any] = {}
        for steps in ends:
            names = {}
            exec(compile(PRELUDE, "prelude", "exec"), names)
            names["steps"] = steps
            exec(compile(code, f"{PAGE.name}: {title}", "exec"), names)
        return list(names["model"].state_dict().values())

    assert all(map(torch.equal, trained("cut", 17, 33), trained("whole", 33)))


def test_two_ranks_go_on_bit_for_bit(tmp_path: Path) -> None:
    code = next(code for name, code in recipes() if name == "DistributedDataParallel")
    shown = "\nprint(rank, model[0].weight.sum().item().hex())\n"

    def trained(folder: str, *ends: int) -> list[str]:
        (tmp_path / folder).mkdir()
        said: list[str] = []
        for steps in ends:
            # Seeded anew: what the ranks draw differs.
            start = "torch.manual_seed(int(os.environ['RANK']))\n"
            said = run_ranks(
                f"import os\nsteps = {steps}\n{start}{code}{shown}", 2, tmp_path / folder
            )
        return sorted(said)

    whole = trained("whole", 9)
    assert len(whole) == 2 and whole[0].split()[1] == whole[1].split()[1]
    assert trained("cut", 4, 9) == whole


def run_alone(code: str) -> None:
    """As torchrun does, with one rank."""
    run_ranks(code, 1)


def run_ranks(code: str, world: int, folder: Path | None = None) -> list[str]:
    """As torchrun does; returns what each rank prints."""
    port = free_port()
    end = "\ndist.destroy_process_group()\n"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code + end], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120) for rank in ranks]
    for rank, (_, errors) in zip(ranks, said, strict=True):
        assert rank.returncode == 0, errors
    return [output.strip() for output, _ in said]


def test_every_exception_of_the_page_exists() -> None:
    table = PAGE.read_text().split("## How it fails")[1]
    names = set(re.findall(r"`([A-Z]\w+)`", table.split("\n\n")[2])) - {"TypeError", "FILE"}
    assert len(names) > 12
    for name in names:
        assert issubclass(getattr(pccheck, name), pccheck.CheckpointError), name


def test_the_program_of_the_readme_continues_after_a_kill(tmp_path: Path) -> None:
    """As README shows it: killed while it saves, then resumed, with the same losses."""
    program = BLOCK.findall((ROOT / "README.md").read_text())[0]
    (tmp_path / "train.py").write_text(program.replace("range(start, 1000)", "range(start, 60)"))
    command = [sys.executable, "-u", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def losses(*messages: str) -> list[str]:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert all(message in done.stderr for message in messages)
        return [line for line in done.stdout.splitlines() if "loss" in line]

    undisturbed = losses()
    assert [line.split(":")[0] for line in undisturbed] == [f"step {n}" for n in range(0, 60, 10)]
    (tmp_path / "run.pcc").unlink()
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        before = [child.stdout.readline().rstrip() for _ in range(4)]
        child.kill()
    after = losses("resumed step")
    assert before == undisturbed[:4]
    assert 0 < len(after) < len(undisturbed)
    assert after == undisturbed[-len(after):]
