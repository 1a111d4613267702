"""The recipes of spec/PYTHON.md that need a framework run as they stand there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from recipe_page import FRAMEWORKS, PRELUDE, recipes

LIGHTNING = """
from lightning.pytorch import LightningModule
class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 1)
    def training_step(self, batch, index):
        return self.layer(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())
module, batches = Module(), torch.utils.data.DataLoader(torch.randn(8, 8), 2)
"""
PRELUDES = {
    "Hugging Face Trainer": """
from transformers import LlamaConfig, LlamaForCausalLM
network = LlamaForCausalLM(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2))
words = torch.arange(8)
dataset = [{"input_ids": words, "labels": words}] * 16
""",
    "A folder for `from_pretrained`": """
from transformers import GPT2Config, GPT2LMHeadModel
network = GPT2LMHeadModel(GPT2Config(
    vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2))
""",
    "Lightning": LIGHTNING,
    "Lightning with sharded modules": LIGHTNING,
}
FILES = {
    "Hugging Face Trainer": "trainer.pcc", "Accelerate": "accelerate.pcc",
    "Lightning": "lightning.pcc",
    "Lightning with sharded modules": "sharded/rank-00000-of-00001.pcc",
    "JAX, Flax, optax": "jax.pcc",
    "JAX in several processes": "jax/rank-00000-of-00001.pcc",
    "A folder for `from_pretrained`": "folder/model.safetensors",
    "Averaged and schedule-free weights": "average.pcc",
}  # fmt: skip


@pytest.mark.parametrize(
    ("title", "code"), [recipe for recipe in recipes() if recipe[0] in FRAMEWORKS],
    ids=lambda value: value if value in FRAMEWORKS else "",
)  # fmt: skip
def test_recipe(title: str, code: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + PRELUDES.get(title, "") + code],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / FILES[title]).exists()


def test_swapped_weights_go_on_bit_for_bit(tmp_path: Path) -> None:
    title = "Averaged and schedule-free weights"
    code = next(code for name, code in recipes() if name == title)
    shown = "\nprint([p.sum().item().hex() for p in [*model.parameters(), *average.parameters()]])"

    def trained(folder: str, *ends: int) -> str:
        (tmp_path / folder).mkdir()
        said = ""
        for steps in ends:
            said = subprocess.run(
                [sys.executable, "-c", f"{PRELUDE}\nsteps = {steps}\n{code}{shown}"],
                capture_output=True, text=True, cwd=tmp_path / folder, timeout=300, check=True,
            ).stdout  # fmt: skip
        return said

    assert trained("cut", 21, 33) == trained("whole", 33) != ""


def test_every_framework_has_its_recipe() -> None:
    assert set(FILES) == FRAMEWORKS == {title for title, _ in recipes()} & FRAMEWORKS
