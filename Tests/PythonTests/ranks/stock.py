"""The training of the tests through torch.distributed.checkpoint and its own files."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from job import Training, say
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

#: How many folders of steps stay.
_KEPT_COUNT = 2


def train_with_dcp(
    rank: int, folder: str, steps: int, pause: float = 0.0, *, keeps_one: bool = False
) -> None:
    """The loop of ``job.train``. Each save has a folder of its own, or all have the same one."""
    training, place = Training(rank), Path(folder) / "dcp"
    modules = nn.ModuleDict({"model": training.model, "head": training.head})

    def state(step: int) -> dict[str, Any]:
        model, optimizer = get_state_dict(modules, training.optimizer)
        # Each rank has random numbers of its own.
        own = {f"random{rank}": torch.get_rng_state(), "step": torch.tensor(step)}
        return {"model": model, "optimizer": optimizer, **own}

    start = 0
    # DCP writes the metadata last: a folder with it is complete.
    complete = [path.parent for path in place.glob("*/.metadata")]
    if complete:
        drawn = torch.get_rng_state()
        found = state(-1)
        dcp.load(found, checkpoint_id=max(complete, key=lambda path: int(path.name)))
        set_state_dict(
            modules, training.optimizer,
            model_state_dict=found["model"], optim_state_dict=found["optimizer"],
        )  # fmt: skip
        torch.set_rng_state(found.get(f"random{rank}", drawn))
        start = int(found["step"]) + 1
    say("start", start)
    for step in range(start, steps):
        say("loss", step, training.step())
        dcp.save(state(step), checkpoint_id=place / ("0" if keeps_one else str(step)))
        say("all", step)
        if rank == 0:
            for path in sorted(place.iterdir(), key=lambda path: int(path.name))[:-_KEPT_COUNT]:
                shutil.rmtree(path)
        time.sleep(pause)
    say("done")
    # As the other loop: the interpreter's end is not waited for.
    os._exit(0)
