"""A PyTorch loop that resumes where it was, however it ended.

    python train_pytorch.py run.pcc --steps 100
"""

import argparse

import torch
from torch import nn

import pccheck.torch as pcc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    with pcc.Checkpointer(options.file, policy=5, on_sigterm="save") as checkpoints:
        # 0 for a new file; otherwise all parts, and the random generators, are as they were.
        start = checkpoints.resume(**parts)
        print(f"starts at step {start}")
        for step in range(start, options.steps):
            inputs = torch.randn(16, 8)
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            # Waits, when a save still reads the parameters.
            optimizer.step()
            scheduler.step()
            print(f"step {step}: loss {loss.item():.6f}")
            # Returns at once: it is written while the next steps run.
            checkpoints.maybe_save(step, **parts)


if __name__ == "__main__":
    main()
