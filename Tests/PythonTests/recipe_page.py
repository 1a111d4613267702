"""The recipes of spec/PYTHON.md, and what they take for granted."""

from __future__ import annotations

import re

from conftest import ROOT

PAGE = ROOT / "spec" / "PYTHON.md"
TITLE = re.compile(r"^## (.+)$", re.M)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def recipes() -> list[tuple[str, str]]:
    """Title and code of each recipe, in order."""
    text = PAGE.read_text()
    titles = [(match.start(), match[1]) for match in TITLE.finditer(text)]
    return [
        (max(title for title in titles if title[0] < match.start())[1], match[1])
        for match in BLOCK.finditer(text)
    ]


#: Run beside the tests of their adapters.
FRAMEWORKS = {
    "Hugging Face Trainer", "Accelerate", "Lightning",
    "Lightning with sharded modules", "JAX, Flax, optax",
    "JAX in several processes", "A folder for `from_pretrained`",
    "Averaged and schedule-free weights",
}  # fmt: skip

PRELUDE = """
import os, torch, pccheck, pccheck.torch as pcc
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
optimizer = torch.optim.AdamW(model.parameters())
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
steps = 41
def train(step):
    optimizer.zero_grad()
    model(torch.randn(3, 8)).square().mean().backward()
    optimizer.step()
"""
