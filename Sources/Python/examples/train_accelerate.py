"""An Accelerate loop that resumes where it was, however it ended.

    python train_accelerate.py run.pcc --steps 100
"""

import argparse

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn

from pccheck.accelerate import Checkpointer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    set_seed(1)
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True)
    )
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(2)
    loader = torch.utils.data.DataLoader(
        torch.randn(80, 8), batch_size=16, shuffle=True, generator=order
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # Everything that was prepared or registered is saved; options are those of pccheck.torch.
    with Checkpointer(options.file, accelerator, policy=5) as checkpoints:
        step = checkpoints.resume()
        print(f"starts at step {step}")
        while step < options.steps:
            epoch, done = divmod(step, len(loader))
            loader.set_epoch(epoch)
            for batch in accelerator.skip_first_batches(loader, done):
                loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                print(f"step {step}: loss {loss.item():.6f}")
                if checkpoints.is_due(step):
                    checkpoints.save(step)
                step += 1
                if step == options.steps:
                    break


if __name__ == "__main__":
    main()
