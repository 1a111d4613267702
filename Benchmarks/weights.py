"""Real weights for the codecs: a small GPT, trained until its loss has clearly fallen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Runs in a process of its own: the example sets torch up for itself.
_TRAIN = """
import importlib.util, json, sys
specification = importlib.util.spec_from_file_location("train_gpt", sys.argv[1])
example = importlib.util.module_from_spec(specification)
specification.loader.exec_module(example)
import torch
from safetensors.torch import save_file
from torch.nn import functional

output, steps = sys.argv[2], int(sys.argv[3])
model, optimizer, schedule, loader = example.make_run(steps)
losses = []
for step in range(steps):
    inputs, targets = loader.batch()
    loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
names = {parameter: name for name, parameter in model.named_parameters()}
tensors = {name: parameter.detach() for parameter, name in names.items()}
for parameter, state in optimizer.state.items():
    for key in ("exp_avg", "exp_avg_sq"):
        tensors[f"{names[parameter]}.{key}"] = state[key]
files = [f"{output}/weights-fp32.safetensors", f"{output}/weights-bf16.safetensors"]
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, files[0])
save_file(
    {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}, files[1]
)
tenth = max(1, steps // 10)
print(json.dumps({
    "files": files, "step_count": steps,
    "parameter_count": sum(parameter.numel() for parameter in names),
    "first_loss": sum(losses[:tenth]) / tenth, "last_loss": sum(losses[-tenth:]) / tenth,
}))
"""


def train_and_write(example: Path, output: Path, steps: int) -> dict[str, Any]:
    """Trains, writes weights and Adam moments in fp32 and in bf16; returns files and losses."""
    output.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(example), str(output.resolve()), str(steps)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    if result.returncode != 0:
        raise RuntimeError(f"training {example} failed:\n{result.stderr}")
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report
