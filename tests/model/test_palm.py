"""PaLM against the same network written slowly; padding, packing, and its size."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minipalm.config import PRESETS, MachineConfig, PaLMConfig, get_preset
from minipalm.model.block import ParallelBlock, SerialBlock
from minipalm.model.cache import KVCache
from minipalm.model.palm import PaLM, count_parameters
from minipalm.model.swiglu import swiglu
from tests.small import V, seeded, small_config, small_palm

BLOCKS = [ParallelBlock, SerialBlock]
CLOSE = dict(atol=1e-4, rtol=0)


# --- the network, slowly -----------------------------------------------------------


def turn(x, place, base):
    """RoPE of one vector, one pair after the other."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = place * base ** (-i / half)
        c, s = math.cos(angle), math.sin(angle)
        out[i] = x[i] * c - x[i + half] * s
        out[i + half] = x[i + half] * c + x[i] * s
    return out


def attend(config, qkv):
    """qkv is one row per token of one text: H queries, G keys, G values."""
    H, G, K = config.heads, config.kv_heads, config.head_dim
    heads = [row.split(K) for row in qkv]
    out = []
    for t in range(len(qkv)):
        parts = []
        for h in range(H):
            g = h // (H // G)
            q = turn(heads[t][h], t, config.rope_base)
            keys = [turn(heads[s][H + g], s, config.rope_base) for s in range(t + 1)]
            weights = torch.stack([q.dot(k) / math.sqrt(K) for k in keys]).softmax(0)
            parts.append(sum(w * heads[s][H + G + g] for s, w in enumerate(weights)))
        out.append(torch.cat(parts))
    return torch.stack(out)


def normalise(x, weight):
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * weight


def silu(x):
    return x / (1 + (-x).exp())


def slow_logits(model, text):
    """Logits after each token of one text; weights are looked up by name."""
    w = dict(model.named_parameters())
    config = model.config
    x = w["embedding.weight"][text]
    for n in range(config.depth):
        layer = {name[9:]: w[name] for name in w if name.startswith(f"blocks.{n}.")}
        out, ff_out = layer["w_attention.weight"].T, layer["w_feedforward.weight"].T
        if "w_in.weight" in layer:
            y = normalise(x, layer["norm.weight"]) @ layer["w_in.weight"].T
            M = config.ff_dim
            qkv, gate, up = y[:, : -2 * M], y[:, -2 * M : -M], y[:, -M:]
            x = x + attend(config, qkv) @ out + (silu(gate) * up) @ ff_out
        else:
            y = normalise(x, layer["attention_norm.weight"]) @ layer["w_qkv.weight"].T
            x = x + attend(config, y) @ out
            y = normalise(x, layer["feedforward_norm.weight"])
            gate, up = (y @ layer["w_gate_up.weight"].T).chunk(2, dim=-1)
            x = x + (silu(gate) * up) @ ff_out
    return normalise(x, w["norm.weight"]) @ w["embedding.weight"].T


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_palm_equals_the_network_written_slowly(block, kv_heads):
    config = small_config(kv_heads=kv_heads, rope_base=100.0)
    model = PaLM(config, seeded(), block)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5, generator=seeded(1))
    text = torch.randint(V, (7,), generator=seeded(2))
    with torch.no_grad():
        expected = slow_logits(model, text)
        torch.testing.assert_close(model(text[None])[0], expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.5


def test_the_gradient_equals_that_of_the_network_written_slowly():
    model, twin = small_palm(), small_palm()
    text = torch.randint(V, (6,), generator=seeded(2))
    g = torch.randn(6, V, generator=seeded(3))
    model(text[None])[0].backward(g)
    slow_logits(twin, text).backward(g)
    for one, other in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_swiglu_equals_its_formula_and_pytorchs_silu():
    gate, up = torch.randn(2, 3, 4, 5, generator=seeded())
    for g, u, y in zip(gate.flatten(), up.flatten(), swiglu(gate, up).flatten()):
        g, u = g.item(), u.item()
        assert y.item() == pytest.approx(g / (1 + math.exp(-g)) * u, abs=1e-6)
    assert torch.equal(swiglu(torch.zeros(3), torch.ones(3)), torch.zeros(3))
    torch.testing.assert_close(swiglu(gate, up), F.silu(gate) * up)


# --- who sees whom -----------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
def test_a_token_does_not_see_later_ones(block):
    model = PaLM(small_config(), seeded(), block)
    ids = torch.randint(V, (2, 8), generator=seeded(1))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % V
    assert torch.equal(model(ids)[:, :5], model(changed)[:, :5])
    assert (model(ids)[:, 5:] - model(changed)[:, 5:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("pads", [0, 1, 7])
def test_left_padding_does_not_change_the_logits_of_real_tokens(pads):
    """Property 5."""
    model = small_palm()
    text = torch.randint(V, (3, 6), generator=seeded(1))
    garbage = torch.randint(V, (3, pads), generator=seeded(2))
    segments = torch.tensor([0] * pads + [1] * 6).repeat(3, 1)
    logits = model(torch.cat([garbage, text], dim=1), segments)[:, pads:]
    torch.testing.assert_close(logits, model(text), atol=1e-5, rtol=0)


def test_what_stands_in_the_padding_has_no_effect_at_all():
    """Property 5: the mask, since RoPE alone would forgive a wrong position."""
    model = small_palm()
    ids = torch.randint(V, (1, 9), generator=seeded(1))
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0]])
    changed = torch.where(segments > 0, ids, (ids + 1) % V)
    real = segments[0] > 0
    assert torch.equal(model(ids, segments)[:, real], model(changed, segments)[:, real])
    unmasked = model(ids)[:, real] - model(changed)[:, real]
    assert unmasked.abs().max() > 0.01  # without the mask it has


def test_positions_count_the_earlier_tokens_of_the_same_text(monkeypatch):
    """Property 5: cumsum(mask) − mask, and again from 0 in each packed text."""
    import minipalm.model.palm as module

    seen = []
    rotations = module.rotations
    monkeypatch.setattr(
        module, "rotations", lambda p, *rest: seen.append(p) or rotations(p, *rest)
    )
    segments = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 2, 2, 2, 3]])
    small_palm()(torch.ones(2, 6, dtype=torch.long), segments)
    assert seen[0][0, 2:].tolist() == [0, 1, 2, 3]
    assert seen[0][1].tolist() == [0, 1, 0, 1, 2, 0]


def test_positions_can_be_given_and_only_their_distances_count():
    """Property 5."""
    model = small_palm()
    ids = torch.randint(V, (2, 6), generator=seeded(1))
    places = torch.tensor([[0, 2, 3, 7, 8, 12], [5, 6, 9, 10, 11, 40]])
    logits = model(ids, positions=places)
    torch.testing.assert_close(logits, model(ids, positions=places + 100), **CLOSE)
    assert (logits - model(ids)).abs().max() > 0.01


def test_packed_texts_have_the_logits_they_have_alone():
    model = small_palm()
    texts = [torch.randint(V, (n,), generator=seeded(n)) for n in (3, 1, 5)]
    packed = torch.cat([*texts, torch.zeros(2, dtype=torch.long)])[None]
    segments = torch.tensor([[1, 1, 1, 2, 3, 3, 3, 3, 3, 0, 0]])
    logits = model(packed, segments)[0, :9].split([3, 1, 5])
    for text, one in zip(texts, logits):
        torch.testing.assert_close(one, model(text[None])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("last", [1, 3, 8])
@pytest.mark.parametrize("padded", [False, True])
def test_asking_for_the_last_tokens_only_changes_no_number(block, last, padded):
    """Properties 1 and 6."""
    one, other = (PaLM(small_config(), seeded(), block) for _ in range(2))
    ids = torch.randint(V, (3, 8), generator=seeded(1))
    segments = (torch.arange(8) >= torch.tensor([[0], [2], [4]])).long()
    g = torch.randn(3, last, 12, generator=seeded(2))
    expected = one.hidden(ids, segments if padded else None)[:, -last:]
    hidden = other.hidden(ids, segments if padded else None, last=last)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)
    expected.backward(g), hidden.backward(g)
    for x, y in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_last_tokens_can_be_asked_of_a_cache(block):
    """Property 6."""
    model = PaLM(small_config(), seeded(), block)
    ids = torch.randint(V, (3, 8), generator=seeded(1))
    cache = KVCache(model.config, 3, 8, model.embedding.weight)
    with torch.no_grad():
        first = model.hidden(ids[:, :5], cache=cache, last=2)
        rest = model.hidden(ids[:, 5:], cache=cache, last=1)
        expected = model.hidden(ids)
    torch.testing.assert_close(first, expected[:, 3:5], atol=1e-5, rtol=0)
    torch.testing.assert_close(rest, expected[:, 7:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_two_forwards_in_training_mode_are_bit_equal(block):
    """Property 10: there is no dropout anywhere."""
    model = PaLM(small_config(), seeded(), block).train()
    ids = torch.randint(V, (2, 8), generator=seeded(1))
    assert torch.equal(model(ids), model(ids))
    assert not any("Dropout" in type(part).__name__ for part in model.modules())


# --- its weights -------------------------------------------------------------------


@pytest.mark.parametrize("scale", PRESETS)
@pytest.mark.parametrize("trunk", ["policy", "reward_trunk"])
def test_the_formula_counts_what_an_instantiation_has(scale, trunk):
    preset = get_preset(scale)
    config = replace(getattr(preset, trunk), vocab_size=preset.vocab_size)
    with torch.device("meta"):
        model = PaLM(config)
    assert count_parameters(config) == sum(w.numel() for w in model.parameters())


def test_the_full_size_is_near_palm_8b_and_its_reward_model_a_fifth():
    full = get_preset("full")
    without = count_parameters(replace(full.policy, vocab_size=0))
    assert without == pytest.approx(6.728e9, abs=5e5)
    policy = count_parameters(replace(full.policy, vocab_size=32_000))
    assert policy == pytest.approx(6.859e9, abs=5e5)
    reward = count_parameters(replace(full.reward_trunk, vocab_size=32_000))
    assert reward == pytest.approx(1.381e9, abs=5e5)
    documented = count_parameters(replace(full.policy, vocab_size=256))
    assert documented == pytest.approx(6.729e9, abs=5e5)


def test_reward_models_have_at_most_half_of_the_policys_parameters():
    for preset in PRESETS.values():
        policy, trunk = (
            count_parameters(replace(c, vocab_size=preset.vocab_size))
            for c in (preset.policy, preset.reward_trunk)
        )
        assert trunk + preset.reward_trunk.dim + 1 <= policy / 2


@pytest.mark.parametrize("block", BLOCKS)
def test_initial_weights_have_the_documented_spread(block):
    config = PaLMConfig(300, dim=64, depth=4, heads=4, head_dim=16, embed_std=0.3)
    model = PaLM(config, seeded(), block)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all(), name
            continue
        std = 1 / math.sqrt(weight.shape[1])
        if "w_attention" in name or "w_feedforward" in name:
            std /= 2  # √depth: these write to the residual stream
        if "embedding" in name:
            std = 0.3
        assert weight.std().item() == pytest.approx(std, rel=0.05), name
        assert abs(weight.mean().item()) < 0.1 * std, name


def test_there_is_one_matrix_for_embedding_and_head_and_no_bias():
    model = small_palm()
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "bias" in name or "head" in name]
    hidden = torch.randn(3, 12, generator=seeded())
    expected = hidden @ model.embedding.weight.T
    torch.testing.assert_close(model.logits(hidden), expected)


def test_the_generator_decides_the_initial_weights():
    one, same, other = (PaLM(small_config(), seeded(s)) for s in (0, 0, 1))
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters()))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert all(a.dim() == 1 or not torch.equal(a, c) for a, _, c in pairs)


def test_heads_that_do_not_share_evenly_are_refused():
    with pytest.raises(ValueError, match=r"multiple of kv_heads.*\(got 4 and 3\)"):
        small_config(kv_heads=3)


def test_a_window_too_small_for_prompt_and_answer_is_refused():
    with pytest.raises(ValueError, match="window is 34, max_prompt .* 35"):
        replace(get_preset("toy"), window=34)


def test_a_wrong_scale_is_refused_with_the_right_ones():
    with pytest.raises(
        ValueError, match=r"smoke, toy, small, full, full-lora \(got 'huge'\)"
    ):
        get_preset("huge")


@pytest.mark.parametrize("steps", ["0", "-1", "x", "", "1.5"])
def test_a_number_of_steps_is_a_whole_one(steps):
    with pytest.raises(ValueError, match="one step or more|scale must be one of"):
        get_preset(f"full:{steps}")


def test_a_scale_with_a_number_is_the_same_pipeline_with_few_steps():
    full, short = get_preset("full"), get_preset("full:3")
    kept = ("policy", "reward_trunk", "window", "max_prompt", "machine", "vocab_size")
    assert all(getattr(short, name) == getattr(full, name) for name in kept)
    loops = short.pretrain.steps, short.sft.steps, short.reward.optim.steps
    assert (*loops, short.ppo.iterations) == (3, 3, 3, 3)
    assert short.pretrain.batch_size == 16 * short.pretrain.micro_batch
    assert short.ppo.batch_size == full.ppo.batch_size
    assert short.reward.pairs == 3 * short.reward.optim.batch_size


def test_only_the_large_presets_ask_for_anything_of_the_machine():
    plain = MachineConfig()
    assert get_preset("toy").machine == get_preset("smoke").machine == plain
    assert get_preset("full-lora").machine.lora_rank > 0
    with pytest.raises(ValueError, match="'float16'"):
        MachineConfig(compute="float16")
    with pytest.raises(ValueError, match="'tpu'"):
        MachineConfig(device="tpu")
