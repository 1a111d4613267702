"""A Lightning Trainer that resumes where it was, however it ended.

    python train_lightning.py run.pcc --steps 100
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from pccheck.lightning import CheckpointCallback, CheckpointIO


class Module(LightningModule):
    """Learns to sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        """The loss of a batch."""
        loss = (self.layers(batch) - batch.sum(1, keepdim=True)).square().mean()
        print(f"step {self.global_step}: loss {loss.item():.6f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """What the Trainer steps with."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    seed_everything(1, verbose=False)
    batches = DataLoader(torch.randn(80, 8), batch_size=16)
    storage = CheckpointIO(options.file)
    trainer = Trainer(
        plugins=[storage],
        callbacks=[CheckpointCallback(storage, policy=5)],
        max_steps=options.steps, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    path = storage.resume_path()
    print("starts a new run" if path is None else "continues")
    trainer.fit(Module(), batches, ckpt_path=path)


if __name__ == "__main__":
    main()
