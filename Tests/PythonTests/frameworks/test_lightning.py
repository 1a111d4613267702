"""A Lightning Trainer that saves through a file: in the middle of training, and at its end."""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
)
from lightning.pytorch.tuner import Tuner
from schedulefree import AdamWScheduleFree
from torch.utils.data import DataLoader

import pccheck
import pccheck.torch
from pccheck.lightning import CheckpointCallback, CheckpointIO
from pccheck.policies import Auto, Every

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
        self.lr = 1e-3

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


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


def run_of(path: Path, epochs: int, *more: Any, **options: Any) -> tuple[Trainer, Module]:
    """A run, or its continuation, that saves every step."""
    storage = CheckpointIO(path, **options)
    module = Module()
    callbacks = [*more, CheckpointCallback(storage, policy=1)]
    trainer = fit(path, storage, module, epochs, storage.resume_path(), callbacks=callbacks,
                  enable_checkpointing=any(isinstance(item, Checkpoint) for item in more))
    return trainer, module


def test_model_checkpoint_leaves_files_of_its_own(path: Path) -> None:
    """The best is there for as long as it is called the best, whatever `retain` is."""
    every = ModelCheckpoint(
        dirpath=path.parent / "models", monitor="loss", save_top_k=2, save_last=True
    )
    trainer, module = run_of(path, 3, every)
    assert [info.step for info in pccheck.checkpoints(path)][0] == 12
    assert len(list((path.parent / "models").glob("epoch*.ckpt"))) == 2
    assert set(every.best_k_models) == set(map(str, (path.parent / "models").glob("epoch*.ckpt")))
    # As Lightning reads them for inference.
    best = Module.load_from_checkpoint(every.best_model_path)
    assert best.layer.weight.shape == (3, 4)
    last = Module.load_from_checkpoint(every.last_model_path)
    assert torch.equal(last.layer.weight, module.layer.weight)
    again = CheckpointIO(path)
    assert again.load_checkpoint(every.best_model_path)["global_step"] in (4, 8, 12)
    assert again.load_checkpoint(path)["global_step"] == 12
    # Going on from the file, and from what is called the best.
    assert run_of(path, 4)[0].global_step == 16
    fresh = CheckpointIO(path.with_name("other.pcc"))
    trainer = fit(path, fresh, Module(), 4, every.last_model_path, enable_checkpointing=False)
    assert trainer.global_step == 16


def test_save_checkpoint_leaves_a_file_where_it_says(path: Path) -> None:
    trainer, module = run_of(path, 1)
    held = [info.step for info in pccheck.checkpoints(path)]
    final = path.parent / "sub" / "final.ckpt"
    trainer.save_checkpoint(final)
    trainer.save_checkpoint(final.with_name("weights.ckpt"), weights_only=True)
    assert [info.step for info in pccheck.checkpoints(path)] == held
    for name in ("final.ckpt", "weights.ckpt"):
        loaded = Module.load_from_checkpoint(final.with_name(name))
        assert torch.equal(loaded.layer.weight, module.layer.weight)
    assert torch.load(final, weights_only=True)["optimizer_states"]
    trainer.strategy.remove_checkpoint(final)
    trainer.strategy.remove_checkpoint(path)
    assert not final.exists() and path.exists()


def test_weights_alone_are_no_checkpoint_of_the_run(path: Path) -> None:
    trainer, _ = run_of(path, 1)
    with pytest.raises(pccheck.InvalidArgument, match="weights alone cannot be resumed"):
        trainer.save_checkpoint(path, weights_only=True)
    trainer.save_checkpoint(path)
    storage = CheckpointIO(path)
    assert storage.load_checkpoint(path)["optimizer_states"]


def test_a_learning_rate_finder_is_not_resumed_from(path: Path) -> None:
    """It saves, trains and goes back."""
    finder = LearningRateFinder(num_training_steps=5, early_stop_threshold=None)
    trainer, module = run_of(path, 2, finder)
    assert trainer.global_step == 8 and finder.optimal_lr is not None
    assert not list(path.parent.glob(".lr_find*"))
    storage = CheckpointIO(path)
    state = storage.load_checkpoint(storage.resume_path())
    assert state["global_step"] == 8
    assert torch.equal(state["state_dict"]["layer.weight"], module.layer.weight)
    # In a resumed run it makes Lightning forget where the run was: that is not saved.
    with pytest.raises(pccheck.InvalidArgument, match="step 8 .* begins at step 0.*RateFinder"):
        run_of(path, 4, finder)
    assert pccheck.checkpoints(path)[0].step == 8
    assert run_of(path, 4)[0].global_step == 16
    # Nothing but the finder: the file has nothing of it.
    other = CheckpointIO(path.with_name("other.pcc"))
    trainer = Trainer(
        default_root_dir=path.parent, max_epochs=1, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        plugins=[other], callbacks=[CheckpointCallback(other, policy=100)],
    )  # fmt: skip
    Tuner(trainer).lr_find(
        Module(), DataLoader(torch.randn(8, 4), 2), num_training=3, early_stop_threshold=None
    )
    assert other.resume_path() is None


def test_an_older_step_can_be_chosen(path: Path) -> None:
    run_of(path, 3, retain=4)
    assert [info.step for info in pccheck.checkpoints(path)][:4] == [12, 11, 10, 9]
    storage = CheckpointIO(path)
    module = Module()
    trainer = fit(path, storage, module, 3, f"{path}#step=10", enable_checkpointing=False,
                  callbacks=[CheckpointCallback(storage, policy=1)])  # fmt: skip
    assert trainer.global_step == 12
    assert [info.step for info in pccheck.checkpoints(path)][:2] == [12, 11]
    newest = CheckpointIO(path).load_checkpoint(path)["state_dict"]["layer.weight"]
    assert torch.equal(newest, module.layer.weight)
    said = r"no such file, and it is no name in .*run.pcc.*#step=.*\(12, 11"
    with pytest.raises(pccheck.FileMissing, match=said):
        CheckpointIO(path).load_checkpoint("other.ckpt")
    with pytest.raises(pccheck.NoCheckpoint, match="step 12"):
        CheckpointIO(path).load_checkpoint(f"{path}#step=4")


def test_a_damaged_file_does_not_start_over(path: Path) -> None:
    run_of(path, 1)
    content = bytearray(path.read_bytes())
    for index in range(2 * len(pccheck.report(path)["slots"])):
        content[16384 + 4096 * index + 40] ^= 1
    path.write_bytes(content)
    assert not pccheck.checkpoints(path)
    with pytest.raises(pccheck.NoCheckpoint, match="not empty"):
        CheckpointIO(path).resume_path()


def test_a_plugin_without_its_callback_says_where_things_go(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = CheckpointIO(path)
    fit(path, storage, Module(), 2, callbacks=[ModelCheckpoint(dirpath=path.parent)])
    assert caplog.text.count("a file of its own") == 1
    assert "callbacks=[CheckpointCallback(storage)]" in caplog.text


# -- weights that are swapped


# Staging takes as long as compressing does, in a pool that is smaller than the state.
SLOW: dict[str, Any] = {
    "pool": "1 MiB", "chunk": "256 KiB", "retain": 8, "codec": "zstd", "zstd_level": 16,
}  # fmt: skip


class Large(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(
            *[torch.nn.Linear(512, 512, bias=False) for _ in range(2)]
        )

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        pass


class Noting(Callback):
    """What the weights are at the end of a step, before anything swaps them."""

    def __init__(self) -> None:
        self.trained: dict[int, list[torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        weights = [p.detach().clone() for p in module.layer.parameters()]
        self.trained[trainer.global_step] = weights


class SwapAtStart(Callback):
    """As WeightAveraging, one hook earlier; behind torch's back, too."""

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        self.kept = [p.detach().clone() for p in module.parameters()]
        for parameter in module.parameters():
            parameter.data.zero_()

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        for parameter, value in zip(module.parameters(), self.kept, strict=True):
            parameter.data.copy_(value)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", ["average", "start"])
def test_validation_with_other_weights_makes_no_mixture(
    path: Path, kind: str, place: str
) -> None:
    """Lightning's averages swap through ``.data``, which torch does not count."""
    storage = CheckpointIO(path, **SLOW)
    own, noting = CheckpointCallback(storage, policy=1), Noting()
    other = EMAWeightAveraging(decay=0.5) if kind == "average" else SwapAtStart()
    callbacks = [noting, other, own] if place == "before" else [own, other, noting]
    trainer = Trainer(
        max_steps=4, val_check_interval=1, accelerator="cpu", logger=False, plugins=[storage],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, callbacks=callbacks,
    )  # fmt: skip
    data = DataLoader(torch.randn(12, 512), 2)
    trainer.fit(Large(), data, DataLoader(torch.randn(2, 512), 2))
    held = [info.step for info in pccheck.checkpoints(path)]
    assert held[0] == 4 and len(held) >= 3
    key = "current_model_state" if kind == "average" else "state_dict"
    for step in held:
        weights = pccheck.torch.load(path, step)["checkpoint"][key].values()
        assert all(map(torch.equal, weights, noting.trained[step])), step


def test_an_average_is_that_of_its_step(path: Path) -> None:
    """Whatever the order of the callbacks, a resumed run goes on bit for bit."""

    def run(name: str, steps: int, resume: bool = False) -> list[torch.Tensor]:
        storage = CheckpointIO(path.with_name(name))
        callbacks = [CheckpointCallback(storage, policy=1), EMAWeightAveraging(decay=0.5)]
        torch.manual_seed(3)
        module = Module()
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", logger=False, plugins=[storage],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            callbacks=callbacks,
        )  # fmt: skip
        data = DataLoader(torch.arange(32.0).view(8, 4) / 32, 8)
        trainer.fit(module, data, ckpt_path=storage.resume_path() if resume else None)
        # What the average made of them, at the end of training.
        return [p.detach() for p in module.parameters()]

    whole = run("whole.pcc", 6)
    run("cut.pcc", 3)
    assert all(map(torch.equal, run("cut.pcc", 6, resume=True), whole))


class ScheduleFree(Large):
    """As its authors and Lightning's users do it."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return AdamWScheduleFree(self.parameters(), lr=0.05)

    def on_train_start(self) -> None:
        self.trainer.optimizers[0].train()

    def on_validation_model_eval(self) -> None:
        self.eval()
        self.trainer.optimizers[0].eval()

    def on_validation_model_train(self) -> None:
        self.train()
        self.trainer.optimizers[0].train()


def test_a_schedule_free_optimizer_waits(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = CheckpointIO(path, **SLOW)
    noting = Noting()
    trainer = Trainer(
        max_steps=4, val_check_interval=1, accelerator="cpu", logger=False, plugins=[storage],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, callbacks=[noting, CheckpointCallback(storage, policy=1)],
    )  # fmt: skip
    data = DataLoader(torch.randn(12, 512), 2)
    trainer.fit(ScheduleFree(), data, DataLoader(torch.randn(2, 512), 2))
    held = [info.step for info in pccheck.checkpoints(path)]
    assert held[0] == 4 and len(held) >= 3 and "failed" not in caplog.text
    for step in held:
        weights = pccheck.torch.load(path, step)["checkpoint"]["state_dict"].values()
        assert all(map(torch.equal, weights, noting.trained[step])), step


class MovingInHook(Large):
    """Changes its weights after the callbacks were called."""

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.999)


def test_a_hook_of_the_module_comes_after_the_copy(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = CheckpointIO(path, **SLOW)
    callback = CheckpointCallback(storage, policy=1)
    fit_large(storage, MovingInHook(), [callback])
    assert pccheck.checkpoints(path)[0].step == 6 and "failed" not in caplog.text


def fit_large(storage: CheckpointIO, module: LightningModule, callbacks: list[Callback]) -> None:
    trainer = Trainer(
        max_steps=6, accelerator="cpu", logger=False, plugins=[storage], callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.randn(12, 512), 2))


# -- policies and command lines


def test_a_policy_learns_what_saving_costs(path: Path) -> None:
    storage = CheckpointIO(path)
    policy = Auto(budget=0.5)
    fit_large(storage, Large(), [CheckpointCallback(storage, policy)])
    assert policy._path == str(path) and policy._in_flight == 2
    seen: list[int] = []

    class Asked(Every):
        def began(self, step: int, saving: Any) -> None:
            seen.append(step)

    fresh = CheckpointIO(path.with_name("other.pcc"), policy=Asked(2))
    fit_large(fresh, Large(), [CheckpointCallback(fresh)])
    assert seen == [2, 4, 6]


CONFIGURED = """
from pccheck.lightning import CheckpointIO
from lightning.pytorch.cli import LightningCLI
import torch
from lightning.pytorch import LightningModule, LightningDataModule

class Module(LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, width)
    def training_step(self, batch, index):
        return self.layer(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

class Data(LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(8, 4), 2)

class Resuming(LightningCLI):
    def before_fit(self):
        self.trainer.ckpt_path = self.trainer.strategy.checkpoint_io.resume_path()

cli = Resuming(Module, Data, save_config_callback=None)
storage = cli.trainer.strategy.checkpoint_io
print("steps", cli.trainer.global_step,
      {name: storage._options[name] for name in ("in_flight", "retain")})
"""
CONFIGURATION = """
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  plugins:
    - class_path: pccheck.lightning.CheckpointIO
      init_args: {path: run.pcc, in_flight: 3, retain: 2}
  callbacks:
    - class_path: pccheck.lightning.CheckpointCallback
      init_args: {policy: 1}
"""


def test_a_command_line_of_lightning_takes_it(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIGURATION)

    def run(epochs: int) -> str:
        ended = subprocess.run(
            [sys.executable, "-c", CONFIGURED, "fit", "--config", "run.yaml",
             f"--trainer.max_epochs={epochs}"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "steps 4 {'in_flight': 3, 'retain': 2}" in run(1)
    assert pccheck.checkpoints(tmp_path / "run.pcc")[0].step == 4
    assert "steps 12" in run(3)
    assert [info.step for info in pccheck.checkpoints(tmp_path / "run.pcc")][:2] == [12, 11]


def test_a_trainer_that_saves_elsewhere_is_refused(path: Path) -> None:
    storage = CheckpointIO(path)
    trainer = Trainer(
        callbacks=[CheckpointCallback(storage)], logger=False, accelerator="cpu", max_epochs=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(pccheck.InvalidArgument, match=r"plugins=\[storage\]"):
        trainer.fit(Module(), DataLoader(torch.randn(4, 4)))
    with pytest.raises(pccheck.InvalidArgument, match=r"plugins=\[storage\]"):
        fit_large(CheckpointIO(path), Large(), [CheckpointCallback(CheckpointIO(path))])
    with pytest.raises(pccheck.InvalidArgument, match="storage_options"):
        storage.save_checkpoint({"global_step": 1}, "x.ckpt", {"a": 1})


def test_what_cannot_be_stored_is_named(path: Path) -> None:
    storage = CheckpointIO(path)
    with pytest.raises(TypeError, match="checkpoint.odd"):
        checkpoint = {"global_step": 1, "optimizer_states": [], "odd": object()}
        storage.save_checkpoint(checkpoint, path)


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


class Holding(Module):
    def __init__(self, width: int, checkpoints: Any, ignore: tuple[str, ...] = ()) -> None:
        super().__init__(width)
        self.save_hyperparameters(ignore=ignore)


def test_hyperparameters_leave_the_checkpointer_out(path: Path) -> None:
    with pccheck.torch.Checkpointer(path, capacity="1 MiB") as checkpointer:
        with pytest.raises(TypeError, match=r"save_hyperparameters\(ignore="):
            Holding(3, checkpointer)
        assert dict(Holding(3, checkpointer, ("checkpoints",)).hparams)["width"] == 3


def test_only_a_trainer_without_an_open_file_is_copied(path: Path) -> None:
    storage = CheckpointIO(path)
    trainer = fit(path, storage, Module(), 1, callbacks=[CheckpointCallback(storage, policy=1)],
                  enable_checkpointing=False)  # fmt: skip
    copied = pickle.loads(pickle.dumps(storage))
    assert copied.resume_path() == str(path)
    copy.deepcopy(trainer)
    assert storage.checkpointer.is_open
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.deepcopy(trainer)
    storage.teardown()
