"""A sample of kills.py, which runs thousands of restarts on request, and mistakes it must find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plants import plants

KILLS = Path(__file__).resolve().parent / "kills.py"


def kills(*arguments: object) -> dict[str, Any]:
    """The counts of some restarts."""
    done = subprocess.run(
        [sys.executable, str(KILLS), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == ("wrong" in found)
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_all_ranks_continue_from_one_step_that_was_complete(world: int) -> None:
    found = kills("--world", world, "--restarts", 15)
    assert "wrong" not in found, str(found)
    assert found["resumed"] >= world and found["killed_ranks"] > 0 and found["acked_steps"] > 0


@pytest.mark.parametrize("plant", sorted(plants()))
def test_the_checks_find_a_mistake(plant: str) -> None:
    # A mistake shows when the right rank dies at the right moment, on a busy machine rarely.
    found = kills("--world", 2, "--restarts", 600, "--plant", plant)
    assert "wrong" in found, str(found)
