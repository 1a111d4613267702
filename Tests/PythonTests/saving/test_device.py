"""State on a CUDA device. Where there is none, a stand-in for NVIDIA's driver takes its place: the
engine's code is the real one, copies are late, and the host cannot read device memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pccheck
import pccheck.torch
from pccheck._core.tensors import DevicePlace
from pccheck._torch.loading.decoder import TorchMemory
from pccheck._torch.saving import waiting
from pccheck.errors import AcceleratorError, InvalidArgument, StateChanged, Unsupported
from stand_in import StandIn, numbers

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def driver() -> StandIn:
    """One for all tests: the engine opens the driver of a process once."""
    return StandIn()


@pytest.fixture
def device(driver: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The devices of the stand-in, whose copies are as late as the test asks for."""
    _use(driver, monkeypatch)
    driver.delay(0, 200)
    yield driver
    driver.synchronize()


def _use(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pccheck.torch.Checkpointer, "_devices", devices)
    monkeypatch.setattr(TorchMemory, "devices", devices)
    monkeypatch.setattr(waiting, "devices", devices)


def module_on(device: StandIn, count: int = 300_000) -> nn.Module:
    """A module with a parameter, and a buffer, on the device."""
    module = nn.Module()
    module.x = nn.Parameter(device.put(torch.zeros(count)))
    module.register_buffer("y", device.put(torch.zeros(7, 5)))
    return module


def only_value(tensor: torch.Tensor) -> float:
    """The one value of all elements."""
    values = tensor.detach().unique()
    assert values.numel() == 1, values
    return float(values[0])


def train_and_load(
    device: StandIn, path: Path, steps: int = 4, kernel_seconds: float = 0
) -> list[tuple[float, float]]:
    """What each checkpoint holds of tensors that the device changes step by step."""
    module = module_on(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    options: dict[str, Any] = {"retain": steps, "capacity": "8 MiB", "chunk": "256 KiB"}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        for step in range(steps):
            device.launch(lambda: time.sleep(kernel_seconds))
            device.fill(module.x, step + 1)
            device.fill(module.y, step + 1)
            handle = checkpointer.save(step, module=module, host=torch.tensor(step), rng=False)
            # A buffer may change as soon as save() has returned, a parameter in a step.
            device.fill(module.y, -1)
            pccheck.torch._before_step(optimizer)
            device.fill(module.x, -1)
            handle.wait()
        found = []
        for step in range(steps):
            state = checkpointer.load(step)
            assert state["host"] == step
            found.append((only_value(state["module"]["x"]), only_value(state["module"]["y"])))
    return found


@pytest.mark.parametrize("lateness", [(0, 0), (0, 3000), (2000, 4000)])
def test_a_checkpoint_holds_what_was_queued_before_it(
    path: Path, device: StandIn, lateness: tuple[int, int]
) -> None:
    device.delay(*lateness)
    assert train_and_load(device, path) == [(step + 1.0, step + 1.0) for step in range(4)]
    assert device.driver.fakecuda_unpinned_copies() == 0


class WrongStream:
    """Names an idle stream as the one that trains."""

    def __init__(self, device: StandIn) -> None:
        self._device = device

    def locate(self, tensor: torch.Tensor) -> tuple[DevicePlace, int] | None:
        return self._device.locate(tensor)

    def current_stream(self, place: DevicePlace) -> int | None:
        return 2

    def are_host(self, tensors: Sequence[torch.Tensor]) -> bool:
        return self._device.are_host(tensors)


def test_the_wrong_stream_at_a_save_is_noticed_by_these_tests(
    path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.delay(0, 0)
    monkeypatch.setattr(
        pccheck.torch.Checkpointer, "_devices", WrongStream(device)
    )
    # The copies are over before the step has begun, and hold what was there before.
    found = train_and_load(device, path, kernel_seconds=0.1)
    assert found != [(step + 1.0, step + 1.0) for step in range(4)]


def test_a_step_that_holds_nothing_back_is_noticed_by_these_tests(
    path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.delay(2000, 4000)
    monkeypatch.setattr(pccheck.SaveHandle, "_hold", lambda *arguments, **options: None)
    try:
        found = train_and_load(device, path)
    except AssertionError:
        # A mixture.
        return
    assert found != [(step + 1.0, step + 1.0) for step in range(4)]


def test_neither_save_nor_a_step_waits_for_the_device(path: Path, device: StandIn) -> None:
    """With a pool as large as the state, the stream alone waits."""
    module = module_on(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        device.delay(200_000, 200_000)
        handle = checkpointer.save(1, module=module, rng=False)
        pccheck.torch._before_step(optimizer)
        assert handle.state == "staging"
        device.fill(module.x, 9)
        handle.wait()
        assert only_value(checkpointer.load()["module"]["x"]) == 0
        # All that this test waited for was one copy.
        assert checkpointer.stats()["staged_wait_nanoseconds"] < 150_000_000


def test_a_small_pool_has_the_host_wait_at_the_step(path: Path, device: StandIn) -> None:
    module = module_on(device, 2 << 20)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    device.delay(5000, 5000)
    options: dict[str, Any] = {"capacity": "16 MiB", "chunk": "1 MiB", "pool": "3 MiB"}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        for step in range(3):
            device.fill(module.x, step)
            handle = checkpointer.save(step, module=module, rng=False)
            pccheck.torch._before_step(optimizer)
            device.fill(module.x, -1)
            handle.wait()
            assert only_value(checkpointer.load()["module"]["x"]) == step
        stats = checkpointer.stats()
    assert stats["device_leg"]["stall_nanoseconds"] > 0
    assert stats["staged_wait_nanoseconds"] > 3 * 5 * 5_000_000
    assert stats["device_leg"]["byte_count"] == 3 * (module.x.nbytes + module.y.nbytes)


def test_a_change_that_nothing_holds_back_discards_the_checkpoint(
    path: Path, device: StandIn
) -> None:
    module = module_on(device)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        device.delay(50_000, 50_000)
        handle = checkpointer.save(1, module=module, rng=False)
        device.fill(module.x, 1)
        with pytest.raises(StateChanged, match="module.x"):
            handle.wait()
        assert checkpointer.steps() == [0]


def test_a_step_on_another_stream_holds_back_that_of_the_save_too(
    path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the step nobody looks for changes. What comes next on the stream of the save waits."""
    module = module_on(device)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB", chunk="256 KiB") as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        device.fill(module.x, 5)
        device.delay(50_000, 50_000)
        handle = checkpointer.save(1, module=module, rng=False)
        side = device.new_stream()
        with monkeypatch.context() as patch:
            patch.setattr(device, "current_stream", lambda place: side)
            pccheck.torch._before_step(other)
        device.fill(module.x, -7)
        assert handle.wait().durable
        assert only_value(checkpointer.load(1)["module"]["x"]) == 5


class Resizable(StandIn):
    """Tensors whose memory torch can free, as it can that of a device: a twin is on the device."""

    def __init__(self, device: StandIn) -> None:
        self.__dict__.update(device.__dict__)
        self.twins: dict[int, torch.Tensor] = {}

    def put(self, tensor: torch.Tensor, ordinal: int = 0) -> torch.Tensor:
        own = tensor.clone()
        self.twins[own.data_ptr()] = super().put(tensor, ordinal)
        return own

    def locate(self, tensor: torch.Tensor) -> tuple[DevicePlace, int] | None:
        return super().locate(self.twins.get(tensor.data_ptr(), tensor))


def test_a_step_while_the_stream_of_the_save_records_a_graph(
    path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be held on it then. A change that follows is noticed."""
    module = module_on(device)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB", chunk="256 KiB") as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        device.delay(50_000, 50_000)
        handle = checkpointer.save(1, module=module, rng=False)
        side = device.new_stream()
        with monkeypatch.context() as patch, device.capture():
            patch.setattr(device, "current_stream", lambda place: side)
            pccheck.torch._before_step(other)
        device.fill(module.x, -7)
        with pytest.raises(StateChanged):
            handle.wait()


def test_memory_of_a_device_that_is_freed_discards_the_checkpoint(
    path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is queued next on the stream of the save may get that memory."""
    devices = Resizable(device)
    _use(devices, monkeypatch)
    module = nn.Module()
    module.x = nn.Parameter(devices.put(torch.full((300_000,), 5.0)))
    (twin,) = devices.twins.values()
    with pccheck.torch.Checkpointer(path, capacity="8 MiB", chunk="256 KiB") as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        device.delay(50_000, 50_000)
        handle = checkpointer.save(1, module=module, rng=False)
        module.x.untyped_storage().resize_(0)
        device.fill(twin, -7)
        with pytest.raises(StateChanged, match="'module.x' changed"):
            handle.wait()
        assert checkpointer.steps() == [0]


def test_a_lazy_tensor_fills_memory_of_a_device(path: Path, device: StandIn) -> None:
    saved = torch.arange(300_000.0)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        checkpointer.save(0, x=saved, rng=False).wait()
    target = device.put(torch.zeros(300_000))
    lazy = pccheck.torch.load(path, lazy=True)["x"]
    assert lazy.load(into=target) is target
    device.synchronize()
    assert np.array_equal(numbers(target), saved.numpy())


def test_copies_that_are_not_on_the_device_are_read_as_host_memory(
    path: Path, device: StandIn
) -> None:
    """The stand-in makes dense copies in host memory, where a device makes them on itself."""
    base = device.put(torch.arange(60_000.0)).view(300, 200)
    state = {
        "conjugate": torch.view_as_complex(device.put(torch.ones(500, 2))).conj(),
        "expanded": device.put(torch.arange(7.0)).expand(5, 7),
        "columns": base[:, ::3],
    }
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        checkpointer.save(1, state=state, rng=False).wait()
        loaded = checkpointer.load(1)["state"]
    assert torch.equal(loaded["conjugate"], torch.full((500,), 1 - 1j))
    assert torch.equal(loaded["expanded"], torch.arange(7.0).expand(5, 7))
    assert torch.equal(loaded["columns"], torch.arange(60_000.0).view(300, 200)[:, ::3])


def test_strided_tensors_are_copied_on_the_device(path: Path, device: StandIn) -> None:
    matrix = device.put(torch.arange(12.0).view(3, 4))
    assert device.locate(matrix.T)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        checkpointer.save(0, matrix=matrix.T, row=matrix[1], rng=False).wait()
        loaded = checkpointer.load()
    assert torch.equal(loaded["matrix"], matrix.T)
    assert torch.equal(loaded["row"], matrix[1])


def test_tensors_of_two_devices_and_the_host_in_one_state(path: Path, device: StandIn) -> None:
    device.delay(0, 2000)
    state = {
        "host": torch.arange(100_000),
        "zero": device.put(torch.arange(100_000.0)),
        "one": device.put(torch.arange(100_000.0) * 2, ordinal=1),
        "small": [device.put(torch.full((3,), float(i)), ordinal=i % 2) for i in range(200)],
        "empty": device.empty(0),
    }
    expected = {"host": state["host"].clone(), "one": state["one"].clone()}
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        handle = checkpointer.save(0, state=state, rng=False)
        device.fill(state["one"], -1, ordinal=1)
        handle.wait()
        loaded = checkpointer.load()["state"]
        assert checkpointer.stats()["devices"] == ["cuda:0", "cuda:1"]
    for key, value in expected.items():
        assert torch.equal(loaded[key], value)
    assert [only_value(item) for item in loaded["small"]] == [float(i) for i in range(200)]


def test_a_resume_fills_device_memory_behind_what_uses_it(path: Path, device: StandIn) -> None:
    module = module_on(device)
    before = device.driver.fakecuda_copied_bytes(1)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        device.fill(module.x, 5)
        checkpointer.save(3, module=module, rng=False).wait()
        # Still queued when the load begins: its values must not come over what was loaded.
        for value in range(20):
            device.fill(module.x, value)
        assert checkpointer.resume(module=module) == 4
    device.synchronize()
    assert only_value(module.x) == 5
    assert device.driver.fakecuda_copied_bytes(1) - before == module.x.nbytes + module.y.nbytes


def test_a_state_on_a_device_takes_no_host_memory_but_the_pool(
    path: Path, device: StandIn
) -> None:
    module = nn.Module()
    module.x = nn.Parameter(device.empty(64 << 20).zero_())
    options: dict[str, Any] = {"pool": "32 MiB", "chunk": "4 MiB", "capacity": "280 MiB"}
    with pccheck.torch.Checkpointer(path, in_flight=3, **options) as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        begin = _anonymous_byte_count()
        handles = [checkpointer.save(step, module=module, rng=False) for step in (1, 2, 3)]
        most = begin
        while not all(handle.done() for handle in handles):
            most = max(most, _anonymous_byte_count())
        for handle in handles:
            handle.wait()
        checkpointer.resume(module=module)
        most = max(most, _anonymous_byte_count())
    assert most - begin < 64 << 20


def _anonymous_byte_count() -> int:
    """Memory that this process has touched, and that is no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def test_a_line_for_each_save_has_the_leg_from_the_device(
    path: Path, device: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"x": device.put(torch.zeros(1 << 20)), "y": torch.zeros(1 << 20)}
    with pccheck.torch.Checkpointer(path) as checkpointer, caplog.at_level("INFO", "pccheck"):
        handle = checkpointer.save(1, state=state, rng=False)
        handle.wait()
    assert handle.device_byte_count == 4 << 20
    (line,) = [text for text in caplog.messages if text.startswith("step 1:")]
    number = r"[\d.]+"
    assert re.fullmatch(
        rf"step 1: 8\.4 MB staged in {number} ms \(4\.2 MB from devices, {number} GB/s\), "
        rf"durable in {number} ms, {number} GB/s", line,
    ), line  # fmt: skip


# -- failures


def test_a_save_while_a_graph_is_recorded_is_refused(path: Path, device: StandIn) -> None:
    module = module_on(device)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        with device.capture(), pytest.raises(InvalidArgument, match="graph"):
            checkpointer.save(1, module=module, rng=False)
        checkpointer.save(2, module=module, rng=False).wait()
        assert checkpointer.steps()[0] == 2


def test_a_copy_that_fails_costs_that_checkpoint_alone(path: Path, device: StandIn) -> None:
    module = module_on(device)
    with pccheck.torch.Checkpointer(path, capacity="8 MiB") as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        device.fail("cuMemcpyDtoHAsync_v2", 1)
        device.fail("cuMemcpyBatchAsync_v2", 1)
        with pytest.raises(AcceleratorError, match="cuda:0"):
            checkpointer.save(1, module=module, rng=False).wait()
        for step in range(2, 6):
            handle = checkpointer.save(step, module=module, rng=False)
            if handle.exception() is None:
                handle.wait()
        assert checkpointer.steps()[0] == 5


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as a device that has failed stays so."""
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


BEGIN = """
import os, sys, torch, pccheck.torch
from stand_in import StandIn
from pccheck._torch.loading.decoder import TorchMemory
from pccheck._torch.saving import waiting
device = StandIn()
pccheck.torch.Checkpointer._devices = TorchMemory.devices = waiting.devices = device
tensor = device.put(torch.arange(300_000.0))
"""


def test_a_device_that_dies_loses_nothing_durable(path: Path) -> None:
    done = run(
        BEGIN
        + """
checkpointer = pccheck.torch.Checkpointer(sys.argv[1], capacity="8 MiB", chunk="256 KiB")
checkpointer.save(0, x=tensor, rng=False).wait()
device.fail("copy", 700, 2, is_sticky=True)
for step in (1, 2):
    try:
        checkpointer.save(step, x=tensor, rng=False).wait()
        print("no error")
    except pccheck.AcceleratorError as error:
        print(type(error).__name__, error)
# Memory of the host can still be saved.
checkpointer.save(3, x=torch.ones(5), rng=False).wait()
checkpointer.close()
print(*[info.step for info in pccheck.checkpoints(sys.argv[1])])
""",
        str(path),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["AcceleratorError"] * 2, lines
    assert "700" in lines[0] or "ILLEGAL_ADDRESS" in lines[0], lines
    assert "only a new process" in lines[0]
    assert lines[2].split()[0] == "3"


def test_memory_that_cannot_be_registered_is_a_warning(path: Path) -> None:
    done = run(
        BEGIN
        + """
with pccheck.torch.Checkpointer(sys.argv[1], capacity="8 MiB") as checkpointer:
    checkpointer.save(0, x=tensor, rng=False).wait()
    stats = checkpointer.stats()
    assert torch.equal(checkpointer.load()["x"], tensor)
print(stats["unpinned_reason"], device.driver.fakecuda_unpinned_copies() > 0)
""",
        str(path), FAKECUDA_REGISTER_LIMIT="1000000",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "OUT_OF_MEMORY" in done.stdout and "True" in done.stdout, done.stdout


def test_without_a_driver_the_error_says_so(path: Path) -> None:
    code = """
import sys, torch, pccheck.torch
from pccheck._core.tensors import DevicePlace

class Devices:
    def are_host(self, tensors):
        return False
    def locate(self, tensor):
        return DevicePlace(1, 0), tensor.data_ptr()
    def current_stream(self, place):
        return 0

pccheck.torch.Checkpointer._devices = Devices()
checkpointer = pccheck.torch.Checkpointer(sys.argv[1], capacity="8 MiB")
try:
    checkpointer.save(0, x=torch.ones(1000), rng=False)
except pccheck.Unsupported as error:
    print(error)
"""
    done = run(code, str(path))
    assert done.returncode == 0, done.stderr
    assert "libcuda.so.1" in done.stdout and "NVIDIA's driver" in done.stdout, done.stdout
    assert issubclass(Unsupported, pccheck.CheckpointError)


def test_a_child_of_a_process_that_used_the_device_is_told(path: Path) -> None:
    done = run(
        BEGIN
        + """
with pccheck.torch.Checkpointer(sys.argv[1], capacity="8 MiB") as checkpointer:
    checkpointer.save(0, x=tensor, rng=False).wait()
child = os.fork()
if child == 0:
    with pccheck.torch.Checkpointer(sys.argv[1]) as checkpointer:
        try:
            checkpointer.save(1, x=tensor, rng=False)
        except pccheck.Forked as error:
            print(error, flush=True)
        # What is on the host can be saved there.
        checkpointer.save(2, x=torch.ones(5), rng=False).wait()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(pccheck.checkpoints(sys.argv[1])[0].step)
""",
        str(path),
    )
    assert done.returncode == 0, done.stderr
    assert "spawn" in done.stdout and done.stdout.splitlines()[-1] == "2", done.stdout


# -- a whole run

TRAIN = (
    BEGIN
    + """
import numpy as np
from stand_in import numbers

path, count, kill_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
device.delay(0, 3000)
torch.manual_seed(1)
model = torch.nn.Linear(300, 300)
for name, value in list(model.named_parameters()):
    setattr(model, name, torch.nn.Parameter(device.put(value.detach())))

class Momentum(torch.optim.Optimizer):
    '''Its step is a kernel: queued now, and run later.'''

    def __init__(self, parameters):
        super().__init__(parameters, {})
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["momentum"] = device.put(torch.zeros_like(parameter))
            self.state[parameter]["step"] = torch.tensor(0.0)

    def step(self):
        for index, parameter in enumerate(self.param_groups[0]["params"]):
            state = self.state[parameter]
            state["step"] += 1
            number = float(state["step"])
            def kernel(x=numbers(parameter), m=numbers(state["momentum"]), number=number):
                m *= 0.9
                m += np.sin(x * number) * 0.1
                x -= m
            device.launch(kernel, [parameter, state["momentum"]])

optimizer = Momentum(model.parameters())
checkpointer = pccheck.torch.Checkpointer(path, in_flight=2, chunk="64 KiB", pool="256 KiB")
start = checkpointer.resume(model=model, optimizer=optimizer)
for step in range(start, count):
    optimizer.step()
    handle = checkpointer.save(step, model=model, optimizer=optimizer)
    if step == kill_at:
        handle.wait()
        print("resumed at", start, flush=True)
    if kill_at <= step:
        if step == kill_at + 2:
            os.kill(os.getpid(), 9)
device.synchronize()
checkpointer.close()
print(start, *[hash(numbers(p).tobytes()) for p in model.parameters()])
"""
)


def test_a_killed_run_continues_with_the_same_bits(path: Path) -> None:
    undisturbed = run(TRAIN, str(path) + "-other", "40", "1000", PYTHONHASHSEED="0")
    assert undisturbed.returncode == 0, undisturbed.stderr
    for kill_at in (5, 17, 29):
        killed = run(TRAIN, str(path), "40", str(kill_at), PYTHONHASHSEED="0")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = run(TRAIN, str(path), "40", "1000", PYTHONHASHSEED="0")
    assert last.returncode == 0, last.stderr
    start, *digests = last.stdout.split()
    assert int(start) >= 30
    assert digests == undisturbed.stdout.split()[1:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_device(path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    with pccheck.torch.Checkpointer(path) as checkpointer:
        for step in range(5):
            optimizer.zero_grad()
            model(torch.randn(64, 1024, device="cuda")).square().mean().backward()
            optimizer.step()
            expected = {key: value.clone() for key, value in model.state_dict().items()}
            handle = checkpointer.save(step, model=model, optimizer=optimizer)
            optimizer.step()
            handle.wait()
            loaded = checkpointer.load(step)["model"]
            assert all(torch.equal(loaded[key], expected[key].cpu()) for key in expected)
        checkpointer.resume(model=model, optimizer=optimizer)
        assert all(
            torch.equal(value, expected[key]) for key, value in model.state_dict().items()
        )
