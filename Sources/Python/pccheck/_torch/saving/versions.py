"""Notices that tensors which are read in place were changed before they were copied.

torch counts in-place changes of every tensor, by any code: optimizers,
``load_state_dict``, ``nn.init``, an averaged or schedule-free swap of weights. It does not count
what is written through ``.data``, through NumPy, or by other processes. Nor does it count that
memory of a device is freed, by ``untyped_storage().resize_(0)``; on the host it refuses to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class VersionGuard:
    """The counts of one state at the time of its save."""

    def __init__(
        self,
        leaves: Sequence[tuple[str, torch.Tensor]],
        storages: Sequence[tuple[str, torch.UntypedStorage]] = (),
    ) -> None:
        """``storages`` are those of devices."""
        # Tensors of inference mode have no count; nothing in place is allowed on them either.
        self._leaves = [leaf for leaf in leaves if not leaf[1].is_inference()]
        self._versions = [tensor._version for _, tensor in self._leaves]
        self._storages = [
            (name, storage, storage.data_ptr(), storage.nbytes()) for name, storage in storages
        ]

    def changed(self) -> list[str]:
        """The names of the tensors that were changed since."""
        changed = [
            name
            for (name, tensor), version in zip(self._leaves, self._versions, strict=True)
            if tensor._version != version
        ]
        return changed + [
            name
            for name, storage, address, byte_count in self._storages
            if name not in changed
            and (storage.data_ptr() != address or storage.nbytes() != byte_count)
        ]
