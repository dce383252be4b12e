"""The reward model: where it reads, what it ignores, its loss and its scale."""

import math

import pytest
import torch
from scipy import stats

from minipalm.config import OptimConfig, RewardConfig
from minipalm.rlhf.pairs import Pairs
from minipalm.rlhf.reward import RewardModel, pairwise_loss, pool, score_pairs
from minipalm.train.reward_model import train_reward_model
from minipalm.train.run import Run
from tests.small import V, gradients, other_padding, ragged, seeded, small_palm

POOLINGS = ["last", "mean"]
TOKENS = dict(prompt_lengths=[1, 6, 3, 4], lengths=[5, 1, 3, 4])


def reward_model(pooling="last", seed=0):
    model = RewardModel(small_palm(seed), pooling, seeded(seed))
    model.head.bias.data.fill_(0.3)
    return model


def some_pairs(n=7, seed=0):
    """Unequal lengths; three columns of padding that nobody needs."""
    generator = seeded(seed)

    def draw(low, high):
        return torch.randint(low, high, (n,), generator=generator).tolist()

    prompts, prompt_mask, chosen, chosen_mask = ragged(draw(1, 6), draw(1, 7), 1, 8, 9)
    *_, rejected, rejected_mask = ragged([1] * n, draw(1, 7), 2, 8, 9)
    return Pairs(prompts, prompt_mask, chosen, chosen_mask, rejected, rejected_mask)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_equal_a_loop_over_answers_without_padding(pooling):
    """Properties 21 and 22."""
    model, tokens = reward_model(pooling), ragged(**TOKENS)
    model.mean.fill_(0.2), model.std.fill_(1.7)
    for score, prompt, prompt_mask, response, mask in zip(model(*tokens), *tokens):
        ids = torch.cat([prompt[prompt_mask], response[mask]])[None]
        answer = model.trunk.hidden(ids)[0, int(prompt_mask.sum()) :]
        token_scores = (answer @ model.head.weight[0] + model.head.bias).tolist()
        n = len(token_scores)
        raw = token_scores[-1] if pooling == "last" else sum(token_scores) / n
        assert score.item() == pytest.approx((raw - 0.2) / 1.7, abs=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("left, right", [(0, 1), (0, 7), (1, 0), (7, 3)])
def test_more_padding_changes_no_score(pooling, left, right):
    """Properties 21 and 22: the score is never read at a pad."""
    model, tokens = reward_model(pooling), ragged(**TOKENS)
    prompts, prompt_mask, responses, mask = tokens
    wider = (
        torch.cat([torch.ones(4, left).long(), prompts], 1),
        torch.cat([torch.zeros(4, left).bool(), prompt_mask], 1),
        torch.cat([responses, torch.ones(4, right).long()], 1),
        torch.cat([mask, torch.zeros(4, right).bool()], 1),
    )
    torch.testing.assert_close(model(*wider), model(*tokens), atol=1e-5, rtol=0)
    assert torch.equal(model(*other_padding(tokens)), model(*tokens))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(pooling):
    """Property 21."""
    model, tokens = reward_model(pooling), ragged(**TOKENS)
    scores = model(*tokens)
    for b in range(4):
        alone = model(*(x[b : b + 1] for x in tokens))
        assert alone.item() == pytest.approx(scores[b].item(), abs=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model(*(x[order] for x in tokens))
    torch.testing.assert_close(shuffled, scores[order], atol=1e-5, rtol=0)


def test_pooling_has_the_gradient_of_a_loop():
    generator = seeded()
    x = torch.randn(3, 4, 5, generator=generator, requires_grad=True)
    mask = torch.arange(4) < torch.tensor([4, 1, 3])[:, None]
    g = torch.randn(3, 5, generator=generator)
    rows = [x[0, :4], x[1, :1], x[2, :3]]
    for pooling, expected in [
        ("last", torch.stack([row[-1] for row in rows])),
        ("mean", torch.stack([row.mean(0) for row in rows])),
    ]:
        pooled = pool(x, mask, pooling)
        torch.testing.assert_close(pooled, expected)
        (one,), (two,) = (torch.autograd.grad(y, x, g) for y in (pooled, expected))
        torch.testing.assert_close(one, two)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match=r"must be 'last' or 'mean' \(got 'first'\)"):
        RewardModel(small_palm(), "first")


# --- the loss ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "difference, margin, loss",
    [(0, 0, 0.693147), (1, 0, 0.313262), (1, 0.5, 0.474077), (-200, 0, 200)],
)
def test_the_pairwise_loss_has_its_known_values(difference, margin, loss):
    """Property 23."""
    chosen = torch.tensor([float(difference)])
    got = pairwise_loss(chosen, torch.zeros(1), margin).item()
    assert got == pytest.approx(loss, abs=1e-6)


def test_the_pairwise_loss_is_minus_the_logistic_laws_log_and_its_gradient():
    """Property 23, against scipy."""
    chosen, rejected = 2 * torch.randn(2, 5, generator=seeded())
    chosen.requires_grad_()
    loss = pairwise_loss(chosen, rejected, 0.3)
    loss.backward()
    gap = (chosen - rejected - 0.3).detach().double().numpy()
    assert loss.item() == pytest.approx(-stats.logistic.logcdf(gap).mean(), abs=1e-6)
    expected = -stats.logistic.sf(gap) / 5  # −σ(−gap), the label's surprise
    assert chosen.grad.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_constant_added_to_all_scores_changes_no_loss():
    """Property 24."""
    chosen, rejected = torch.randn(2, 5, generator=seeded())
    assert pairwise_loss(chosen, chosen).item() == pytest.approx(math.log(2))
    moved = pairwise_loss(chosen + 7, rejected + 7)
    torch.testing.assert_close(moved, pairwise_loss(chosen, rejected))


# --- its weights and its scale -----------------------------------------------------


def test_the_head_starts_with_the_documented_spread_and_no_bias():
    """Property 25."""
    trunk = small_palm(dim=4, depth=1)
    heads = [RewardModel(trunk, "last", seeded(s)).head for s in range(1000)]
    weights = torch.cat([head.weight.flatten() for head in heads])
    assert weights.std().item() == pytest.approx(1 / math.sqrt(4 + 1), rel=0.05)
    assert abs(weights.mean().item()) < 0.03
    assert all((head.bias == 0).all() for head in heads)
    again = RewardModel(trunk, "last", seeded(0)).head
    assert torch.equal(again.weight, heads[0].weight)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_after_fitting_the_scale_samples_have_mean_0_and_sd_1(pooling):
    """Property 26."""
    model = reward_model(pooling)
    tokens = ragged([3] * 50, torch.randint(1, 8, (50,), generator=seeded(3)).tolist())
    raw = model(*tokens)
    for n in (20, 50):  # a second fit starts from the first one's scale
        some = [x[:n] for x in tokens]
        model.fit_scale(model(*some))
        scores = model(*some)
        assert scores.mean().item() == pytest.approx(0, abs=1e-5)
        assert scores.std().item() == pytest.approx(1, abs=1e-5)
    # gain 1/std and bias −mean/std: a straight line, in the same order
    assert model.mean.item() == pytest.approx(raw.mean().item(), abs=1e-5)
    assert model.std.item() == pytest.approx(raw.std().item(), abs=1e-5)
    assert torch.equal(scores.argsort(), raw.argsort())


def test_the_scale_is_kept_with_the_weights_but_is_not_trained():
    """Property 26."""
    model = reward_model()
    model.fit_scale(model(*ragged(**TOKENS)))  # whose scores carry a gradient
    copy = reward_model(seed=1)
    copy.load_state_dict(model.state_dict())
    assert (copy.mean, copy.std) == (model.mean, model.std)
    assert not (copy.mean.requires_grad or model.std.requires_grad)
    assert not {"mean", "std"} & {name for name, _ in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("scores", [[2.0], [1.0, 1.0, 1.0]])
def test_a_scale_without_spread_is_refused(scores):
    """Property 26."""
    model = reward_model()
    with pytest.raises(ValueError, match="needs scores that differ"):
        model.fit_scale(torch.tensor(scores))
    assert model.mean == 0 and model.std == 1


# --- pairs -------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("groups", [1, 3, 4, 100])
def test_pairs_have_the_scores_that_their_answers_have_alone(pooling, groups):
    """Properties 21 and 27: chosen and rejected go through one pass, by length."""
    model, pairs = reward_model(pooling), some_pairs()
    shapes = []
    forward = model.forward
    model.forward = lambda *tokens: shapes.append(tokens[2].shape) or forward(*tokens)
    chosen, rejected = score_pairs(model, pairs, groups)
    del model.forward
    one = model(pairs.prompts, pairs.prompt_mask, pairs.chosen, pairs.chosen_mask)
    two = model(pairs.prompts, pairs.prompt_mask, pairs.rejected, pairs.rejected_mask)
    torch.testing.assert_close(chosen, one, atol=1e-5, rtol=0)
    torch.testing.assert_close(rejected, two, atol=1e-5, rtol=0)
    assert sum(rows for rows, _ in shapes) == 14 and len(shapes) <= groups
    longest = torch.cat([pairs.chosen_mask, pairs.rejected_mask]).sum(1).max()
    assert max(width for _, width in shapes) == longest < 9  # no column of padding


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_the_loop_takes_the_same_steps_in_parts(tmp_path, micro_batch):
    """Properties 42 and 43."""
    models, losses = [], []
    for parts in (0, micro_batch):
        optim = OptimConfig(steps=3, batch_size=5, lr=1e-2, micro_batch=parts)
        models.append(reward_model())
        run = Run(tmp_path / str(parts))
        config = RewardConfig(optim, pairs=7, heldout_pairs=0, margin=0.1)
        train_reward_model(models[-1], some_pairs(), config, run, seed=0)
        losses.append([line["loss"] for line in run.metrics()])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters()):
        if name != "head.bias":  # its gradient is 0 but for rounding
            torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


def test_the_gradient_of_a_batch_is_the_sum_of_its_parts():
    """Property 42: pairs count, not tokens."""
    pairs, whole, parts = some_pairs(), reward_model(), reward_model()
    pairwise_loss(*score_pairs(whole, pairs)).backward()
    for rows in torch.arange(7).split(3):
        share = len(rows) / 7
        (share * pairwise_loss(*score_pairs(parts, pairs[rows]))).backward()
    for name, grad in gradients(whole).items():
        if name == "head.bias":  # differences do not see it
            assert grad.abs().max() < 1e-6
        torch.testing.assert_close(gradients(parts)[name], grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_reward_model_learns_to_count_a_token(tmp_path, pooling):
    """Property 27: also where the better answer is not the longer one."""
    n, generator = 200, seeded()
    first, second = torch.randint(3, V, (2, n, 6), generator=generator)
    lengths = torch.randint(3, 7, (2, n, 1), generator=generator)
    masks = torch.arange(6) < lengths
    counts = [((x == 4) & m).sum(1) for x, m in zip((first, second), masks)]
    keep = counts[0] != counts[1]
    won = (counts[0] > counts[1])[:, None]
    pairs = Pairs(
        torch.ones(n, 1).long(),
        torch.ones(n, 1).bool(),
        torch.where(won, first, second),
        torch.where(won, masks[0], masks[1]),
        torch.where(won, second, first),
        torch.where(won, masks[1], masks[0]),
    )[keep.nonzero()[:, 0]]
    model = RewardModel(small_palm(), pooling, seeded())
    config = RewardConfig(OptimConfig(60, 32, lr=1e-2), pairs=n, heldout_pairs=0)
    train_reward_model(model, pairs, config, Run(tmp_path / "rm"), seed=0)
    chosen, rejected = score_pairs(model, pairs)
    assert (chosen > rejected).float().mean() > 0.95
