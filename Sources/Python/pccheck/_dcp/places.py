"""What a path of ``pccheck.dcp`` names: the folder of a run, or the file of one process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .._group.files import names_folder
from ..errors import InvalidArgument

_RANK = "{rank}"
_FILE_SUFFIX = ".pcc"


def refuse_rank_in(path: str) -> None:
    """Raises for a path that shows where the rank goes."""
    if _RANK in path:
        folder = os.path.join(os.path.dirname(path), "run", "")
        raise InvalidArgument(
            f"{path}: PCcheck puts no rank into a path, as the files of all ranks belong together; "
            f"name a folder, such as '{folder}', in which it makes one for each rank"
        )


def is_folder_of(path: str, process_count: int) -> bool:
    """Whether so many processes save into a folder: several of them need one."""
    if names_folder(path):
        return True
    if process_count > 1 and path.endswith(_FILE_SUFFIX):
        raise InvalidArgument(
            f"{path} would be the file of {process_count} processes; name a folder, such as "
            f"'{path.removesuffix(_FILE_SUFFIX)}{os.sep}', in which each of them has its own"
        )
    return process_count > 1


def refuse_options(options: Mapping[str, Any], is_folder: bool) -> None:
    """Raises for options that leave out a save that DCP asks for, or choose when to save."""
    on_busy = options.get("on_busy", "wait")
    if on_busy == "skip":
        raise InvalidArgument(
            "on_busy is 'skip', but a checkpoint that DCP saves is not left out; give 'wait' or "
            "'fail'"
        )
    refused = [name for name in ("policy", "on_sigterm") if options.get(name) is not None]
    if on_busy != "wait":
        refused.append("on_busy")
    if is_folder and refused:
        raise InvalidArgument(
            f"{refused[0]} cannot be used for a folder: the calls of dcp.save decide when all "
            "ranks save; leave it out"
        )
