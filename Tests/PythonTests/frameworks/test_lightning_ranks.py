"""A Lightning run of two processes: one of them writes, both go on where they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pccheck

TRAINING = '''
import sys, torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from pccheck.lightning import CheckpointCallback, CheckpointIO
from pccheck.policies import Every

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    def training_step(self, batch, index):
        return self.layers(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)

path, steps = sys.argv[1], int(sys.argv[2])
storage = CheckpointIO(path)
# Time is not the same on both ranks: they agree on what is due.
trainer = Trainer(
    max_steps=steps, accelerator="cpu", devices=2, strategy="ddp", logger=False,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    plugins=[storage], callbacks=[CheckpointCallback(storage, policy=Every(seconds=0.0))])
# Each rank drops out other values.
seed_everything(1 + trainer.global_rank, verbose=False)
module = Module()
loader = torch.utils.data.DataLoader(
    torch.arange(256.0).view(32, 8) / 100, 4, generator=torch.Generator())
trainer.fit(module, loader, ckpt_path=storage.resume_path())
if trainer.is_global_zero:
    print("end", trainer.global_step, sum(p.sum().item() for p in module.parameters()).hex())
'''


def test_both_ranks_go_on_bit_for_bit(tmp_path: Path) -> None:
    # A file, which Lightning runs again for the second rank.
    program = tmp_path / "train.py"
    program.write_text(TRAINING)

    def end(name: str, steps: int) -> str:
        ended = subprocess.run(
            [sys.executable, str(program), str(tmp_path / name), str(steps)],
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return next(line for line in ended.stdout.splitlines() if line.startswith("end"))

    assert end("cut.pcc", 4).startswith("end 4")
    assert pccheck.checkpoints(tmp_path / "cut.pcc")[0].step == 4
    assert end("cut.pcc", 8) == end("whole.pcc", 8)
