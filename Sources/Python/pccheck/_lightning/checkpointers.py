"""The checkpointers of a Lightning Trainer: of one file, and of the folder of a job."""

from __future__ import annotations

import logging
from typing import Any

import torch

from .. import distributed as pcd
from .. import torch as pcc
from .._core.engine import refuse_reentry, wait_staged_everywhere
from .._core.saver import changes_nothing
from .._group.decision import Candidate
from .._group.folder import load_folder
from .._state.request import Loading
from .._state.stateful import stateful_objects
from .._torch.layout import Replicated
from .._torch.loading.assembled import AssembledMemory
from .._torch.loading.restoring import TorchRestorer
from .._torch.saving.live import note
from .._torch.saving.waiting import wait_before_swaps
from ..group_checkpointer import LEAVING_SECONDS
from ..policies import Every, Policy

log = logging.getLogger("pccheck")
changes_nothing(__file__)

_DEFAULT_POLICY = 100
#: The part with everything that Lightning makes a checkpoint of.
CHECKPOINT = "checkpoint"
#: Its keys whose objects are parts of their own where they are divided among processes.
OBJECTS = "state_dict", "optimizer_states"


class _Following(pcc.Checkpointer):
    """Saves by the policy of the callback."""

    def follow(self, policy: Policy | None) -> None:
        """Saves by this policy; without one, by its own."""
        if policy is None and self._policy is not None:
            return
        self._follow(policy or Every(_DEFAULT_POLICY))


class FileCheckpointer(_Following):
    """Saves a state that was taken out of its objects already."""

    def save_parts(self, step: int, parts: dict[str, Any], in_place: set[int]) -> None:
        refuse_reentry(self, self._path)
        with self._save_lock:
            self._begin_save()
            self._save_parts(step, parts, in_place)


class GroupCheckpointer(_Following, pcd.Checkpointer):
    """Saves such a state on all processes, and the objects that are divided among them."""

    # As where process 0 saves for all. Of the objects, what each process stored for itself has to
    # be equal: no process has the values of the others.
    _first_rank_parts = frozenset({CHECKPOINT})

    def load_part(self, step: int | None, device: Any) -> Any:
        """What this process needs of the checkpoint that all continue from; None when nothing is
        durable on all of them."""
        loading = Loading(self._memory_on(pcc.device_of(device)))
        found = self._load_together("load", step, loading)
        return None if found is None else found[1]

    def load_live(self, step: int | None, live: LiveParts) -> Any:
        """Fills the objects from the checkpoint that all continue from; returns the rest of it, or
        None when nothing is durable on all processes."""
        loading = live.loading()
        found = self._resume_state(loading, step)
        return None if found is None else live.restored(found[1], loading)

    def leave_early(self) -> None:
        self._closing_seconds = min(self._closing_seconds, LEAVING_SECONDS)

    def ends_for_signal(self, step: int) -> bool:
        """True where the save of this step is to be the last one, because SIGTERM has come."""
        last = self._exchange.last_step
        is_new = not self._has_begun or last is None or last < step
        self._agrees_to_end = self._preemption is not None and is_new
        self._has_agreed_to_end |= self._agrees_to_end
        return self._agrees_to_end

    def save_part(
        self, step: int, checkpoint: dict[str, Any], live: list[object], wrapped: Any,
        objects: dict[str, Any],
    ) -> None:  # fmt: skip
        """Saves what this process has; ``live`` are the objects that it was taken out of, and
        ``wrapped`` is the module that DistributedDataParallel may have wrapped. ``objects`` are
        parts that were not taken out of their objects."""
        note(live)
        wait_before_swaps(live)
        self._layout.optimizers = [
            item for item in live if isinstance(item, torch.optim.Optimizer)
        ]
        is_wrapped = isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
        self._layout.replicated = [Replicated.of(wrapped)] if is_wrapped else []
        self._save_due(step, rng=False, checkpoint=checkpoint, **objects)


class LiveParts:
    """A module and optimizers whose tensors are divided among processes."""

    def __init__(self, module: Any, optimizers: list[torch.optim.Optimizer]) -> None:
        """Without optimizers only the module is loaded, as for validation."""
        parts = zip(OBJECTS, (module, list(optimizers)))
        self.objects: dict[str, Any] = {name: part for name, part in parts if part != []}
        self._is_strict: bool = module.strict_loading

    def loading(self) -> Loading:
        """The request for them, and for the rest of the checkpoint."""
        return Loading(
            AssembledMemory(None), self.objects, parts=list(self.objects),
            optional_parts=[CHECKPOINT], strict=self._is_strict,
        )  # fmt: skip

    def restored(self, loaded: dict[str, Any], loading: Loading) -> Any:
        """Puts what was loaded into the objects; returns the rest."""
        note(stateful_objects(self.objects))
        with loading.explained():
            restorer = TorchRestorer(self._is_strict)
            restorer.restore_parts(self.objects, loaded, loading.report)
        return loaded.get(CHECKPOINT) or {}

    def load(self, path: str, step: int | None) -> tuple[Candidate, Any]:
        """Fills them from a folder, on a process that takes no part in its job; returns which
        checkpoint it was, and the rest of it."""
        wait_staged_everywhere()
        loading = self.loading()
        candidate, loaded = load_folder(path, step, loading)
        rest = self.restored(loaded, loading)
        if loading.report is not None and not loading.report.is_exact:
            log.warning("%s", loading.report)
        return candidate, rest
