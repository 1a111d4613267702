"""Jobs of a Lightning Trainer whose module is sharded: FSDP version 2 on the CPU, with gloo."""

from __future__ import annotations

import os
from typing import Any

import ranks
import torch
import torch.distributed as dist
from accelerate_fsdp_child import die_together, keep
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.strategies import ModelParallelStrategy as LightningStrategy
from lightning_child import batches, launched
from torch.distributed.fsdp import fully_shard

from pccheck._state.comparing import StateMismatch
from pccheck.errors import InvalidArgument
from pccheck.lightning import CheckpointCallback, CheckpointIO, ModelParallelStrategy


class Module(LightningModule):
    """Nothing of it divides evenly; it has a buffer that nobody shards."""

    width = 7

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, self.width)
        self.drop = torch.nn.Dropout(0.3)
        self.last = torch.nn.Linear(self.width, 1)
        self.register_buffer("scale", torch.ones(1))

    def configure_model(self) -> None:
        mesh = self.device_mesh
        assert mesh is not None
        for part in (self.first, self.last, self):
            fully_shard(part, mesh=mesh["data_parallel"])

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        hidden = self.drop(self.first(batch).relu()) * self.scale
        loss: torch.Tensor = self.last(hidden).square().mean()
        return loss

    validation_step = test_step = training_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Wider(Module):
    width = 9


class OfEachRank(Module):
    """The buffer differs between the processes."""

    def on_train_start(self) -> None:
        self.scale += 0.001 * (1 + self.global_rank)


class Changing(Module):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        del checkpoint["state_dict"]["first.bias"]


class Watch(Callback):
    """Notes losses with all of their bits, and the state at the begin and at the end of it."""

    def __init__(
        self, storage: CheckpointIO, noted: str, kill_at: int | None, world: int
    ) -> None:
        self.storage, self.noted, self.kill_at = storage, noted, kill_at
        self.processes = [0] * world
        dist.all_gather_object(self.processes, os.getpid())

    def keep(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        schedulers = [item.scheduler for item in trainer.lr_scheduler_configs]
        parts = [module, *trainer.optimizers, *schedulers]
        keep(f"{self.noted}.{when}-{trainer.global_rank}", *parts)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.keep(trainer, module, "begin")

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        if trainer.global_step == self.kill_at:
            checkpointer: Any = self.storage.checkpointer
            checkpointer._last_handle.wait_group()

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # The next step has its gradients, and not its weights.
        if trainer.global_step == self.kill_at:
            die_together(trainer.global_rank, self.processes)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        with open(f"{self.noted}.losses", "a") as file:
            loss = outputs["loss"].item().hex()
            file.write(f"{trainer.global_rank} {trainer.global_step} {loss}\n")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.keep(trainer, module, "end")


def trainer_of(
    world: int, steps: int, storage: CheckpointIO, *callbacks: Callback, strategy: Any = None
) -> Trainer:
    strategy = strategy or ModelParallelStrategy(world, 1)
    return Trainer(
        max_steps=steps, accelerator="cpu", devices=world, logger=False, strategy=strategy,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        plugins=[storage], callbacks=list(callbacks),
    )  # fmt: skip


def train(
    name: str, steps: int, kill_at: int | None = None, note_as: str = "",
    module: type[Module] = Module,
) -> ranks.Task:  # fmt: skip
    """Saves into a folder after each step; one batch is an epoch."""

    def run(rank: int, world: int, directory: str) -> None:
        storage = CheckpointIO(f"{directory}/{name}/", timeout=60)
        watch = Watch(storage, f"{directory}/{note_as or name}", kill_at, world)
        trainer = trainer_of(world, steps, storage, CheckpointCallback(storage, policy=1), watch)
        seed_everything(1, verbose=False)
        made = module()
        seed_everything(1 + rank, verbose=False)
        trainer.fit(made, batches(8 * world, 8), ckpt_path=storage.resume_path())

    return run


def refused(name: str, module: type[Module], error: type[Exception], *words: str) -> ranks.Task:
    """All processes get an error with these words, and the folder stays as it is."""

    def run(rank: int, world: int, directory: str) -> None:
        try:
            train(name, 99, note_as="refused", module=module)(rank, world, directory)
        except error as failure:
            assert all(word in str(failure) for word in words), failure
        else:
            raise AssertionError(f"{name} was resumed")

    return run


def read(name: str) -> ranks.Task:
    """Validates with the newest step and with an older one, and changes no file."""

    def run(rank: int, world: int, directory: str) -> None:
        storage = CheckpointIO(f"{directory}/{name}/")
        trainer = trainer_of(world, 1, storage)
        for step in ("#step=5", ""):
            module, path = Module(), f"{directory}/{name}{step}"
            trainer.validate(module, batches(8, 8), ckpt_path=path, verbose=False)
            keep(f"{directory}/read{step[-1:]}-{rank}", module)

    return run


def own_files(name: str) -> ranks.Task:
    """Files of Lightning under other paths, which it resumes from; none in the folder."""

    def run(rank: int, world: int, directory: str) -> None:
        storage = CheckpointIO(f"{directory}/{name}/", timeout=60)
        first = trainer_of(world, 2, storage, CheckpointCallback(storage, policy=1))
        first.fit(Module(), batches(8, 8), ckpt_path=storage.resume_path())
        first.save_checkpoint(f"{directory}/own.ckpt")
        try:
            first.save_checkpoint(f"{directory}/{name}")
        except InvalidArgument as error:
            assert "only pccheck.lightning.CheckpointCallback" in str(error), error
        else:
            raise AssertionError("saved into the folder")
        other = CheckpointIO(f"{directory}/{name}-other/", timeout=60)
        second = trainer_of(world, 3, other, CheckpointCallback(other, policy=1))
        module = Module()
        second.fit(module, batches(8, 8), ckpt_path=f"{directory}/own.ckpt")
        assert second.global_step == 3

    return run


class FirstVersion(FSDPStrategy):
    """Lightning takes it by its own type only where there are GPUs."""


def unfit(rank: int, world: int, directory: str) -> None:
    """Strategies and storages that are refused, each with what to use instead."""
    folder, file = CheckpointIO(f"{directory}/unfit/"), CheckpointIO(f"{directory}/unfit.pcc")
    use = "strategy=pccheck.lightning.ModelParallelStrategy"
    for storage, strategy, words in (
        (folder, LightningStrategy(world, 1), use),
        (file, LightningStrategy(world, 1), use),
        (folder, FirstVersion(), "FSDP version 1"),
        (file, FirstVersion(), "FSDP version 1"),
        (file, ModelParallelStrategy(world, 1), "give CheckpointIO a folder"),
    ):
        trainer = trainer_of(
            world, 1, storage, CheckpointCallback(storage, policy=1), strategy=strategy
        )
        try:
            trainer.fit(Module(), batches(8, 8), ckpt_path=storage.resume_path())
        except InvalidArgument as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{type(strategy).__name__} was accepted")
    assert not os.path.exists(f"{directory}/unfit.pcc")


TASKS = {
    "whole": train("whole", 6),
    "cut": train("cut", 6, kill_at=4),
    "on": train("cut", 6, note_as="on"),
    "other": train("cut", 8, note_as="other"),
    "alone": train("cut", 9, note_as="alone"),
    "wider": refused("cut", Wider, StateMismatch, "state_dict.first.weight", "reshaped"),
    "read": read("cut"),
    "each": train("each", 2, module=OfEachRank),
    "each-on": train("each", 3, note_as="each-on", module=OfEachRank),
    "each-other": refused("each", Module, StateMismatch, "state_dict.scale: differs between"),
    "changing": refused("changing", Changing, InvalidArgument, "on_save_checkpoint"),
    "own-files": own_files("own"),
    "unfit": unfit,
}

if __name__ == "__main__":
    ranks.main({name: launched(task) for name, task in TASKS.items()})
