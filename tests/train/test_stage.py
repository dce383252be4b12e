"""Stages: what one leaves, the next one finds; half a stage is none."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from minipalm.data.tokenizer import WordTokenizer
from minipalm.model.palm import PaLM
from minipalm.train.stage import (
    StageError,
    finish_stage,
    finished_stage,
    load_result,
    stage_summary,
)
from tests.train import worlds
from tests.train.worlds import NET, left_by

WORDS = WordTokenizer(["a", "b"])


def test_a_result_is_found_and_loaded(tmp_path):
    one, two = PaLM(NET), PaLM(replace(NET, depth=2))
    finish_stage(tmp_path, "06", {"one": one, "two": two}, WORDS, scale="toy", seed=3)
    assert finished_stage(str(tmp_path), "06") == tmp_path / "06"
    assert stage_summary(tmp_path, "06") == {"scale": "toy", "seed": 3}
    other = PaLM(replace(NET, depth=2))
    assert load_result(other, tmp_path, "06", "two", WORDS) is other
    for key, tensor in two.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])


def test_a_stage_without_networks_leaves_no_result(tmp_path):
    finish_stage(tmp_path, "12", {}, WORDS, scale="toy", seed=3)
    assert list(left_by(tmp_path)) == ["12/done.json"]
    assert finished_stage(tmp_path, "12")


def test_done_is_written_last(tmp_path, monkeypatch):
    """A stage that could not leave its result is not complete."""
    monkeypatch.setattr("minipalm.train.stage.write_checkpoint", None)
    with pytest.raises(TypeError):
        finish_stage(tmp_path, "06", {"m": PaLM(NET)}, WORDS)
    with pytest.raises(StageError):
        finished_stage(tmp_path, "06")


@pytest.mark.parametrize("left", ["nothing", "folder", "result"])
def test_a_stage_that_has_not_run_is_named_and_how_to_run_it(left, tmp_path):
    if left == "folder":
        (tmp_path / "06_palm" / "policy").mkdir(parents=True)
    if left == "result":
        finish_stage(tmp_path, "06_palm", {"m": PaLM(NET)}, WORDS)
        (tmp_path / "06_palm" / "done.json").unlink()
    for ask in (
        lambda: finished_stage(tmp_path, "06_palm"),
        lambda: stage_summary(tmp_path, "06_palm"),
        lambda: load_result(PaLM(NET), tmp_path, "06_palm", "m", WORDS),
    ):
        with pytest.raises(StageError) as error:
            ask()
        message = str(error.value)
        assert message.startswith(
            f"{tmp_path / '06_palm'}: expected the result of 06_pa"
        )
        assert "Run it first; ./course run does all" in message
        assert len(message.splitlines()) == 1


def filled(value):
    return nn.ParameterList([torch.full((n,), float(value)) for n in (3, 5)])


def replace_result(out, number):
    worlds.quiet()
    worlds.die_at_touch(number, out)
    finish_stage(out, "06", {"m": filled(2)}, WORDS, value=2)


def test_49_killed_while_a_result_is_replaced(child, tmp_path):
    """Before each single file operation: a whole result stands there, old or new."""
    seen, exitcode = [], -9
    while exitcode == -9:
        out = tmp_path / f"{len(seen)}"
        finish_stage(out, "06", {"m": filled(1)}, WORDS, value=1)
        exitcode = child(replace_result, out, len(seen))
        found = load_result(filled(0.0), out, "06", "m", WORDS)
        (value,) = {value.item() for weights in found for value in weights}
        seen.append((value, stage_summary(out, "06")["value"]))
    assert exitcode == 0 and len(seen) > 15
    assert seen == sorted(seen) and set(seen) == {(1, 1), (2, 1), (2, 2)}
    assert list(left_by(out)) == [
        "06/done.json",
        "06/result/state.json",
        "06/result/tensors.safetensors",
    ]


def test_done_says_what_the_stage_says_of_itself(tmp_path):
    finish_stage(tmp_path, "08", {}, WORDS, scale="toy", accuracy=0.7, bayes=None)
    text = (tmp_path / "08" / "done.json").read_text()
    assert json.loads(text) == {"scale": "toy", "accuracy": 0.7, "bayes": None}
