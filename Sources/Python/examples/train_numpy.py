"""A loop over NumPy arrays that resumes where it was, however it ended.

    python train_numpy.py run.pcc --steps 100
"""

import argparse

import numpy as np

import pccheck.numpy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    np.random.seed(1)
    weights, velocity = np.zeros(8), np.zeros(8)
    with pccheck.numpy.Checkpointer(options.file, policy=5) as checkpoints:
        # Fills the arrays in place, and puts NumPy's generator back.
        start = checkpoints.resume(weights=weights, velocity=velocity)
        print(f"starts at step {start}")
        for step in range(start, options.steps):
            inputs = np.random.randn(16, 8)
            errors = inputs @ weights - inputs.sum(1)
            gradient = inputs.T @ errors / len(errors)
            # A save reads the arrays where they are: they may change once it has copied them.
            checkpoints.wait_staged()
            velocity *= 0.9
            velocity += gradient
            weights -= 0.01 * velocity
            print(f"step {step}: loss {np.square(errors).mean():.6f}")
            checkpoints.maybe_save(step, weights=weights, velocity=velocity)


if __name__ == "__main__":
    main()
