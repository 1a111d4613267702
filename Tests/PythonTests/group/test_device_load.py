"""What ranks divided is read onto a device: a stand-in for NVIDIA's driver takes its place."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from stand_in import StandIn

import pccheck.distributed as pcd
from pccheck._torch.loading.decoder import TorchMemory

sys.path.insert(0, str(ROOT / "Tests" / "PythonTests" / "ranks"))

from gang import Gang, ended  # noqa: E402

# Rows that the ranks divide evenly or not, and more than one batch of pieces.
SAVE = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
mesh = init_device_mesh("cpu", (world,))
torch.manual_seed(3)
values = {"a": torch.randn(301, 700), "b": torch.randn(7), "c": torch.randn(24, 1 << 20)}
state = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in values.items()}
state["columns"] = distribute_tensor(values["a"], mesh, [Shard(1)])
state["half"] = distribute_tensor(values["a"].bfloat16(), mesh, [Shard(0)])
with pcd.Checkpointer(folder + "/run", timeout=60) as ckpt:
    ckpt.resume(**state)
    ckpt.save(1, **state).wait_group()
say("saved")
"""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, whose copies are late."""
    driver = StandIn()
    monkeypatch.setattr(TorchMemory, "devices", driver)
    driver.delay(0, 200)
    yield driver
    driver.synchronize()


def test_boxes_of_ranks_are_read_onto_the_device(
    job: Callable[..., Gang], tmp_path: Path, device: StandIn
) -> None:
    ended(job(2, SAVE), seconds=120)
    expected = pcd.load(tmp_path / "run")
    into = {name: device.put(torch.zeros_like(expected[name])) for name in "abc"}
    into["columns"] = device.put(torch.zeros_like(expected["columns"]))
    # Converted: through a buffer of the host.
    into["half"] = device.put(torch.zeros(301, 700))
    device.synchronize()
    before = device.driver.fakecuda_copied_bytes(1)
    # Still queued when the load begins.
    device.launch(lambda: time.sleep(0.3))
    device.fill(into["a"], 9)
    pcd.load(tmp_path / "run", into=into)
    device.synchronize()
    direct = sum(into[name].nbytes for name in "abc")
    assert device.driver.fakecuda_copied_bytes(1) - before == direct
    for name, value in into.items():
        assert torch.equal(value, expected[name].to(value.dtype)), name
