"""The comparison of methods: what is counted, kept and shown."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from minipalm.config import PRESETS, TOY, MethodsConfig, get_preset, methods_like
from minipalm.course import methods
from minipalm.course.methods import (
    ANSWERS,
    DPO,
    GRPO,
    OFFLINE,
    PPO,
    RLOO,
    read_results,
    rounded,
    settings,
    table,
)
from minipalm.rlhf.dpo import pairs_of_log
from minipalm.rlhf.log import Log


def test_every_method_has_the_same_number_of_answers():
    assert ANSWERS == 8192
    for config in (PPO, RLOO, GRPO):
        assert config.iterations * config.batch_size == ANSWERS
    log = OFFLINE.ppo  # whole passes over the log, and no answers of its own
    assert log.iterations * log.batch_size % ANSWERS == 0
    pairs = ANSWERS // 2
    assert DPO.optim.steps * DPO.optim.batch_size % pairs == 0
    assert ANSWERS % methods.BEST_OF == 0


def test_ppo_is_the_pipelines_own():
    assert PPO == TOY.ppo


@pytest.mark.parametrize("scale", PRESETS)
def test_all_have_ppos_budget_at_every_scale(scale):
    ppo, methods = PRESETS[scale].ppo, PRESETS[scale].methods
    assert methods.answers == ppo.iterations * ppo.batch_size
    for config in (methods.offline.ppo, methods.rloo, methods.grpo):
        assert config.iterations * config.batch_size == methods.answers
        assert config.micro_batch == ppo.micro_batch
        assert config.reuse_logprobs == ppo.reuse_logprobs
    optim = methods.dpo.optim
    assert optim.steps * optim.batch_size % (methods.answers // 2) == 0
    assert 2 * optim.micro_batch == ppo.micro_batch  # rows through a network at a time


def test_all_take_ppos_dials():
    """Every field that both have, whatever it is."""
    numbers = {"clip": 0.3, "warmup": 0.1, "final_lr": 0.4, "grad_clip": 2.0}
    more = {"missing_eos_penalty": 3.0, "temperature": 0.7, "adam_eps": 1e-3}
    ppo = replace(PPO, **numbers, **more, micro_batch=6, reuse_logprobs=False)
    found = methods_like(ppo)
    ours = asdict(ppo)
    for group in (asdict(found.rloo), asdict(found.grpo)):
        shared = set(group) & set(ours)
        assert len(shared) >= 13
        assert {name: group[name] for name in shared} == {n: ours[n] for n in shared}
        assert group["lr"] == ppo.policy_lr and group["kl_coef"] == ppo.kl_coefs[0]
    optim = asdict(found.dpo.optim)
    for name in ("warmup", "final_lr", "grad_clip"):
        assert optim[name] == ours[name]
    assert replace(found.offline.ppo, policy_lr=ppo.policy_lr) == ppo
    assert found.offline.ppo.policy_lr == ppo.policy_lr / 3


@pytest.mark.parametrize("scale", PRESETS)
def test_few_updates_are_as_large_as_many_and_have_a_log_to_learn_from(scale):
    whole, few = PRESETS[scale].methods, get_preset(f"{scale}:3").methods
    assert few.offline.ppo.iterations == few.rloo.iterations == few.grpo.iterations == 3
    assert few.dpo.optim.steps == 3
    assert few.answers == 3 * max(whole.rloo.batch_size, 2 * whole.dpo.optim.batch_size)
    assert few.rloo == replace(whole.rloo, iterations=3)
    assert few.dpo.optim == replace(whole.dpo.optim, steps=3)


def test_a_log_has_two_answers_to_a_prompt():
    with pytest.raises(ValueError, match="two answers to each prompt .got 7"):
        MethodsConfig(7, OFFLINE, 0.1, DPO, RLOO, GRPO, 4)


def a_log(scores):
    n = len(scores)
    ids = torch.arange(n)[:, None]
    kept = torch.ones(n, 1, dtype=torch.bool)
    prompts = ids // 2 * 2
    return Log(prompts, kept, ids, kept, torch.zeros(n, 1), torch.tensor(scores))


def test_two_answers_make_a_pair_with_the_better_one_first():
    pairs = pairs_of_log(a_log([1.0, 2.0, 5.0, 3.0]))
    assert pairs.chosen.flatten().tolist() == [1, 2]
    assert pairs.rejected.flatten().tolist() == [0, 3]
    assert pairs.prompts.flatten().tolist() == [0, 2]


def test_equal_scores_make_no_pair():
    pairs = pairs_of_log(a_log([1.0, 1.0, 5.0, 3.0]))
    assert pairs.chosen.flatten().tolist() == [2]


def some_results():
    row = {name: 1.0 for name in methods.COLUMNS}
    seeds = {
        str(seed): {"methods": {"sft": row, "ppo": row | {"gold": gold}}}
        for seed, gold in ((1, 8.0), (2, 9.0))
    }
    return {"settings": json.loads(json.dumps(settings())), "seeds": seeds}


def test_the_table_shows_the_spread_over_seeds():
    head, sft, ppo = table(some_results()).splitlines()
    assert head.split() == list(methods.COLUMNS)
    assert ppo.startswith("ppo") and "8.50 ± 0.71" in ppo
    assert "1.00 ± 0.00" in sft


def test_results_of_other_settings_are_not_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "methods.json"
    assert read_results(path)["seeds"] == {}
    path.write_text(json.dumps(some_results()))
    assert set(read_results(path)["seeds"]) == {"1", "2"}
    monkeypatch.setattr(methods, "DPO", replace(DPO, beta=9.0))
    assert read_results(path)["seeds"] == {}
    path.write_text("{")
    assert read_results(path)["seeds"] == {}


def test_a_seed_that_is_there_is_not_run_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "methods.json"
    path.write_text(json.dumps(some_results()))
    ran = []

    def run_seed(seed, out):
        ran.append(seed)
        return {"methods": some_results()["seeds"]["1"]["methods"]}

    monkeypatch.setattr(methods, "run_seed", run_seed)
    methods.main(["--seeds", "1", "2", "3", "--results", str(path)])
    assert ran == [3]
    assert set(json.loads(path.read_text())["seeds"]) == {"1", "2", "3"}
    assert "ppo" in capsys.readouterr().out


def test_numbers_are_kept_with_five_digits():
    assert rounded({"a": [1.23456789, 2], "b": 1e-9 / 3}) == {
        "a": [1.2346, 2],
        "b": 3.3333e-10,
    }
