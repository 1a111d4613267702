"""Some of a checkpoint's tensors, and the names that they get."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import InvalidArgument


@dataclass(frozen=True)
class Choice:
    """Which tensors are written, and what is taken off their names."""

    patterns: Sequence[str] = ()
    exclusions: Sequence[str] = ()
    prefixes: Sequence[str] = ()

    @property
    def is_everything(self) -> bool:
        """Every tensor, under the name that it has."""
        return not (self.patterns or self.exclusions or self.prefixes)

    def of(self, names: dict[str, str]) -> dict[str, str]:
        """The names that are written, each with the stored name of its tensor; ``names`` are
        those that there are."""
        wanted, unwanted = _matcher(self.patterns), _matcher(self.exclusions)
        found = {
            name: stored_name for name, stored_name in names.items()
            if (not self.patterns or wanted(name)) and not unwanted(name)
        }  # fmt: skip
        if not found and (self.patterns or self.exclusions):
            raise InvalidArgument(
                f"no tensor fits --tensor and --exclude; there are {_shown(names)}; see pcinspect "
                "tensors"
            )
        return self._stripped(found) if self.prefixes else found

    def _stripped(self, names: dict[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        origins: dict[str, str] = {}
        for name, stored_name in names.items():
            prefix = max(
                (p for p in self.prefixes if name.startswith(p)), key=len, default=None
            )
            if prefix is None:
                continue
            short = name[len(prefix) :]
            if short in found:
                raise InvalidArgument(
                    f"'{origins[short]}' and '{name}' would both be '{short}'; give fewer --strip"
                )
            found[short], origins[short] = stored_name, name
        if not found:
            raise InvalidArgument(
                f"no tensor begins with {' or '.join(self.prefixes)}; there are {_shown(names)}"
            )
        if "" in found:
            raise InvalidArgument(f"nothing is left of '{origins['']}'; give a shorter --strip")
        return found


def _shown(names: dict[str, str]) -> str:
    return f"{len(names)}, such as {', '.join([*names][:3])}"


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    # Not fnmatch itself, which takes case and slashes as the system does.
    compiled = [re.compile(fnmatch.translate(pattern), re.S) for pattern in patterns]
    return lambda name: any(pattern.match(name) for pattern in compiled)
