"""Training state of PyTorch: everything comes back bit for bit, and nothing aliases."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pccheck
import pccheck.torch
from pccheck._torch.parts import in_place_storages
from pccheck._torch.types import DTYPES as _DTYPES

QUANTIZED = {"qint8", "quint8", "qint32", "quint4x2", "quint2x4"}


@pytest.fixture
def open_file(path: Path) -> Callable[..., pccheck.torch.Checkpointer]:
    return lambda **options: pccheck.torch.Checkpointer(path, **options)


def bits(tensor: torch.Tensor) -> bytes:
    """The dense bytes of a tensor of any type."""
    dense = tensor.detach().resolve_conj().resolve_neg()
    if dense.dtype.is_complex:
        dense = torch.view_as_real(dense)
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return dense.view(words[dense.dtype.itemsize]).contiguous().numpy().tobytes()


def same(left: Any, right: Any) -> bool:
    """Equality of nests, with types and the bits of tensors."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return (
            left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return bool(left == right)


def save_and_load(path: Path, **state: Any) -> Any:
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, rng=False, **state).wait()
        return checkpointer.load()


# -- tensors


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_every_type_comes_back_bit_for_bit(path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, dtype in _DTYPES.items():
        if name in QUANTIZED:
            continue
        top = 2 if dtype == torch.bool else 256
        words = torch.randint(
            0, top, (15 * dtype.itemsize,), dtype=torch.uint8, generator=generator
        )
        state[name] = {"matrix": words.view(dtype).view(3, 5), "empty": words[:0].view(dtype)}
        state[name]["scalar"] = state[name]["matrix"][1, 2]
    assert len(state) >= 30
    loaded = save_and_load(path, tensors=state)["tensors"]
    for name in state:
        assert same(loaded[name], state[name]), name
    # The same file, read by a process that only has NumPy.
    plain = pccheck.load(path)["tensors"]
    assert isinstance(plain["float32"]["matrix"], np.ndarray)
    assert plain["float8_e4m3fnuz"]["matrix"] == pccheck.RawTensor(
        "float8_e4m3fnuz", (3, 5), plain["float8_e4m3fnuz"]["matrix"].data
    )
    assert np.array_equal(
        plain["complex128"]["matrix"], state["complex128"]["matrix"].numpy(), equal_nan=True
    )


def test_shapes_and_strides(path: Path) -> None:
    base = torch.arange(48.0).view(2, 4, 6)
    state = {
        "zero_dim": torch.tensor(3.5),
        "zero_size": torch.empty(3, 0, 2),
        "transposed": base.transpose(0, 2),
        "strided": base[:, ::2, 1:5:2],
        "offset": base[1, 2:],
        "expanded": torch.tensor([1.0, 2.0]).view(2, 1).expand(2, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "grad": torch.randn(3, requires_grad=True),
    }
    loaded = save_and_load(path, **state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape, name
        assert torch.equal(loaded[name], tensor.detach()), name
        assert not loaded[name].requires_grad


def test_tied_tensors_are_stored_once_and_stay_tied(path: Path) -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    base = torch.randn(4, 4)
    loaded = save_and_load(path, model=model, views=[base, base.T, base, base.clone()])
    weights = loaded["model"]
    assert weights["embedding.weight"] is weights["head.weight"]
    first, transposed, again, clone = loaded["views"]
    assert first is again and clone is not first and torch.equal(transposed, first.T)
    infos = pccheck.checkpoints(path)
    assert infos[0].payload_byte_count < 3 * 4096


def test_torch_scalars_and_numpy_beside_tensors(path: Path) -> None:
    state = {
        "dtype": torch.bfloat16, "size": torch.Size([2, 3]), "device": torch.device("cpu"),
        "array": np.arange(5, dtype=np.uint16), "tensor": torch.arange(5),
        "keys": {1: torch.ones(2), (2, "x"): None},
    }  # fmt: skip
    assert same(save_and_load(path, state=state)["state"], state)


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: 1, "a function cannot be stored"),
        (torch.eye(2).to_sparse(), "layout is torch.sparse_coo"),
        (torch.empty(2, device="meta"), "meta device"),
        (quantized(), "quantized"),
        (torch.utils.data.DataLoader([1]), r"DataLoader cannot be stored.*state_dict\(\)"),
    ],
    ids=["function", "sparse", "meta", "quantized", "loader"],
)
def test_refusals_name_the_key(path: Path, value: Any, message: str) -> None:
    with pccheck.torch.Checkpointer(path) as checkpointer:
        with pytest.raises(TypeError, match=r"key 'outer\.list\.1': " + ".*" + message):
            checkpointer.save(1, outer={"list": [0, value]})
    assert not path.exists()


class _Subclass(torch.Tensor):
    pass


def test_tensor_subclass_is_refused(path: Path) -> None:
    with pccheck.torch.Checkpointer(path) as checkpointer:
        with pytest.raises(TypeError, match="key 'x': .*_Subclass cannot be stored"):
            checkpointer.save(1, x=torch.ones(2).as_subclass(_Subclass))


# -- training


class Loader:
    """A data loader that can say where it is."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(11)
        self.position = 0

    def batch(self) -> torch.Tensor:
        self.position += 1
        return torch.randn(8, 16, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.generator.set_state(state["generator"])


class Run:
    """A small run that uses everything a resume must restore."""

    def __init__(self, seed: int, make_optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.model = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Linear(32, 16)
        )
        self.optimizer = make_optimizer(self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
        self.loader = Loader()
        self.history: list[float] = []
        self.parts = {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
            "loader": self.loader, "history": self.history,
        }  # fmt: skip

    def step(self) -> None:
        batch = self.loader.batch() * random.random() + float(np.random.rand())
        loss = (self.model(batch) - batch).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.history.append(loss.item())


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, centered=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_bit_exact(
    name: str, open_file: Callable[..., pccheck.torch.Checkpointer]
) -> None:
    whole = Run(1, OPTIMIZERS[name])
    for _ in range(20):
        whole.step()

    first = Run(1, OPTIMIZERS[name])
    with open_file(in_flight=3) as checkpointer:
        assert checkpointer.resume(**first.parts) == 0
        for step in range(12):
            first.step()
            checkpointer.save(step, **first.parts)
    second = Run(2, OPTIMIZERS[name])
    history = second.history
    with open_file() as checkpointer:
        start = checkpointer.resume(**second.parts)
        assert start == 12
        for _ in range(start, 20):
            second.step()
    assert second.history is history and history == whole.history
    for key in ("model", "optimizer", "scheduler", "loader"):
        assert same(second.parts[key].state_dict(), whole.parts[key].state_dict()), key
    assert second.optimizer.param_groups[0]["params"][0] is next(second.model.parameters())


def test_random_generators_resume(path: Path) -> None:
    own = torch.Generator().manual_seed(4)

    def draw() -> list[float]:
        return [
            random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(1).item(),
            torch.rand(1, generator=own).item(),
        ]  # fmt: skip

    draw()
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, own=own).wait()
        expected = [draw(), draw()]
        checkpointer.resume(own=own)
        assert [draw(), draw()] == expected
        before = torch.get_rng_state()
        checkpointer.resume(rng=False)
        assert torch.equal(torch.get_rng_state(), before)


def test_nested_parts_and_plain_state_are_restored_in_place(path: Path) -> None:
    models = {"generator": nn.Linear(2, 2), "critics": [nn.Linear(2, 2), nn.Linear(2, 1)]}
    ema = {"weight": torch.randn(3), "decay": 0.9}
    expected = copy.deepcopy(models)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, models=models, ema=ema, best=(1.0, 2)).wait()
        weight, value = ema["weight"], ema["weight"].clone()
        for parameter in models["critics"][1].parameters():
            nn.init.zeros_(parameter)
        nn.init.zeros_(models["generator"].weight)
        weight.zero_()
        ema["decay"] = 0.0
        assert checkpointer.resume(models=models, ema=ema, best=(1.0, 2)) == 2
        assert ema["weight"] is weight and torch.equal(weight, value) and ema["decay"] == 0.9
        for old, new in [
            (expected["generator"], models["generator"]),
            (expected["critics"][1], models["critics"][1]),
        ]:
            assert same(old.state_dict(), new.state_dict())
        with pytest.raises(TypeError, match="'best.0' is of type float, which cannot"):
            checkpointer.resume(best=(3.0, 2))
        missing = r"missing from the checkpoint \(1\)\n    scheduler\n"
        with pytest.raises(pccheck.StateMismatch, match=missing):
            checkpointer.resume(scheduler={})
        reshaped = r"reshaped \(1\)\n    ema.weight: saved float32 \(3\), live float32 \(4\)"
        with pytest.raises(pccheck.StateMismatch, match=reshaped):
            checkpointer.resume(ema={"weight": torch.zeros(4)})


def test_first_save_before_the_first_step_leaves_room_for_moments(path: Path) -> None:
    model = nn.Linear(1000, 1000)
    optimizer = torch.optim.AdamW(model.parameters())
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(0, model=model, optimizer=optimizer).wait()
        model(torch.randn(1, 1000)).sum().backward()
        optimizer.step()
        assert checkpointer.save(1, model=model, optimizer=optimizer).wait().durable


# -- overlap


def big_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(16)])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def test_parameters_are_read_in_place() -> None:
    model, optimizer = big_model()
    encoder = pccheck.torch.TorchEncoder(in_place_storages([model, optimizer]))
    encoder.encode_state({"model": model.state_dict()})
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    assert {entry.address for entry in encoder.entries} == addresses


@pytest.mark.parametrize("pass_optimizer", [True, False])
def test_step_right_after_save_does_not_leak_into_it(path: Path, pass_optimizer: bool) -> None:
    """The pool is far smaller than the state, so staging takes as long as the disk."""
    model, optimizer = big_model()
    parts: dict[str, Any] = {"model": model}
    if pass_optimizer:
        parts["optimizer"] = optimizer
    options: dict[str, Any] = {"chunk": "1 MiB", "pool": "8 MiB", "in_flight": 2}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        for step in range(4):
            expected = copy.deepcopy(model.state_dict())
            handle = checkpointer.save(step, **parts)
            optimizer.step()
            assert handle.state != "staging"
            assert not torch.equal(expected["0.weight"], model[0].weight)
            handle.wait()
            assert same(checkpointer.load(step)["model"], expected)


def test_without_the_hook_a_step_would_leak(path: Path) -> None:
    """Shows that the test above can fail: staging really is under way when save returns."""
    model, optimizer = big_model()
    options: dict[str, Any] = {"chunk": "1 MiB", "pool": "8 MiB"}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        handle = checkpointer.save(0, model=model)
        assert checkpointer._hook is not None
        checkpointer._hook.remove()
        state = handle.state
        handle.wait()
    assert state == "staging"


def test_buffers_and_plain_tensors_are_copied_by_save(path: Path) -> None:
    """A forward pass changes buffers before any optimizer step could wait."""
    norm = nn.BatchNorm1d(1 << 20)
    plain = torch.zeros(1 << 20)
    array_like = {"x": plain}
    options: dict[str, Any] = {"chunk": "64 KiB", "pool": "1 MiB"}
    with pccheck.torch.Checkpointer(path, **options) as checkpointer:
        handle = checkpointer.save(0, norm=norm, plain=array_like)
        norm.running_mean.fill_(7)
        norm.num_batches_tracked.fill_(9)
        plain.fill_(5)
        handle.wait()
        loaded = checkpointer.load()
    assert not loaded["norm"]["running_mean"].any()
    assert loaded["norm"]["num_batches_tracked"] == 0
    assert not loaded["plain"]["x"].any()


def test_hook_is_removed_at_close(path: Path) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = len(hooks)
    model, optimizer = big_model()
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(0, model=model, optimizer=optimizer)
        assert len(hooks) == before + 1
    assert len(hooks) == before
    optimizer.step()
