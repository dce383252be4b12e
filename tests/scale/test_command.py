"""`python -m minipalm.scale`: advice that helps, and a card of one's own."""

import re

import pytest

from minipalm.scale.__main__ import main, planned
from minipalm.scale.gpu import GIB, GPUS, H200, own_gpu
from minipalm.scale.report import lack

SAMPLING = ("08 answers", "12 evaluation")
COMMANDS = [
    "--preset full --gpu 24g --gpus 8",
    "--preset full --gpu a100-80g --gpus 1",
    "--preset full --gpus 2 --recompute",
    "--preset full --gpu 24g --lora 16",
    "--preset full-lora --gpu 24g",
    "--preset full-lora --gpu a100-80g --memory 39.4",
    "--preset small --gpu 8g --memory 3",
]


def advised(command: str, capsys) -> dict[str, dict[str, list[str]]]:
    """Of each stage that lacks memory: how much options help, and which."""
    main(command.split())
    text, found = capsys.readouterr().out, {}
    stages = "|".join(one.name for one in planned(command.split()).stages)
    for name, line in re.findall(rf"^({stages}) (?:does|is) .*\n(.*)$", text, re.M):
        parts = re.findall(r"(Fits|Tight|Less).*? with (.*?)\.(?= [A-Z]|$)", line)
        found[name] = {how: words.split(", ") for how, words in parts}
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_all_that_is_advised_helps_as_much_as_it_says(command, capsys):
    now = planned(command.split())
    said = advised(command, capsys)
    lacking = [one for one in now.stages if one.fits(now.gpu) != "yes"]
    assert list(said) == [one.name for one in lacking]
    for one in lacking:
        assert said[one.name]  # a larger card helps, if nothing else does
        for how, options in said[one.name].items():
            for words in options:
                other = planned([*command.split(), *words.split()])  # not refused
                [then] = [two for two in other.stages if two.name == one.name]
                assert lack(then, other.gpu) < lack(one, now.gpu), words
                if how != "Less":
                    expected = {"Fits": "yes", "Tight": "tight"}[how]
                    assert then.fits(other.gpu) == expected, words


def test_no_adapters_are_advised_beside_several_gpus(capsys):
    for name, found in advised("--preset full --gpu 24g --gpus 8", capsys).items():
        every = [words for options in found.values() for words in options]
        assert not any("lora" in one and "--gpus 1" not in one for one in every)
        if name in SAMPLING:
            assert every == ["--gpu a100-80g"]


@pytest.mark.parametrize("command", ["--preset full-lora --gpu 24g", COMMANDS[0]])
def test_what_only_samples_is_not_told_to_recompute(command, capsys):
    said = advised(command, capsys)
    for name in SAMPLING:
        words = str(said[name])
        assert "--recompute" not in words and "--micro-batch" not in words


def test_one_gpu_is_told_of_the_preset_for_one(capsys):
    said = advised("--preset full --gpu a100-80g --gpus 1", capsys)
    assert set(said) == {"06 pretraining", "07 SFT", "11 PPO"}
    assert all("--preset full-lora" in found["Fits"] for found in said.values())
    assert "--gpus 4" in said["11 PPO"]["Fits"]
    two = advised("--preset full --gpus 2 --recompute", capsys)
    assert "--gpus 1 --preset full-lora" in two["11 PPO"]["Fits"]


def test_a_card_of_ones_own_replaces_what_is_given(capsys):
    dials = "--memory 39.4 --tflops 200 --bandwidth 1.3 --link 20"
    assert main(f"--gpu a100-80g {dials}".split()) == 1
    heading = capsys.readouterr().out.split("\n\n")[0]
    assert "8 × your card: 39.4 GiB, 200 TFLOP/s, 1.30 TB/s, 20 GB/s" in heading
    assert "(yours: memory, flops, bandwidth, link)" in heading
    assert "data sheet" not in heading


def test_the_heading_says_whose_each_number_is(capsys):
    main("--gpu a100-80g --memory 39.4".split())
    heading = capsys.readouterr().out.split("\n\n")[0]
    assert "8 × your card, else as A100 SXM 80G: 39.4 GiB, 216 TFLOP/s" in heading
    assert "(yours: memory; the rest A100 SXM 80G, data sheet of the A100" in heading
    main(["--gpu", "a100-80g"])
    assert "yours" not in capsys.readouterr().out.split("$")[0]


def test_a_card_is_the_listed_one_where_nothing_is_given():
    assert own_gpu(H200) is H200
    card = own_gpu(GPUS["8g"], memory=12, link=5)
    assert (card.memory, card.link) == (12 * GIB, 5e9)
    assert (card.flops, card.price) == (GPUS["8g"].flops, GPUS["8g"].price)


@pytest.mark.parametrize("option", ["memory", "tflops", "bandwidth", "link"])
@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "1e308", "much"])
def test_no_card_has_a_number_that_cannot_be(option, number, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([f"--{option}", number])
    assert stopped.value.code == 2
    assert f"argument --{option}" in capsys.readouterr().err
