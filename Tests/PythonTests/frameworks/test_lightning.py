"""A Lightning Trainer that saves through a file: in the middle of training, and at its end."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import pccheck
from pccheck.lightning import CheckpointCallback, CheckpointIO

pytestmark = pytest.mark.filterwarnings("ignore")

TRAINING = '''
import logging, sys, warnings, torch
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler
from pccheck.lightning import CheckpointCallback, CheckpointIO

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"width": 16})
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1))
    def training_step(self, batch, index):
        loss = self.layers(batch).square().mean()
        print(self.global_step, loss.item().hex(), flush=True)
        return loss
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]

path = sys.argv[1]
logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.ERROR)
seed_everything(1)
data = torch.randn(32, 8, generator=torch.Generator().manual_seed(2))
order = RandomSampler(data, generator=torch.Generator().manual_seed(3))
loader = StatefulDataLoader(data, 4, sampler=order, generator=torch.Generator().manual_seed(4))
storage = CheckpointIO(path)
trainer = Trainer(
    max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False,
    enable_model_summary=False, enable_checkpointing=False, plugins=[storage],
    callbacks=[CheckpointCallback(storage, policy=1)])
trainer.fit(Module(), loader, ckpt_path=storage.resume_path())
'''


def test_a_killed_run_goes_on_with_the_same_losses(
    tmp_path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    def finished(name: str) -> dict[str, str]:
        child = run_child(TRAINING, tmp_path / name)
        output, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        return dict(line.split() for line in output.splitlines())

    whole = finished("whole.pcc")
    assert len(whole) == 32
    child = run_child(TRAINING, tmp_path / "killed.pcc")
    assert child.stdout is not None
    # In the middle of the second epoch.
    seen = dict(child.stdout.readline().split() for _ in range(13))
    child.send_signal(signal.SIGKILL)
    child.wait()
    rest = finished("killed.pcc")
    assert 0 < len(rest) <= 24
    assert seen | rest == whole


class Module(LightningModule):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, width)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def fit(
    path: Path, storage: CheckpointIO, module: Module, epochs: int, ckpt_path: str | None = None,
    **options: Any,
) -> Trainer:  # fmt: skip
    trainer = Trainer(
        default_root_dir=path.parent, max_epochs=epochs, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=[storage], **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.randn(8, 4), 2), ckpt_path=ckpt_path)
    return trainer


def test_model_checkpoint_saves_into_the_file(path: Path) -> None:
    storage = CheckpointIO(path, retain=3)
    assert storage.resume_path() is None
    every = ModelCheckpoint(
        dirpath=path.parent / "models", monitor="loss", save_top_k=2, every_n_epochs=1
    )
    module = Module()
    trainer = fit(path, storage, module, 3, callbacks=[every])
    assert [info.step for info in pccheck.checkpoints(path)] == [12, 8, 4]
    assert not list((path.parent / "models").glob("*.ckpt"))
    # What it calls the best is a name in the file.
    storage = CheckpointIO(path)
    best = storage.load_checkpoint(every.best_model_path)
    assert best["global_step"] in (4, 8, 12)
    newest = storage.load_checkpoint(path)
    assert newest["global_step"] == 12 == trainer.global_step
    assert torch.equal(newest["state_dict"]["layer.weight"], module.layer.weight)
    said = "saved as other.ckpt; it holds: .*larger retain"
    with pytest.raises(pccheck.NoCheckpoint, match=said):
        storage.load_checkpoint("other.ckpt")
    storage.teardown()
    # Going on.
    resumed = CheckpointIO(path)
    again = Module()
    trainer = fit(path, resumed, again, 4, resumed.resume_path(), enable_checkpointing=False)
    assert trainer.global_step == 16
    # For inference, as Lightning does it.
    with pytest.raises(Exception):
        torch.load(path, weights_only=True)


def test_a_trainer_that_saves_elsewhere_is_refused(path: Path) -> None:
    storage = CheckpointIO(path)
    trainer = Trainer(
        callbacks=[CheckpointCallback(storage)], logger=False, accelerator="cpu", max_epochs=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(pccheck.InvalidArgument, match=r"plugins=\[storage\]"):
        trainer.fit(Module(), DataLoader(torch.randn(4, 4)))
    with pytest.raises(pccheck.InvalidArgument, match="storage_options"):
        storage.save_checkpoint({"global_step": 1}, "x.ckpt", {"a": 1})


def test_what_cannot_be_stored_is_named(path: Path) -> None:
    storage = CheckpointIO(path)
    with pytest.raises(TypeError, match="checkpoint.odd"):
        storage.save_checkpoint({"global_step": 1, "odd": object()}, "x.ckpt")


def test_damage_costs_one_checkpoint(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = CheckpointIO(path)
    module = Module(64)
    fit(path, storage, module, 2, callbacks=[CheckpointCallback(storage, policy=1)],
        enable_checkpointing=False)  # fmt: skip
    newest, older = (info.step for info in pccheck.checkpoints(path)[:2])
    weight = pccheck.load(path, newest)["checkpoint"]["state_dict"]["layer.weight"]
    content = bytearray(path.read_bytes())
    at = content.find(weight.tobytes())
    assert at > 0
    content[at] ^= 1
    path.write_bytes(content)
    storage = CheckpointIO(path)
    assert storage.load_checkpoint(path)["global_step"] == older
    assert f"the checkpoint of step {newest}" in caplog.text
    storage.teardown()
