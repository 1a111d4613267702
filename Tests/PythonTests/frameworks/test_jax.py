"""JAX trees: what comes back, on which devices, and after a kill."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Four devices, to be set before JAX looks for them.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import pccheck
import pccheck.jax


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree_util.tree_structure(found) == jax.tree_util.tree_structure(expected)
    for one, other in zip(
        jax.tree_util.tree_leaves(found), jax.tree_util.tree_leaves(expected), strict=True
    ):
        assert type(one) is type(other)
        if not isinstance(other, jax.Array):
            assert np.array_equal(one, other)
            continue
        assert one.dtype == other.dtype and one.sharding == other.sharding
        if jax.dtypes.issubdtype(other.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def mesh() -> Mesh:
    assert len(jax.devices()) == 4
    return Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))


def tree() -> dict[str, Any]:
    whole = jnp.arange(64.0).reshape(8, 8)
    rows = NamedSharding(mesh(), PartitionSpec("x"))
    both = NamedSharding(mesh(), PartitionSpec("y", "x"))
    everywhere = NamedSharding(mesh(), PartitionSpec())
    params = {"dense": {"kernel": whole, "bias": jnp.ones(8, jnp.bfloat16) / 3}}
    return {
        "params": params, "optimizer": optax.adamw(1e-3).init(params),
        "key": jax.random.key(7), "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "old_key": jax.random.PRNGKey(3),
        "rows": jax.device_put(whole + 1, rows), "both": jax.device_put(whole + 2, both),
        "everywhere": jax.device_put(whole + 3, everywhere),
        "narrow": jnp.arange(5).astype(jnp.float8_e4m3fn), "scalar": jnp.float32(2.5),
        "none": None, "empty": jnp.zeros((0, 3)), "nothing": {}, "flags": jnp.array([True, False]),
        "nan": jnp.array([np.nan, -0.0]), "complex": jnp.array([1 + 2j]),
        "host": np.arange(3), "count": 5, "rate": 0.25, "name": "größe", "tuple": (1, [2, 3]),
    }  # fmt: skip


def emptied(value: Any) -> Any:
    """The same tree with other values in its arrays."""
    def empty(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            return jax.device_put(jnp.zeros_like(leaf), leaf.sharding)
        return leaf

    return jax.tree_util.tree_map(empty, value)


def test_a_tree_comes_back(path: Path) -> None:
    saved = tree()
    with pccheck.jax.Checkpointer(path) as checkpointer:
        assert checkpointer.resume(saved) == (0, saved)
        checkpointer.save(4, saved).wait()
        step, found = checkpointer.resume(emptied(saved))
    assert step == 5
    assert_same(found, saved)
    assert_same(pccheck.jax.load(path, emptied(saved)), saved)
    # By their names, for any reader.
    kernel = pccheck.load_tensor(path, "tree.params.dense.kernel")
    assert np.array_equal(kernel, saved["params"]["dense"]["kernel"])


def test_only_types_and_a_sharding_are_needed(path: Path) -> None:
    with pccheck.jax.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"w": jnp.arange(16.0).reshape(4, 4)})
    sharding = NamedSharding(mesh(), PartitionSpec("y"))
    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=sharding)
    found = pccheck.jax.load(path, {"w": shape})["w"]
    assert found.sharding == sharding and np.array_equal(found, np.arange(16.0).reshape(4, 4))


def test_donated_buffers_were_copied(path: Path) -> None:
    change = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    with pccheck.jax.Checkpointer(path, in_flight=2) as checkpointer:
        value = jnp.arange(1 << 18, dtype=jnp.float32)
        for step in range(8):
            expected = np.array(value)
            handle = checkpointer.save(step, {"x": value})
            value = change(value)
            assert handle.wait().durable
            assert np.array_equal(pccheck.jax.load(path, {"x": value}, step)["x"], expected)


def test_flax_modules_come_back(path: Path) -> None:
    model = linen.Dense(3)
    parameters = model.init(jax.random.key(0), jnp.ones((1, 2)))
    network = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(network)
    with pccheck.jax.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"linen": parameters, "nnx": state}).wait()
        other = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(9)))[1]
        fresh = model.init(jax.random.key(5), jnp.ones((1, 2)))
        _, found = checkpointer.resume({"linen": fresh, "nnx": other})
    assert_same(found["linen"], parameters)
    merged = nnx.merge(graph, found["nnx"])
    assert np.array_equal(merged(jnp.ones((1, 2))), network(jnp.ones((1, 2))))


# -- what does not fit


def test_what_differs_is_listed(path: Path) -> None:
    saved = {"a": jnp.zeros(3), "b": jnp.zeros(2), "more": jnp.zeros(1)}
    with pccheck.jax.Checkpointer(path) as checkpointer:
        checkpointer.save(1, saved).wait()
        wanted = {"a": jnp.ones(3), "b": jnp.ones((2, 2)), "new": jnp.ones(4)}
        with pytest.raises(pccheck.StateMismatch) as caught:
            checkpointer.resume(wanted)
        report = caught.value.report
        assert report.missing == ["tree.new"]
        assert [item.name for item in report.reshaped] == ["tree.b"]
        step, found = checkpointer.resume(wanted, strict=False)
    assert step == 2
    assert_same(found, {"a": jnp.zeros(3), "b": jnp.ones((2, 2)), "new": jnp.ones(4)})


def test_keys_of_another_kind_are_refused(path: Path) -> None:
    with pccheck.jax.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"key": jax.random.key(1)}).wait()
        with pytest.raises(pccheck.CheckpointError, match="key"):
            checkpointer.resume({"key": jax.random.key(1, impl="rbg")})


def test_what_cannot_be_stored_is_named(path: Path) -> None:
    with pccheck.jax.Checkpointer(path) as checkpointer:
        with pytest.raises(TypeError, match="tree.a.odd"):
            checkpointer.save(1, {"a": {"odd": object()}})
        with pytest.raises(pccheck.InvalidArgument, match="two leaves.*'a.b'"):
            checkpointer.save(1, {"a": {"b": 1}, "a.b": 2})


def test_damage_costs_one_checkpoint(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = [np.random.default_rng(step).standard_normal(1000) for step in (1, 2)]
    with pccheck.jax.Checkpointer(path) as checkpointer:
        for step, value in zip((1, 2), values, strict=True):
            checkpointer.save(step, {"x": jnp.asarray(value, jnp.float32)}).wait()
    content = bytearray(path.read_bytes())
    at = content.find(values[1].astype(np.float32).tobytes())
    assert at > 0
    content[at + 7] ^= 1
    path.write_bytes(content)
    with pccheck.jax.Checkpointer(path) as checkpointer, caplog.at_level(logging.WARNING):
        step, found = checkpointer.resume({"x": jnp.zeros(1000)})
    assert step == 2 and np.array_equal(found["x"], values[0].astype(np.float32))
    assert "the checkpoint of step 2 (sequence 2) cannot be used" in caplog.text


def test_without_jax_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise ImportError('no')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pccheck.jax"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'pccheck[jax]'" in result.stderr


# -- killed

TRAINING = '''
import sys, jax, jax.numpy as jnp, optax, pccheck.jax
from functools import partial
path = sys.argv[1]
optimizer = optax.adam(1e-2)
params = {"w": jax.random.normal(jax.random.key(0), (32, 32)), "b": jnp.zeros(32)}
state = {"params": params, "moments": optimizer.init(params), "key": jax.random.key(1)}

@partial(jax.jit, donate_argnums=0)
def train(state):
    key, draw = jax.random.split(state["key"])
    def loss(params):
        x = jax.random.normal(draw, (8, 32))
        return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"]) ** 2)
    value, gradients = jax.value_and_grad(loss)(state["params"])
    updates, moments = optimizer.update(gradients, state["moments"])
    return value, {"params": optax.apply_updates(state["params"], updates), "moments": moments,
                   "key": key}

with pccheck.jax.Checkpointer(path) as checkpoints:
    start, state = checkpoints.resume(state)
    for step in range(start, 60):
        value, state = train(state)
        print(step, float(value).hex(), flush=True)
        checkpoints.save(step, state)
'''


def test_a_killed_run_goes_on_with_the_same_losses(
    tmp_path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    def finished(name: str) -> dict[str, str]:
        output, errors = run_child(TRAINING, tmp_path / name).communicate(timeout=120)
        assert errors == ""
        return dict(line.split() for line in output.splitlines())

    whole = finished("whole.pcc")
    assert len(whole) == 60
    child = run_child(TRAINING, tmp_path / "killed.pcc")
    assert child.stdout is not None
    seen = dict(child.stdout.readline().split() for _ in range(20))
    child.send_signal(signal.SIGKILL)
    child.wait()
    rest = finished("killed.pcc")
    assert 0 < len(rest) < 50
    assert seen | rest == whole
