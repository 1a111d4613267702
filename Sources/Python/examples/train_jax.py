"""A JAX loop that resumes where it was, however it ended.

    python train_jax.py run.pcc --steps 100
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import pccheck.jax

OPTIMIZER = optax.adam(1e-2)


@partial(jax.jit, donate_argnums=0)
def trained(tree: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
    """The state after one step, and the loss."""
    key, now = jax.random.split(tree["key"])
    inputs = jax.random.normal(now, (16, 8))

    def loss_of(params: dict[str, jax.Array]) -> jax.Array:
        outputs = jnp.tanh(inputs @ params["hidden"]) @ params["out"]
        return jnp.square(outputs - inputs.sum(1)).mean()

    loss, gradients = jax.value_and_grad(loss_of)(tree["params"])
    updates, moments = OPTIMIZER.update(gradients, tree["moments"])
    params = optax.apply_updates(tree["params"], updates)
    return {"params": params, "moments": moments, "key": key}, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    params = {
        "hidden": jax.random.normal(jax.random.key(1), (8, 32)) / 3, "out": jnp.zeros(32)
    }  # fmt: skip
    tree = {"params": params, "moments": OPTIMIZER.init(params), "key": jax.random.key(2)}
    with pccheck.jax.Checkpointer(options.file, policy=5) as checkpoints:
        # The same tree with what was saved in it, on the same devices.
        start, tree = checkpoints.resume(tree)
        print(f"starts at step {start}")
        for step in range(start, options.steps):
            tree, loss = trained(tree)
            print(f"step {step}: loss {loss.item():.6f}")
            # The arrays are copied when this returns: their buffers may be donated.
            checkpoints.maybe_save(step, tree)


if __name__ == "__main__":
    main()
