"""What is to be converted: told by its content, opened, and described."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

from .._group.files import paths_in
from ..errors import FileMissing
from ..state import Encoder
from . import dcp, group, hugging_face, safetensors, torch_file
from .failures import UnknownInput
from .leaves import teach
from .stored import Show, interruptible

# As format.swift has it: what every .pcc file begins with.
PCC_MAGIC = b"\x89PCK\r\n\x1a\n"
_HEAD_BYTE_COUNT = 16
_NUMBER_AT_END = re.compile(r"(\d{1,18})(?=(\.[A-Za-z]\w*)*$)")
_LISTED_COUNT = 5


@dataclass(frozen=True)
class Options:
    """How inputs are read."""

    trust: bool = False
    ignore_checksums: bool = False


@dataclass
class Foreign:
    """A checkpoint of another format, opened."""

    path: str
    kind: str
    state: Any
    encoder: Encoder
    #: What goes into the metadata beside the state document.
    metadata: dict[str, str]
    #: What the way back needs to know: see `leaves.source_text`; None where there is none.
    source_kind: str | None
    note: dict[str, Any]
    #: How many ranks saved it.
    rank_count: int = 1
    #: Tensors of ranks that rank 0 knows nothing of, each with the first rank that stored it.
    left_out: dict[str, int] = field(default_factory=dict)
    #: Of a checkpoint that has a step of its own.
    step: int | None = None


def kind_of(path: str) -> str:
    """``pcc``, ``torch``, ``safetensors``, ``safetensors-index``, ``dcp``, ``hugging-face`` or
    ``group``."""
    if os.path.isdir(path):
        return _kind_of_directory(path)
    if not os.path.lexists(path):
        raise FileMissing(f"{path}: there is no such file")
    if not os.path.isfile(path):
        raise UnknownInput(f"{path} is neither a file nor a directory")
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTE_COUNT)
    if head.startswith(PCC_MAGIC[:4]):
        return "pcc"
    if path.endswith(".index.json"):
        return "safetensors-index"
    if torch_file.is_torch_file(head):
        return "torch"
    if safetensors.is_safetensors(head) or path.endswith(".safetensors"):
        return "safetensors"
    if path.endswith(".pcc"):
        return "pcc"
    if re.search(r"\.(pt|pth|bin|ckpt)$", path):
        return "torch"
    raise UnknownInput(
        f"{path} begins with {head[:8].hex(' ') or 'nothing'}, expected a file of torch.save, a "
        "safetensors file, an index of one, or a .pcc file"
    )


def _kind_of_directory(path: str) -> str:
    names = sorted(os.listdir(path))
    is_hugging_face = hugging_face.weights_of(path) or any(
        name in names for name in (hugging_face.TRAINER_STATE, "optimizer.pt")
    )
    if paths_in(path):
        if dcp.METADATA_NAME in names or is_hugging_face:
            raise UnknownInput(
                f"{path} holds files of ranks, and a checkpoint of another format beside them; "
                "move one of the two into a folder of its own"
            )
        return "group"
    if dcp.METADATA_NAME in names:
        return "dcp"
    if is_hugging_face:
        return "hugging-face"
    indices = [name for name in names if name.endswith(safetensors.INDEX_SUFFIX)]
    hint = f"; name the index itself: {indices[0]}" if indices else ""
    shown = ", ".join(names[:_LISTED_COUNT]) or "nothing"
    more = ", …" if len(names) > _LISTED_COUNT else ""
    raise UnknownInput(
        f"{path} holds {shown}{more}, expected .metadata (torch.distributed.checkpoint), files of "
        "ranks (rank-00000-of-00002.pcc), or model.safetensors, pytorch_model.bin or an index of "
        f"one (Hugging Face), a file that names what is in the others{hint}"
    )


def step_of(path: str, kind: str) -> int:
    """The step that an input was saved at, as far as it reports it; else 0."""
    if kind == "hugging-face":
        step = hugging_face.step_of(path)
        if step is not None:
            return step
    if kind == "group":
        return group.newest_step(path)
    match = _NUMBER_AT_END.search(os.path.basename(path.rstrip("/")))
    # A shard's number is not a step.
    return int(match[1]) if match and kind != "safetensors-index" else 0


def open_input(
    path: str, kind: str, options: Options, show: Show, step: int | None = None
) -> Foreign:
    """Reads what an input holds; tensors stay in their file where that can be.

    ``step`` chooses the checkpoint in a folder of ranks.
    """
    if kind in ("safetensors", "safetensors-index"):
        return _open_safetensors(path, kind)
    if kind == "torch":
        state = torch_file.load(
            path, show, trust=options.trust, ignore_checksums=options.ignore_checksums
        )
        torch_file.check_expansions(state, path)
        return Foreign(path, kind, state, torch_file.encoder(), {"format": "pt"}, "torch", {})
    if kind == "dcp":
        state = dcp.read(path, show, trust=options.trust)
        return Foreign(path, kind, state, torch_file.encoder(), {"format": "pt"}, "dcp", {})
    if kind == "group":
        joined = interruptible(lambda: group.read(path, step))
        return Foreign(
            path, kind, joined.state, joined.encoder, joined.metadata, None, {},
            joined.rank_count, joined.left_out, joined.step,
        )  # fmt: skip
    state, note, needs_torch = hugging_face.read(
        path, show, trust=options.trust, ignore_checksums=options.ignore_checksums
    )
    encoder = torch_file.encoder() if needs_torch else teach(Encoder())
    return Foreign(path, kind, state, encoder, {"format": "pt"}, "hugging-face", note)


def _open_safetensors(path: str, kind: str) -> Foreign:
    if kind == "safetensors":
        opened = safetensors.SafetensorsFile(path)
        header = opened.header.text.decode("utf-8")
        note: dict[str, Any] = {
            "files": [{"name": os.path.basename(path), "header": header}], "index": None,
        }  # fmt: skip
        tensors = opened.tensors()
    else:
        text, shards, weight_map = safetensors.read_index(path)
        tensors, files = safetensors.read_shards(shards, weight_map)
        index = {"name": os.path.basename(path), "text": text.decode("utf-8")}
        note = {"files": files, "index": index}
    metadata = {"format": "pt"}
    return Foreign(path, kind, dict(tensors), teach(Encoder()), metadata, "safetensors", note)
