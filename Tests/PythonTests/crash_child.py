"""A writer that is made to be killed: saves small states as fast as it can, and reports each one.

It prints ``ready``, reads one line of JSON (what to do) from its input, and then prints one line
for each save that was acknowledged. Whoever started it knows from the seed and the step alone what
every one of these saves holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import deque
from typing import Any

import numpy as np

import pccheck

#: Fits every state of `state_of`, with its manifest.
CAPACITY = "512 KiB"
CHUNK = "64 KiB"


def state_of(seed: int, step: int) -> dict[str, Any]:
    """The state that a run with this seed has at this step: up to five chunks."""
    random = np.random.default_rng([seed, step])
    byte_count = 1 + int(random.integers(0, 280_000))
    return {
        "weights": random.integers(0, 256, byte_count, dtype=np.uint8),
        "moments": random.standard_normal(300),
        "step": step,
    }


def digest_of(state: dict[str, Any]) -> str:
    """A digest of every byte of a state."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("weights", "moments"):
        digest.update(f"{name} {state[name].dtype} {state[name].shape}".encode())
        digest.update(state[name].tobytes())
    digest.update(str(state["step"]).encode())
    return digest.hexdigest()


def say(line: str) -> None:
    """One line, written at once: what it reports was true before."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(
    path: str, seed: int, acknowledge: str, options: dict[str, Any], log: str | None,
    goes_on: bool,
) -> None:  # fmt: skip
    """Goes on from the newest checkpoint until it is killed or a save fails.

    ``log`` names a file to which somebody else writes: each line says how long it was by then.
    With ``goes_on`` a save that failed is reported, and only a writer that takes no more ends it.
    """
    pending: deque[tuple[pccheck.SaveHandle, str]] = deque()
    last_word = "ended" if goes_on else "failed"

    def position() -> str:
        return "" if log is None else f" {os.stat(log).st_size}"

    def acknowledge_oldest() -> None:
        try:
            acknowledge_one(*pending.popleft())
        except pccheck.CheckpointError as error:
            if not goes_on:
                raise
            say(f"failed {error}{position()}")

    def acknowledge_one(handle: pccheck.SaveHandle, digest: str) -> None:
        if acknowledge == "staged":
            # What a careless trainer might take for durable: a copy in memory.
            handle.wait_staged()
            say(f"saved {handle.step} {handle.sequence} {digest}{position()}")
        else:
            outcome = handle.wait()
            if outcome.kind != "skipped":
                say(f"saved {handle.step} {outcome.sequence} {digest}{position()}")

    with pccheck.Checkpointer(path, capacity=CAPACITY, chunk=CHUNK, **options) as checkpointer:
        step, _ = checkpointer.resume()
        try:
            while True:
                state = state_of(seed, step)
                pending.append((checkpointer.save(step, state), digest_of(state)))
                step += 1
                if len(pending) > options["in_flight"]:
                    acknowledge_oldest()
        except pccheck.CheckpointError as error:
            say(f"{last_word} {error}")
        while pending:
            # A promise that was already made still counts after another save failed.
            try:
                acknowledge_oldest()
            except pccheck.CheckpointError as error:
                say(f"failed {error}")
        time.sleep(3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--acknowledge", choices=["durable", "staged"], default="durable")
    acknowledge = parser.parse_args().acknowledge
    say("ready")
    line = sys.stdin.readline()
    if not line:
        return
    request = json.loads(line)
    try:
        run(
            request["path"], request["seed"], acknowledge, request["options"], request.get("log"),
            request.get("goes_on", False),
        )  # fmt: skip
    except pccheck.CheckpointError as error:
        # The file system may be gone before the file was open.
        say(f"{'ended' if request.get('goes_on') else 'failed'} {error}")
        time.sleep(3600)


if __name__ == "__main__":
    main()
