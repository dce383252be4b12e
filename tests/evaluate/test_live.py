"""python -m minipalm.report: the page of a run at every moment of its life."""

import json
import math
import shutil
from html.parser import HTMLParser

import pytest
from fixture import make_evaluation

from minipalm import report
from minipalm.config import get_preset
from minipalm.data.lock import is_held, lock
from minipalm.ends import LOST, OWN, End, write_end
from minipalm.evaluate.report import write_report
from minipalm.model.palm import count_parameters
from minipalm.train.ceiling import known_ceiling, operations
from minipalm.train.progress import (
    Training,
    duration,
    read_progress,
    write_machine,
)

PPO = {"score": 1.0, "kl": 2.0, "length": 9.0, "unfinished": 0.1, "entropy": 2.0}
PPO |= {"explained_variance": 0.3, "policy_loss": -0.1, "value_loss": 1.0}
PPO |= {"clip_fraction": 0.1, "approx_kl": 0.01, "policy_grad_norm": 1.0}
SPENT = {"seconds": 10.0, "tokens_per_second": 24_000.0, "memory": 70.0, "ranks": 2}


def log(folder, steps, **more):
    folder.mkdir(parents=True)
    rows = [{"step": n, "loss": 3 / n, "grad_norm": 1.0} | more for n in steps]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)


def begin(out, stage, done=False, scale="full"):
    (out / stage).mkdir(exist_ok=True)
    text = json.dumps({"scale": scale, "seed": 3})
    (out / stage / "stage.json").write_text(text)
    if done:
        (out / stage / "done.json").write_text(text)


COMMAND = "./course full --gpus 2 --out 'my runs/a' --seed 3"


@pytest.fixture
def out(tmp_path):
    """A full-size run in the middle of PPO."""
    write_machine(tmp_path, 2, "NVIDIA H200", COMMAND)
    for name in ("06_palm/policy", "06_palm/trunk", "07_sft/policy", "07_sft/trunk"):
        log(tmp_path / name, range(1, 9), **SPENT)
    log(tmp_path / "08_reward_model" / "training", range(1, 9), accuracy=0.6, **SPENT)
    phases = {"seconds/rollout": 3.0, "seconds/update": 6.0, "sampler_gap": 0.03}
    log(tmp_path / "11_ppo" / "beta-0.05", range(1, 41), **PPO, **SPENT, **phases)
    (tmp_path / "11_ppo" / "beta-0.05" / "step-000040").mkdir()
    for stage in ("06_palm", "07_sft", "08_reward_model"):
        begin(tmp_path, stage, done=True)
    begin(tmp_path, "11_ppo")
    return tmp_path


class Text(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.words = []
        self.feed(path.read_text("utf-8"))

    def handle_data(self, data):
        self.words.append(data)

    def __str__(self):
        return " ".join(" ".join(self.words).split())


def made(out, capsys):
    """The page as words, and what was said."""
    assert report.main([str(out)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return str(Text(out / "report.html")), said.out


def test_a_run_in_progress_says_how_far_it_is_and_how_long_it_takes(out, capsys):
    with lock(out):
        page, said = made(out, capsys)
    first = "Stage 4 of 5, PPO: beta-0.05, iteration 40 of 500, about 1 h 17 min left."
    assert first in said and first in page  # 460 iterations of 10 s
    assert "2 × NVIDIA H200" in page and "seed 3" in page
    for word in ("running", "waiting", "24,000 tokens a second", "70 GiB", "40 of 500"):
        assert word in page
    assert "rollout" in page and COMMAND in page
    for name in ("explained variance", "clipped", "gradient norm", "entropy"):
        assert name in page


def test_a_stopped_run_says_from_where_it_goes_on(out, capsys):
    page, said = made(out, capsys)
    assert "stopped at beta-0.05, iteration 40 of 500; it goes on from 40." in said
    assert "running" not in page


def test_a_run_that_failed_says_why(out, capsys):
    for rank, kind, what in ((0, LOST, "another"), (1, OWN, "cell [9]: ValueError: 3")):
        name = f"11_ppo.rank-{rank}.ipynb"
        write_end(out / "11_ppo" / name, End(rank, kind, what, 1.0))
    page, said = made(out, capsys)
    why = "it goes on from 40. The cause: rank 1: cell [9]: ValueError: 3"
    assert why in said and why in page
    with lock(out):
        assert "cause" not in made(out, capsys)[1]


def test_a_run_that_nobody_runs_says_so_also_between_stages(out, capsys):
    (out / "11_ppo" / "done.json").write_text("{}")
    title = "Stage 5 of 5, evaluation: has not begun"
    assert f"{title}, and nobody runs it." in made(out, capsys)[1]
    with lock(out):
        assert f"{title}.\n" in made(out, capsys)[1]


def test_the_trunk_has_a_curve_too(out, capsys):
    made(out, capsys)
    title = "pretraining from 3.00 to 0.38, reward model’s trunk from 3.00 to 0.38, "
    assert f"The stages: {title}" in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("stage", "damage"),
    [
        ("06_palm", "half"),
        ("06_palm", "nothing yet"),
        ("08_reward_model", "empty"),
        ("11_ppo", "gone"),
        ("11_ppo", "half"),
        ("11_ppo", "binary"),
    ],
)
def test_no_missing_or_half_written_file_stops_the_report(out, stage, damage, capsys):
    for path in (out / stage).rglob("*.json*"):
        if damage == "gone":
            path.unlink()
        elif damage == "half":
            path.write_text(path.read_text()[: path.stat().st_size // 2])
        elif damage in ("empty", "binary"):
            path.write_bytes(b"\xff\x00{" if damage == "binary" else b"")
    if damage == "nothing yet":
        shutil.rmtree(out / stage)
    page, _ = made(out, capsys)
    assert "Stage" in page


def test_the_first_moments_of_a_run(tmp_path, capsys):
    page, said = made(tmp_path, capsys)
    assert "Stage 1 of 5, pretraining: has not begun, and nobody runs it." in said
    begin(tmp_path, "06_palm")
    with lock(tmp_path):
        assert "running; no step has been made yet." in made(tmp_path, capsys)[1]
        log(tmp_path / "06_palm" / "policy", [1])
        page, said = made(tmp_path, capsys)
    assert "policy, step 1 of 20,000." in said  # no time is logged, so none is left


def test_numbers_that_are_none_are_left_out(out, capsys):
    metrics = out / "11_ppo" / "beta-0.05" / "metrics.jsonl"
    row = {"step": 41, "score": math.nan, "kl": math.inf, "length": None, **SPENT}
    with metrics.open("a") as file:
        file.write(json.dumps(row) + "\n" + '{"step": 42, "sco')
    page, said = made(out, capsys)
    assert "iteration 41" in said and "nan" not in page


def complete(out):
    begin(out, "11_ppo", done=True)
    begin(out, "12_evaluation", done=True)
    text = json.dumps(make_evaluation() | {"scale": "full"})
    (out / "12_evaluation" / "evaluation.json").write_text(text)


def test_a_complete_run_has_the_same_report_and_what_the_machine_did(out, capsys):
    complete(out)
    page, said = made(out, capsys)
    assert "SFT against PPO" in said and "All stages are complete." in said
    assert "beats SFT’s 79% of the time" in page and "The machine" in page
    assert COMMAND in page
    (out / "12_evaluation" / "evaluation.json").write_text('{"scale": "fu')
    page, _ = made(out, capsys)
    assert "All stages are complete." in page


def test_what_goes_beyond_the_pipeline_is_a_stage_once_it_has_begun(out, capsys):
    complete(out)
    begin(out, "15_offline")
    folder = out / "15_offline" / "dpo"
    log(folder, range(1, 4), accuracy=0.7, **SPENT)
    settings = {"method": {"optim": {"steps": 30}, "beta": 0.1}}
    (folder / "config.json").write_text(json.dumps(settings))
    with lock(out):
        page, said = made(out, capsys)
    assert "Stage 6 of 6, other methods: dpo, step 3 of 30, about" in said
    steps = {one.name: one.steps for one in read_progress(out).stages[-1].trainings}
    whole = get_preset("full").methods
    assert steps == {
        "15_offline/offline": whole.offline.ppo.iterations,
        "15_offline/dpo": 30,
        "15_offline/rloo": whole.rloo.iterations,
        "15_offline/grpo": whole.grpo.iterations,
    }
    begin(out, "15_offline", done=True)
    assert "All stages are complete." in made(out, capsys)[1]


def test_a_toy_run_has_the_report_that_it_always_had(out, capsys):
    complete(out)
    for path in out.glob("*/*/metrics.jsonl"):
        path.unlink()  # no seconds in it
    (out / "machine.json").unlink()
    report.main([str(out)])
    page = (out / "report.html").read_bytes()
    assert write_report(out).read_bytes() == page


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert report.main([str(tmp_path / "none")]) == 2
    assert "none: there is no run" in capsys.readouterr().err


# --- what it is made of ---------------------------------------------------------------


def test_a_lock_is_seen_and_left_alone(tmp_path):
    assert not is_held(tmp_path)
    with lock(tmp_path) as file:
        assert is_held(tmp_path) and is_held(tmp_path)
        assert open(file.name).read().startswith("process")
    assert not is_held(tmp_path)


def test_the_share_of_the_ceiling_is_six_operations_a_weight_and_token():
    preset = get_preset("full")
    weights = count_parameters(preset.policy)  # attention adds little
    row = {"step": 1, "seconds": 2.0, "tokens_per_second": 10_000.0, "ranks": 1}
    flops = operations(preset, "06_palm/policy")
    assert flops(row) == pytest.approx(20_000 * 6 * weights, rel=0.02)
    training = Training("06_palm/policy", 9, [row], ceiling=1e15, flops=flops)
    assert training.share(row | {"ranks": 4}) == pytest.approx(training.share(row) / 4)
    older = {name: value for name, value in row.items() if name != "ranks"}
    assert training.share(older) is None  # it did not log them
    assert training.share(row) == pytest.approx(flops(row) / 2e15)
    adapters = operations(get_preset("full-lora"), "07_sft/policy")
    assert adapters(row) == pytest.approx(20_000 * 4 * weights, rel=0.02)
    whole = operations(get_preset("full-lora"), "06_palm/policy")
    assert whole(row) == pytest.approx(flops(row))


def test_an_iteration_of_ppo_counts_every_pass_once():
    preset = get_preset("full")
    policy = count_parameters(preset.policy)
    trunk = count_parameters(preset.reward_trunk)
    tokens = 256 * 256
    # policy: sampled, reference, old log-probs, trained; trunk: values, scores, trained
    sum_by_hand = tokens * (policy * (2 + 2 + 2 + 6) + trunk * (2 + 2 + 6))
    found = operations(preset, "11_ppo/beta-0.05")({"step": 1, "seconds": 9.0})
    assert found == pytest.approx(sum_by_hand, rel=0.02)
    row = {"step": 1, "seconds": 9.0, "length": 64.0}  # answers of half the length
    short = operations(preset, "11_ppo/beta-0.05")(row)
    assert short == pytest.approx(found * (128 + 64) / 256)


def test_a_gpu_is_known_by_its_drivers_name():
    assert known_ceiling("NVIDIA H200") == 685e12
    assert known_ceiling("NVIDIA A100-SXM4-80GB") == pytest.approx(216e12, rel=0.01)
    assert known_ceiling("NVIDIA A100-SXM4-40GB") is None
    assert known_ceiling(None) is None


def test_the_seconds_left_are_those_of_the_steps_left():
    rows = [{"step": n, "seconds": 100.0 if n < 30 else 2.0} for n in range(1, 101)]
    assert Training("x", 400, rows).seconds_left == 600.0
    assert Training("x", 400, [{"step": 1}]).seconds_left is None
    for row in rows:
        row["checkpoint_seconds"] = 0.0 if row["step"] % 4 else 12.0
    assert Training("x", 400, rows).seconds_left == 600.0 + 300 * 3.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40, "40 s"), (2100, "35 min"), (7800, "2 h 10 min"), (273_600, "3 d 4 h")],
)
def test_a_duration_in_words(seconds, words):
    assert duration(seconds) == words


def test_states_follow_the_files(out):
    states = [stage.state for stage in read_progress(out).stages]
    assert states == ["complete"] * 3 + ["stopped", "waiting"]
