"""Operations and bytes are those that PyTorch does and holds."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minipalm.config import FULL, MachineConfig, PaLMConfig
from minipalm.model.block import ParallelBlock
from minipalm.model.palm import PaLM, count_parameters
from minipalm.model.rope import rotations
from minipalm.scale.flops import adapter_parameters, forward_flops, training_flops
from minipalm.scale.memory import (
    kept_bytes,
    network_state,
    state_bytes,
    total,
    training_peak,
    working_bytes,
)
from minipalm.train.optim import adamw

SMALL = PaLMConfig(96, dim=64, depth=3, heads=4, head_dim=8, kv_heads=2)
POLICY = replace(FULL.policy, vocab_size=FULL.vocab_size)


def counted(model, T, backward):
    """Operations of the products with weights, as PyTorch counts them."""
    ids = torch.randint(SMALL.vocab_size, (2, T))
    with FlopCounterMode(display=False) as counter:
        loss = model(ids).float().sum()
        if backward:
            loss.backward()
    products = {"mm", "addmm", "bmm"}
    every = counter.get_flop_counts()["Global"]
    return sum(n for op, n in every.items() if op.__name__.split(".")[0] in products)


def weights_only(T, **how):
    """training_flops without attention's part, whose kernels are counted elsewhere."""
    attention = 3 * 4 * SMALL.heads * SMALL.head_dim * SMALL.depth * (T + 1) / 2
    return training_flops(SMALL, T, **how) - attention


def test_training_operations_are_those_that_pytorch_counts():
    torch.manual_seed(0)
    T = 5
    got = counted(PaLM(SMALL), T, backward=True) / (2 * T)
    norms = 6 * (SMALL.depth + 1) * SMALL.dim
    assert got == pytest.approx(weights_only(T) - norms, rel=1e-6)


def test_frozen_weights_spare_the_gradients_of_weights():
    torch.manual_seed(0)
    T, model = 5, PaLM(SMALL)
    model.requires_grad_(False)
    first = model.blocks[0]
    first.norm.weight.requires_grad_(True)  # so that gradients go all the way back
    got = counted(model, T, backward=True) / (2 * T)
    want = weights_only(T, adapters=True)
    assert got == pytest.approx(want, rel=0.01)


def test_recomputing_does_each_block_but_not_the_head_again():
    again = training_flops(SMALL, 7, recompute=True) - training_flops(SMALL, 7)
    head = 2 * SMALL.vocab_size * SMALL.dim
    assert again == pytest.approx(forward_flops(SMALL, 4) - head)


def test_the_numbers_of_the_docstrings():
    assert training_flops(POLICY, 2048) == pytest.approx(4.157e10, rel=1e-3)
    assert training_flops(POLICY, 2048, adapters=True) == pytest.approx(
        2.785e10, rel=1e-3
    )
    assert training_flops(POLICY, 2048, recompute=True) == pytest.approx(
        5.516e10, rel=1e-3
    )
    assert forward_flops(POLICY, 1024) == pytest.approx(13.9e9, rel=0.01)


def test_a_row_without_tokens_is_refused():
    with pytest.raises(ValueError, match="1 token or more"):
        training_flops(SMALL, 0)


def test_adapters_have_as_many_weights_as_the_packages():
    lora = pytest.importorskip("minipalm.model.lora")
    adapted = lora.with_adapters(PaLM(SMALL), rank=4)
    weights = lora.adapter_parameters(adapted)
    assert adapter_parameters(SMALL, 4) == sum(w.numel() for w in weights)


def test_a_trained_network_holds_what_pytorch_holds():
    model = PaLM(SMALL)
    optimizer = adamw(model)
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    optimizer.step()
    state = network_state(SMALL, MachineConfig())
    grads = [w.grad for w in model.parameters()]
    moments = [
        s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")
    ]
    for name, tensors in (
        ("weights", model.parameters()),
        ("gradients", grads),
        ("moments", moments),
    ):
        assert state[name] == sum(t.numel() * t.element_size() for t in tensors)


def test_bytes_are_shared_by_gpus():
    assert state_bytes(0, 1000, gpus=2) == {
        "weights": 2000,
        "gradients": 2000,
        "moments": 4000,
    }
    assert state_bytes(1000, 10)["weights"] == 2040
    with pytest.raises(ValueError, match="got 0 and 4"):
        state_bytes(1, 1, gpus=0)
    with pytest.raises(ValueError, match="got 1 and 8"):
        state_bytes(1, 1, 8)


def test_a_block_keeps_what_autograd_saves():
    """Every different storage that the block's own graph holds on to, in bfloat16."""
    T = 16  # few: the CPU's kernel keeps a mask, T² numbers a head, a GPU's none
    config = PaLMConfig(8, dim=128, depth=1, heads=4, head_dim=16, ff_mult=4)
    block = ParallelBlock(config).bfloat16()
    x = torch.randn(1, T, config.dim, dtype=torch.bfloat16, requires_grad=True)
    rope = tuple(t.bfloat16() for t in rotations(torch.arange(T)[None], 16, 1e4))
    ours = {w.untyped_storage().data_ptr() for w in block.parameters()}
    ours |= {t.untyped_storage().data_ptr() for t in rope}
    seen: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours and tensor.dtype == torch.bfloat16:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = block(x, rope)
    assert out.requires_grad
    wanted = kept_bytes(config, compiled=False) * T
    assert sum(seen.values()) == pytest.approx(wanted, rel=0.08)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("rows", [1, 16])
def test_the_peak_is_that_of_a_step_told_block_by_block(
    recompute, adapters, accumulates, rows
):
    """Blocks leave activations, and then trade them for gradients, one by one."""
    machine = MachineConfig(
        device="auto",
        compute="bfloat16",
        weights="bfloat16",
        compile=True,
        recompute=recompute,
        lora_rank=8 * adapters,
    )
    tokens = 2048 * rows
    state = network_state(POLICY, machine, adapters=adapters)
    one = kept_bytes(POLICY, True, adapters) * tokens
    stays = 2 * POLICY.dim * tokens if recompute else one
    held = state["weights"] + state["moments"]
    gradients = state["gradients"] if accumulates else 0.0
    per_block = (state["gradients"] - gradients) / POLICY.depth
    blocks = POLICY.depth * stays
    logits = 12 * POLICY.vocab_size * tokens  # the loss, before the first block
    peak = held + gradients + blocks + logits + (one if recompute else 0.0)
    for _ in range(POLICY.depth):  # the backward pass, from the last block
        now = blocks + (one if recompute else 0.0) + working_bytes(POLICY, tokens)
        peak = max(peak, held + gradients + now)
        blocks -= stays
        gradients += per_block
    got = total(training_peak(POLICY, machine, tokens, 1, adapters, accumulates))
    assert got == pytest.approx(peak, rel=0.02)


def test_parameters_are_those_of_the_whole_network():
    assert count_parameters(POLICY) == 6_862_016_512
