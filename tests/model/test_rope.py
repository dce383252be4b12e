"""RoPE against complex numbers, against another library, and by its own promise."""

import math

import pytest
import torch
from rotary_embedding_torch import RotaryEmbedding

from minipalm.model.rope import rotate, rotations, scores_by_distance, wavelengths
from tests.small import seeded

B, H, T, K = 2, 3, 5, 8


def random_case(seed=0):
    """Vectors, and positions that are not arange: gaps, repeats, any order."""
    generator = seeded(seed)
    x = torch.randn(B, H, T, K, generator=generator)
    return x, torch.randint(50, (B, T), generator=generator)


def rotate_as_complex_numbers(x, positions, base):
    """The pair (x_i, x_{i+K/2}) as one number, times e^{i·angle}, pair by pair."""
    out = torch.empty_like(x)
    half = x.shape[-1] // 2
    for b in range(x.shape[0]):
        for t in range(x.shape[2]):
            for i in range(half):
                angle = int(positions[b, t]) * base ** (-2 * i / x.shape[-1])
                turn = complex(math.cos(angle), math.sin(angle))
                for h in range(x.shape[1]):
                    number = complex(x[b, h, t, i], x[b, h, t, i + half]) * turn
                    out[b, h, t, i] = number.real
                    out[b, h, t, i + half] = number.imag
    return out


@pytest.mark.parametrize("base", [10_000.0, 10.0])
def test_rope_multiplies_pairs_as_complex_numbers(base):
    x, positions = random_case()
    turned = rotate(x, *rotations(positions, K, base))
    expected = rotate_as_complex_numbers(x, positions, base)
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_rope_equals_another_library_up_to_the_order_of_columns():
    x = random_case()[0]
    positions = torch.arange(T)[None]
    turned = rotate(x, *rotations(positions, K))
    # There, pairs are neighbours: column 2i is our i, column 2i + 1 our i + K/2.
    theirs = torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)
    expected = RotaryEmbedding(K).rotate_queries_or_keys(theirs)
    ours = torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(-2)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [1, 7, 300])
def test_rope_scores_depend_only_on_distance(shift):
    """Property 5."""
    x, positions = random_case()
    y = random_case(1)[0]
    near, far = rotations(positions, K), rotations(positions + shift, K)
    scores = rotate(x, *near) @ rotate(y, *near).mT
    shifted = rotate(x, *far) @ rotate(y, *far).mT
    torch.testing.assert_close(scores, shifted, atol=2e-4, rtol=0)
    one_sided = rotate(x, *far) @ rotate(y, *near).mT
    assert (one_sided - scores).abs().max() > 0.1  # the test can see a difference


def test_rope_leaves_position_0_and_every_length_as_they_are():
    x, positions = random_case()
    same = rotate(x, *rotations(torch.zeros(B, T, dtype=torch.long), K))
    assert torch.equal(same, x)
    turned = rotate(x, *rotations(positions, K))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_the_first_pair_turns_by_one_radian_a_token_and_the_next_more_slowly():
    cosine, sine = rotations(torch.tensor([[0, 1, 2]]), 4, base=100.0)
    assert cosine.shape == (1, 1, 3, 2) and cosine.dtype == torch.float32
    angles = torch.atan2(sine, cosine)[0, 0]
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]])
    torch.testing.assert_close(angles, expected)


def test_the_gradient_of_a_rotation_is_the_rotation_back():
    x, positions = random_case()
    x.requires_grad_()
    g = torch.randn(x.shape, generator=seeded(2))
    rotate(x, *rotations(positions, K)).backward(g)
    expected = rotate(g, *rotations(-positions, K))
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=0)


def test_rope_keeps_the_type_of_its_vectors_and_does_not_change_them():
    x, positions = random_case()
    x = x.bfloat16()
    before = x.clone()
    assert rotate(x, *rotations(positions, K)).dtype == torch.bfloat16
    assert torch.equal(x, before)


def test_an_odd_head_width_is_refused():
    with pytest.raises(ValueError, match=r"head width must be even \(got 5\)"):
        rotations(torch.zeros(1, 1, dtype=torch.long), 5)


def test_a_pair_is_back_where_it_was_after_its_wavelength():
    lengths = wavelengths(K, base=100.0)
    assert lengths.shape == (K // 2,) and lengths.dtype == torch.float32
    whole = lengths.double().round().long()
    cosine = rotations(whole[None], K, base=100.0)[0][0, 0]
    expected = (2 * math.pi * whole / lengths).cos()
    torch.testing.assert_close(cosine.diagonal(), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"head width must be even \(got 7\)"):
        wavelengths(7)


@pytest.mark.parametrize("start", [0, 40])
def test_scores_by_distance_are_those_of_rotated_queries_and_keys(start):
    generator = seeded(3)
    q, k = torch.randn(2, 4, K, generator=generator)
    distances = torch.tensor([5, 0, 31, -2])
    scores = scores_by_distance(q, k, distances)
    keys = rotate(k[None, :, None], *rotations(torch.tensor([[start]]), K))
    for column, distance in enumerate(distances.tolist()):
        place = torch.tensor([[start + distance]])
        queries = rotate(q[None, :, None], *rotations(place, K))
        expected = (queries * keys).sum(-1)[0, :, 0] / math.sqrt(K)
        torch.testing.assert_close(scores[:, column], expected, atol=1e-4, rtol=0)
