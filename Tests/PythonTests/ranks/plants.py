"""Mistakes made on purpose in the ranks of a test, which its checks must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pccheck._group import decision, exchange, restart


def newest_of_this_rank() -> None:
    """Continues from the newest step of each file, as jobs without a group do."""
    choose = restart.Meeting.choose

    def planted(self: Any, own: Any, *arguments: Any) -> restart.Choice:
        choice = choose(self, own, *arguments)
        slots = [] if own is None else own["report"]["slots"]
        held = [slot for slot in slots if slot["reason"] in ("anchored", "retained", "unanchored")]
        held.sort(key=lambda slot: (slot["attempt"], slot["step"]), reverse=True)
        world = self._transport.world_size
        candidates = [
            decision.Candidate(
                slot["attempt"], slot["step"], world,
                [(own["path"], slot["sequence"])] * world,
            )
            for slot in held
        ]  # fmt: skip
        return replace(choice, decision=replace(choice.decision, complete=candidates))

    restart.Meeting.choose = planted  # type: ignore[method-assign]


def complete_alone() -> None:
    """Takes a checkpoint for complete as soon as this rank has it."""

    def planted(self: Any, save: exchange.Save) -> bool:
        if save.wait_ended() is None:
            self._settle(save, None)
        return True

    exchange.Exchange._exchange = planted  # type: ignore[method-assign]


def name_by_step_alone() -> None:
    """Continues every attempt under the number of the last one."""
    choose = restart.Meeting.choose

    def planted(self: Any, own: Any, *arguments: Any) -> restart.Choice:
        choice = choose(self, own, *arguments)
        return replace(choice, attempt=max(1, choice.attempt - 1))

    restart.Meeting.choose = planted  # type: ignore[method-assign]


def generators_are_forgotten() -> None:
    """Does not restore the random generators."""
    import pccheck.torch

    pccheck.torch.set_random_state = lambda state: None


def plants() -> dict[str, Callable[[], None]]:
    """By name."""
    found = (newest_of_this_rank, complete_alone, name_by_step_alone, generators_are_forgotten)
    return {plant.__name__: plant for plant in found}


def planted(name: str) -> None:
    """Makes one mistake in this process; none for an empty name."""
    if name:
        plants()[name]()
