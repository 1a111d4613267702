"""What holds of PyTorch's own storage of DCP holds of PCcheck's: the same scenarios over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from dcp_storages import Storage, failures_of
from ranks import run_jobs
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

SCENARIOS = Path(__file__).with_name("dcp_scenarios.py")

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

both = pytest.mark.parametrize("kind", ["stock", "ours"])


@both
@pytest.mark.parametrize(
    "jobs",
    [
        "placements_1d:2", "placements_2d:4", "sharded_tensors:2", "parts_of_a_mesh:4",
        "save_shards:1 load_shards:2", "save_shards:2 load_shards:1 load_shards:4",
        "save_shards:4 load_shards:3", "models:4 model_alone:1", "replicas:2", "orders:3",
        "cached_plans:2", "saves_that_fail:4", "loads_that_fail:4", "background_thread:2",
        "background_process:2", "whole_state:2",
    ],
)  # fmt: skip
def test_ranks(tmp_path: Path, kind: str, jobs: str) -> None:
    run_jobs(SCENARIOS, tmp_path, *jobs.split(), DCP_STORAGE=kind)


@pytest.fixture
def storage(tmp_path: Path, kind: str) -> Storage:
    return Storage(str(tmp_path), kind, retain=9)


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@both
def test_every_type_and_layout(storage: Storage) -> None:
    base = torch.arange(24).view(4, 6) % 2
    state = {str(dtype): base.to(dtype) for dtype in DTYPES}
    state |= {
        "empty": torch.zeros(0, 5), "scalar": torch.tensor(7.5), "transposed": torch.randn(4, 6).T,
        "strided": torch.arange(20.0)[::3], "expanded": torch.ones(1, 4).expand(3, 4),
        "part": torch.randn(8, 8)[2:5, 1:3], "parameter": nn.Parameter(torch.randn(3)),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }  # fmt: skip
    storage.save(state, 0)
    found = {
        key: nn.Parameter(torch.zeros(3)) if key == "parameter" else torch.zeros_like(value)
        for key, value in state.items()
    }
    storage.load(found, 0)
    for key, value in state.items():
        assert found[key].dtype == value.dtype, key
        bits = [tensor.detach().contiguous().view(-1).view(torch.uint8)
                if tensor.numel() and tensor.dim() else tensor.detach()
                for tensor in (found[key], value)]  # fmt: skip
        assert torch.equal(*bits), key


@both
def test_another_type_is_cast(storage: Storage) -> None:
    values = torch.randn(5, 3)
    storage.save({"w": values, "n": torch.arange(4)}, 0)
    found = {"w": torch.zeros(5, 3, dtype=torch.bfloat16), "n": torch.zeros(4)}
    storage.load(found, 0)
    assert torch.equal(found["w"], values.bfloat16()) and found["n"].tolist() == [0, 1, 2, 3]


@both
def test_nests_come_back(storage: Storage) -> None:
    state = {
        "dict": {"a": {"b": {"c": torch.ones(2)}}, "empty": {}, "list": []},
        "list": [torch.zeros(1), [torch.ones(1), {"x": torch.full((2,), 3.0), "y": "text"}]],
        "values": [1, 2.5, "three", None, True], "tuple": (1, (2, 3)), "bytes": b"bytes",
        "array": np.arange(3), "a.b": torch.ones(1), "": torch.ones(2), "\n\u20ac": 1,
        "0": {"0": torch.zeros(3)},
    }  # fmt: skip
    storage.save(state, 0)
    found = {
        "dict": {"a": {"b": {"c": torch.zeros(2)}}, "empty": {}, "list": []},
        "list": [torch.ones(1), [torch.zeros(1), {"x": torch.zeros(2), "y": ""}]],
        "values": [0, 0.0, "", 1, False], "tuple": (), "bytes": b"", "array": None,
        "a.b": torch.zeros(1), "": torch.zeros(2), "\n\u20ac": 0, "0": {"0": torch.ones(3)},
    }  # fmt: skip
    storage.load(found, 0)
    assert found.pop("array").tolist() == state.pop("array").tolist()
    assert repr(found) == repr(state)


class Kept:
    """An object with a state of its own."""

    def __init__(self, value: float) -> None:
        self.value, self.is_loaded = torch.tensor(value), False

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "kind": type(self).__name__}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.is_loaded = state["value"], True
        assert state["kind"] == "Kept"


class Watched(dict):  # type: ignore[type-arg]
    """A dictionary that knows whether it was changed."""

    is_changed = False

    def __setitem__(self, key: str, value: Any) -> None:
        self.is_changed = True
        super().__setitem__(key, value)


@both
def test_objects_with_a_state_stay_where_they_are(storage: Storage) -> None:
    storage.save({"kept": Kept(4.0), "plain": {"t": torch.ones(2), "bytes": [1, 2]}}, 0)
    state = Watched(kept=(kept := Kept(0.0)))
    storage.load(state, 0)
    assert kept.is_loaded and kept.value == 4.0 and not state.is_changed
    state = Watched(plain={"t": torch.zeros(2), "bytes": [0]})
    storage.load(state, 0)
    assert state.is_changed and state["plain"]["bytes"] == [1, 2]
    storage.save({}, 1)
    storage.load({}, 1)


@both
def test_a_part_is_loaded_and_a_lack_is_an_error(storage: Storage) -> None:
    model, torso = nn.Linear(4, 3), nn.Linear(4, 3)
    storage.save({"model": model.state_dict(), "step": torch.tensor(3)}, 0)
    part = {"model": {"weight": torch.zeros(3, 4)}}
    storage.load(part, 0)
    assert torch.equal(part["model"]["weight"], model.weight)
    wrong = {"model": {**torso.state_dict(), "head": torch.full((2,), 5.0)}}
    failures = failures_of(lambda: storage.load(wrong, 0))
    assert "Missing key" in str(failures[0])
    storage.load(wrong, 0, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    assert torch.equal(wrong["model"]["bias"], model.bias)
    assert wrong["model"]["head"].tolist() == [5.0, 5.0]
    for other, text in (
        ({"step": torch.zeros(2)}, "Size"), ({"step": "text"}, "BytesStorageMetadata"),
    ):  # fmt: skip
        assert text in str(failures_of(lambda other=other: storage.load(dict(other), 0))[0])


@both
def test_planners_change_what_is_saved_and_loaded(storage: Storage) -> None:
    class Renaming(dcp.DefaultSavePlanner):
        def set_up_planner(self, state_dict: Any, *rest: Any, **options: Any) -> None:
            renamed = {f"prefix.{key}": value for key, value in state_dict.items()}
            super().set_up_planner(renamed, *rest, **options)

        def transform_object(self, write_item: Any, object: Any) -> Any:
            if isinstance(object, torch.Tensor):
                return object.half()
            return super().transform_object(write_item, object)

    class Taking(dcp.DefaultLoadPlanner):
        def set_up_planner(self, state_dict: Any, *rest: Any, **options: Any) -> None:
            renamed = {f"prefix.{key}": value for key, value in state_dict.items()}
            super().set_up_planner(renamed, *rest, **options)

        def resolve_tensor(self, read_item: Any) -> Any:
            self.buffer = torch.empty_like(super().resolve_tensor(read_item))
            return self.buffer

        def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
            super().resolve_tensor(read_item).detach().copy_(tensor + 1)

    storage.save({"t": torch.arange(6.0).view(2, 3), "n": [1]}, 0, planner=Renaming())
    found = {"t": torch.zeros(2, 3)}
    storage.load(found, 0, planner=Taking())
    assert torch.equal(found["t"], torch.arange(6.0).view(2, 3) + 1)
    flat = {"a": {"b": torch.ones(2)}, "t": torch.ones(3)}
    storage.save(flat, 1, planner=dcp.DefaultSavePlanner(flatten_state_dict=False))
    found = {"a": None, "t": torch.zeros(3)}
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    storage.load(found, 1, planner=planner)
    assert torch.equal(found["a"]["b"], torch.ones(2)) and found["t"].tolist() == [1.0] * 3


@both
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_optimizers_go_on(storage: Storage, optimizer: Any) -> None:
    def made(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
        model[0].bias.requires_grad_(False)
        others = optimizer(model[1].parameters(), lr=0.1)
        others.add_param_group({"params": [model[0].weight], "lr": 0.05})
        train(model, others)
        return model, others

    def train(model: nn.Module, others: torch.optim.Optimizer) -> None:
        torch.manual_seed(3)
        others.zero_grad()
        model(torch.randn(3, 4)).sum().backward()
        others.step()

    (model, others), (other_model, other_others) = made(1), made(2)
    names = ("model", "optimizer")
    storage.save(dict(zip(names, get_state_dict(model, others), strict=True)), 0)
    state = dict(zip(names, get_state_dict(other_model, other_others), strict=True))
    storage.load(state, 0)
    set_state_dict(
        other_model, other_others, model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )  # fmt: skip
    for _ in range(2):
        train(model, others)
        train(other_model, other_others)
    for one, other in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(one, other)


@both
def test_a_save_returns_its_metadata_and_steps_are_saved_again(storage: Storage) -> None:
    for value in (1.0, 2.0):
        metadata = storage.save({"t": torch.full((3,), value), "n": 1}, 0)
        assert metadata.state_dict_metadata["t"].size == torch.Size([3])
        found = {"t": torch.zeros(3)}
        storage.load(found, 0)
        assert found["t"].tolist() == [value] * 3
    writer = storage.writer(0)
    assert writer.validate_checkpoint_id(storage.checkpoint_id(3))
    assert storage.reader(0).validate_checkpoint_id(storage.checkpoint_id(3))
    assert storage.save({"t": torch.ones(1)}, 1, no_dist=True) is not None
    storage.load({"t": torch.ones(1)}, 1, no_dist=True)
