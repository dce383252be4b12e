"""Where a network lies: on which device, in which type, and how much of it on each.

On several GPUs every weight is cut into as many parts (FSDP2): a GPU keeps its part of
it, of its gradient and of Adam's memory. A block's weights come together just before
the block computes, and are forgotten just after. In bfloat16 the trained weights stay
float32, since a small step on a bfloat16 number is rounded away; they become bfloat16
for each product.
"""

import copy
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minipalm.config import MachineConfig
from minipalm.model.compiled import compile_blocks, recompute_blocks
from minipalm.model.lora import with_adapters
from minipalm.model.palm import PaLM
from minipalm.parallel import ranks

Model = TypeVar("Model", bound=nn.Module)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def machine_of(model: Any) -> MachineConfig:
    """How a network was placed; as on a laptop, where it was not."""
    return getattr(model, "machine", MachineConfig())


def device_of(model: nn.Module) -> torch.device:
    """The device of its weights."""
    return next(model.parameters()).device


def beside(model: nn.Module, rows: Any) -> Any:
    """A tensor, or what has a `to` as tensors have, where the model lies."""
    return rows.to(device_of(model))


def place(
    model: Model,
    machine: MachineConfig,
    trained: bool = True,
    weights: str = "float32",
) -> Model:
    """A copy of a network, laid out as `machine` says.

    On one process with the default machine it is a copy and nothing else.

    Args:
        model: a PaLM, or one with a head (`trunk` and `head`); stays as it is. Under
            torchrun it is the same in all processes.
        machine: device, type of products, compilation, recomputation.
        trained: its weights will be changed. Those of a frozen network have the type of
            the products, and no gradients.
        weights: type of trained ones.

    Raises:
        ValueError: a network with adapters, on several GPUs.
    """
    if has_adapters(model):
        adapters_alone()
    device = ranks().device if machine.device == "auto" else torch.device("cpu")
    trunk = getattr(model, "trunk", model)
    dtype = TYPES[weights if trained else machine.compute]
    kept: dict[int, Any] = {}
    for name, one in trunk.named_parameters():
        kind = torch.float32 if ".lora_" in name else dtype
        moved = one.detach().to(device, kind, copy=True)
        kept[id(one)] = nn.Parameter(moved, requires_grad=trained)
    for one in chain(model.parameters(), model.buffers()):  # a head stays float32
        if id(one) not in kept:
            moved = one.detach().to(device, copy=True)
            is_weight = isinstance(one, nn.Parameter)
            kept[id(one)] = nn.Parameter(moved, trained) if is_weight else moved
    placed = copy.deepcopy(model, kept)
    kept.clear()  # else whole weights would stay while they are cut into parts
    return laid_out(placed, machine)


def fine_tuned(
    start: PaLM,
    machine: MachineConfig,
    reference: PaLM | None = None,
    seed: int = 0,
) -> PaLM:
    """A policy to be trained from `start`: all weights of a copy, or adapters.

    Adapters (LoRA) stand on the weights of the reference itself: these lie in memory
    once, and the policy without its adapters is the reference.

    Args:
        start: what the policy is at first; stays as it is.
        machine: `lora_rank` says which. All that is trained is float32.
        reference: `start`, placed and frozen, if there is one.
        seed: of the adapters.

    Raises:
        ValueError: adapters on several GPUs.
    """
    if not machine.lora_rank:
        return place(start, machine)
    adapters_alone()
    reference = reference or place(start, machine, trained=False)
    generator = torch.Generator(device_of(reference)).manual_seed(seed)
    policy = with_adapters(reference, machine.lora_rank, generator=generator)
    return laid_out(policy, machine)


def adapters_alone() -> None:
    """Raises ValueError on several GPUs."""
    if ranks().world > 1:
        raise ValueError(
            "adapters (lora_rank) are for one GPU; on several, train all weights: "
            "choose the scale full"
        )


def laid_out(model: Model, machine: MachineConfig) -> Model:
    """Compiled, recomputed, in two types, sharded: what the machine asks for."""
    trunk: Any = getattr(model, "trunk", model)
    model.machine = trunk.machine = machine  # type: ignore[assignment]
    if machine.recompute:
        recompute_blocks(trunk)
    if machine.compile and device_of(model).type == "cuda":
        compile_blocks(trunk)
    if machine.compute != "float32":
        compute_in(trunk, TYPES[machine.compute])
    if ranks().world > 1:
        shard(model, machine)
    return model


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a PaLM's products be of another type than its weights; states are float32.

    Weights that have the type already need nothing more, and autocast would only let
    norms write float32.
    """
    plain: Any = type(model)

    class Mixed(plain):
        def hidden(self, *args: Any, **options: Any) -> Tensor:
            weight = self.embedding.weight
            other = weight.dtype != dtype
            with torch.autocast(weight.device.type, dtype, other, cache_enabled=False):
                return super().hidden(*args, **options).float()

        def logits(self, hidden: Tensor) -> Tensor:
            with torch.autocast(hidden.device.type, dtype, cache_enabled=False):
                return super().logits(hidden)

    model.__class__ = Mixed


def shard(model: nn.Module, machine: MachineConfig) -> None:
    """Cut each weight into one part for each process, along its first axis.

    Gradients are summed over the processes, since each divides its losses by the count
    of the whole batch.

    Source: Zhao et al. 2023, PyTorch FSDP (arXiv 2304.11277); this is its second form,
    `torch.distributed.fsdp.fully_shard`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    mesh = init_device_mesh(device_of(model).type, (ranks().world,))
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    types = exact
    if machine.compute != "float32":
        types = MixedPrecisionPolicy(
            TYPES[machine.compute], torch.float32, cast_forward_inputs=False
        )
    trunk: Any = getattr(model, "trunk", model)
    head: Any = getattr(model, "head", None)
    for block in trunk.blocks:
        fully_shard(block, mesh=mesh, mp_policy=types)
    if head is not None:
        head.register_forward_hook(no_view)
        model.register_forward_hook(no_view)
        fully_shard(head, mesh=mesh, mp_policy=exact)
    # The root keeps nothing whole after use either: `parameters()` are always parts.
    fully_shard(model, mesh=mesh, mp_policy=types, reshard_after_forward=True)
    for name in ("hidden", "logits"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def no_view(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """What a head gives, in memory of its own.

    FSDP gathers weights for the backward pass when a gradient comes to this tensor.
    Were it a view that is written into, FSDP would miss that; so it warns of views.
    """
    return output.clone() if output._is_view() else output


@torch.no_grad()
def whole(policy: PaLM) -> PaLM:
    """The same network in one piece, in the type of its products, to sample from.

    What lies so already is shared and not copied; adapters are left out (see
    `minipalm.model.lora.merged`). Of a sharded network all processes must ask at once.
    """
    machine = machine_of(policy)
    if ranks().world == 1 and machine == MachineConfig():
        return policy
    with torch.device("meta"):
        copied = PaLM(policy.config)
    weights = {
        name: in_one_piece(weight, TYPES[machine.compute])
        for name, weight in policy.state_dict().items()
        if ".lora_" not in name
    }
    copied.load_state_dict(weights, assign=True)
    return copied.requires_grad_(False)


def in_one_piece(weight: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A weight, put together if it is sharded."""
    weight = weight.to(dtype or weight.dtype)
    return weight.full_tensor() if is_sharded(weight) else weight


def own(weight: Any) -> Tensor:
    """What this process has of it."""
    return weight.to_local() if is_sharded(weight) else weight


def has_adapters(model: nn.Module) -> bool:
    """Whether it is a policy of `with_adapters`."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def is_sharded(weight: Any) -> bool:
    """Whether this process has only a part of it."""
    return hasattr(weight, "full_tensor")  # a DTensor
