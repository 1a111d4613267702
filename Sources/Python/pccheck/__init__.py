"""PCcheck: concurrent durable checkpoints in one slotted file.

``pccheck.torch`` is for PyTorch, ``pccheck.numpy`` for NumPy arrays filled in place;
``pccheck.Checkpointer`` stores any nest of plain values and arrays.
"""

from . import errors
from . import state as state
from ._core.handle import Outcome, SaveHandle
from ._core.native import library_path
from ._core.open_files import close_all
from ._core.reader import CheckpointInfo
from ._state.comparing import Difference, ResumeReport, StateMismatch
from ._state.decoder import RawTensor, TorchValue
from ._state.kinds import SavedEnum
from ._version import VERSION
from .checkpointer import Checkpointer, checkpoints, load, load_tensor, report
from .errors import *  # noqa: F403
from .keeping import Keep, KeepHandle

__version__ = VERSION
__all__ = [
    "Checkpointer",
    "CheckpointInfo",
    "Difference",
    "Keep",
    "KeepHandle",
    "Outcome",
    "RawTensor",
    "ResumeReport",
    "SaveHandle",
    "SavedEnum",
    "StateMismatch",
    "TorchValue",
    "checkpoints",
    "close_all",
    "library_path",
    "load",
    "load_tensor",
    "report",
]
__all__ += errors.__all__
