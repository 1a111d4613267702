"""``convert`` under the names that other programs expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign import run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import pccheck.torch as pcc


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def saved(path: Path, model: Tied) -> Path:
    with pcc.Checkpointer(path, chunk="64 KiB") as ckpt:
        ckpt.save(7, model=model, ema={"body.bias": torch.zeros(4), "only": torch.ones(2)})
    return path


def test_a_part_without_its_prefix(saved: Path, tmp_path: Path, model: Tied) -> None:
    out = tmp_path / "model.safetensors"
    run("convert", saved, "-o", out, "--strip", "model.")
    found = load_file(out)
    assert set(found) == {"embed.weight", "body.weight", "body.bias"}
    for name, value in found.items():
        assert torch.equal(value, model.state_dict()[name])
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--strip", "model.", "--strip", "ema."], "would both be 'body.bias'"),
        (["--strip", "net."], "no tensor begins with net."),
        (["--strip", "model.body.bias"], "nothing is left of 'model.body.bias'"),
        (["--config", "DIR"], "--config, --shard-size and --part go with --to hf"),
        (["--shard-size", "2"], "--shard-size goes with --to hf --config"),
        (["--part", "model"], "--part goes with --to hf --config"),
    ],
)
def test_what_has_no_clear_name_is_refused(
    saved: Path, tmp_path: Path, options: list[str], text: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    words = [tmp_path if word == "DIR" else word for word in options]
    made = run("convert", saved, "-o", tmp_path / "out.safetensors", *words, status=16)
    assert text in made.stderr, made.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("kind", ["pt", "dcp", "hf"])
def test_some_tensors_of_what_holds_the_whole_state(
    saved: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    for option in ("--strip", "--tensor", "--exclude"):
        made = run("convert", saved, "-o", out, "--to", kind, option, "model.", status=16)
        assert "--strip go with --to safetensors" in made.stderr
    assert not out.exists()


def test_options_of_the_other_direction(tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    save_file({"x": torch.ones(3)}, one)
    for option in ("--strip", "--tensor", "--exclude", "--config", "--shard-size"):
        made = run("convert", one, "-o", tmp_path / "a.pcc", option, "1", status=16)
        assert f"{option} goes with a .pcc file as INPUT" in made.stderr
    assert not (tmp_path / "a.pcc").exists()


def test_a_folder_in_shards(saved: Path, tmp_path: Path, model: Tied) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.json").write_text('{"model_type": "own"}')
    (config / "tokenizer.json").write_text("{}")
    (config / "model.safetensors.index.json").write_text("not this one")
    (config / "model.safetensors").write_bytes(b"nor this")
    out = tmp_path / "folder"
    made = run("convert", saved, "-o", out, "--to", "hf", "--config", config,
               "--shard-size", "170", "--json")  # fmt: skip
    assert len(json.loads(made.stdout)["files"]) == 5
    shards = sorted(out.glob("*.safetensors"))
    assert [s.name for s in shards] == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (40 + 16 + 4)
    found = {}
    for shard in shards:
        tensors = load_file(shard)
        assert all(index["weight_map"][name] == shard.name for name in tensors)
        found.update(tensors)
    # The second name of the tied weights is left out.
    assert set(found) == {"embed.weight", "body.weight", "body.bias"}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.items())
    again = run("convert", saved, "-o", out, "--to", "hf", "--config", config, status=8)
    assert "not empty" in again.stderr


def test_a_folder_that_cannot_be_made(saved: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "folder", tmp_path / "config.json"
    hf = ("convert", saved, "-o", out, "--to", "hf", "--config", config)
    assert "cannot be read as the config" in run(*hf, status=16).stderr
    config.write_text("[]")
    made = run(*hf, status=16)
    assert "holds no JSON object" in made.stderr
    config.write_text("{}")
    for options, text, status in (
        (["--part", "net"], "no part 'net'; its parts are model, ema, rng", 16),
        (["--part", "rng"], "is no tensor that safetensors can hold", 8),
        (["--tensor", "nothing*"], "no tensor fits --tensor and --exclude", 16),
    ):
        made = run(*hf, *options, status=status)
        assert text in made.stderr, made.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "run.pcc"]
