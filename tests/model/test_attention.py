"""Attention against a loop over heads, queries and keys, and against PyTorch's."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minipalm.model.attention import (
    BACKENDS,
    attention,
    attention_in_blocks,
    attention_mask,
    fused_attention,
)
from minipalm.model.cache import KVCache, cache_bytes
from tests.small import seeded, small_config

B, H, K = 2, 4, 3
FORMS = [attention, fused_attention]


def random_case(T, S, G, seed=0):
    generator = seeded(seed)
    q = torch.randn(B, H, T, K, generator=generator)
    k = torch.randn(B, G, S, K, generator=generator)
    v = torch.randn(B, G, S, K, generator=generator)
    return q, k, v


def some_mask(T, S, seed=1):
    """Random, but never later than the query; every query sees itself."""
    mask = torch.rand(B, T, S, generator=seeded(seed)) < 0.5
    itself = torch.eye(S, dtype=torch.bool)[S - T :]
    return (mask & torch.ones(T, S, dtype=torch.bool).tril(S - T)) | itself


def attention_by_hand(q, k, v, mask):
    """One query after the other: look at what it may see, weigh, add up."""
    out = torch.empty_like(q)
    heads_each = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h // heads_each
            for t in range(q.shape[2]):
                seen = [s for s in range(k.shape[2]) if mask[b, t, s]]
                scores = [q[b, h, t].dot(k[b, g, s]) / math.sqrt(K) for s in seen]
                weights = torch.stack(scores).exp()
                weights = weights / weights.sum()
                out[b, h, t] = sum(w * v[b, g, s] for w, s in zip(weights, seen))
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("G", [1, 2, H])
@pytest.mark.parametrize("T, S", [(5, 5), (2, 7), (1, 6)])
def test_attention_equals_a_loop_over_heads_and_queries(form, G, T, S):
    q, k, v = random_case(T, S, G)
    mask = some_mask(T, S)
    expected = attention_by_hand(q, k, v, mask)
    torch.testing.assert_close(form(q, k, v, mask), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("G", [1, 2, H])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_has_the_values_and_gradients_of_pytorchs_own(form, G, masked):
    T = 70  # more than one block of queries
    mask = some_mask(T, T) if masked else torch.ones(B, T, T).bool().tril()
    ours = [x.requires_grad_() for x in random_case(T, T, G)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    g = torch.randn(B, H, T, K, generator=seeded(3))
    out = form(*ours, mask if masked else None)
    out.backward(g)
    with sdpa_kernel(SDPBackend.MATH):
        q, k, v = theirs
        k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
        expected = F.scaled_dot_product_attention(q, k, v, mask[:, None])
    expected.backward(g)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_the_size_of_a_block_changes_nothing(size):
    for T, S in [(8, 8), (5, 8)]:
        q, k, v = random_case(T, S, G=2)
        mask = some_mask(T, S)
        blocks = attention_in_blocks(q, k, v, mask, size)
        torch.testing.assert_close(blocks, attention_by_hand(q, k, v, mask))


@pytest.mark.parametrize("form", FORMS)
def test_without_a_mask_the_queries_are_the_last_tokens(form):
    q, k, v = random_case(3, 8, G=2)
    mask = torch.ones(B, 3, 8, dtype=torch.bool).tril(5)
    torch.testing.assert_close(form(q, k, v), attention_by_hand(q, k, v, mask))


@pytest.mark.parametrize("form", FORMS)
def test_one_query_head_reads_the_key_head_of_its_own_group(form):
    q, k, v = random_case(4, 4, G=2)
    before = form(q, k, v)
    v[:, 1] += 1  # the second group: query heads 2 and 3
    moved = (form(q, k, v) - before).abs().amax((0, 2, 3)) > 0
    assert moved.tolist() == [False, False, True, True]


@pytest.mark.parametrize("T", [4, 2])
def test_the_mask_equals_a_loop_over_pairs(T):
    keys = torch.tensor([[0, 0, 1, 1], [1, 1, 2, 3], [1, 2, 1, 0]])
    mask = attention_mask(keys[:, 4 - T :], keys)
    assert mask.shape == (3, T, 4)
    for b in range(3):
        for t in range(T):
            place = 4 - T + t
            for s in range(4):
                may_see = s <= place and keys[b, s] == keys[b, place]
                assert mask[b, t, s] == may_see


def test_every_query_sees_itself_so_padding_gives_no_nan():
    """Property 5."""
    segments = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]])
    mask = attention_mask(segments, segments)
    assert mask.diagonal(dim1=1, dim2=2).all()
    q, k, v = random_case(4, 4, G=1)
    for form in FORMS:
        assert form(q, k, v, mask).isfinite().all()


def test_cudnns_kernel_is_never_chosen():
    assert SDPBackend.CUDNN_ATTENTION not in BACKENDS
    assert SDPBackend.MATH in BACKENDS  # there is always one that can


def test_a_cache_has_as_many_bytes_as_counted():
    config = small_config(depth=3, kv_heads=2)
    cache = KVCache(config, batch=4, size=9, like=torch.zeros(1))
    held = cache.keys.nbytes + cache.values.nbytes
    assert cache_bytes(config, batch=4, tokens=9, each=4) == held
