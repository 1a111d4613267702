"""An Accelerate loop that saves through a file, killed and resumed."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

import pccheck
from pccheck.accelerate import Checkpointer
from pccheck.errors import InvalidArgument

TRAINING = '''
import sys, torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from pccheck.accelerate import Checkpointer

path, epochs, is_stateful = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stateful"
set_seed(1)
configuration = DataLoaderConfiguration(
    use_seedable_sampler=True, use_stateful_dataloader=is_stateful)
accelerator = Accelerator(cpu=True, dataloader_config=configuration)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9)
data = torch.randn(24, 8, generator=torch.Generator().manual_seed(2))
# Of its own: a new iterator draws a seed, which would change what dropout draws.
order = torch.Generator().manual_seed(3)
loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, generator=order)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

class Counter:
    seen = 0
    def state_dict(self):
        return {"seen": self.seen}
    def load_state_dict(self, state):
        self.seen = state["seen"]

counter = Counter()
accelerator.register_for_checkpointing(counter)
with Checkpointer(path, accelerator) as checkpoints:
    step = checkpoints.resume()
    first, rest = divmod(step, 6)
    for epoch in range(first, epochs):
        # The loader of skip_first_batches counts its epochs, and this one does not know of it.
        loader.set_epoch(epoch)
        batches = loader
        if epoch == first and rest and not is_stateful:
            batches = accelerator.skip_first_batches(loader, rest)
        for batch in batches:
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            counter.seen += 1
            print(step, loss.item().hex(), flush=True)
            checkpoints.save(step).wait()
            step += 1
    print("seen", counter.seen)
'''

Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("loader", ["sampler", "stateful"])
def test_a_killed_run_goes_on_with_the_same_losses(
    tmp_path: Path, run_child: Start, loader: str
) -> None:
    def finished(name: str) -> dict[str, str]:
        child = run_child(TRAINING, tmp_path / name, 3, loader)
        output, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        return dict(line.split() for line in output.splitlines())

    whole = finished("whole.pcc")
    assert whole["seen"] == "18" and len(whole) == 19
    child = run_child(TRAINING, tmp_path / "killed.pcc", 3, loader)
    assert child.stdout is not None
    seen = [child.stdout.readline().split() for _ in range(9)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    # On a busy machine it was further on than what was read of it.
    seen += [line.split() for line in child.stdout]
    rest = finished("killed.pcc")
    assert 1 < len(rest) < 13
    assert dict(seen) | rest == whole


def test_what_differs_is_listed(path: Path) -> None:
    def prepared(width: int) -> Accelerator:
        accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(4, width)
        accelerator.prepare(model, torch.optim.SGD(model.parameters()))
        return accelerator

    with Checkpointer(path, prepared(2)) as checkpoints:
        assert checkpoints.resume() == 0
        checkpoints.save(3, extra={"note": "kept"}).wait()
        assert checkpoints.load()["extra"] == {"note": "kept"}
    with Checkpointer(path, prepared(3)) as checkpoints:
        with pytest.raises(pccheck.StateMismatch, match="models.*weight"):
            checkpoints.resume()
    with Checkpointer(path, prepared(2)) as checkpoints:
        assert checkpoints.resume() == 4


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (DistributedType.FSDP, "runs FSDP version 1.*fsdp_version=2"),
        (DistributedType.DEEPSPEED, "runs as DEEPSPEED.*FSDP version 2.*save_state"),
        (DistributedType.MEGATRON_LM, "runs as MEGATRON_LM.*FSDP version 2.*save_state"),
    ],
)
def test_what_is_not_saved_exactly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: DistributedType, message: str
) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator.state, "distributed_type", kind)
    plugin = SimpleNamespace(fsdp_version=1)
    monkeypatch.setattr(accelerator.state, "fsdp_plugin", plugin, raising=False)
    with pytest.raises(InvalidArgument, match=message):
        Checkpointer(f"{tmp_path}/run/", accelerator)


def test_a_resume_before_prepare_is_refused(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, optimizer)
    with Checkpointer(path, accelerator) as checkpoints:
        assert checkpoints.resume() == 0
        checkpoints.save(3).wait()
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model)
    with Checkpointer(path, accelerator) as checkpoints:
        with pytest.raises(InvalidArgument, match="has optimizers, .* call resume.. again"):
            checkpoints.resume()
        assert checkpoints.resume(strict=False) == 4
        assert "has optimizers, and the accelerator has none" in caplog.text
        assert checkpoints.resume_report is not None
        assert checkpoints.resume_report.unexpected == ["optimizers"]
    with Checkpointer(path, Accelerator(cpu=True)) as checkpoints:
        with pytest.raises(InvalidArgument, match="nothing to save; prepare the model"):
            checkpoints.save(5, metadata="a note is no part")
        checkpoints.save(5, extra={"note": "kept"}).wait()
