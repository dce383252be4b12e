"""The figures of lesson 11: what a token is told, and how a story is marked."""

import pytest

from minipalm.plot.story import marked, story
from minipalm.plot.surrogate import (
    broken_runs,
    clipped_surrogate,
    clipped_token,
    told_at,
)
from minipalm.rlhf.ppo import policy_loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "words"),
    [
        (1.0, 1.0, "become likelier"),
        (1.5, 1.0, "nothing"),
        (0.5, 1.0, "become likelier"),
        (1.0, -1.0, "become rarer"),
        (1.5, -1.0, "become rarer"),
        (0.5, -1.0, "nothing"),
    ],
)
def test_a_token_is_told_to_go_on_until_it_has_gone_far_enough(ratio, advantage, words):
    assert told_at(policy_loss, ratio, advantage, 0.2).words == words
    figure = clipped_token(policy_loss, ratio, advantage)
    assert f"“{words}”" in figure.get_suptitle()


def test_a_sign_flipped_loss_is_seen_in_the_words():
    def flipped(*args):
        return -policy_loss(*args)

    assert told_at(flipped, 1.0, 1.0, 0.2).words == "become rarer"


def test_both_figures_are_light():
    assert len(clipped_surrogate(policy_loss).png()) < 60_000
    assert len(clipped_token(policy_loss, 1.3, -1.5, 0.1).png()) < 60_000


def test_words_of_the_mood_stand_out_and_wrong_ones_are_struck_out():
    text = marked("write a sad story about the fox :", "the fox wept . it laughed <b>")
    assert "<b>fox</b>" in text
    assert ">wept</b>" in text and "<s" in text.split("laughed")[0].split("wept")[1]
    assert "&lt;b&gt;" in text


def test_a_prompt_of_another_kind_leaves_its_answer_as_it_is():
    assert marked("2 + 2 =", "the sad fox") == "the sad fox"


def test_a_story_has_a_column_a_policy_and_their_means():
    page = story(
        ["a", "b"], [("SFT", ["x", "y"], [1.0, 2.0]), ("PPO", ["u", "v"], [2, 4])]
    )
    assert page.count("<tr>") == 4
    assert "1.50" in page and "3.00" in page


def test_broken_runs_say_where_each_run_ends():
    runs = {
        name: [{"step": n + 1, "score": n * slope, "kl": 1.0 * n} for n in range(4)]
        for name, slope in (("as it is", 0.5), ("sign turned", -0.5))
    }
    figure = broken_runs(runs, {"score": "reward, sd", "kl": "KL, nats"})
    title = figure.get_suptitle().replace("\n", " ")
    assert "as it is 1.50" in title and "sign turned -1.50" in title
    assert len(figure.axes) == 2
