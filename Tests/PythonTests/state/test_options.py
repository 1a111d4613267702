"""The keywords of a checkpointer and the three structs behind them."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pccheck
import pccheck.torch as pcc
from pccheck._core.options import EngineOptions, FileOptions, PreemptionOptions

STRUCTS: tuple[Any, ...] = (FileOptions, EngineOptions, PreemptionOptions)
# What the checkpointer uses itself.
OTHERS = {"path", "policy", "keep"}
OF_GROUPS = {"is_of_group", "run_uuid"}


def test_every_keyword_is_a_field_of_one_struct_with_its_default() -> None:
    found = inspect.signature(pccheck.Checkpointer).parameters
    fields = [field for kind in STRUCTS for field in dataclasses.fields(kind) if field.init]
    # What only pccheck.distributed sets.
    fields = [field for field in fields if field.name not in OF_GROUPS]
    names = [field.name for field in fields]
    assert sorted(names) == sorted(found.keys() - OTHERS)
    assert {field.name: field.default for field in fields} == {
        # The struct holds the callable, which the class of the checkpointer chooses.
        name: None if name == "pin" else found[name].default for name in names
    }


def test_the_structs_are_frozen() -> None:
    for kind in STRUCTS:
        options = kind()
        name = dataclasses.fields(kind)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, name, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"on_sigterm": "sve"}, {"on_sigterm": "save", "grace": 0}, {"prealloc": "some"},
        {"on_sigterm": "save", "after_sigterm": "stop"}, {"on_busy": "wat"}, {"debug": "digests"},
        {"codec": "zip"}, {"backend": "ring"}, {"pin": "yes"}, {"zstd_level": 23},
    ],
    ids=lambda options: "-".join(map(str, options)),
)  # fmt: skip
def test_a_bad_option_makes_no_file(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "run.pcc"
    with pytest.raises(pccheck.InvalidArgument):
        pccheck.Checkpointer(path, capacity="1 MiB", **options)
    assert not path.exists()


def test_a_chunk_that_no_file_can_have_is_refused_at_opening(tmp_path: Path) -> None:
    """Without a capacity the first save makes the file; that would be after hours of training."""
    for chunk in (1 << 32, "4 GiB"):
        with pytest.raises(pccheck.InvalidArgument, match="chunk is 4294967296, expected 0 to"):
            pccheck.Checkpointer(tmp_path / "run.pcc", chunk=chunk)


def test_the_state_module_comes_with_the_package() -> None:
    """In a process of its own, where no other test has imported it."""
    program = "import pccheck; print(pccheck.state.DOCUMENT_KEY)"
    command = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "pccheck.state\n"


def test_live_parts_are_not_filled_from_the_meta_device(tmp_path: Path) -> None:
    """A model of another type was reported as converted, and kept its old values."""
    path = tmp_path / "run.pcc"
    model = torch.nn.Linear(3, 3)
    with pcc.Checkpointer(path) as checkpointer:
        checkpointer.save(1, model=model).wait()
        other = torch.nn.Linear(3, 3, dtype=torch.float64)
        with pytest.raises(pccheck.InvalidArgument, match="map_location is 'meta'"):
            checkpointer.resume(model=other, map_location="meta")
    with pytest.raises(pccheck.InvalidArgument, match="map_location is 'meta'"):
        pcc.load_into(path, model=other, map_location="meta")
    with pytest.raises(pccheck.InvalidArgument, match="map_location is 'meta'"):
        pcc.load(path, into={"model": other}, map_location="meta")
