"""The table says what was measured, missed goals included."""

import pytest

from bench import __main__ as command
from bench import environment
from bench.race import Result
from bench.races import RACES, Race
from bench.table import BEGIN, END, place, render, seconds


def outcome(goal, theirs):
    return Race("a task", "a peer", goal, lambda: None), Result([1.0], [theirs], 10, 11)


def test_a_met_and_a_missed_goal_look_different():
    lines = render([outcome(1.5, 2.0), outcome(1.5, 1.2)]).splitlines()
    assert len(lines) == 4
    assert "**2.00** (2.00–2.00) | 1.5  | yes" in lines[2]
    assert "**1.20** (1.20–1.20) | 1.5  | **no**" in lines[3]
    assert "11 / 10" in lines[2]


def test_all_lines_of_the_table_are_of_one_width():
    lines = render([outcome(12, 20.0), outcome(1.15, 1.2)]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_seconds_have_three_digits():
    assert [seconds(x) for x in (0.01234, 1.2345, 63.44, 634.4)] == [
        "0.0123",
        "1.23",
        "63.4",
        "634",
    ]


def test_the_new_table_replaces_the_old_one_and_nothing_else():
    readme = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    once = place("new", readme)
    assert once == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    assert place("new", once) == once


def test_a_readme_without_the_marks_is_named():
    with pytest.raises(ValueError, match="bench/README.md needs the lines"):
        place("new", f"{BEGIN} only")


def test_the_readme_has_the_marks():
    assert "new" in place("new", command.README.read_text("utf-8"))


def test_every_peer_is_named_with_its_pinned_version():
    pins = {f"{name} {version}" for name, version in environment.pinned().items()}
    for race in RACES.values():
        assert race.peer.split(",")[0] in pins


def test_an_unknown_race_is_refused_with_the_right_names(capsys):
    with pytest.raises(SystemExit):
        command.arguments(["sft-tlr"])
    assert "there is no race 'sft-tlr'; there are train-palm" in capsys.readouterr().err


def test_both_ways_of_installing_install_the_same():
    for commands in (
        environment.install_commands("uv"),
        environment.install_commands(None),
    ):
        assert str(environment.REQUIREMENTS) in commands[-1]
        assert commands[-1][-2:] == ["-e", str(environment.ROOT)]
        assert all(str(environment.VENV) in " ".join(command) for command in commands)
