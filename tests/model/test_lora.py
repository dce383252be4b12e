"""Adapters against W + (alpha / rank) B A by autograd, and against what they share."""

import copy

import pytest
import torch
from torch.func import functional_call

from minipalm.model.block import SerialBlock
from minipalm.model.compiled import recompute_blocks
from minipalm.model.generate import generate
from minipalm.model.lora import AdaptedBlock, adapter_parameters, merged, with_adapters
from minipalm.model.palm import PaLM
from minipalm.rlhf.logprobs import response_logits
from tests.small import EOS, V, ragged, seeded, small_config, small_palm

RANK, ALPHA = 3, 5.0
TOKENS = ragged([3, 5, 1], [4, 2, 6])


def adapted(seed=0, trained=True):
    """A reference, and a policy whose B is not 0 any more."""
    reference = small_palm(seed)
    policy = with_adapters(reference, RANK, ALPHA, seeded(seed + 1))
    if trained:
        for weight in adapter_parameters(policy):
            torch.nn.init.normal_(weight, std=0.3, generator=seeded(seed + 2))
    return reference, policy


def dense_weights(policy):
    """Every weight of a plain PaLM with the same law; adapters as leaves."""
    weights = {
        name: weight.detach().clone()
        for name, weight in policy.named_parameters()
        if ".lora_" not in name
    }
    leaves = {
        name: weight.detach().clone().requires_grad_()
        for name, weight in policy.named_parameters()
        if ".lora_" in name
    }
    for n, block in enumerate(policy.blocks):
        columns = block.widths[0]
        scale = ALPHA / RANK
        a, b = leaves[f"blocks.{n}.lora_qkv.a"], leaves[f"blocks.{n}.lora_qkv.b"]
        old = weights[f"blocks.{n}.w_in.weight"]
        new = torch.cat([old[:columns] + scale * b @ a, old[columns:]])
        weights[f"blocks.{n}.w_in.weight"] = new
        a = leaves[f"blocks.{n}.lora_attention.a"]
        b = leaves[f"blocks.{n}.lora_attention.b"]
        old = weights[f"blocks.{n}.w_attention.weight"]
        weights[f"blocks.{n}.w_attention.weight"] = old + scale * b @ a
    return weights, leaves


@pytest.mark.parametrize("last", [None, 3, 8])
@pytest.mark.parametrize("change", [lambda model: None, recompute_blocks])
def test_gradients_are_those_of_the_explicit_sum(last, change):
    _, policy = adapted()
    weights, leaves = dense_weights(policy)
    change(policy)
    ids = torch.randint(V, (3, 8), generator=seeded(5))
    segments = torch.ones_like(ids)
    segments[0, :2] = 0
    factor = torch.randn(3, last or 8, 12, generator=seeded(6))
    (policy.hidden(ids, segments, last=last) * factor).sum().backward()
    plain = PaLM(small_config())
    plain.forward = plain.hidden
    arguments = {"segments": segments, "last": last}
    hidden = functional_call(plain, weights, (ids,), arguments)
    (hidden * factor).sum().backward()
    for name, weight in policy.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(
                weight.grad, leaves[name].grad, atol=1e-4, rtol=1e-4
            )
        else:
            assert weight.grad is None


def test_untrained_adapters_change_nothing():
    """But for rounding: one product in three parts may add up in another order."""
    reference, policy = adapted(trained=False)
    before = reference(ids := torch.randint(V, (3, 8), generator=seeded(5)))
    torch.testing.assert_close(policy(ids), before, atol=1e-6, rtol=1e-6)
    with merged(policy):
        assert torch.equal(policy(ids), before)
    assert torch.equal(reference(ids), before)


def test_every_weight_but_the_adapters_is_the_references_own():
    reference, policy = adapted()
    own = dict(reference.named_parameters())
    for name, weight in policy.named_parameters():
        if ".lora_" in name:
            assert weight.requires_grad and weight.dtype == torch.float32
        else:
            assert weight is own.pop(name) and not weight.requires_grad
    assert not own
    before = reference.state_dict()
    assert {
        k: v for k, v in policy.state_dict().items() if ".lora_" not in k
    }.keys() == (before.keys())


def test_training_leaves_the_reference_bit_for_bit():
    reference, policy = adapted()
    ids = torch.randint(V, (3, 8), generator=seeded(5))
    before = reference(ids)
    optimizer = torch.optim.AdamW(adapter_parameters(policy), lr=0.1)
    for _ in range(3):
        policy(ids).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(reference(ids), before)
    assert not torch.allclose(policy(ids), before, atol=1e-2)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_merged_is_the_same_law_and_leaves_no_trace(dtype, bound):
    reference, policy = adapted()
    reference.to(dtype)
    kept = copy.deepcopy(reference.state_dict())
    places = [weight.data_ptr() for weight in reference.parameters()]
    with torch.no_grad():
        unmerged = response_logits(policy, *TOKENS)
        with merged(policy) as same:
            assert same is policy
            for model in (policy, reference):  # they share the weights
                law = response_logits(model, *TOKENS)
                torch.testing.assert_close(law, unmerged, atol=bound, rtol=bound)
    for name, weight in reference.state_dict().items():
        assert torch.equal(weight, kept[name])
    assert places == [weight.data_ptr() for weight in reference.parameters()]
    with torch.no_grad():
        assert torch.equal(response_logits(policy, *TOKENS), unmerged)


def test_an_error_inside_leaves_no_trace_either():
    reference, policy = adapted()
    kept = copy.deepcopy(reference.state_dict())
    with pytest.raises(KeyError), merged(policy):
        raise KeyError
    assert all(torch.equal(w, kept[name]) for name, w in reference.state_dict().items())
    assert not any(block.folded for block in policy.blocks)


def test_it_samples_with_a_cache_as_it_does_merged():
    _, policy = adapted()
    prompts, prompt_mask = TOKENS[:2]

    def sample():
        return generate(
            policy,
            prompts,
            prompt_mask,
            max_new_tokens=7,
            eos_id=EOS,
            generator=seeded(),
        )

    one = sample()
    with merged(policy):
        other = sample()
    assert torch.equal(one.responses * one.mask, other.responses * other.mask)
    torch.testing.assert_close(one.logprobs, other.logprobs)


def test_at_rank_d_an_adapter_can_be_any_matrix():
    """The scale is alpha / rank: with alpha = rank, B A itself."""
    reference = small_palm()
    policy = with_adapters(reference, rank=12, alpha=12.0)
    block = policy.blocks[0]
    assert isinstance(block, AdaptedBlock)
    wanted = torch.randn(block.widths[0], 12, generator=seeded(3))
    with torch.no_grad():
        block.lora_qkv.a.copy_(torch.eye(12))
        block.lora_qkv.b.copy_(wanted)
    assert torch.equal(block.lora_qkv.product(), wanted)


def test_a_copy_is_a_model_of_its_own():
    _, policy = adapted()
    twin = copy.deepcopy(policy)
    ids = torch.randint(V, (3, 8), generator=seeded(5))
    before = policy(ids)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(2)
    assert torch.equal(policy(ids), before)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="rank of an adapter is 1 or more"):
        with_adapters(small_palm(), 0)
    with pytest.raises(ValueError, match="parallel blocks"):
        with_adapters(PaLM(small_config(), block=SerialBlock), 2)
    _, policy = adapted()
    with pytest.raises(ValueError, match="parallel blocks"):
        with_adapters(policy, 2)  # adapters upon adapters
