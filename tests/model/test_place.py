"""Where a network lies: types, memory, adapters; all on a CPU."""

import copy
from dataclasses import replace

import pytest
import torch

from minipalm.config import MachineConfig, PPOConfig, get_preset
from minipalm.data.tokenizer import WordTokenizer
from minipalm.model.palm import PaLM
from minipalm.model.place import (
    fine_tuned,
    has_adapters,
    machine_of,
    place,
    whole,
)
from minipalm.parallel import Ranks
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import collect
from minipalm.rlhf.sampling import Sampler
from minipalm.train.language_model import next_token_loss
from minipalm.train.networks import load_policy, load_reward_model, load_trunk
from minipalm.train.optim import adamw, set_lr
from minipalm.train.stage import finish_stage
from tests.small import EOS, V, ragged, seeded, small_critic, small_palm

IDS = torch.randint(3, V, (4, 9), generator=seeded(5))
HALF = MachineConfig(compute="bfloat16")


def gradients(model):
    loss = next_token_loss(model, IDS)
    loss.backward()
    return loss.item(), {n: w.grad for n, w in model.named_parameters()}


def apart(one, other):
    """The relative distance of two sets of gradients."""
    a = torch.cat([one[name].flatten().float() for name in sorted(one)])
    b = torch.cat([other[name].flatten().float() for name in sorted(other)])
    return ((a - b).norm() / b.norm()).item()


def test_by_default_a_network_is_copied_and_nothing_else():
    model = small_palm()
    placed = place(model, MachineConfig())
    assert type(placed) is PaLM and machine_of(placed) == MachineConfig()
    for one, other in zip(model.parameters(), placed.parameters(), strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()
    assert torch.equal(placed(IDS), model(IDS))
    assert placed.blocks[0].w_in.weight.is_contiguous()
    assert whole(placed) is placed


def test_a_frozen_network_has_no_gradients_and_leaves_the_given_one_alone():
    model = small_palm()
    placed = place(model, HALF, trained=False)
    assert not any(w.requires_grad for w in placed.parameters())
    assert all(w.requires_grad for w in model.parameters())
    assert {w.dtype for w in placed.parameters()} == {torch.bfloat16}
    assert {w.dtype for w in model.parameters()} == {torch.float32}


def test_trained_weights_stay_float32_while_products_are_bfloat16():
    model = small_palm()
    placed = place(model, HALF)
    assert {w.dtype for w in placed.parameters()} == {torch.float32}
    assert placed(IDS).dtype == torch.bfloat16
    assert placed.hidden(IDS).dtype == torch.float32
    exact, half = gradients(model), gradients(placed)
    assert half[0] == pytest.approx(exact[0], rel=1e-2)
    assert 0 < apart(half[1], exact[1]) < 3e-2
    assert {g.dtype for g in half[1].values()} == {torch.float32}


def test_only_pretraining_may_have_bfloat16_weights():
    machine = replace(HALF, weights="bfloat16")
    assert place(small_palm(), machine).embedding.weight.dtype == torch.float32
    pretrained = place(small_palm(), machine, weights=machine.weights)
    assert {w.dtype for w in pretrained.parameters()} == {torch.bfloat16}
    loss, grads = gradients(pretrained)
    assert apart(grads, gradients(small_palm())[1]) < 5e-2


def test_recomputing_changes_no_number():
    plain, again = (
        gradients(place(small_palm(), MachineConfig(recompute=r))) for r in (0, 1)
    )
    assert plain[0] == again[0] and apart(again[1], plain[1]) == 0


def test_a_head_stays_float32():
    model = RewardModel(small_palm(), "last", seeded())
    model.mean.fill_(0.3)
    placed = place(model, HALF, trained=False)
    assert placed.head.weight.dtype == placed.mean.dtype == torch.float32
    assert placed.trunk.embedding.weight.dtype == torch.bfloat16
    tokens = ragged([2, 3, 1], [4, 2, 3])
    scores = placed(*tokens)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, model(*tokens), atol=0.05, rtol=0.05)


def test_what_is_sampled_from_shares_what_lies_so_already():
    frozen = place(small_palm(), HALF, trained=False)
    same = whole(frozen)
    assert type(same) is PaLM
    pairs = list(zip(same.parameters(), frozen.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    trained = whole(place(small_palm(), HALF))
    assert {w.dtype for w in trained.parameters()} == {torch.bfloat16}
    assert not any(w.requires_grad for w in trained.parameters())


# --- adapters ------------------------------------------------------------------------

LORA = MachineConfig(lora_rank=2, decoder=True)


def moved(policy, seed=0, size=0.3):
    """The policy after some training."""
    generator = seeded(seed)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".lora_" in name:
                weight.add_(size * torch.randn(weight.shape, generator=generator))
    return policy


def test_adapters_stand_on_the_references_own_weights():
    start = small_palm(kv_heads=1)
    reference = place(start, LORA, trained=False)
    policy = fine_tuned(start, LORA, reference)
    assert has_adapters(policy) and not has_adapters(reference)
    assert policy.embedding.weight is reference.embedding.weight
    with torch.no_grad():
        torch.testing.assert_close(policy(IDS), reference(IDS), atol=1e-6, rtol=1e-5)
    before = copy.deepcopy(reference.state_dict())
    optimizer = adamw(policy)
    set_lr(optimizer, 0.1)
    next_token_loss(policy, IDS).backward()
    optimizer.step()
    assert not torch.equal(policy(IDS), reference(IDS))
    assert all(torch.equal(x, before[k]) for k, x in reference.state_dict().items())


def test_without_a_rank_all_weights_are_trained():
    start = small_palm()
    policy = fine_tuned(start, HALF)
    assert not has_adapters(policy)
    assert all(
        w.requires_grad and w.dtype == torch.float32 for w in policy.parameters()
    )


def test_adapters_on_several_gpus_are_refused(monkeypatch):
    adapted = fine_tuned(small_palm(kv_heads=1), LORA)
    two = Ranks(0, 2, torch.device("cpu"))
    monkeypatch.setattr("minipalm.model.place.ranks", lambda: two)
    with pytest.raises(ValueError, match="for one GPU.*the scale full"):
        fine_tuned(small_palm(), LORA)
    with pytest.raises(ValueError, match="for one GPU.*the scale full"):
        place(adapted, LORA, trained=False)  # of a run on one GPU, loaded on two


@pytest.mark.parametrize("decoder", [False, True])
def test_a_sampler_follows_the_adapters_and_leaves_the_weights_as_they_were(decoder):
    start, machine = small_palm(kv_heads=1), replace(LORA, decoder=decoder)
    reference = place(start, machine, trained=False)
    policy = moved(fine_tuned(start, machine, reference))
    sampler, before = Sampler(policy), copy.deepcopy(policy.state_dict())
    asked = ragged([2, 3, 1], [1, 1, 1])[:2]
    config = PPOConfig(1, 3, 3, 1, 1.0, 1.0, reuse_logprobs=False)
    networks = policy, reference, small_critic(), lambda *t: t[3].sum(1).float()
    how = {"config": config, "max_response": 5, "eos_id": EOS, "kl_coef": 0.1}

    def sampling():
        return {"generator": seeded(), "sample": sampler}

    for _ in range(2):  # the second time with the decoder of the first
        rollout = collect(*networks, *asked, **how, **sampling())
        apart = rollout.logprobs - rollout.ref_logprobs
        assert apart.abs().max() > 0.1
        again = replace(config, reuse_logprobs=True)
        kept = collect(*networks, *asked, **(how | {"config": again}), **sampling())
        torch.testing.assert_close(kept.logprobs, rollout.logprobs)
        now = policy.state_dict()
        assert all(torch.equal(x, now[name]) for name, x in before.items())
        moved(policy, seed=1)
        before = copy.deepcopy(policy.state_dict())


def tiny():
    words = WordTokenizer(["a", "b", "c"])
    preset = get_preset("smoke")
    sizes = {"dim": 8, "depth": 1, "heads": 2, "head_dim": 4}
    policy = replace(preset.policy, **sizes)
    return words, replace(preset, policy=policy, reward_trunk=policy, machine=LORA)


def test_two_policies_on_one_trunk_are_kept_each_with_its_own_adapters(tmp_path):
    words, preset = tiny()
    config = replace(preset.policy, vocab_size=words.vocab_size)
    start = PaLM(config, seeded())
    finish_stage(tmp_path, "07_sft", {"policy": start}, words)
    saved = load_policy(tmp_path, "07_sft", preset, words)
    ids = torch.tensor([[1, 3, 4, 5]])
    assert torch.equal(saved(ids), start(ids))
    reference = place(saved, HALF, trained=False)
    machine = replace(HALF, lora_rank=2)
    policies = {
        name: moved(fine_tuned(saved, machine, reference), seed, size=0.02)
        for seed, name in enumerate(("beta-1", "beta-0"))
    }
    finish_stage(tmp_path, "11_ppo", policies, words, start="07_sft")
    finish_stage(tmp_path, "07_merged", policies, words)
    file = tmp_path / "11_ppo/result/tensors.safetensors"
    assert (
        file.stat().st_size
        < (tmp_path / "07_merged" / file.relative_to(tmp_path / "11_ppo"))
        .stat()
        .st_size
    )
    for name, policy in policies.items():
        again = load_policy(tmp_path, "11_ppo", preset, words, name)
        placed = place(again, machine, trained=False)
        assert torch.equal(placed(ids), policy(ids))  # to the last bit
        assert not torch.equal(placed(ids), reference(ids))
        merged = load_policy(tmp_path, "07_merged", preset, words, name)
        assert merged.embedding.weight.dtype == torch.bfloat16  # as it was saved
        near = place(merged, machine, trained=False)(ids) - policy(ids)
        assert near.abs().max() < 0.1  # the sum was rounded
    assert not any(b.folded for one in policies.values() for b in one.blocks)
    untouched = place(saved, HALF, trained=False).state_dict()
    for name, weight in reference.state_dict().items():
        assert torch.equal(weight, untouched[name]), name


def test_networks_come_as_they_were_left(tmp_path):
    words, preset = tiny()
    config = replace(preset.policy, vocab_size=words.vocab_size)
    trunk = PaLM(config, seeded(3))
    model = RewardModel(PaLM(config, seeded(4)), preset.reward.pooling, seeded(5))
    model.std.fill_(2.0)
    finish_stage(tmp_path, "07_sft", {"trunk": trunk}, words)
    finish_stage(tmp_path, "08_reward_model", {"reward_model": model}, words)
    again = load_trunk(tmp_path, "07_sft", preset, words)
    other = load_reward_model(tmp_path, preset, words)
    for one, two in ((trunk, again), (model, other)):
        assert one.state_dict().keys() == two.state_dict().keys()
        same = zip(one.state_dict().values(), two.state_dict().values())
        assert all(torch.equal(a, b) for a, b in same)


def test_a_small_step_is_lost_in_a_bfloat16_sum_and_not_in_adapters():
    """Why PPO's adapters are kept apart: a step of 1e-5 on weights of size 1/16."""
    weight = torch.randn(64, 64, generator=seeded()) / 16
    step = 1e-5 * torch.randn(64, 64, generator=seeded(1)).sign()
    rounded = weight.bfloat16()
    left = (rounded.float() + step).bfloat16().float() - rounded.float()
    assert (left != 0).float().mean() < 0.2
