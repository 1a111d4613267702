"""How a torch state becomes a document and tensors: what is copied, and what is read in place.

Memory is guarded (its changes wait or are noticed), early (copied before ``save`` returns), or a
copy: spec/ARCHITECTURE.md, "What Python reads in place".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..._state.document import part_node, text_with_parts
from ..._state.encoder import Encoder, are_names
from ..._core.tensors import DevicePlace
from ..copies import Arenas, Copies
from ..device import CudaDevices, Devices, with_stream
from ..sharded import Pieces, is_dtensor, pieces_of_dtensor
from ..types import (
    PLAIN_TENSOR_TYPES,
    TORCH_TO_STORED,
    WORD_TYPES,
    dtype_name,
    stored_form,
)
from .plan import Leaf, Part, Plan, address_in, together
from .versions import VersionGuard

# Copies of small tensors are made together: a call to torch for each costs more than the copy.
_SMALL_BYTE_COUNT = 64 << 10
# All of them in one state, beyond which they are read in place like large ones.
_SMALL_TOTAL_BYTE_COUNT = 16 << 20
_COPIED_TOGETHER = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip
# Types that a reader without torch can view memory as.
_VIEWED_TYPES = {*TORCH_TO_STORED, torch.complex64, torch.complex128}
# Shorter ones become text as fast with the rest.
_LEAST_PART_COUNT = 1000
_PLAIN_TYPES = frozenset(PLAIN_TENSOR_TYPES)
_NESTED_REASON = "it is a nested tensor; save the list that unbind() returns"
# Where views of several types share memory, the shared bytes begin at a multiple of this.
_SHARED_ALIGNMENT = 16


_NO_DEVICES = CudaDevices()
#: A long dictionary that holds only tensors, behind the node that stands for it.
_PartNode = tuple[dict[str, Any], Part]


class TorchEncoder(Encoder):
    """Adds tensors and the values that only torch has."""

    def __init__(
        self,
        in_place: set[int],
        plan: Plan | None = None,
        devices: Devices | None = None,
        copies: Copies | None = None,
    ) -> None:
        """`plan` is what the last save of this state, if it is the same, found out.

        What `devices` can locate is read on its device. `copies` makes dense copies of what cannot
        be read where it is.
        """
        super().__init__()
        self._plan = plan
        self._devices = devices
        self._copies = copies or Copies(Arenas())
        # Storages whose changes wait or are noticed. Other memory is read in place too, but early:
        # it may change as soon as save() has returned.
        self._in_place = in_place
        self._leaves: list[Leaf] = []
        self._parts: list[_PartNode] = []
        #: Whether the plan says how these tensors are stored.
        self._is_planned = False
        #: What is read in place, with its name.
        self.guarded: list[tuple[str, torch.Tensor]] = []
        #: The storages of it that are on devices.
        self.guarded_storages: list[tuple[str, torch.UntypedStorage]] = []
        self.methods = {
            **self.methods,
            torch.Tensor: TorchEncoder._encode_tensor,
            torch.nn.Parameter: TorchEncoder._encode_tensor,
            Pieces: TorchEncoder._encode_pieces,
        }

    def encode_state(self, value: object) -> Any:
        """The JSON form of a state; its tensors are appended to ``entries``."""
        document, leaves, parts = self._encode_parts(value)
        for node, part in parts:
            node.clear()
            node.update(part.node(leaves))
        return document

    def encode_text(self, value: object) -> str:
        """The text of the JSON form of a state; its tensors are appended to ``entries``."""
        document, leaves, parts = self._encode_parts(value)
        text_of = self._plan.text_of if self._is_planned and self._plan else Part.text
        return text_with_parts(document, [text_of(part, leaves) for _, part in parts])

    def _encode_parts(self, value: object) -> tuple[Any, list[Leaf], list[_PartNode]]:
        """The JSON form of a state, with nodes that only stand for its parts; what they are of,
        and the parts."""
        document = super().encode_state(value)
        leaves = _Leaves(self, self._leaves, self._in_place, self._devices, self._copies)
        self._is_planned = leaves.store(self._plan)
        guarded: list[Any] = [entry for entry in self.entries if entry.is_guarded]
        self.guarded_storages = [
            (entry.name, entry.owner) for entry in guarded if entry.place is not None
        ]
        if guarded:
            self.guarded = leaves.on_storages({entry.owner.data_ptr() for entry in guarded})
        # Not kept any longer than the document.
        found = document, self._leaves, self._parts
        self._leaves, self._parts = [], []
        return found

    def guard(self) -> VersionGuard | None:
        """What notices changes of the memory that is read in place; None without any."""
        return VersionGuard(self.guarded, self.guarded_storages) if self.guarded else None

    def encode_other(self, value: object, path: str) -> Any:
        """Torch's own kinds of scalar, and tensors of other classes."""
        if isinstance(value, torch.Tensor):
            return self.encode_tensor_subclass(value, path)
        if type(value) is torch.Size:
            return {"$torch.Size": list(value)}
        if type(value) is torch.dtype:
            return {"$torch.dtype": dtype_name(value)}
        if type(value) is torch.device:
            return {"$torch.device": str(value)}
        return super().encode_other(value, path)

    def encode_tensor_subclass(self, value: torch.Tensor, path: str) -> Any:
        """A tensor that is more than its values: of a DTensor, the boxes that are here."""
        if is_dtensor(value):
            try:
                pieces = pieces_of_dtensor(value)
            except TypeError as error:
                raise self.refusal(value, path, str(error)) from None
            return self._encode_pieces(pieces, path)
        if value.is_nested:
            raise self.refusal(value, path, _NESTED_REASON)
        if type(value).__name__ == "ShardedTensor":
            reason = "it is of the old sharding; use fully_shard, whose tensors are DTensors"
            raise self.refusal(value, path, reason)
        raise self.refusal(value, path, "convert this tensor subclass to a plain tensor")

    def _encode_pieces(self, value: Pieces, path: str) -> Any:
        return value.document([self.encode(part, path) for _, part in value.parts])

    def _items(self, value: dict[Any, Any], path: str) -> Any:
        """As the base, faster for what holds only tensors: a state may have 100,000."""
        # Taken at once: names and tensors stay together, whatever another thread does.
        pairs = list(value.items())
        names, tensors = [name for name, _ in pairs], [tensor for _, tensor in pairs]
        if not (set(map(type, tensors)) <= _PLAIN_TYPES and are_names(names)):
            return super()._items(value, path)
        prefix = f"{path}." if path else ""
        paths = [prefix + name for name in names]
        nodes: list[dict[str, Any]] = [{"$tensor": item} for item in paths]
        part = Part(len(self._leaves), names)
        self._leaves += zip(nodes, tensors, paths)
        if len(names) < _LEAST_PART_COUNT:
            return part.node(self._leaves)
        node = part_node(len(self._parts))
        self._parts.append((node, part))
        return node

    def _encode_tensor(self, value: Any, path: str) -> Any:
        """The node is completed once all tensors are known: some share their memory."""
        node: dict[str, Any] = {"$tensor": path}
        self._leaves.append((node, value, path))
        return node


class _Leaves:
    """The tensors of one state, stored together."""

    def __init__(
        self,
        encoder: TorchEncoder,
        leaves: list[Leaf],
        in_place: set[int],
        devices: Devices | None,
        copies: Copies,
    ) -> None:
        self._devices = devices
        self._copies = copies
        #: Each device with its current stream.
        self._places: dict[DevicePlace, DevicePlace] = {}
        #: The entries that the copies will fill.
        self._copied_entries: list[int] = []
        self._encoder = encoder
        self._leaves = leaves
        self._tensors = [tensor for _, tensor, _ in leaves]
        # Some of those have no storage.
        self._refuse_special()
        # Another thread may give a tensor other memory: what is read belongs to these.
        self._storages = [tensor.untyped_storage() for tensor in self._tensors]
        #: Of the storages.
        self._addresses = [storage.data_ptr() for storage in self._storages]
        self._are_contiguous = [tensor.is_contiguous() for tensor in self._tensors]
        self._refuse_short()
        self._in_place = in_place
        self._small: dict[torch.dtype, list[tuple[int, torch.Tensor]]] = {}
        self._small_byte_count = 0

    def store(self, plan: Plan | None) -> bool:
        """Adds every tensor, and completes its node; whether the plan says how, from now on."""
        leaves = self._leaves
        if not leaves:
            return False
        entries = self._encoder.entries
        if plan is None or not self._is_ordinary():
            self._store_all()
            return False
        signature = self._signature()
        before = [entry.name for entry in entries]
        if plan.fits(signature, before):
            storages = self._storages
            # Tensors may have other storages than at the last save.
            for index in [index for index in plan.guarded if storages[index].resizable()]:
                _forbid_resizing(self._tensors[index], storages[index])
            entries += plan.apply(leaves, storages, self._copied)
            return True
        self._store_all()
        plan.learn(signature, before, leaves, entries[len(before) :], self._small)
        return True

    def on_storages(self, addresses: set[int]) -> list[tuple[str, torch.Tensor]]:
        """The tensors on these storages, with their paths."""
        return [
            (path, tensor)
            for (_, tensor, path), address in zip(self._leaves, self._addresses, strict=True)
            if address in addresses
        ]

    def _is_ordinary(self) -> bool:
        """True when each tensor is stored alone, in the order in which they are met."""
        tensors = self._tensors
        real = [address for address in self._addresses if address]
        return (
            len(set(real)) == len(real)
            and (self._devices or _NO_DEVICES).are_host(tensors)
            and not any([t.is_neg() or t.is_conj() for t in tensors])
        )

    def _locate(self, tensor: torch.Tensor) -> tuple[DevicePlace, int] | None:
        return None if self._devices is None else self._devices.locate(tensor)

    def _signature(self) -> list[list[Any]]:
        """All that decides how the tensors are stored, but not where and what they are."""
        tensors, in_place = self._tensors, self._in_place
        return [
            [path for _, _, path in self._leaves],
            [tensor.shape for tensor in tensors],
            [tensor.dtype for tensor in tensors],
            self._are_contiguous,
            [address in in_place for address in self._addresses],
        ]

    def _store_all(self) -> None:
        storages = self._storages
        by_storage: dict[int, list[int]] = {}
        for index, address in enumerate(self._addresses):
            by_storage.setdefault(address, []).append(index)
        # Tensors without any memory share nothing.
        alone = by_storage.pop(0, [])
        shared: list[list[int]] = []
        for indices in by_storage.values():
            if len(indices) == 1:
                alone += indices
            else:
                shared.append(indices)
        alone.sort()
        for index in alone:
            self._store_one(index, storages[index])
        for indices in shared:
            self._store_shared(indices, storages[indices[0]])
        self._copy_rest()
        self._copy_small()

    def _refuse_special(self) -> None:
        """All at once: most states hold nothing special."""
        tensors = self._tensors
        if (
            {tensor.layout for tensor in tensors} <= {torch.strided}
            and not any([t.is_quantized or t.is_meta or t.is_nested for t in tensors])
        ):
            return
        for _, tensor, path in self._leaves:
            if tensor.is_nested:
                reason = _NESTED_REASON
            elif tensor.layout != torch.strided:
                reason = f"its layout is {tensor.layout}; use to_dense()"
            elif tensor.is_quantized:
                reason = "it is quantized; save its int_repr(), scale and zero point"
            elif tensor.is_meta:
                reason = "it is on the meta device and has no data"
            elif tensor.is_nested:
                reason = _NESTED_REASON
            else:
                continue
            raise self._encoder.refusal(tensor, path, reason)

    def _refuse_short(self) -> None:
        """A storage may be resized, or freed, under its tensors."""
        rows = zip(self._tensors, self._storages, self._are_contiguous, strict=True)
        short = [
            index for index, (tensor, storage, is_contiguous) in enumerate(rows)
            if not is_contiguous
            or tensor.storage_offset() * tensor.itemsize + tensor.nbytes > storage.nbytes()
        ]  # fmt: skip
        for index in short:
            tensor, storage = self._tensors[index], self._storages[index]
            end = _extent(tensor)[1]
            if end > storage.nbytes():
                reason = (
                    f"its storage has {storage.nbytes()} bytes, expected {end} or more: something "
                    "has resized or freed it"
                )
                raise self._encoder.refusal(tensor, self._leaves[index][2], reason)

    # -- one tensor

    def _store_one(self, index: int, storage: torch.UntypedStorage) -> None:
        node, tensor, path = self._leaves[index]
        name, tag = self._add(tensor, storage, path)
        node["$tensor"] = name
        if tag:
            node["dtype"] = tag

    def _add(
        self, tensor: torch.Tensor, storage: torch.UntypedStorage, path: str
    ) -> tuple[str, str | None]:
        """Name of the new entry, and the name of its type if it needs one."""
        encoder = self._encoder
        dtype = tensor.dtype
        stored, pair, tag = stored_form(dtype)
        shape = (*tensor.shape, 2) if pair else tuple(tensor.shape)
        byte_count = tensor.nbytes
        located = self._locate(tensor)
        if located is not None:
            return self._add_on_device(tensor, storage, located, stored, shape, path), tag
        is_readable = (
            tensor.is_cpu
            and tensor.is_contiguous()
            and not (tensor.is_conj() or tensor.is_neg())
        )
        is_guarded = storage.data_ptr() in self._in_place
        is_small = byte_count <= _SMALL_BYTE_COUNT and not is_guarded
        if is_readable and is_small and dtype in _COPIED_TOGETHER and self._has_room(byte_count):
            entry_index = len(encoder.entries)
            name = encoder.add(stored, shape, 0, byte_count, None, path)
            self._small.setdefault(dtype, []).append((entry_index, tensor))
            return name, tag
        if is_readable:
            if is_guarded:
                _forbid_resizing(tensor, storage)
            # The storage is kept, not the tensor: `tensor.data = …` gives the tensor another one.
            address = address_in(storage, tensor)
            name = encoder.add(stored, shape, address, byte_count, storage, path)
            encoder.entries[-1].is_guarded = is_guarded
            return name, tag
        return self._copy_later(tensor, stored, shape, path), tag

    def _add_on_device(
        self, tensor: torch.Tensor, storage: torch.UntypedStorage,
        located: tuple[DevicePlace, int], stored: str, shape: tuple[int, ...], path: str,
    ) -> str:  # fmt: skip
        """Name of an entry that is read on its device, where a dense copy is made if it must be."""
        encoder = self._encoder
        is_dense = tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
        owner: object = storage
        if not is_dense:
            owner = copy = _copyable(tensor).resolve_conj().resolve_neg().contiguous()
            found = self._locate(copy)
            if found is None:
                name = encoder.add(stored, shape, copy.data_ptr(), copy.nbytes, copy, path)
                encoder.entries[-1].is_copy = True
                return name
            located = found
        device, address = located
        place = self._places.get(device)
        if place is None:
            assert self._devices is not None
            place = self._places[device] = with_stream(self._devices, device)
        name = encoder.add(stored, shape, address, tensor.nbytes, owner, path)
        entry = encoder.entries[-1]
        entry.place = place
        entry.is_copy = not is_dense
        entry.is_guarded = is_dense and storage.data_ptr() in self._in_place
        return name

    def _has_room(self, byte_count: int) -> bool:
        """Counts what is copied together; False when that would be too much."""
        if self._small_byte_count + byte_count > _SMALL_TOTAL_BYTE_COUNT:
            return False
        self._small_byte_count += byte_count
        return True

    def _copy_later(
        self, tensor: torch.Tensor, stored: str, shape: tuple[int, ...], path: str
    ) -> str:
        """Name of an entry whose memory is known when all copies are made."""
        entries = self._encoder.entries
        self._copies.add(_copyable(tensor))
        name = self._encoder.add(stored, shape, 0, tensor.nbytes, None, path)
        entries[-1].is_copy = True
        self._copied_entries.append(len(entries) - 1)
        return name

    def _copy_rest(self) -> None:
        """Makes the copies, and notes where they are."""
        entries = self._encoder.entries
        for index, (address, lease) in zip(self._copied_entries, self._copies.make(), strict=True):
            entries[index].address, entries[index].owner = address, lease

    def _copied(self, tensors: Sequence[torch.Tensor]) -> list[tuple[int, object]]:
        """Dense copies of their values: addresses, and what keeps the memory."""
        for tensor in tensors:
            self._copies.add(_copyable(tensor))
        return list(self._copies.make())

    def _copy_small(self) -> None:
        """Copies what was put off, all tensors of a type by one call."""
        entries = self._encoder.entries
        for items in self._small.values():
            # Conjugate and negative views are resolved on the way: it copies values.
            copy = together([tensor for _, tensor in items])
            address = copy.data_ptr()
            for entry_index, _ in items:
                entry = entries[entry_index]
                entry.address, entry.owner, entry.is_copy = address, copy, True
                address += entry.byte_count

    # -- tensors on one storage

    def _store_shared(self, indices: list[int], storage: torch.UntypedStorage) -> None:
        """Equal views are one tensor; views that overlap are views of one tensor again."""
        views: dict[object, list[int]] = {}
        for index in indices:
            tensor = self._leaves[index][1]
            key = (
                tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype,
                tensor.is_conj(), tensor.is_neg(),
            )  # fmt: skip
            views.setdefault(key, []).append(index)
        groups = list(views.values())
        for cluster in _overlapping([self._leaves[group[0]][1] for group in groups]):
            members = [groups[position] for position in cluster]
            tensors = [self._leaves[group[0]][1] for group in members]
            if len(members) == 1 or not self._store_views(members, tensors, storage):
                for group in members:
                    self._store_one(group[0], storage)
                    for index in group[1:]:
                        self._leaves[index][0].update(self._leaves[group[0]][0])

    def _store_views(
        self, members: list[list[int]], tensors: list[torch.Tensor], storage: torch.UntypedStorage
    ) -> bool:
        """False when the memory between the views is more than the views themselves."""
        if any(
            tensor.is_conj() or tensor.is_neg() or tensor.dtype not in _VIEWED_TYPES
            for tensor in tensors
        ):
            return False
        spans = [_span(tensor) for tensor in tensors]
        start, end = min(low for low, _ in spans), max(high for _, high in spans)
        dtypes = {tensor.dtype for tensor in tensors}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.uint8
        if dtype == torch.uint8:
            origin = storage.data_ptr()
            start -= (start - origin) % _SHARED_ALIGNMENT
        if end - start > sum(tensor.nbytes for tensor in tensors) + _SHARED_ALIGNMENT:
            return False
        base = _flat(storage, tensors[0].device, dtype, start, end)
        name, _ = self._add(base, storage, self._leaves[members[0][0]][2])
        for group, tensor, (low, _) in zip(members, tensors, spans, strict=True):
            node = {
                "$view": name, "dtype": dtype_name(tensor.dtype), "offset": low - start,
                "shape": list(tensor.shape), "stride": list(tensor.stride()),
            }  # fmt: skip
            for index in group:
                self._leaves[index][0].clear()
                self._leaves[index][0].update(node)
        return True


def _overlapping(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Positions of the tensors, those together whose memory overlaps; in order of appearance."""
    spans = sorted((*_span(tensor), position) for position, tensor in enumerate(tensors))
    clusters: list[list[int]] = []
    end = 0
    for low, high, position in spans:
        if clusters and low < end:
            clusters[-1].append(position)
        else:
            clusters.append([position])
        end = max(end, high)
    for cluster in clusters:
        cluster.sort()
    return sorted(clusters)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First address of a tensor's elements, and the one after the last."""
    first, end = _extent(tensor)
    start = tensor.data_ptr()
    return start, start + end - first


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The same in bytes from the beginning of the storage; equal for a tensor without elements."""
    start = int(tensor.storage_offset()) * tensor.itemsize
    if not tensor.numel():
        return 0, 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.itemsize


def _flat(
    storage: torch.UntypedStorage, device: torch.device, dtype: torch.dtype, start: int, end: int
) -> torch.Tensor:
    """A part of a storage as a one-dimensional tensor."""
    flat = torch.empty(0, dtype=torch.uint8, device=device)
    origin = storage.data_ptr()
    flat.set_(storage, start - origin, (end - start,), (1,))
    return flat.view(dtype)


def _copyable(value: torch.Tensor) -> torch.Tensor:
    """The tensor in a type that torch can copy; a copy has its values, dense and row-major."""
    plain = value.detach()
    if plain.dtype in TORCH_TO_STORED or plain.dtype.is_complex:
        return plain
    return plain.view(WORD_TYPES[plain.dtype.itemsize])


def _forbid_resizing(tensor: torch.Tensor, storage: torch.UntypedStorage) -> None:
    """Makes torch refuse to move memory that is being read by other threads.

    Sharing a tensor with NumPy is what marks its storage so; for good, as with every array.
    """
    if storage.resizable():
        tensor.detach().numpy() if tensor.dtype in _NUMPY_TYPES else _words(tensor).numpy()


_NUMPY_TYPES = _COPIED_TOGETHER - {torch.bfloat16} | {torch.complex64, torch.complex128}


def _words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(WORD_TYPES[tensor.itemsize])
