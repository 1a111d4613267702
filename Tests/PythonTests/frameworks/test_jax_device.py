"""Arrays of JAX on a CUDA device, for which a stand-in for NVIDIA's driver takes its place."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pccheck.jax
from pccheck._core.tensors import DevicePlace
from pccheck._group.boxes import Box
from pccheck._jax.device import CudaDevices, OnDevice, address_of, is_dense
from pccheck._jax.layout import _Held
from stand_in import StandIn


class Devices:
    """Arrays that share memory with a tensor of the stand-in are on its device."""

    def __init__(self) -> None:
        self.device = StandIn()

    def locate(self, array: jax.Array) -> tuple[DevicePlace, int] | None:
        return self.device.locate_address(address_of(array)) if is_dense(array) else None

    def put(self, values: np.ndarray) -> jax.Array:
        tensor = self.device.put(torch.from_numpy(values))
        return jax.dlpack.from_dlpack(tensor)


def test_arrays_are_read_on_their_device(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices()
    devices.device.delay(1000, 5000)
    monkeypatch.setattr(pccheck.jax.Checkpointer, "_devices", devices)
    values = np.arange(100_000, dtype=np.float32)
    tree = {
        "x": devices.put(values), "n": devices.put(np.arange(7, dtype=np.int32)),
        "host": jnp.ones((3, 5)),
    }  # fmt: skip
    expected = jax.tree_util.tree_map(np.array, tree)
    with pccheck.jax.Checkpointer(path, capacity="8 MiB") as checkpointer:
        handle = checkpointer.save(3, tree)
        # Everything was copied: what holds the buffer may be donated.
        assert handle.state != "staging"
        handle.wait()
        stats = checkpointer.stats()
        start, found = checkpointer.resume(jax.tree_util.tree_map(jnp.zeros_like, tree))
    assert start == 4
    assert stats["device_leg"]["byte_count"] == 100_000 * 4 + 7 * 4
    for key in ("x", "n", "host"):
        assert found[key].dtype == expected[key].dtype
        assert np.array_equal(found[key], expected[key])


def test_boxes_are_read_on_their_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices()
    devices.device.delay(1000, 5000)
    monkeypatch.setattr(pccheck.jax.Checkpointer, "_devices", devices)
    tree = {
        "x": devices.put(np.arange(100_000, dtype=np.float32).reshape(100, 1000)),
        "z": devices.put(np.arange(6, dtype=np.complex64)), "host": jnp.ones((3, 5)),
    }  # fmt: skip
    expected = jax.tree_util.tree_map(np.array, tree)
    with pccheck.jax.Checkpointer(f"{tmp_path}/run/") as checkpointer:
        handle = checkpointer.save(3, tree)
        assert handle.state != "staging"
        handle.wait_group()
        stats = checkpointer.stats()
    assert stats["device_leg"]["byte_count"] == 100_000 * 4 + 6 * 8
    with pccheck.jax.Checkpointer(f"{tmp_path}/run/") as checkpointer:
        start, found = checkpointer.resume(jax.tree_util.tree_map(jnp.zeros_like, tree))
    assert start == 4
    for key in ("x", "z", "host"):
        assert found[key].dtype == expected[key].dtype
        assert np.array_equal(found[key], expected[key])


def test_a_run_of_rows_is_one_piece_of_memory() -> None:
    devices = Devices()
    array = devices.put(np.arange(60, dtype=np.int32).reshape(5, 4, 3))
    whole = OnDevice.of(devices, array)
    assert whole is not None
    rows = whole.part(Box((2, 0, 0), (2, 4, 3)))
    assert rows is not None and rows.shape == (2, 4, 3)
    assert (rows.address - whole.address, rows.byte_count) == (2 * 12 * 4, 2 * 12 * 4)
    assert whole.part(Box((0, 1, 0), (5, 3, 3))) is None
    scalar = OnDevice.of(devices, devices.put(np.array(3.0, np.float32)))
    assert scalar is not None and scalar.part(Box((), ())) == scalar


def test_samples_of_a_device_are_those_of_the_host() -> None:
    devices, values = Devices(), np.arange(1000, dtype=np.float32).reshape(10, 100)

    def sample(array: jax.Array) -> bytes:
        [(box, _, data)] = (held := _Held("x", array, devices)).parts
        return held._sample(box, data)

    on_device = devices.put(values)
    assert devices.locate(on_device) is not None
    assert sample(on_device) == sample(jnp.array(values))
    assert len(sample(on_device)) == 65 * 4


def test_arrays_of_the_host_are_on_no_device() -> None:
    assert CudaDevices().locate(jnp.ones(5)) is None
