"""What a directory or a file of DCP must not do to the process that converts it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import TensorProperties

from pccheck._convert import dcp
from pccheck._convert.failures import DamagedInput, NotTrusted
from pccheck.errors import StateFormatError

METADATA = "torch.distributed.checkpoint.metadata"


def read(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / ".metadata").write_bytes(content)
    return dcp.read(str(tmp_path), lambda *_: None)


@pytest.mark.parametrize(
    "name", ["Metadata", "TensorStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING"]
)
def test_a_pickle_changes_no_class_of_torch(tmp_path: Path, name: str) -> None:
    # BUILD with a second state sets attributes, of whatever is on the stack.
    content = b"c%s\n%s\n(N}Vmark\nI1\nstb." % (METADATA.encode(), name.encode())
    before = vars(getattr(metadata, name)).copy()
    with pytest.raises((DamagedInput, NotTrusted)):
        read(tmp_path, content)
    assert vars(getattr(metadata, name)) == before


@pytest.mark.parametrize(
    "content",
    [
        b"ctorch.serialization\n_get_layout\n(N}Vcache\n}stb.",
        b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n(N}Vmark\nI1\nstb.",
    ],
)
def test_a_pickle_changes_no_function_of_torch(tmp_path: Path, content: bytes) -> None:
    cache = torch.serialization._get_layout.cache
    with pytest.raises((DamagedInput, NotTrusted)):
        read(tmp_path, content)
    assert torch.serialization._get_layout.cache is cache
    assert not hasattr(filesystem._StorageInfo, "mark")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cbuiltins\neval\n(V1\ntR.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n(ctorch\nfloat32\nVis_complex\ntR.", "builtins.getattr"),
        (b"\x80\x04\x8c\x05torch\x8c\x04load\x93.", "torch.load"),
        (b"ctorch\nserialization.os.system\n.", "torch.serialization.os.system"),
        (b"c%s\nMetadata.__init__\n." % METADATA.encode(), "Metadata.__init__"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, content: bytes, name: str) -> None:
    with pytest.raises(NotTrusted, match=name.replace(".", r"\.") + ".*--trust"):
        read(tmp_path, content)


def test_all_that_real_metadata_names_is_read(tmp_path: Path) -> None:
    properties = TensorProperties(torch.bfloat16, memory_format=torch.channels_last)
    real = metadata.Metadata(
        {"w": metadata.TensorStorageMetadata(properties, torch.Size([0]), [])},
        {"w": ("w",)}, {}, metadata.StorageMeta(checkpoint_id=Path("/some/where")),
    )  # fmt: skip
    found = read(tmp_path, pickle.dumps(real))
    assert found["w"].dtype == torch.bfloat16 and found["w"].shape == (0,)


def adapter_state(*items: dict[str, Any]) -> dict[str, Any]:
    """What ``pccheck.dcp`` stores of rows of a tensor in a job of one process."""
    tensors = {item["key"]: torch.full(item["sizes"], float(n)) for n, item in enumerate(items)}
    rows = [{"fqn": "w", "size": [4, 2], "requires_grad": False, **item} for item in items]
    layout = {"version": 1, "items": rows, "planner": {"w": ("w",)}, "world_size": 1}
    return {"state": tensors, "objects": {}, "dcp": layout}


def test_parts_that_one_process_saved_become_a_whole_tensor() -> None:
    first = {"key": "w[0,0]", "offsets": [0, 0], "sizes": [3, 2]}
    second = {"key": "w[3,0]", "offsets": [3, 0], "sizes": [1, 2]}
    whole = dcp.of_adapter(adapter_state(first, second), "run.pcc")
    assert whole["w"].tolist() == [[0.0, 0.0]] * 3 + [[1.0, 1.0]]
    for wrong in ([first], [first, {**second, "offsets": [2, 0]}], [first, {**second, **first}]):
        with pytest.raises((DamagedInput, StateFormatError), match="'w'|damaged"):
            dcp.of_adapter(adapter_state(*wrong), "run.pcc")
