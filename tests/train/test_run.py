"""A run's folder: settings, metrics, the newest checkpoint."""

import io
import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from tqdm import tqdm

from minipalm.train import run as run_module
from minipalm.train.run import Run, TrainingError, read_metrics, steps_left
from tests.train.worlds import OPTIM, left_by


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_settings_are_kept_and_the_same_ones_are_taken_again(tmp_path):
    settings = {"seed": 0, "optim": asdict(OPTIM)}  # betas: a tuple, in JSON a list
    Run(tmp_path, **settings)
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["steps"] == 6
    before = left_by(tmp_path)
    Run(tmp_path, **dict(reversed(settings.items())))
    assert left_by(tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "seed is 0, and 1 is asked for"),
        ({"optim": asdict(replace(OPTIM, lr=0.5))}, "optim.lr is 0.01, and 0.5 is"),
        (
            {"optim": asdict(replace(OPTIM, betas=(0.9, 0.99)))},
            "optim.betas is [0.9, 0",
        ),
        ({"more": "x"}, "more is None, and x is asked for"),
        ({"optim": None}, "optim is {'steps'"),
    ],
)
def test_other_settings_are_refused_and_named(settings, message, tmp_path):
    same = {"seed": 0, "optim": asdict(OPTIM)}
    Run(tmp_path / "r", **same)
    before = left_by(tmp_path)
    with pytest.raises(ValueError) as error:
        Run(tmp_path / "r", **same | settings)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'r' / 'config.json'}: ") and message in text
    assert "Remove the run's folder" in text and "another `out`" in text
    assert len(text.splitlines()) == 1
    assert left_by(tmp_path) == before


def test_a_setting_that_is_gone_is_named_too(tmp_path):
    Run(tmp_path, seed=0, old=1)
    with pytest.raises(ValueError, match="old is 1, and None is asked for"):
        Run(tmp_path, seed=0)


def test_how_much_is_in_memory_at_once_may_change(tmp_path):
    less = asdict(replace(OPTIM, micro_batch=1))
    Run(tmp_path, optim=asdict(OPTIM), method={"ppo": {"micro_batch": 4, "lam": 1}})
    Run(tmp_path, optim=less, method={"ppo": {"micro_batch": 2, "lam": 1}})
    with pytest.raises(ValueError, match="method.ppo.lam is 1, and 0 is asked for"):
        Run(tmp_path, optim=less, method={"ppo": {"micro_batch": 2, "lam": 0}})


@pytest.mark.parametrize("text", ["", "{", '{"seed": 0}{', "[]", "7"])
def test_settings_that_cannot_be_read_are_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: is of a run with other"):
        Run(tmp_path, seed=0)


def test_a_line_of_metrics_a_step(tmp_path):
    run = Run(tmp_path)
    assert run.metrics() == []
    run.log(1, loss=2.5)
    run.log(2, loss=1 / 3, kl=-0.0)
    assert run.metrics_path.read_text().splitlines()[0] == '{"step": 1, "loss": 2.5}'
    assert read_metrics(tmp_path) == run.metrics()
    assert run.metrics()[1] == {"step": 2, "loss": 1 / 3, "kl": 0}  # no digit is lost


STEPS = 2_000_000  # of runs that have not ended


def save(run, step, value=1.0):
    weights = nn.ParameterList([torch.full((2,), float(value))])
    run.save(step, STEPS, {"m": weights}, {})


def resume(run):
    loaded = nn.ParameterList([torch.zeros(2)])
    step, state = run.resume(STEPS, {"m": loaded}, {})
    return step, state, loaded[0].tolist()


@pytest.mark.parametrize(
    "torn", ["", '{"step": 4, "lo', '{"step": 3', "\0\0\0", '{"step": 4}\n{"s']
)
def test_resuming_forgets_the_steps_that_are_done_again(torn, tmp_path):
    """The last line may be torn: the process was killed while it wrote it."""
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.log(step, loss=step / 8)
        if step == 2:
            save(run, step)
    with run.metrics_path.open("a") as file:
        file.write(torn)
    assert resume(Run(tmp_path))[0] == 2
    assert [line["step"] for line in run.metrics()] == [1, 2]
    run.log(3, loss=7.0)
    assert run.metrics()[-1] == {"step": 3, "loss": 7.0}


def test_metrics_of_a_run_without_a_checkpoint_begin_anew(tmp_path):
    run = Run(tmp_path)
    run.log(1, loss=1.0)
    assert resume(Run(tmp_path)) == (0, {}, [0, 0])
    assert run.metrics() == []


def test_what_is_kept_elsewhere_can_be_forgotten(tmp_path):
    run = Run(tmp_path)
    run.log(1, loss=1.0)
    save(run, 1)
    run.forget()
    assert names(tmp_path) == ["config.json", "metrics.jsonl"]
    assert run.metrics() == [{"step": 1, "loss": 1.0}]


def test_only_the_newest_checkpoint_is_kept(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2, 10):
        save(run, step, value=step)
        assert names(tmp_path) == ["config.json", f"step-{step:06d}"]
    assert resume(run) == (10, {}, [10, 10])


def test_newest_is_by_number_and_nothing_else_is_taken_for_a_checkpoint(tmp_path):
    run = Run(tmp_path)
    for step in (999_999, 1_000_000):
        save(run, step, value=step)
        assert run.checkpoints()[-1].name == f"step-{step}"
    (tmp_path / "step-000009 copy").mkdir()
    (tmp_path / "step-best").write_text("mine")
    assert resume(run)[0] == 1_000_000
    assert names(tmp_path)[-3:] == ["step-000009 copy", "step-1000000", "step-best"]


def test_an_older_checkpoint_that_a_kill_left_is_dropped(tmp_path):
    run = Run(tmp_path)
    save(run, 4, value=4)
    left = tmp_path / "step-000002"
    left.mkdir()
    (left / "state.json").write_text("{")  # its removal was cut off
    assert resume(run) == (4, {}, [4, 4])
    assert not left.exists()


def test_state_comes_back(tmp_path):
    run = Run(tmp_path)
    weights = nn.ParameterList([torch.ones(2)])
    run.save(1, STEPS, {"m": weights}, {}, kl_coef=0.1 + 0.2, x="é")
    assert resume(run)[1] == {"kl_coef": 0.1 + 0.2, "x": "é"}


def test_a_run_that_has_ended_keeps_weights_only_and_is_not_made_longer(tmp_path):
    weights = nn.ParameterList([torch.ones(2)])
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    weights[0].grad = torch.ones(2)
    optimizer.step()
    run, learnt = Run(tmp_path), ({"m": weights}, {"o": optimizer})
    run.save(4, 5, *learnt)
    whole = (tmp_path / "step-000004" / "tensors.safetensors").read_bytes()
    assert b'"o/0.exp_avg"' in whole and b'"o/0.exp_avg_sq"' in whole
    run.save(5, 5, *learnt)
    last = (tmp_path / "step-000005" / "tensors.safetensors").read_bytes()
    assert b'"m/0"' in last and b'"o/' not in last
    new = nn.ParameterList([torch.zeros(2)])
    adam = torch.optim.AdamW(new, lr=0.1)
    assert run.resume(5, {"m": new}, {"o": adam}) == (5, {})
    assert torch.equal(new[0], weights[0]) and not adam.state
    zeros = nn.ParameterList([torch.zeros(2)])
    with pytest.raises(ValueError, match="ended, with step 5,.* to step 8. Remove"):
        run.resume(8, {"m": zeros}, {"o": adam})
    assert not zeros[0].any()  # nothing was loaded


def test_a_checkpoint_of_an_older_version_resumes(tmp_path):
    """It did not say whether the run had ended."""
    run = Run(tmp_path)
    save(run, 4, value=4)
    path = tmp_path / "step-000004" / "state.json"
    state = json.loads(path.read_text())
    del state["ended"]
    path.write_text(json.dumps(state))
    assert resume(run) == (4, {}, [4, 4])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stops_the_run_and_names_step_and_checkpoint(
    value, tmp_path
):
    run = Run(tmp_path / "07_sft" / "policy")
    run.check_finite(1, loss=0.0, grad_norm=1e30)
    for kept in ("no checkpoint", "step-000004"):
        with pytest.raises(TrainingError) as error:
            run.check_finite(5, loss=1.0, grad_norm=value)
        text = str(error.value)
        assert text.startswith(
            f"07_sft/policy: grad_norm is {value} at step 5; {kept} "
        )
        assert "learning rate" in text and len(text.splitlines()) == 1
        save(run, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_poisoned_weights_are_not_saved(value, tmp_path):
    run = Run(tmp_path)
    save(run, 2)
    before = left_by(tmp_path)
    with pytest.raises(TrainingError, match="m/0 is no longer finite after step 4"):
        save(run, 4, value)
    assert left_by(tmp_path) == before


def test_progress_counts_on_where_it_was_left(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(
        run_module, "tqdm", lambda **more: tqdm(file=shown, **more | {"mininterval": 0})
    )
    steps = []
    for step, bar in steps_left(3, 6, "07_sft/policy"):
        bar.set_postfix(loss="1.234", refresh=False)
        steps.append(step)
    assert steps == [4, 5, 6]
    text = shown.getvalue()  # stage, step, loss and time left
    assert "07_sft/policy" in text and "5/6 [" in text and "loss=1.234" in text
    assert "<" in text
    assert list(steps_left(6, 6, "x")) == []


def test_progress_without_a_bar_ends(monkeypatch):
    monkeypatch.setattr(
        run_module, "tqdm", lambda **more: tqdm(**more | {"disable": True})
    )
    assert [step for step, _ in steps_left(0, 3, "x")] == [1, 2, 3]


def test_draws_go_on_where_they_were_and_after_another_device_s_alike(tmp_path, capsys):
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    wanted = torch.rand(4, generator=generator)
    run_module.set_state(generator, state)
    assert torch.equal(torch.rand(4, generator=generator), wanted)
    assert capsys.readouterr().out == ""
    drawn = []
    for first in (1, 1, 2):  # a GPU's: seed and offset, 16 bytes
        state = torch.tensor([first] + 15 * [0], dtype=torch.uint8)
        run_module.set_state(generator, state)
        drawn.append(torch.rand(4, generator=generator).tolist())
    assert (
        drawn[0] == drawn[1] != drawn[2] and "another device" in capsys.readouterr().out
    )
