"""Races are fair: both sides take turns, on the same data."""

import pytest

from bench import ours, shapes
from bench.race import Result, Side, race, repeat
from minipalm.model.palm import count_parameters


def test_the_sides_alternate_and_both_do_all_steps():
    seen = []
    result = race(
        Side(repeat(lambda: seen.append("ours")), 1),
        Side(repeat(lambda: seen.append("theirs")), 2),
        pairs=3,
        warmup=2,
    )
    assert seen == ["theirs", "ours"] * 5
    assert len(result.ours) == len(result.theirs) == 3
    assert (result.our_parameters, result.their_parameters) == (1, 2)


def test_a_peer_that_stops_early_is_not_reported():
    def lazy(steps, after):
        after()

    with pytest.raises(RuntimeError, match="a race of 4 steps each had"):
        race(Side(repeat(lambda: None), 1), Side(lazy, 1), pairs=3, warmup=1)


def test_the_ratio_is_the_median_of_the_pairs_own_ratios():
    result = Result([1.0, 2.0, 4.0], [3.0, 2.0, 8.0], 1, 1)
    assert result.ratios == [3.0, 1.0, 2.0]
    assert result.ratio == 2.0


def test_the_network_has_the_size_that_the_readme_says():
    assert count_parameters(ours.network().config) == shapes.PARAMETERS


def test_both_sides_get_the_same_unequal_data():
    assert shapes.demonstrations(9) == shapes.demonstrations(9)
    assert shapes.pairs(9) == shapes.pairs(9)
    assert shapes.token_rows(2, 5).equal(shapes.token_rows(2, 5))
    lengths = [len(prompt) + len(reply) for prompt, reply in shapes.demonstrations(99)]
    assert len(set(lengths)) > 20
    assert max(lengths) <= shapes.TRAIN_TOKENS  # packing cuts nothing


def test_answers_end_and_their_words_are_no_special_tokens():
    for pair in shapes.pairs(9):
        for answer in (pair.chosen, pair.rejected):
            assert answer[-1] == 2
            assert min(answer[:-1]) >= shapes.FIRST_WORD
            assert max(answer) < shapes.VOCAB


SIDES = {
    "training step": ours.training_step,
    "generation": ours.generation,
    "PPO update": ours.ppo,
    "SFT step": lambda: ours.sft_step(shapes.demonstrations(4)),
    "reward-model step": lambda: ours.reward_model_step(shapes.pairs(4)),
}


@pytest.mark.parametrize("task", SIDES)
def test_our_side_does_its_steps(task, monkeypatch):
    small = {"DIM": 8, "DEPTH": 2, "HEADS": 2, "HEAD_DIM": 4, "RESPONSE": 4, "PAIRS": 2}
    small |= {"SAMPLE_TOKENS": 3, "DEMONSTRATIONS": 2, "ROLLOUTS": 4, "MINIBATCHES": 2}
    for name, value in small.items():
        monkeypatch.setattr(shapes, name, value)
    after = []
    SIDES[task]().loop(2, lambda: after.append(task))
    assert after == [task, task]
