"""The planted bugs: they fit the package, they are taken out again, they do harm."""

import json
import math

import pytest
import torch

from minipalm.config import PaLMConfig, get_preset
from minipalm.course import ROOT, bugs
from minipalm.course.bugs import (
    BUGS,
    BY_NAME,
    CASES,
    HEALTHY_SEEDS,
    ITERATIONS,
    RESULTS,
    SEEDS,
    Bug,
    diagnose,
    planted,
    run,
    standing,
    world_from,
)
from minipalm.course.source import source_of
from minipalm.data.tokenizer import WordTokenizer
from minipalm.model.palm import PaLM
from minipalm.plot.detective import METRICS, dashboard, first_alarm, suspect, who_tells
from minipalm.rlhf import rollout
from minipalm.rlhf.invariants import InvariantError, switched_off
from minipalm.rlhf.reward import RewardModel

NAMES = [bug.name for bug in BUGS]


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text("utf-8"))


@pytest.fixture(scope="module")
def world():
    """Untrained networks: enough for a bug to change a number."""
    torch.manual_seed(0)
    tokenizer = WordTokenizer.train(["a b c d e f g h i j k l m n"] * 3)
    config = PaLMConfig(tokenizer.vocab_size, 12, 1, 2, 6, embed_std=0.5)
    judge = RewardModel(PaLM(config), "mean")
    torch.nn.init.normal_(judge.head.weight)
    ids = torch.randint(3, 15, (12, 5))
    mask = torch.arange(5) >= torch.randint(0, 4, (12, 1))
    smoke = get_preset("smoke").ppo
    return bugs.World(
        tokenizer,
        PaLM(config).requires_grad_(False),
        judge.requires_grad_(False),
        ids,
        mask,
        bugs.replace(smoke, warmup=0.0, final_lr=1.0, entropy_coef=0.05),
        7,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_bug_is_one_line_that_stands_in_the_package_once(name):
    bug = BY_NAME[name]
    module, function = bug.where.split(":")
    source = source_of(getattr(bugs.importlib.import_module(module), function))
    assert source.count(standing(source, bug.old)) == 1
    assert bug.what.endswith(".") and bug.seen


@pytest.mark.parametrize("name", NAMES)
def test_a_bug_is_planted_and_taken_out_again(name):
    bug = BY_NAME[name]
    module, function = bug.where.split(":")
    there = bugs.importlib.import_module(module)
    if isinstance(getattr(there, function), type):
        there, function = getattr(there, function), "forward"
    right = getattr(there, function)
    with pytest.raises(ZeroDivisionError), planted(bug):
        assert getattr(there, function) is not right
        raise ZeroDivisionError
    assert getattr(there, function) is right


def test_a_bug_reaches_the_modules_that_use_its_function():
    before = rollout.response_logits
    with planted(BY_NAME["off_by_one"]):
        assert rollout.response_logits is not before
    assert rollout.response_logits is before


@pytest.mark.parametrize("name", NAMES)
def test_every_bug_changes_a_number(name, world):
    with switched_off():
        right, wrong = (run(world, bug, 1, 2) for bug in (None, BY_NAME[name]))
    assert any(
        not math.isclose(x[key], y[key], rel_tol=1e-4, abs_tol=1e-6)
        for x, y in zip(right, wrong)
        for key in x
    )


def test_the_invariants_stop_some_bugs_and_no_right_run(world):
    run(world, None, 1, 2)
    for name in ("temperature", "off_by_one", "reference_is_policy", "padding_seen"):
        with pytest.raises(InvariantError):
            run(world, BY_NAME[name], 1, 2)


def test_a_bug_that_does_not_fit_is_refused():
    wrong = Bug("mine", "minipalm.rlhf.gae:gae", "not there", "", "", "")
    with pytest.raises(ValueError, match="stands 0 times"), planted(wrong):
        pass


# --- what is shipped ----------------------------------------------------------------


def test_all_curves_are_shipped(results):
    assert list(results) == ["healthy", *NAMES]
    assert RESULTS.stat().st_size < 300_000
    for name, runs in results.items():
        assert len(runs) == len(HEALTHY_SEEDS if name == "healthy" else SEEDS)
        for curves in runs:
            assert {*METRICS} <= {*curves}
            assert all(len(values) == ITERATIONS for values in curves.values())
            assert all(math.isfinite(x) for values in curves.values() for x in values)


def test_shipped_curves_can_be_made_again(results):
    """The first iterations, where the stages of this machine are those of the file."""
    if not (ROOT / "runs/toy/08_reward_model/done.json").exists():
        pytest.skip("needs the stages that ./course run makes")
    world = world_from(ROOT / "runs/toy", "toy", ROOT / "data/prompts.jsonl")
    with switched_off():
        rows = run(world, BY_NAME["temperature"], SEEDS[0], 1)
    shipped = results["temperature"][0]
    if not math.isclose(rows[0]["score"], shipped["score"][0], abs_tol=1e-3):
        pytest.skip("the stages of this machine are others than those of the file")
    for key in METRICS:
        assert math.isclose(rows[0][key], shipped[key][0], rel_tol=0.02, abs_tol=1e-3)


def test_every_case_can_be_told_by_what_its_hint_says(results):
    def first(case, metric):
        return first_alarm(results, diagnose(case), metric)

    assert first("A", "clip_fraction") == first("A", "kl") == 1  # temperature
    assert all(abs(x) < 1e-4 for run in results[diagnose("B")] for x in run["kl"])
    assert first("C", "explained_variance") == 1
    assert first("D", "kl") > 1 and max(results["kl_sign"][0]["kl"]) > 50
    assert first("E", "steps") == 1
    assert first("F", "clip_fraction") == 1
    assert first("G", "kl") == 1 and first("G", "score") is None
    assert first("H", "value_loss") == 1 and first("H", "clip_fraction") is None
    assert sorted(map(diagnose, CASES)) == sorted({diagnose(c) for c in CASES})


# --- figures ------------------------------------------------------------------------

TINY = {
    "healthy": [{"score": [0.0, 0.0, 1.0]}, {"score": [1.0, 1.0, 2.0]}],
    "high": [{"score": [0.5, 1.3, 3.0]}, {"score": [0.9, 1.2, 3.0]}],
    "one seed only": [{"score": [0.5, 0.5, 1.5]}, {"score": [9.0, 9.0, 9.0]}],
    "both sides": [{"score": [-9.0] * 3}, {"score": [9.0] * 3}],
}


def test_an_alarm_needs_all_seeds_on_one_side_of_the_band():
    assert first_alarm(TINY, "high", "score") == 2
    assert first_alarm(TINY, "one seed only", "score") is None
    assert first_alarm(TINY, "both sides", "score") is None
    assert first_alarm(TINY, "healthy", "score") is None


def test_titles_say_what_the_data_say(results):
    figure = suspect(results, "E", "steps", diagnose)
    assert "below healthy runs in iteration 1" in " ".join(
        figure._suptitle.get_text().split()
    )
    title = dashboard(results, "G", diagnose)._suptitle.get_text()
    assert " ".join(title.split()).endswith("in iteration 1: KL")
    silent = sum(first_alarm(results, name, "score") is None for name in NAMES)
    assert f"{silent} of {len(NAMES)}" in who_tells(results)._suptitle.get_text()


def test_pictures_are_small(results):
    assert len(dashboard(results, "A", diagnose).png()) < 60_000
    assert len(who_tells(results).png()) < 60_000
