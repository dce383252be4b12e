"""What the figures of lesson 03 show."""

import pytest
import torch

from minipalm.config import PaLMConfig
from minipalm.model.attention import attention, attention_mask
from minipalm.model.cache import cache_bytes
from minipalm.plot.attention import (
    ROWS,
    cache_sizes,
    cache_steps,
    scale_of_scores,
    score_cells,
    weights_of,
)


@pytest.mark.parametrize("row", ROWS)
def test_a_cached_step_computes_the_last_row_of_the_uncached_one(row):
    segments = torch.tensor(ROWS[row])
    for step in (1, 5, 12):
        anew = score_cells(attention_mask, segments, step, cached=False)
        once = score_cells(attention_mask, segments, step, cached=True)
        assert int((anew >= 2).sum()) == step * step
        assert int((once >= 2).sum()) == step
        assert torch.equal(once[step - 1], anew[step - 1])
        assert not anew[step:].any() and not anew[:, step:].any()


def test_scores_are_hidden_where_the_mask_says_so():
    segments = torch.tensor(ROWS["packed texts"])
    last = score_cells(attention_mask, segments, 7, cached=True)[6]
    assert last.tolist() == [2] * 5 + [3] * 2 + [0] * 5


def test_one_hot_values_show_the_weights():
    q, k = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    scores = (q[:, -1:] * k).sum(-1) / 8**0.5
    torch.testing.assert_close(weights_of(attention, q, k), scores.softmax(-1))


def test_the_titles_say_what_was_counted():
    config = PaLMConfig(9, dim=8, depth=3, heads=4, head_dim=5, kv_heads=4)
    title = cache_steps(attention_mask, 3, "left padding").get_suptitle()
    assert "9 scores without a cache, 3 with it; up to here 14 and 6" in title
    assert cache_sizes(cache_bytes, config, 10**9, 1000, 1000).get_suptitle() == (
        "1000 × 1000 tokens: 0.24 GB with 4 key/value heads, 0.06 GB with 1"
    )
    assert "K = 32" in scale_of_scores(attention, 32).get_suptitle()


def test_the_figures_are_small_files():
    assert len(cache_steps(attention_mask, 12, "packed texts").png()) < 60_000
    assert len(scale_of_scores(attention, 16).png()) < 60_000
