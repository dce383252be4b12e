"""Bad input: one or two lines that say where, what was expected, what came, and how
to mend it; and nothing half-written.

Elsewhere: JSON-lines files in data/test_datasets.py, a full disk in
train/test_checkpoint.py, a loss that is no number in train/test_loops.py, Ctrl-C in
setup/test_run.py.
"""

import io
import json
import math
import pickle
import re
import struct
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jupytext
import pytest
import torch
from torch import nn

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.data.datasets import DataError, read_prompts, read_texts
from minipalm.data.tokenizer import (
    BytePairTokenizer,
    WordTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from minipalm.model.palm import PaLM
from minipalm.rlhf.reward import RewardModel
from minipalm.train.checkpoint import (
    STATE,
    TENSORS,
    CheckpointError,
    load_module,
    module_tensors,
    read_state,
    read_tensors,
    write_checkpoint,
)
from minipalm.train.run import Run, TrainingError
from minipalm.train.stage import StageError, finish_stage, load_result
from tests.train import worlds
from tests.train.worlds import NET, left_by

WORDS = WordTokenizer(["fox", "the", "slept"])


def message_of(error, call, *arguments):
    """What is said, in at most two lines and without Python's own chatter."""
    with pytest.raises(error) as caught:
        call(*arguments)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 2 and len(message) < 600
    return message


# --- a checkpoint that is damaged ---------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    write_checkpoint(tmp_path / "c", module_tensors({"m": PaLM(NET)}), {"n": 1})
    return tmp_path / "c"


@pytest.mark.parametrize("share", [0, 1e-9, 0.001, 0.01, 0.1, 0.5, 0.99, 1 - 1e-9])
def test_truncated_tensors_are_named_with_their_size(share, checkpoint):
    path = checkpoint / TENSORS
    content = path.read_bytes()
    kept = math.ceil(share * (len(content) - 1)) if share < 0.999 else len(content) - 1
    path.write_bytes(content[:kept])
    model = PaLM(NET)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    message = message_of(CheckpointError, load_module, model, checkpoint, "m")
    assert message.startswith(f"{path}: expected a whole safetensors file, found a dam")
    assert f"{kept} bytes" in message and f"Delete {checkpoint} and run aga" in message
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])  # nothing was half loaded


def test_bytes_too_many_are_damage_as_well(checkpoint):
    with (checkpoint / TENSORS).open("ab") as file:
        file.write(b"more")
    message = message_of(CheckpointError, read_tensors, checkpoint, "m")
    assert "found a damaged one" in message


def test_of_a_damaged_result_the_whole_stage_is_to_be_deleted(checkpoint):
    """Else done.json would say that all is well, and the advice would come again."""
    result = checkpoint.rename(checkpoint.parent / "result")
    (result / TENSORS).write_bytes(b"")
    message = message_of(CheckpointError, read_tensors, result, "m")
    assert f"Delete {result.parent}, its stage, and run again" in message


def test_a_truncated_state_is_named(checkpoint):
    text = (checkpoint / STATE).read_bytes()
    for kept in range(len(text)):
        (checkpoint / STATE).write_bytes(text[:kept])
        message = message_of(CheckpointError, read_state, checkpoint)
        assert message.startswith(f"{checkpoint / STATE}: expected JSON, found somethi")
        assert f"Delete {checkpoint} and run again" in message


@pytest.mark.parametrize("missing", [TENSORS, STATE, "all"])
def test_a_missing_checkpoint_is_named(missing, checkpoint):
    for path in list(checkpoint.iterdir()):
        if missing in (path.name, "all"):
            path.unlink()
    if missing != TENSORS:
        message = message_of(CheckpointError, read_state, checkpoint)
        assert message.startswith(f"{checkpoint / STATE}: expected a checkpoint, ")
    if missing != STATE:
        message = message_of(CheckpointError, read_tensors, checkpoint, "m")
        assert message.startswith(f"{checkpoint / TENSORS}: expected a checkpoint, ")
        assert "No such file" in message and "run again" in message


def test_a_folder_in_place_of_a_file_is_named(checkpoint):
    for name in (TENSORS, STATE):
        (checkpoint / name).unlink()
        (checkpoint / name).mkdir()
    for call in (lambda: read_state(checkpoint), lambda: read_tensors(checkpoint, "m")):
        message = message_of(CheckpointError, call)
        assert message.startswith(f"{checkpoint}/") and "run again" in message


def test_a_run_says_it_and_changes_nothing(tmp_path):
    worlds.ppo(tmp_path)
    path = tmp_path / "step-000006" / TENSORS
    path.write_bytes(path.read_bytes()[:-1])
    before = left_by(tmp_path)
    message = message_of(CheckpointError, worlds.ppo, tmp_path)
    assert message.startswith(f"{path}: ")
    assert left_by(tmp_path) == before


# --- a checkpoint of another network ------------------------------------------------


@pytest.mark.parametrize(
    ("change", "weight", "wants", "has"),
    [
        ({"dim": 16}, "blocks.0.", "8", "16"),
        ({"vocab_size": 12}, "embedding.weight", "(11, 8)", "(12, 8)"),
        ({"depth": 2}, "blocks.1.", "nothing", "float32 of shape"),
        ({"depth": 0}, "blocks.0.", "float32 of shape", "nothing"),
    ],
)
def test_another_shape_is_named_with_the_weight(change, weight, wants, has, tmp_path):
    other = PaLM(replace(NET, **change))
    write_checkpoint(tmp_path / "c", module_tensors({"m": other}), {})
    message = message_of(CheckpointError, load_module, PaLM(NET), tmp_path / "c", "m")
    assert message.startswith(f"{tmp_path / 'c' / TENSORS}: m/{weight}")
    need, there = message.split(", and there is ")
    assert wants in need and has in there
    assert "another scale or with other words?" in there


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_never_converted_in_silence(dtype, tmp_path):
    """load_state_dict would round without a word, and the run not be the same."""
    half = PaLM(NET).to(dtype)
    write_checkpoint(tmp_path / "c", module_tensors({"m": half}), {})
    message = message_of(CheckpointError, load_module, PaLM(NET), tmp_path / "c", "m")
    assert "this model needs float32 of shape (" in message
    assert f"there is {str(dtype)[6:]} of shape (" in message
    load_module(half, tmp_path / "c", "m")


def test_weights_of_another_name_are_named(checkpoint):
    message = message_of(CheckpointError, load_module, PaLM(NET), checkpoint, "policy")
    assert message.startswith(f"{checkpoint / TENSORS}: expected weights of 'policy'")


# --- a pickle -----------------------------------------------------------------------


class Evil:
    """Whoever unpickles this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickles(path):
    """The same evil as Python and as torch.save wrote it over the years."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f"pickle {protocol}", pickle.dumps(Evil(path), protocol)
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(
            {"m/w": Evil(path), "w": torch.ones(3)},
            file,
            _use_new_zipfile_serialization=zipped,
        )
        yield f"torch.save, zipped {zipped}", file.getvalue()


def test_a_pickle_is_named_and_never_unpickled(checkpoint, tmp_path):
    made = tmp_path / "made by loading"
    for name, evil in pickles(made):
        torch.load(io.BytesIO(evil), weights_only=False) if "torch" in name else (
            pickle.loads(evil)
        )
        assert made.exists(), f"{name} is harmless: this test would prove nothing"
        made.unlink()

        (checkpoint / TENSORS).write_bytes(evil)
        message = message_of(CheckpointError, load_module, PaLM(NET), checkpoint, "m")
        if name not in (
            "pickle 0",
            "pickle 1",
        ):  # they have no first bytes of their own
            assert message.startswith(f"{checkpoint / TENSORS}: this is a pickle, ")
            assert "save it with safetensors.torch" in message
        (checkpoint / STATE).write_bytes(evil)
        message_of(CheckpointError, read_state, checkpoint)
        (tmp_path / "tokenizer.json").write_bytes(evil)
        message_of(ValueError, load_tokenizer, tmp_path / "tokenizer.json")
        (tmp_path / "x.jsonl").write_bytes(evil)
        message_of(DataError, read_texts, tmp_path / "x.jsonl")
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.json").write_bytes(evil)
        message_of(ValueError, Run, tmp_path / "run")
        assert not made.exists(), name


def test_no_module_can_unpickle():
    for path in (ROOT / "minipalm").rglob("*.py"):
        found = re.findall(
            r"\bpickle\.|import pickle|torch\.load\b|allow_pickle|joblib|dill",
            path.read_text("utf-8"),
        )
        assert not found, f"{path}: {found}"


def test_damage_that_begins_like_a_pickle_is_called_damage(checkpoint):
    """The first bytes of a safetensors file are a length, and may be anything."""
    for length in (0x0280, 0x0480, 0x04034B50):
        head = struct.pack("<Q", length) + b'{"m/w":{"dtype":"F32","shape":[3],'
        (checkpoint / TENSORS).write_bytes(head)
        message = message_of(CheckpointError, read_tensors, checkpoint, "m")
        assert "expected a whole safetensors file" in message


# --- a tokenizer that does not fit --------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        WordTokenizer(["fox", "the", "slept", "more"]),
        WordTokenizer(["fox", "the", "wept"]),  # as many, one of them another
        BytePairTokenizer([]),
    ],
)
def test_a_tokenizer_of_other_words_is_refused(other, tmp_path):
    finish_stage(tmp_path, "06_palm", {"m": PaLM(NET)}, WORDS)
    message = message_of(
        CheckpointError, load_result, PaLM(NET), tmp_path, "06_palm", "m", other
    )
    assert message.startswith(f"{tmp_path / '06_palm' / 'result'}: was trained with an")
    assert "tokenizer.json of the same `out`, or run 06_palm again" in message


def test_the_same_pieces_in_another_order_are_another_tokenizer(tmp_path):
    one = BytePairTokenizer([(100, 101), (102, 103)])
    two = BytePairTokenizer([(102, 103), (100, 101)])
    finish_stage(tmp_path, "06_palm", {"m": PaLM(NET)}, one)
    assert one.vocab_size == two.vocab_size
    message_of(CheckpointError, load_result, PaLM(NET), tmp_path, "06_palm", "m", two)
    assert load_result(PaLM(NET), tmp_path, "06_palm", "m", one)


def test_the_same_words_in_another_order_are_no_tokenizer(tmp_path):
    WORDS.save(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text()
    (tmp_path / "t.json").write_text(text.replace('"fox","slept"', '"slept","fox"'))
    message = message_of(ValueError, load_tokenizer, tmp_path / "t.json")
    assert message.startswith(
        f"{tmp_path / 't.json'}: field 'words': expected a sorted"
    )


# --- a loss that is no number: a reward of one's own --------------------------------


def test_a_reward_that_is_no_number_stops_ppo_and_keeps_the_checkpoint(tmp_path):
    calls = 0

    def reward(*answers):
        nonlocal calls
        calls += 1
        scores = worlds.share_of_fives(*answers)
        return (
            scores.log() - scores.log() if calls == 5 else scores
        )  # 0 / 0, as it were

    message = message_of(
        TrainingError, lambda: worlds.ppo(tmp_path / "11_ppo", reward=reward)
    )
    assert "11_ppo: step 5: 8 of 8 scores are no finite numbers" in message
    assert "step-000004 is kept" in message
    worlds.ppo(tmp_path / "11_ppo")
    worlds.ppo(tmp_path / "whole")
    assert left_by(tmp_path / "11_ppo") == left_by(tmp_path / "whole")


# --- the lessons --------------------------------------------------------------------

LESSONS = ["06_palm", "07_sft", "08_reward_model", "11_ppo", "12_evaluation"]


def execute(lesson, **parameters):
    """Run a lesson's cells, as a batch run does, until one of them raises."""
    names = {"__name__": "__main__"}
    for cell in jupytext.read(
        ROOT / "lessons" / f"{lesson}.py", fmt="py:percent"
    ).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "classroom" not in tags:
            exec(compile(cell.source, lesson, "exec"), names)
            if "parameters" in tags:
                names |= parameters


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """A folder in which every stage is complete, though nothing was trained."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MPLBACKEND", "agg")
    preset = get_preset("smoke")
    texts = [record.text for record in read_texts("data/text.jsonl")[:2000]]
    prompts = [record.prompt for record in read_prompts("data/prompts.jsonl")]
    tokenizer = train_tokenizer(texts + prompts, preset.tokenizer, preset.vocab_size)
    size = tokenizer.vocab_size
    policy = PaLM(replace(preset.policy, vocab_size=size))
    trunk = PaLM(replace(preset.reward_trunk, vocab_size=size))
    said = {"scale": "smoke", "seed": 0}
    tokenizer.save(tmp_path / "06_palm" / "tokenizer.json")
    for stage in ("06_palm", "07_sft"):
        both = {"policy": policy, "trunk": trunk}
        finish_stage(tmp_path, stage, both, tokenizer, **said)
    model = {"reward_model": RewardModel(trunk, preset.reward.pooling)}
    finish_stage(tmp_path, "08_reward_model", model, tokenizer, **said)
    policies = {
        f"beta-{kl_coef:g}": deepcopy(policy) for kl_coef in preset.ppo.kl_coefs
    }
    said["kl_coefs"] = list(preset.ppo.kl_coefs)
    finish_stage(tmp_path, "11_ppo", policies, tokenizer, **said)
    return tmp_path


@pytest.mark.parametrize("lesson", LESSONS)
@pytest.mark.parametrize("scale", ["huge", "", "Toy", None, 3])
def test_a_wrong_scale_gets_the_list_of_right_ones(lesson, scale, tmp_path):
    message = message_of(
        ValueError, lambda: execute(lesson, scale=scale, out=str(tmp_path / "out"))
    )
    known = "smoke, toy, small, full, full-lora"
    assert message == f"scale must be one of {known} (got {scale!r})"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lesson", "missing"),
    [
        ("07_sft", "06_palm"),
        ("08_reward_model", "06_palm"),
        ("08_reward_model", "07_sft"),
        ("11_ppo", "06_palm"),
        ("11_ppo", "07_sft"),
        ("11_ppo", "08_reward_model"),
        ("12_evaluation", "06_palm"),
        ("12_evaluation", "07_sft"),
        ("12_evaluation", "08_reward_model"),
        ("12_evaluation", "11_ppo"),
    ],
)
def test_a_stage_whose_input_stage_has_not_run(lesson, missing, stages):
    (stages / missing / "done.json").unlink()
    before = left_by(stages)
    message = message_of(
        StageError, lambda: execute(lesson, scale="smoke", out=str(stages))
    )
    assert message.startswith(f"{stages / missing}: expected the result of {missing}, ")
    assert "Run it first" in message
    assert left_by(stages) == before


def test_a_notebook_says_it_in_two_lines_and_fails(tmp_path):
    """As ./course run starts it; the first line leads to the notebook."""
    solution, output = ROOT / "solutions" / "07_sft.ipynb", tmp_path / "o.ipynb"
    command = [sys.executable, "-m", "minipalm.spmd", str(solution), str(output)]
    command += ["-p", "scale", "smoke", "-p", "out", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert f"StageError: {tmp_path / 'none' / '06_palm'}: expected the result" in line
    assert "Run it first" in line and line.endswith(f"(partial notebook: {output})")


LONG = " ".join(["the"] * 80)
SHORT = "sad story about the fox :"


@pytest.mark.parametrize(
    ("lesson", "parameter", "row"),
    [
        ("06_palm", "demonstrations", {"prompt": LONG, "response": "it slept ."}),
        ("07_sft", "demonstrations", {"prompt": LONG, "response": "it slept ."}),
        ("08_reward_model", "prompts", {"prompt": LONG}),
        (
            "08_reward_model",
            "preferences",
            {"prompt": LONG, "chosen": "it slept .", "rejected": "it slept"},
        ),
        ("11_ppo", "prompts", {"prompt": LONG}),
        ("12_evaluation", "prompts", {"prompt": LONG}),
        ("12_evaluation", "heldout", {"prompt": LONG}),
    ],
)
def test_a_prompt_longer_than_the_window_is_named_with_its_line(
    lesson, parameter, row, stages, tmp_path_factory
):
    path = tmp_path_factory.mktemp("mine") / "mine.jsonl"
    good = {name: "the fox slept ." for name in row} | {"prompt": SHORT}
    if "chosen" in row:
        good["rejected"] = "it slept ."
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    if lesson == "06_palm":
        for file in sorted(stages.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    stage = Path(stages, lesson)
    before = left_by(stage)
    message = message_of(
        DataError,
        lambda: execute(
            lesson, scale="smoke", out=str(stages), **{parameter: str(path)}
        ),
    )
    assert message.startswith(f"{path}:2: field")
    assert "expected at most" in message and "shorten it" in message
    after = left_by(stage)
    after.pop("tokenizer.json", None)  # 06 keeps it before it counts with it
    assert after == {k: v for k, v in before.items() if k != "tokenizer.json"}


MEDIUM = " ".join(["the"] * 12)
GOOD = {"prompt": SHORT, "chosen": "the fox slept .", "rejected": "it slept ."}


@pytest.mark.parametrize(
    ("lesson", "parameter", "row"),
    [
        ("07_sft", "demonstrations", {"prompt": MEDIUM, "response": "it slept ."}),
        ("08_reward_model", "preferences", GOOD | {"prompt": MEDIUM}),
        (
            "08_reward_model",
            "preferences",
            GOOD | {"chosen": f"{MEDIUM} " * 2 + "the a"},
        ),
    ],
)
def test_what_fits_a_row_but_not_its_own_part_of_it_is_named(
    lesson, parameter, row, stages, tmp_path_factory
):
    """A prompt has room for 9 tokens and an answer for 26, whatever the other needs."""
    path = tmp_path_factory.mktemp("mine") / "mine.jsonl"
    good = {name: GOOD.get(name, "the fox slept .") for name in row}
    path.write_text("\n".join(map(json.dumps, [row] + [good] * 9)))
    message = message_of(
        DataError,
        lambda: execute(
            lesson, scale="smoke", out=str(stages), **{parameter: str(path)}
        ),
    )
    assert message.startswith(f"{path}:1: field")


@pytest.mark.parametrize("lesson", LESSONS[1:])
def test_a_tokenizer_put_into_the_folder_of_another_run_is_refused(lesson, stages):
    WORDS.save(stages / "06_palm" / "tokenizer.json")
    message = message_of(
        CheckpointError, lambda: execute(lesson, scale="smoke", out=str(stages))
    )
    assert "was trained with another tokenizer" in message


def test_a_folder_of_another_scale_is_refused_before_training(stages):
    Run(stages / "07_sft" / "policy", seed=0)
    message = message_of(
        ValueError, lambda: execute("07_sft", scale="smoke", out=str(stages))
    )
    assert message.startswith(
        f"{stages / '07_sft' / 'policy' / 'config.json'}: is of a"
    )


def test_modules_are_named_in_order(tmp_path):
    """Of several weights that do not fit the first is named: one line is enough."""
    write_checkpoint(tmp_path / "c", module_tensors({"m": nn.Linear(3, 4)}), {})
    message = message_of(
        CheckpointError, load_module, nn.Linear(5, 6), tmp_path / "c", "m"
    )
    assert "m/bias" in message and "weight:" not in message
