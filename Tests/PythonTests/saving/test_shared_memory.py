"""Tensors that share memory: stored once, sharing again when they come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pccheck
import pccheck.torch
from pccheck._torch.saving.encoder import TorchEncoder
from pccheck._state.stored import StoredTensor
from pccheck.state import Decoder

KIB = 1 << 10


def encoded(state: Any) -> tuple[Any, list[tuple[str, int]]]:
    encoder = TorchEncoder(set())
    document = encoder.encode_state(state)
    return document, [(entry.name, entry.byte_count) for entry in encoder.entries]


def save_and_load(path: Path, state: Any) -> Any:
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, rng=False, state=state).wait()
        return checkpointer.load()["state"]


def test_overlapping_views_share_again(path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    state = {
        "base": base, "transposed": base.T, "row": base[2], "column": base[:, 1], "again": base,
        "part": base[1:3, 2:5], "other": torch.ones(3),
    }  # fmt: skip
    assert encoded(state)[1] == [("other", 12), ("base", 96)]
    loaded = save_and_load(path, state)
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key
        assert loaded[key].stride() == value.stride(), key
    assert loaded["again"] is loaded["base"]
    loaded["base"][2, 1] = -7
    assert loaded["row"][1] == loaded["column"][2] == loaded["transposed"][1, 2] == -7
    # Without torch they are arrays that share.
    plain = pccheck.load(path)["state"]
    assert np.array_equal(plain["transposed"], base.numpy().T)
    assert np.shares_memory(plain["row"], plain["part"])


def test_views_of_several_types(path: Path) -> None:
    words = torch.arange(64, dtype=torch.int32)
    state = {"bytes": words.view(torch.uint8)[7:90], "halves": words[2:].view(torch.bfloat16)}
    loaded = save_and_load(path, state)
    for key, value in state.items():
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], value), key
    loaded["bytes"][9 - 7 + 3] = 99
    expected = words[2:].clone().view(torch.uint8)
    expected[12 - 8] = 99
    assert torch.equal(loaded["halves"], expected.view(torch.bfloat16))
    plain = pccheck.load(path)["state"]
    assert plain["halves"] == pccheck.RawTensor("bfloat16", (124,), plain["halves"].data)
    assert plain["halves"].data.tobytes() == state["halves"].view(torch.uint8).numpy().tobytes()


def test_sharing_never_takes_more_room() -> None:
    large = torch.zeros(1000, 1000)
    state = {"first": large[:, 0], "second": large[:, 1]}
    assert encoded(state)[1] == [("first", 4000), ("second", 4000)]
    # Views that do not overlap are their own tensors: nobody can tell.
    flat = torch.arange(10.0)
    assert encoded([flat[:5], flat[5:]])[1] == [("0", 20), ("1", 20)]


def test_flat_parameters_are_read_in_place_once(path: Path) -> None:
    """One flat tensor that an optimizer steps, and the views that the layers see."""
    flat = nn.Parameter(torch.randn(100 * KIB))
    module = nn.Module()
    module.flat = flat
    module.register_buffer("view", flat.detach()[: 50 * KIB].view(50, KIB))
    encoder = TorchEncoder({flat.untyped_storage().data_ptr()})
    encoder.encode_state(module.state_dict())
    assert [(entry.address, entry.byte_count) for entry in encoder.entries] == [
        (flat.data_ptr(), flat.nbytes)
    ]
    expected = flat.detach().clone()
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, module=module).wait()
        with torch.no_grad():
            flat.zero_()
        checkpointer.resume(module=module)
    assert torch.equal(flat, expected) and module.view.data_ptr() == flat.data_ptr()


def test_views_are_filled_in_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def views(flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"all": flat[10:90], "middle": flat[20:40], "even": flat[10:90:2]}

    saved = views(torch.arange(100.0))
    flat = torch.zeros(100)
    live = views(flat)
    kept = dict(live)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state=saved, rng=False).wait()
        monkeypatch.setattr(pccheck.torch.TorchMemory, "allocate", None)
        checkpointer.resume(state=live, rng=False)
        monkeypatch.undo()
        assert all(live[key] is kept[key] for key in live)
        assert torch.equal(flat[10:90], torch.arange(10.0, 90.0))
        assert not flat[:10].any() and not flat[90:].any()

        # Live tensors that do not share are filled one by one.
        apart = {key: torch.zeros_like(value) for key, value in saved.items()}
        checkpointer.resume(state=apart, rng=False)
    assert all(torch.equal(apart[key], saved[key]) for key in saved)


def test_saved_apart_and_loaded_into_views(path: Path) -> None:
    flat = torch.zeros(20)
    live = {"low": flat[:12], "high": flat[8:]}
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state={"low": torch.ones(12), "high": torch.full((12,), 2.0)}).wait()
        checkpointer.resume(state=live)
    assert torch.equal(flat, torch.tensor([1.0] * 8 + [2.0] * 12))


GOOD = {"$view": "t", "dtype": "float32", "offset": 0, "shape": [2, 2], "stride": [2, 1]}


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 4}, {"offset": 2}, {"offset": -4}, {"offset": 1.0}, {"offset": None},
        {"shape": [2, 3]}, {"shape": [2]}, {"shape": [2, True]}, {"shape": [-1, 2]},
        {"shape": [1 << 47, 1 << 47], "stride": [0, 0]}, {"shape": 4}, {"stride": [3, 1]},
        {"stride": [-2, 1]}, {"stride": [1 << 60, 1]}, {"dtype": "float64"}, {"dtype": 4},
        {"dtype": "no such"}, {"dtype": "object", "shape": [1], "stride": [1]},
        {"$view": "other"}, {"$view": 5},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_broken_views(change: dict[str, Any], kind: str) -> None:
    def decode(node: Any) -> Any:
        memory = np.arange(16, dtype=np.uint8)
        tensor = StoredTensor("t", "F32", (4,), memory)
        if kind == "numpy":
            return Decoder({"t": tensor}).decode(node)
        tensor.memory = torch.from_numpy(memory)
        return pccheck.torch.TorchDecoder({"t": tensor}).decode(node)

    assert decode(GOOD).shape == (2, 2)
    with pytest.raises(pccheck.StateFormatError):
        decode({**GOOD, **change})


def test_views_survive_lazy_and_meta_loads(path: Path) -> None:
    base = torch.arange(6.0)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, a=base, b=base[1:4], rng=False).wait()
    lazy = pccheck.torch.load(path, lazy=True)
    assert torch.equal(lazy["b"], base[1:4])
    meta = pccheck.torch.load(path, map_location="meta")
    assert meta["b"].is_meta and meta["b"].shape == (3,)
