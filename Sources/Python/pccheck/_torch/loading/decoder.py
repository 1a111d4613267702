"""How a torch state is built again, and which live tensors are filled in place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..._group.node import TAG, ShardedNode
from ..._state.comparing import Comparison, Leaf
from ..._state.decoder import Decoder
from ..._state.memory import ArrayMemory, Place
from ..._state.stateful import FILLED_TYPES, fills_in_place, is_stateful, stateful_objects
from ..._state.stored import StoredTensor, View
from ..._core.tensors import DevicePlace
from ...errors import InvalidArgument, UnsupportedState
from ..device import CudaDevices, Devices, with_stream
from ..objects import parsed_objects
from ..sharded import (
    LocalShard,
    Sharding,
    dtensor,
    is_dtensor,
    local_of,
    parts_of_local,
    ranks_text,
)
from ..types import (
    DTYPES,
    PLAIN_TENSOR_TYPES,
    STORED_TO_TORCH,
    dtype_name,
    dtype_named,
    is_dense,
)
from ..trainable import Trainable, compare_trainable
from .comparing import compare_module, compare_other, moves_what_it_reads
from .optimizers import compare_optimizer

log = logging.getLogger("pccheck")


class TorchDecoder(Decoder):
    """Adds what TorchEncoder adds; the tensors share the memory that was loaded."""

    def __init__(
        self,
        tensors: dict[str, StoredTensor],
        made: dict[object, Any] | None = None,
        device: torch.device | None = None,
        sharded: LiveShards | None = None,
    ) -> None:
        """`device` is where tensors that were not filled in place go."""
        super().__init__(tensors, made)
        self._device = device
        self._sharded = sharded or LiveShards()

    def bytes_of(self, tensor: StoredTensor) -> np.ndarray:
        """The memory of a tensor for NumPy."""
        array: np.ndarray = tensor.memory.cpu().numpy()
        return array

    def decode_other(self, tag: str, document: dict[str, Any]) -> Any:
        """Tensors, and torch's own kinds of scalar."""
        content = document[tag]
        if tag == "$tensor":
            dtype = document.get("dtype")
            return self.made_once(("torch", content, dtype), lambda: self._make(content, dtype))
        if tag == "$view":
            return self._view(View(document))
        if tag == TAG:
            return self._divided(content)
        if tag == "$torch.Size":
            return torch.Size(content)
        if tag == "$torch.device":
            return torch.device(content)
        if tag == "$torch.dtype":
            return dtype_named(content)
        if tag.startswith("$torch."):
            raise UnsupportedState(
                f"the state document has the unknown tag {tag}; install a newer pccheck"
            )
        return super().decode_other(tag, document)

    def _make(self, name: str, tag: str | None) -> torch.Tensor:
        tensor = self.stored(name)
        dtype, shape = tensor_type(tensor, tag)
        return self._flat(tensor).view(dtype).view(shape)

    def _divided(self, content: Any) -> Any:
        """The live tensor that was filled, a DTensor on a mesh that is known, or what was saved."""
        live = self._sharded.tensors.get(id(content))
        if live is not None and not isinstance(content, dict):
            # Of several files: filled by now.
            return live[0]
        node = ShardedNode.parsed(content)
        parts = tuple((box, self.decode(local)) for box, local in node.boxes)
        if live is not None and all(
            part is view for (_, part), view in zip(parts, live[1], strict=True)
        ):
            return live[0]
        sharding = Sharding.decoded(node)
        shard = LocalShard(parts, node.shape, dtype_named(node.dtype), sharding)
        mesh = None if sharding is None else self._sharded.meshes.get(sharding.mesh)
        are_tensors = all(isinstance(part, torch.Tensor) for _, part in parts)
        if mesh is None or sharding is None or not (are_tensors and _is_whole(node, sharding)):
            return shard
        return dtensor(shard.local.to(mesh.device_type), mesh, sharding)

    def _view(self, view: View) -> torch.Tensor:
        tensor = self.stored(view.name)
        dtype = dtype_named(view.dtype)
        view.check(dtype.itemsize, tensor)
        flat: torch.Tensor = self.made_once(("flat", view.name), lambda: self._flat(tensor))
        key = (view.name, dtype, view.offset, view.shape, view.stride)

        def make() -> torch.Tensor:
            # Whole items, from where this view begins.
            count = (flat.numel() - view.offset) // dtype.itemsize * dtype.itemsize
            items = flat[view.offset : view.offset + count].view(dtype)
            return items.as_strided(view.shape, view.stride)

        made: torch.Tensor = self.made_once(key, make)
        return made

    def _flat(self, tensor: StoredTensor) -> torch.Tensor:
        """The bytes of a tensor, where they are to be."""
        if self._device is None:
            memory: torch.Tensor = tensor.memory
            return memory
        if self._device.type == "meta":
            return torch.empty(tensor.byte_count, dtype=torch.uint8, device="meta")
        return tensor.memory.to(self._device)  # type: ignore[no-any-return]


class LiveShards:
    """The DTensors of a live state, and the meshes that they are on."""

    def __init__(self) -> None:
        #: Tensor and the views of it that are filled, by the identity of the content of a node.
        self.tensors: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}
        self.meshes: dict[object, Any] = {}

    def add_mesh(self, tensor: Any) -> None:
        """Notes the mesh of a tensor, if it has one."""
        if is_dtensor(tensor):
            self.meshes[Sharding.of(tensor).mesh] = tensor.device_mesh


class TorchMemory(ArrayMemory):
    """Memory for torch tensors, and for the arrays that a torch state holds. For one load."""

    #: The devices whose memory the engine fills itself.
    devices: Devices = CudaDevices()

    def __init__(self, device: torch.device | None = None) -> None:
        """`device` is where tensors that are not filled in place go; None is the CPU."""
        self.device = device
        self._sharded = LiveShards()

    def allocate(self, byte_count: int) -> tuple[Any, int]:
        """Fresh memory of the CPU."""
        memory = torch.empty(byte_count, dtype=torch.uint8, device="cpu")
        return memory, memory.data_ptr()

    def allocate_for(self, tensor: StoredTensor) -> Place:
        """On the device that was asked for, where the engine fills it there."""
        if self.device is not None and self.device.type != "meta" and tensor.byte_count:
            memory = torch.empty(tensor.byte_count, dtype=torch.uint8, device=self.device)
            located = self._located(memory)
            if located is not None:
                return Place(None, memory, located[1], None, device=located[0])
        return super().allocate_for(tensor)

    def _located(self, tensor: torch.Tensor) -> tuple[DevicePlace | None, int] | None:
        """Where the engine fills a tensor on its device, behind what is queued there by now."""
        located = self.devices.locate(tensor)
        return located and (with_stream(self.devices, located[0]), located[1])

    def dropped_spans(self, target: Any) -> list[tuple[int, int]]:
        """The state of optimizers, which they replace altogether."""
        tensors = [
            tensor
            for value in stateful_objects(target)
            if isinstance(value, torch.optim.Optimizer)
            for state in value.state.values()
            for tensor in state.values()
            if isinstance(tensor, torch.Tensor)
        ]
        own = [local_of(tensor) for tensor in tensors]
        return [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in own]

    def is_read(self, kind: str) -> bool:
        """False for tensors of which only type and shape are wanted."""
        is_meta = self.device is not None and self.device.type == "meta"
        return not is_meta or kind not in ("$tensor", "$view")

    def decoder(self, tensors: dict[str, StoredTensor], made: dict[object, Any]) -> Decoder:
        """The decoder that knows tensors."""
        return TorchDecoder(tensors, made, self.device, self._sharded)

    def state_of(self, target: Any, node: Any) -> Any:
        """Modules and optimizers show their live tensors; other objects may give copies."""
        if isinstance(target, torch.nn.Module) and moves_what_it_reads(target):
            return None
        if isinstance(target, (torch.nn.Module, torch.optim.Optimizer)):
            return target.state_dict()
        return target

    def prepare(self, target: Any) -> None:
        """Gives the parts of a module that are on the meta device memory to be loaded into."""
        if isinstance(target, torch.nn.Module):
            give_memory(target, self.device)
            for parameter in target.parameters():
                self._sharded.add_mesh(parameter)
        elif isinstance(target, torch.optim.Optimizer):
            for group in target.param_groups:
                for parameter in group["params"]:
                    self._sharded.add_mesh(parameter)

    def unwrapped(
        self, node: dict[str, Any], target: Any, claim: Callable[[int, int], bool]
    ) -> list[tuple[Any, Any]]:
        """The parts of the local tensor of a DTensor that is sharded as the saved one was."""
        content = node.get(TAG)
        if not isinstance(content, dict) or not is_dtensor(target):
            return []
        self._sharded.add_mesh(target)
        found = ShardedNode.parsed(content)
        sharding = Sharding.decoded(found)
        if sharding is None or sharding != Sharding.of(target) or not _is_whole(found, sharding):
            return []
        views = [view for _, view in parts_of_local(sharding, local_of(target))]
        self._sharded.tensors[id(content)] = (target, views)
        return [(local, view) for (_, local), view in zip(found.boxes, views, strict=True)]

    # -- comparing

    def compare_object(self, comparison: Comparison, node: Any, target: Any, name: str) -> Any:
        """Modules by their keys, optimizers by their parameters, others by their class."""
        if isinstance(target, torch.nn.Module):
            return compare_module(comparison, node, target, name)
        if isinstance(target, torch.optim.Optimizer):
            return compare_optimizer(comparison, node, target, name)
        if isinstance(target, Trainable):
            return compare_trainable(comparison, node, target, name)
        if is_stateful(target):
            return compare_other(comparison, node, target, name)
        return None

    def recorded_objects(self, text: str | None) -> dict[str, Any]:
        """What was recorded of the objects of a state, by key path."""
        return parsed_objects(text)

    def place_of_comparing(self, target: Any) -> int:
        """Optimizers go by how their parameters fit, schedulers by how their optimizer does."""
        objects = list(stateful_objects(target))
        if any(isinstance(item, torch.optim.Optimizer) for item in objects):
            return 1
        return 2 if any(hasattr(item, "optimizer") for item in objects) else 0

    def fills_in_place(self, target: Any) -> bool:
        """True when a loaded value goes into this object rather than in its place."""
        return fills_in_place(target, (*FILLED_TYPES, torch.Tensor, torch.Generator))

    def leaf(self, node: dict[str, Any], tensors: dict[str, StoredTensor]) -> Leaf | None:
        """Type and shape of the tensor of a node."""
        if "$view" in node:
            view = View(node)
            return Leaf(view.dtype, view.shape)
        if "$tensor" in node:
            tensor = tensors.get(node["$tensor"])
            if tensor is None:
                return None
            dtype, shape = tensor_type(tensor, node.get("dtype"))
            return Leaf(dtype_name(dtype), shape)
        if TAG in node:
            found = ShardedNode.parsed(node[TAG])
            sharding = Sharding.decoded(found)
            if sharding is not None and _is_whole(found, sharding):
                return Leaf(found.dtype, found.shape, str(sharding))
            parts = f"sharded in the files of ranks {ranks_text(found.ranks)}"
            return Leaf(found.dtype, found.shape, parts)
        return super().leaf(node, tensors)

    def live_leaf(self, target: Any) -> Leaf | None:
        """Type and shape of a live tensor or array."""
        if isinstance(target, torch.Tensor):
            if torch.nn.parameter.is_lazy(target):
                return None
            sharding = str(Sharding.of(target)) if is_dtensor(target) else ""
            return Leaf(dtype_name(target.dtype), tuple(target.shape), sharding)
        return super().live_leaf(target)

    def memory_of(self, target: Any) -> Any:
        """Tells live tensors in the same memory; None for one without."""
        if not isinstance(target, torch.Tensor):
            return super().memory_of(target)
        if is_dtensor(target) or target.is_meta or target.layout != torch.strided:
            return None
        if type(target) not in PLAIN_TENSOR_TYPES or not target.numel():
            return None
        return target.device, target.data_ptr(), target.dtype, target.shape, target.stride()

    def keeps_values(self, saved: Leaf, live: Leaf) -> bool:
        """True when every value of the saved type has an equal one in the live type."""
        if saved.dtype not in DTYPES or live.dtype not in DTYPES:
            return saved.dtype == live.dtype
        to = DTYPES[live.dtype]
        try:
            return torch.promote_types(DTYPES[saved.dtype], to) == to
        except RuntimeError:
            return saved.dtype == live.dtype

    def converts(self, saved: Leaf, live: Leaf) -> bool:
        """True when values may be rounded to the live type where that was asked for."""
        if saved.dtype not in DTYPES or live.dtype not in DTYPES:
            return super().converts(saved, live)
        kinds = [_number_kind(DTYPES[leaf.dtype]) for leaf in (saved, live)]
        return kinds[0] == kinds[1]

    # -- in place

    def place(
        self, node: dict[str, Any], kind: str, tensor: StoredTensor, target: Any
    ) -> Place | None:
        """The live memory to load a tensor into, when `target` fits it."""
        if kind == "$array":
            place = super().place(node, kind, tensor, target)
            return place and replace(place, memory=torch.from_numpy(place.memory))
        if type(target) not in PLAIN_TENSOR_TYPES or target.is_meta:
            return None
        if kind == "$view":
            return _place_of_view(View(node), tensor, target)
        tag = node.get("dtype")
        if tag is not None and tag not in DTYPES:
            return None
        dtype, shape = tensor_type(tensor, tag)
        if target.shape != shape:
            return None
        key = ("torch", tensor.name, tag)
        in_place = tag is None or dtype.is_complex
        if in_place and target.dtype == dtype and is_dense(target):
            located = self._located(target)
            if located is None and target.is_cpu:
                located = None, target.data_ptr()
            if located is not None:
                dense = target.detach()
                flat = (torch.view_as_real(dense) if dtype.is_complex else dense).view(-1)
                device, address = located
                return Place(target, flat.view(torch.uint8), address, key, device=device)
        return _place_of_copy(target, dtype, shape, key)


def _is_whole(node: ShardedNode, sharding: Sharding) -> bool:
    """True when a file holds all that its rank had of a tensor."""
    return [box for box, _ in node.boxes] == [item.box for item in sharding.boxes()[1]]


def _number_kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else "bool" if dtype == torch.bool else "integer"


def _place_of_copy(
    target: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], key: object
) -> Place | None:
    """A live tensor of another type, layout or device: filled from a buffer."""
    if target.layout != torch.strided or target.is_quantized:
        return None
    target = target.detach()
    if any(n > 1 and step == 0 for n, step in zip(target.shape, target.stride(), strict=True)):
        return None

    def fill(memory: torch.Tensor) -> None:
        target.copy_(memory.view(dtype).view(shape))

    address = target.data_ptr()
    last = sum((n - 1) * step for n, step in zip(target.shape, target.stride(), strict=True))
    return Place(target, None, address, key, fill, (last + 1) * target.itemsize)


def _place_of_view(view: View, tensor: StoredTensor, target: torch.Tensor) -> Place | None:
    """The live memory around a view, when the live tensor is the same view of as much memory."""
    if view.dtype not in DTYPES or target.dtype != DTYPES[view.dtype] or not target.is_cpu:
        return None
    view.check(target.itemsize, tensor)
    if tuple(target.shape) != view.shape or target.stride() != view.stride:
        return None
    storage = target.untyped_storage()
    start = target.storage_offset() * target.itemsize - view.offset
    if start < 0 or start + tensor.byte_count > storage.nbytes():
        return None
    flat = torch.empty(0, dtype=torch.uint8, device="cpu")
    flat.set_(storage, start, (tensor.byte_count,), (1,))
    return Place(flat, flat, flat.data_ptr(), ("flat", tensor.name))


def tensor_type(
    tensor: StoredTensor, tag: str | None
) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape of the tensor that a `$tensor` node with this tag describes."""
    if tag is None:
        return STORED_TO_TORCH[tensor.stored_dtype], tensor.shape
    dtype = dtype_named(tag)
    return dtype, (tensor.shape[:-1] if dtype.is_complex else tensor.shape)


def give_memory(module: torch.nn.Module, device: torch.device | None = None) -> None:
    """Memory, not yet filled, for what is saved of a module on the meta device; ties are kept."""
    made: dict[int, Any] = {}
    where = device or torch.device("cpu")
    for path, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if type(tensor) not in PLAIN_TENSOR_TYPES:
                    raise InvalidArgument(
                        f"'{path}.{name}' is sharded and on the meta device; give it memory before"
                        " the resume: model.to_empty(device=…)"
                    )
                if name in part._non_persistent_buffers_set:
                    log.warning(
                        "the buffer '%s' is on the meta device and in no checkpoint, because it is "
                        "not persistent; make it again", f"{path}.{name}".lstrip("."),
                    )  # fmt: skip
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _real(tensor, where)
                table[name] = made[id(tensor)]


def _real(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    memory = torch.empty_like(tensor, device=device, requires_grad=False)
    if not isinstance(tensor, torch.nn.Parameter):
        return memory
    return torch.nn.Parameter(memory, requires_grad=tensor.requires_grad)
