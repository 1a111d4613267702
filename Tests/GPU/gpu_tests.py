"""What must hold on a real device: gpu_tests.py FOLDER SECONDS"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import pccheck
import pccheck.torch

tests: list[Callable[[Path], None]] = []


def test(function: Callable[[Path], None]) -> Callable[[Path], None]:
    tests.append(function)
    return function


def network(width: int = 1024, depth: int = 8) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)]).cuda()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator("cuda").manual_seed(step)
    batch = torch.randn(64, 1024, device="cuda", generator=generator)
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.cpu() for key, value in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value.cpu(), right[key].cpu()) for key, value in left.items())


@test
def a_save_holds_the_values_of_its_step(path: Path) -> None:
    for pool in (None, "16 MiB"):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters())
        with pccheck.torch.Checkpointer(path, pool=pool, chunk="1 MiB", retain=8) as checkpointer:
            expected = {}
            for step in range(8):
                train(model, optimizer, step)
                expected[step] = copies(model)
                checkpointer.save(step, model=model, optimizer=optimizer)
            for step in range(8, 11):
                train(model, optimizer, step)
            checkpointer.wait_staged()
        for info in pccheck.checkpoints(path):
            assert same(pccheck.torch.load(path, info.step)["model"], expected[info.step]), info
        path.unlink()


@test
def buffers_may_change_as_soon_as_save_returns(path: Path) -> None:
    norm = nn.BatchNorm1d(512).cuda()
    other = torch.zeros(1 << 20, device="cuda")
    with pccheck.torch.Checkpointer(path, retain=6, capacity="64 MiB") as checkpointer:
        for step in range(6):
            other.fill_(step)
            norm.running_mean.fill_(step)
            checkpointer.save(step, norm=norm, other=other, rng=False)
            other.fill_(-1)
            norm.running_mean.fill_(-1)
    for info in pccheck.checkpoints(path):
        state = pccheck.torch.load(path, info.step)
        assert (state["other"] == info.step).all() and (
            state["norm"]["running_mean"] == info.step
        ).all(), info


@test
def a_resume_fills_the_device(path: Path) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 0)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(0, model=model, optimizer=optimizer).wait()
        expected = copies(model)
        for step in range(1, 4):
            train(model, optimizer, step)
        after = copies(model)
        checkpointer.resume(model=model, optimizer=optimizer)
        assert same(model.state_dict(), expected)
        for step in range(1, 4):
            train(model, optimizer, step)
        assert same(model.state_dict(), after)
    loaded = pccheck.torch.load(path, map_location="cuda")
    assert loaded["model"]["0.weight"].is_cuda and same(loaded["model"], expected)


@test
def many_small_tensors(path: Path) -> None:
    tensors = [torch.full((5,), float(i), device="cuda") for i in range(20_000)]
    with pccheck.torch.Checkpointer(path, capacity="64 MiB") as checkpointer:
        checkpointer.save(0, tensors=tensors, rng=False).wait()
        loaded = checkpointer.load()["tensors"]
    assert all(float(value[0]) == index for index, value in enumerate(loaded))


@test
def other_streams_and_types(path: Path) -> None:
    stream = torch.cuda.Stream()
    values = {
        str(dtype): torch.arange(1000, device="cuda").to(dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.complex64)
    }
    with pccheck.torch.Checkpointer(path, capacity="64 MiB") as checkpointer:
        with torch.cuda.stream(stream):
            stream.wait_stream(torch.cuda.default_stream())
            big = torch.randn(4096, 4096, device="cuda")
            for _ in range(20):
                big = (big @ big).tanh()
            checkpointer.save(0, big=big, strided=big.T[5:9], values=values, rng=False).wait()
        loaded = checkpointer.load()
    assert torch.equal(loaded["big"], big.cpu())
    assert torch.equal(loaded["strided"], big.T[5:9].cpu())
    for key, value in values.items():
        assert torch.equal(loaded["values"][key], value.cpu()), key


@test
def a_graph_is_refused_while_it_is_recorded_and_waited_for_when_it_runs(path: Path) -> None:
    value = torch.zeros(8 << 20, device="cuda")
    module = nn.Module()
    module.value = nn.Parameter(value)
    graph = torch.cuda.CUDAGraph()
    with pccheck.torch.Checkpointer(path, retain=4, capacity="64 MiB") as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        with torch.no_grad(), torch.cuda.graph(graph):
            module.value.add_(1)
            try:
                checkpointer.save(1, module=module, rng=False)
            except pccheck.InvalidArgument:
                pass
            else:
                raise AssertionError("a save in a capture was accepted")
        for step in range(2, 6):
            checkpointer.save(step, module=module, rng=False)
            graph.replay()
    for info in pccheck.checkpoints(path):
        saved = pccheck.torch.load(path, info.step)["module"]["value"]
        assert (saved == max(0, info.step - 2)).all(), info


def main(folder: Path, seconds: float) -> int:
    ends = time.monotonic() + seconds
    failed = 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    for function in tests:
        path = folder / f"{function.__name__}.pcc"
        began = time.monotonic()
        if began > ends:
            print(f"skipped: {function.__name__}: no time is left")
            continue
        try:
            function(path)
            word = "passed"
        except Exception:
            traceback.print_exc()
            word, failed = "FAILED", failed + 1
        print(f"{word}: {function.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
        path.unlink(missing_ok=True)
    print(f"{len(tests) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
