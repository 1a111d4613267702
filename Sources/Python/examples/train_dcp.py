"""torch.distributed.checkpoint in files of PCcheck: the calls stay, the storage is another one.

    python train_dcp.py run.pcc --steps 100
    torchrun --nproc-per-node 2 train_dcp.py run/
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from pccheck.dcp import StorageReader, StorageWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="a file, or the folder that several processes need")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    state = model.state_dict()
    start = 0
    reader = StorageReader(options.path)
    if reader.steps():
        # Without a checkpoint_id: the newest step that is durable on all ranks.
        dcp.load(state, storage_reader=reader)
        start = (reader.step or 0) + 1
    print(f"starts at step {start}")
    with StorageWriter(options.path, in_flight=2) as writer:
        for step in range(start, options.steps):
            inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"step {step}: loss {loss.item():.6f}")
            if step % 5 == 0:
                # Durable on all ranks when it returns; `dcp.async_save` works as well.
                dcp.save(state, checkpoint_id=step, storage_writer=writer)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
