"""The stages' notebooks read inputs of any size, with no cell that says so."""

import jupytext

from minipalm.course import ROOT
from minipalm.data import datasets, lines, shards
from minipalm.train.stage import finished_stage


def test_the_stages_run_on_large_inputs_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "LARGE", 0)
    monkeypatch.setattr(lines, "BLOCK", 200_000)
    monkeypatch.setattr(shards, "PART", 150_000)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(ROOT)
    for lesson, files_given in (
        ("06_palm", {}),
        ("07_sft", {}),
        ("08_reward_model", {"preferences": "data/preferences.jsonl"}),
    ):
        names = {"__name__": "__main__"}
        given = {"scale": "smoke", "out": str(tmp_path)} | files_given
        for cell in jupytext.read(f"lessons/{lesson}.py", fmt="py:percent").cells:
            tags = cell.metadata.get("tags", [])
            if cell.cell_type == "code" and "classroom" not in tags:
                exec(compile(cell.source, lesson, "exec"), names)
                names |= given if "parameters" in tags else {}
        assert finished_stage(tmp_path, lesson)
    made = {path.parent.name for path in tmp_path.rglob("*.bin")}
    assert made == {"tokens", "rows", "pairs"}
