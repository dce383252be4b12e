"""The README says what the seeds have shown, and the shown meets the bars."""

import json

import pytest

from minipalm.course import ROOT
from minipalm.course.results import BEGIN, END, bars, readme_table, update_readme
from minipalm.course.seeds import PICTURE, RESULTS


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text("utf-8"))


def test_the_readme_has_the_table_of_the_shipped_results(results):
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"{BEGIN}\n{readme_table(results)}\n{END}" in text


def test_five_seeds_meet_every_bar(results):
    assert len(results["seeds"]) == 5
    assert [text for text, met, _ in bars(results) if not met] == []


def test_a_bar_that_is_missed_is_said(results):
    worse = json.loads(json.dumps(results))
    worse["numbers"]["prompts.seen.gain_sd"]["values"][2] = 0.4
    missed = [text for text, met, _ in bars(worse) if not met]
    assert missed == ["and >= 0.5 on every seed"]


def test_only_what_is_between_the_marks_changes(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nstale \\1\n{END}\nafter\n", "utf-8")
    update_readme(readme, results)
    text = readme.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}\nMean") and text.endswith(
        f"{END}\nafter\n"
    )
    assert "stale" not in text


def test_the_picture_is_small():
    assert 5_000 < PICTURE.stat().st_size < 100_000
