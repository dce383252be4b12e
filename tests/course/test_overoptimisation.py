"""The maker of lesson 13's results: what is shipped is what it makes."""

import json
import statistics
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from minipalm.config import TOY
from minipalm.course import overoptimisation as maker
from minipalm.course.overoptimisation import (
    EXPERIMENTS,
    FEW,
    LONG,
    MEMBERS,
    RESULTS,
    Experiment,
    best_of_n_rows,
    quality,
    read_results,
    reward_of,
    run_small,
    settings,
    small_world,
    write_results,
)
from minipalm.course.watch import TOLD, Watch
from minipalm.course.wrong_rewards import (
    Recipe,
    gold_totals,
    labels,
    lengths_of,
    pairs_for,
    reward_model,
    scores_of,
)
from minipalm.data.gold import preference
from minipalm.rlhf.kl import exact_kl
from minipalm.rlhf.logprobs import response_logits

SHIPPED = json.loads(RESULTS.read_text("utf-8"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world(tmp_path_factory.mktemp("world"))


# --- what is shipped ----------------------------------------------------------------


def leaves(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list):
        for n, value in enumerate(tree):
            yield from leaves(value, f"{path}/{n}")
    else:
        yield path, tree


def test_the_small_result_is_made_again_and_is_what_is_shipped(tmp_path):
    """Other machines round otherwise, and a rounding may turn a word in a hundred."""
    made, kept = (
        dict(leaves(x)) for x in (maker.rounded(run_small(tmp_path)), SHIPPED["small"])
    )
    assert made.keys() == kept.keys()
    numbers = {k for k, v in kept.items() if isinstance(v, float)}
    off = [k for k in numbers if made[k] != pytest.approx(kept[k], rel=0.02, abs=0.02)]
    assert len(off) <= 0.1 * len(numbers), off


def test_it_was_made_with_these_settings():
    assert SHIPPED["settings"] == json.loads(json.dumps(settings()))


def test_the_file_is_small_and_every_experiment_has_its_seeds():
    assert RESULTS.stat().st_size < 1_000_000
    assert list(SHIPPED["runs"]) == [one.name for one in EXPERIMENTS]
    seeds = set(SHIPPED["runs"]["plain"])
    assert len(seeds) >= 3
    for part in ("runs", "best_of_n", "rewards"):
        assert all(set(one) == seeds for one in SHIPPED[part].values())


def test_every_run_is_whole_and_begins_at_sft():
    iterations = SHIPPED["settings"]["ppo"]["iterations"]
    for seeds in SHIPPED["runs"].values():
        for run in seeds.values():
            columns = [v for k, v in run.items() if k not in ("told", "cpu")]
            assert {len(one) for one in columns} == {iterations}
            assert run["kl"][0] == pytest.approx(0, abs=1e-3)
            assert len(run["told"]) == -(-iterations // TOLD)


def test_gold_falls_while_the_proxy_rises_on_every_seed():
    for run in SHIPPED["runs"]["plain"].values():
        end = statistics.fmean(run["gold"][-3:])
        assert max(run["gold"]) - end > 1.0
        assert statistics.fmean(run["proxy"][-3:]) > run["proxy"][10] + 0.5


# --- reward models ------------------------------------------------------------------


def test_a_labeller_who_likes_length_follows_the_law_with_it():
    draw = Random(0)
    golds = torch.tensor([[draw.uniform(2, 9) for _ in range(4000)] for _ in range(2)])
    lengths = torch.tensor([[draw.randint(4, 26)] * 2 for _ in range(4000)]).T
    lengths[1] = 15
    said = labels(golds, lengths, Recipe(per_token=0.3), seed=1)
    liked = golds + 0.3 * lengths
    expected = [preference(a, b) for a, b in liked.T.tolist()]
    assert sum(said) == pytest.approx(sum(expected), abs=3 * 4000**0.5 / 2)
    wrong = [(one - p) * (a - b) for one, p, (a, b) in zip(said, expected, golds.T)]
    assert abs(sum(wrong)) / 4000 < 0.1


def test_labels_are_turned_round_as_often_as_asked():
    golds, lengths = torch.tensor([[9.0] * 3000, [1.0] * 3000]), torch.ones(2, 3000)
    said = labels(golds, lengths.long(), Recipe(flipped=0.3), seed=0)
    assert sum(said) / 3000 == pytest.approx(0.7, abs=0.03)


def test_members_and_judges_never_see_the_same_pairs(world):
    mine = [pairs_for(world, Recipe(pairs=6, member=k)) for k in range(5)]
    mine.append(pairs_for(world, Recipe(pairs=6, half=1)))
    first, second = (answers.tokens[2] for answers in world.compared)

    def rows(pairs):
        """Where the answers stand among those compared."""
        both = torch.stack([pairs.chosen, pairs.rejected])
        found = set()
        for n in range(len(pairs)):
            for row in range(len(first)):
                one = {tuple(first[row].tolist()), tuple(second[row].tolist())}
                if {tuple(x.tolist()) for x in both[:, n]} == one:
                    found.add(row)
        return found

    seen = [rows(one) for one in mine]
    assert all(len(one) == 6 for one in seen)
    assert len(set.union(*seen)) == 36


def test_balanced_pairs_are_of_nearly_equal_length(world):
    pairs = pairs_for(world, Recipe(within=1))
    apart = pairs.chosen_mask.sum(1) - pairs.rejected_mask.sum(1)
    assert 0 < len(pairs) < world.comparisons // 2 and apart.abs().max() <= 1


def test_a_reward_model_has_its_scale_and_is_trained_once(world):
    model = reward_model(world, Recipe())
    scores = scores_of(model, world.usual)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)
    assert reward_model(world, Recipe()) is model


def test_names_of_recipes_differ():
    recipes = [one.recipe for one in EXPERIMENTS]
    recipes += [replace(FEW, member=k) for k in range(MEMBERS)] + [Recipe(half=1)]
    assert len({one.name for one in recipes}) == len(set(recipes))
    assert TOY.reward.pairs // 10 == FEW.pairs and LONG.per_token > 0


def test_a_corrected_reward_is_the_models_less_a_line_in_length(world):
    experiment = Experiment("corrected", corrected=True)
    model = reward_model(world, Recipe())
    corrected = reward_of(world, experiment, [model])
    tokens = tuple(x[:64] for x in world.usual.tokens)
    off = model(*tokens) - corrected(*tokens)
    lengths = tokens[3].sum(1).double()
    slope, start = np.polyfit(lengths, off.double(), 1)
    assert off.numpy() == pytest.approx((start + slope * lengths).numpy(), abs=1e-5)
    usual = lengths_of(world.usual).float().mean().item()
    assert start + slope * usual == pytest.approx(0, abs=1e-5)
    assert slope == pytest.approx(quality(world, model)["slope"], abs=1e-6)


# --- what is seen -------------------------------------------------------------------


def test_kl_is_measured_with_the_weights_that_sampled(world):
    """PPO's callback comes after the update; the answers came before it."""
    seen = []
    watched = Watch.__call__

    def spy(self, rollout):
        before = response_logits(self.before, *rollout.tokens)
        logprobs = before.log_softmax(-1)
        own = logprobs.gather(2, rollout.responses[..., None])[..., 0]
        apart = (own - rollout.logprobs)[rollout.mask].abs().max().item()
        reference = response_logits(world.sft, *rollout.tokens)
        kl = (exact_kl(before, reference) * rollout.mask).sum(1).mean().item()
        row = watched(self, rollout)
        seen.append((apart, kl, row["exact_kl"]))
        return row

    Watch.__call__ = spy
    try:
        maker.run_experiment(world, Experiment("spied"))
    finally:
        Watch.__call__ = watched
    assert len(seen) == world.ppo.iterations
    for apart, kl, row in seen:
        assert apart < 1e-3 and row == pytest.approx(kl, abs=1e-5)
    assert seen[-1][2] > 0


def test_best_of_n_begins_with_the_mean_and_ends_with_the_best(world):
    texts = [text for text in world.texts[:3] for _ in range(8)]
    answers = world.ask(world.sft, texts, 1)
    rows = best_of_n_rows(world, answers, Experiment("plain"), 8)
    scores = scores_of(reward_model(world, Recipe()), answers).view(3, 8)
    gold = gold_totals(answers).view(3, 8)
    assert rows["n"] == [1, 2, 4, 8]
    assert rows["gold"][0] == pytest.approx(gold.mean().item(), abs=1e-5)
    assert rows["proxy"][-1] == pytest.approx(scores.amax(1).mean().item(), abs=1e-5)


# --- the file -----------------------------------------------------------------------


def test_what_is_written_is_read_and_other_settings_are_not(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    assert read_results(path)["runs"] == {}
    results = {**read_results(path), "runs": {"plain": {"1": {"gold": [1.0, 2.0]}}}}
    write_results(path, results)
    assert read_results(path) == results
    assert len(path.read_text("utf-8").splitlines()) < 20
    monkeypatch.setattr(maker, "MEMBERS", 9)
    assert read_results(path)["runs"] == {}


def test_a_maker_that_was_stopped_goes_on(tmp_path, monkeypatch):
    path, done = tmp_path / "results.json", []
    few = (Experiment("plain"), Experiment("priced", beta=0.1))
    monkeypatch.setattr(maker, "EXPERIMENTS", few)
    monkeypatch.setattr(maker, "open_world", lambda seed, out: seed)
    monkeypatch.setattr(maker, "run_small", lambda folder: {"gold": 1.0})
    monkeypatch.setattr(maker, "pick_best", lambda world, experiment: {"n": [1]})
    monkeypatch.setattr(maker, "look_at", lambda world, recipe: {"slope": 0.0})

    def run(world, experiment):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((experiment.name, world))
        return {"gold": [5.0]}

    monkeypatch.setattr(maker, "run_experiment", run)
    with pytest.raises(KeyboardInterrupt):
        maker.make(path, [1, 2])
    assert done == [("plain", 1), ("plain", 2)]
    done.clear()
    results = maker.make(path, [1, 2])
    assert done == [("priced", 1), ("priced", 2)]
    assert results["runs"]["plain"] == {"1": {"gold": [5.0]}, "2": {"gold": [5.0]}}
    assert list(results["best_of_n"]) == ["plain"]
