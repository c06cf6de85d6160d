"""Networks whose weights are divided among workers, for what does not fit one device: PyTorch's
FSDP2 (Zhao et al. 2023, arXiv 2304.11277; ``torch.distributed.fsdp.fully_shard``).

Each worker holds 1 / world of every weight, its gradient, its optimizer's state and its average.
The weights of a block are gathered when the block is called, and let go of after it. A call of a
sharded network is therefore one of all workers at once: all have to make the same calls in the same
order, or they wait for each other until the process group gives up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from models.common.precision import DTYPES
from models.methods.base import DistillationMethod


@dataclass(frozen=True)
class Share:
    """A worker's part of every optimizer step: micro-batches ``rank``, ``rank + world``, and so on.

    Their noise and rows depend on the micro-batch alone, so a step is the same step for every
    number of workers, up to the rounding of sums.
    """

    rank: int = 0
    world: int = 1

    def of(self, micro_batches: int) -> range:
        """The numbers of this worker's micro-batches."""
        return range(self.rank, micro_batches, self.world)

    def mean(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Means over the workers, by name; all workers have the same names in the same order."""
        if self.world == 1:
            return dict(values)
        flat = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        dist.all_reduce(flat)
        return dict(zip(values, (flat / self.world).tolist(), strict=True))

    def from_first(self, value: Any) -> Any:
        """The first worker's value, on all; the workers wait for each other. It is pickled on its
        way between them.
        """
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


def worker_mesh(device: torch.device) -> DeviceMesh:
    """All workers of the process group in one row."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard_method(method: DistillationMethod, mesh: DeviceMesh, precision: str) -> None:
    """Divide a method's networks and its teacher's among the workers of ``mesh``, in place, and
    move the rest of the teacher to its device. Before optimizers and averages are made.

    The method may be on the CPU, so that a device never holds a network whole. Weights that
    networks have in common stay common. ``precision``: "float32", or "bfloat16", in which weights
    are gathered and networks compute; gradients are summed in float32.
    """
    teacher = method.teacher
    networks = {"teacher": teacher.network, **method.networks}
    common = _common(list(networks.values()))
    for network in networks.values():
        shard_network(network, teacher.sharded_blocks(network), mesh, precision)
    _share_again(common)
    for network in networks.values():
        # as FSDP does at the first call, which may be one with the weights frozen for a while
        network._get_fsdp_state()._lazy_init()
    teacher.to(mesh.device_type)
    method.sharded = True


def shard_network(
    network: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, precision: str
) -> None:
    """Divide the weights of one network; those of each of ``blocks`` are gathered together, and
    those of no block with the whole.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision == "float32" else DTYPES[precision],
        reduce_dtype=torch.float32,
        # times up to 1000 would be rounded to 8 bits; what a layer needs is converted by autocast
        cast_forward_inputs=False,
    )
    # FSDP puts weights of its own in their place, without what was noted on them
    notes = {name: vars(p).copy() for name, p in network.named_parameters()}
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    fully_shard(network, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for name, parameter in network.named_parameters():
        vars(parameter).update(notes[name])
    for block in blocks:
        block.register_forward_hook(_keep_in_reach(network))
    if precision != "float32":
        # Layers keep their weights in half precision here, so every call needs autocast, that of a
        # validation too. It also keeps no copies of weights, as it would of float32 ones.
        half = torch.autocast(mesh.device_type, DTYPES[precision])
        network.forward = half(network.forward)  # type: ignore[method-assign]


def _keep_in_reach(network: Any) -> Callable[[nn.Module, Any, Any], None]:
    """A hook of a block that gathers the weights of no block once a gradient reaches it. FSDP does
    so when one reaches the network's output, but a loss on features begins in the middle.
    """

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(lambda _: network.unshard())

    return hook


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    for each in output if isinstance(output, tuple | list) else ():
        yield from _tensors(each)


Place = tuple[nn.Module, str]  # a module and the name of one of its own weights


def _common(networks: Sequence[nn.Module]) -> list[list[Place]]:
    """Weights that more than one network has, each with its places, at most one a network."""
    places: dict[int, list[Place]] = {}
    for network in networks:
        seen = set()
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:
                    places.setdefault(id(parameter), []).append((module, name))
                    seen.add(id(parameter))
    return [where for where in places.values() if len(where) > 1]


def _share_again(common: Sequence[Sequence[Place]]) -> None:
    """Let the first network's part of a weight be that of the others too, before FSDP looks at the
    weights for the last time.
    """
    for (module, name), *others in common:
        first = getattr(module, name)
        for other, place in others:
            was = getattr(other, place)
            shared = nn.Parameter(first.detach(), requires_grad=was.requires_grad)
            vars(shared).update(vars(was))
            setattr(other, place, shared)


def local(tensor: Tensor) -> Tensor:
    """This worker's part of a sharded tensor, in place; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every worker; another tensor as it is. All workers call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(weights: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole weights on the CPU, on the workers that ``keep`` them; on others none. All workers
    call; a device holds one whole weight at a time.
    """
    found = {}
    for name, weight in weights.items():
        full = whole(weight.detach())
        if keep:
            found[name] = full.cpu()
    return found


def left_behind(network: nn.Module) -> Iterator[str]:
    """Names of groups of weights with a gradient that has reached no worker's part: one that would
    be missing in the step without a word.
    """
    for name, module in network.named_modules():
        if isinstance(module, FSDPModule):
            for group in _groups(module):
                weights = [getattr(p, "_unsharded_param", None) for p in group.fsdp_params]
                if any(w is not None and w.grad is not None for w in weights):
                    yield name


def _groups(module: FSDPModule) -> Any:
    return module._get_fsdp_state()._fsdp_param_groups
