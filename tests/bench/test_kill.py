"""How far two runs of PPO are apart (tests/setup/test_full.py kills real ones)."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bench import kill


def ppo(folder, loss, weight):
    stage = folder / kill.PPO
    (stage / "beta-0.1").mkdir(parents=True)
    lines = [
        {"step": 1, "loss": 0.5, "seconds/update": loss},
        {"step": 2, "loss": loss},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (stage / "beta-0.1" / "metrics.jsonl").write_text(text, "utf-8")
    (stage / "result").mkdir()
    tensors = {"a": torch.ones(2), "b": torch.tensor([weight, 3.0])}
    save_file(tensors, stage / "result" / "tensors.safetensors")
    return folder


def test_runs_of_different_lengths_are_not_compared(tmp_path):
    one, other = ppo(tmp_path / "one", 0.25, 2.0), ppo(tmp_path / "other", 0.25, 2.0)
    path = other / kill.PPO / "beta-0.1" / "metrics.jsonl"
    path.write_text(path.read_text("utf-8").splitlines()[0], "utf-8")
    with pytest.raises(SystemExit, match="got 2 and 1"):
        kill.compare(one, other)


def test_equal_runs(tmp_path, capsys):
    one, other = ppo(tmp_path / "one", 0.25, 2.0), ppo(tmp_path / "other", 0.25, 2.0)
    kill.compare(one, other)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "iterations: 2 and 2, equal in every metric: 2",
        "weights: 2 of 2 tensors equal bit for bit",
        "largest difference 0, largest weight 3",
    ]


def test_different_runs(tmp_path, capsys):
    one, other = ppo(tmp_path / "one", 0.25, 2.0), ppo(tmp_path / "other", 0.75, 2.5)
    kill.compare(one, other)  # times may differ, and are not compared
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "iterations: 2 and 2, equal in every metric: 1",
        "weights: 1 of 2 tensors equal bit for bit",
        "largest difference 0.5, largest weight 3",
    ]
