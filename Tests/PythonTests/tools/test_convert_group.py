"""``python -m pccheck convert`` on a folder of ranks: what they hold together, in one file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from conftest import ROOT
from foreign import run, same
from rank_files import damage, jobs
from test_group_extract import FSDP, SAVE

import pccheck.distributed
import pccheck.numpy
import pccheck.torch

sys.path.insert(0, str(ROOT / "Tests" / "PythonTests" / "ranks"))

from gang import Gang, ended  # noqa: E402


def model() -> torch.nn.Module:
    """As that of the job, before training."""
    layers = torch.nn.Sequential(
        torch.nn.Linear(70, 301), torch.nn.BatchNorm1d(301), torch.nn.Linear(301, 90)
    )
    layers.tied = layers[2].weight
    return layers


@pytest.fixture
def folder(job: Callable[..., Gang], tmp_path: Path) -> Path:
    """What two ranks saved, of which each held a half."""
    ended(job(2, FSDP + SAVE), seconds=120)
    return tmp_path / "run"


def test_one_process_continues_what_ranks_began(folder: Path, path: Path, tmp_path: Path) -> None:
    made = run("convert", folder, "-o", path)
    assert "step 1: " in made.stdout
    assert "from 2 ranks" in made.stderr and "that of rank 0" in made.stderr
    joined = pccheck.distributed.load(folder)
    same(pccheck.torch.load(path), joined)
    for parts in (joined["model"], pccheck.torch.load(path)["model"]):
        assert parts["tied"].data_ptr() == parts["2.weight"].data_ptr(), "they are one tensor"
    whole = torch.load(tmp_path / "whole-0.pt", weights_only=True)
    layers = model()
    # In another order: the names of the parameters say which state is whose.
    optimizer = torch.optim.AdamW(list(layers.parameters())[::-1], lr=0.1)
    own = {"position": -1, "noise": torch.zeros(5)}
    with pccheck.torch.Checkpointer(path) as checkpointer:
        assert checkpointer.resume(model=layers, optimizer=optimizer, own=own) == 2
    for name, value in layers.state_dict().items():
        assert torch.equal(value, whole[f"model.{name}"]), name
    for number, parameter in enumerate(layers.parameters()):
        moment = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(moment, whole[f"optimizer.state.{number}.exp_avg"])
    report = checkpointer.resume_report
    assert report is not None and report.is_exact
    assert own["position"] == 10
    with pytest.raises(pccheck.StateMismatch), pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.resume(model=torch.nn.Linear(2, 2))


def test_an_older_step_and_other_formats(folder: Path, path: Path, tmp_path: Path) -> None:
    document = json.loads(run("convert", folder, "-o", path, "--step", 0, "--json").stdout)
    schema = json.loads((ROOT / "spec/schemas/python-convert.json").read_text())
    jsonschema.validate(document, schema)
    [entry] = document["checkpoints"]
    assert (entry["kind"], entry["step"], entry["rank_count"]) == ("group", 0, 2)
    run("convert", path, "-o", tmp_path / "back.pt")
    back: dict[str, Any] = torch.load(tmp_path / "back.pt", weights_only=False)
    same(back, pccheck.distributed.load(folder, 0))
    run("convert", path, "-o", tmp_path / "dcp", "--to", "dcp")
    assert (tmp_path / "dcp" / ".metadata").exists()


def test_what_cannot_be_joined_is_named(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    files = jobs(folder, 2, [(1, 10), (1, 20)])
    run("convert", folder, "-o", path)
    assert run("convert", folder, "-o", path, "--part", "x", "--force", status=16).stderr
    damage(files[1], 20)
    said = run("convert", folder, "-o", path, "--force", status=4).stderr
    assert "step 20 of attempt 1 (2 ranks) is damaged" in said
    assert pccheck.checkpoints(path)[0].step == 20, "the output is as it was"
    run("convert", folder, "-o", path, "--step", 10, "--force")
    assert pccheck.checkpoints(path)[0].step == 10
    said = run("convert", folder, "-o", path, "--step", 30, "--force", status=8).stderr
    assert "step 30 is not durable on all ranks" in said
    files[1].unlink()
    said = run("convert", folder, "-o", path, "--force", status=8).stderr
    assert "is missing on rank 1: no file" in said
    files[0].unlink()
    assert "files of ranks" in run("convert", folder, "-o", path, "--force", status=8).stderr


def test_an_older_attempt_of_the_step_is_no_substitute(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    files = jobs(folder, 2, [(1, 20), (2, 20)])
    data = bytearray(files[0].read_bytes())
    # The values of both attempts are the same; those of the newer one come last.
    data[data.rfind(np.full(1000, 20, np.float32).tobytes())] ^= 1
    files[0].write_bytes(data)
    for options in ([], ["--step", 20]):
        said = run("convert", folder, "-o", path, *options, status=4).stderr
        assert "step 20 of attempt 2 (2 ranks) is damaged" in said and not path.exists()


def test_the_folder_of_a_job_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    files = jobs(folder, 2, [(1, 10)])
    before = [file.read_bytes() for file in files]
    (tmp_path / "link.pcc").symlink_to(files[0])
    for output in (files[1], folder / "new.pcc", tmp_path / "link.pcc"):
        said = run("convert", folder, "-o", output, "--force", status=16).stderr
        assert "only ranks have files" in said
    assert [file.read_bytes() for file in files] == before and len(list(folder.iterdir())) == 2
    (folder / ".metadata").write_bytes(b"")
    said = run("convert", folder, "-o", tmp_path / "x.pcc", status=8).stderr
    assert "another format beside them" in said


def test_what_jax_saved_is_for_jax(path: Path, tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    import pccheck.jax

    tree = {"x": jax.numpy.arange(12.0).reshape(3, 4), "key": jax.random.key(3)}
    with pccheck.jax.Checkpointer(f"{tmp_path}/run/") as checkpointer:
        checkpointer.save(7, tree).wait_group()
    run("convert", tmp_path / "run", "-o", path)
    found = pccheck.jax.load(path, jax.tree_util.tree_map(jax.numpy.zeros_like, tree))
    assert (found["x"] == tree["x"]).all()
    with pccheck.jax.Checkpointer(path) as checkpointer:
        assert checkpointer.resume(tree)[0] == 8


STAGES = """
import numpy as np
import pccheck.numpy
stage = {"model": {f"layer{rank}": np.full(3, rank), "norm": np.ones(2)}, "rank": rank}
with pcd.Checkpointer(folder + "/run", timeout=30) as checkpointer:
    checkpointer.save(0, stage=stage).wait_group()
"""


def test_what_only_others_stored_is_named(
    job: Callable[..., Gang], path: Path, tmp_path: Path
) -> None:
    ended(job(3, STAGES), seconds=120)
    made = run("convert", tmp_path / "run", "-o", path, "--json")
    assert (
        "2 tensors that only others have are left out: stage.model.layer1 (rank 1), "
        "stage.model.layer2 (rank 2)"
    ) in made.stderr
    [entry] = json.loads(made.stdout)["checkpoints"]
    assert entry["left_out"] == [
        {"tensor": "stage.model.layer1", "rank": 1}, {"tensor": "stage.model.layer2", "rank": 2},
    ]  # fmt: skip
    assert set(pccheck.numpy.load(path)["stage"]["model"]) == {"layer0", "norm"}
