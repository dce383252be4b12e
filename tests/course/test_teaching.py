"""The teacher's guide: its minutes add up, and its lists say each mistake once."""

import json
import re

import pytest

from minipalm.course import ROOT
from minipalm.course.documents import GUIDE, lessons, plan
from minipalm.course.exercise import exercises, of_lesson

ALL = lessons()
LESSONS = [pytest.param(one, id=one.name) for one in ALL]
TEACHING = (ROOT / "docs" / "teaching.md").read_text("utf-8")
MINUTES = {one.id: one.minutes for one in exercises().values()}


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_parts_of_a_plan_add_up_to_what_the_lesson_takes(lesson):
    parts = plan(lesson.name)
    assert sum(part.minutes for part in parts) == lesson.minutes
    assert f"\n{lesson.minutes} minutes, {lesson.exercises} exercise" in TEACHING
    assert lesson.minutes == pytest.approx(lesson.estimate, abs=3)


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_part_has_time_for_its_exercises(lesson):
    for part in plan(lesson.name):
        assert sum(MINUTES[one] for one in part.exercises) <= part.minutes, part


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_plan_has_every_exercise_of_the_class_once_and_in_order(lesson):
    planned = [one for part in plan(lesson.name) for one in part.exercises]
    asked = list(of_lesson(lesson.name))
    assert planned == [one.id for one in asked if not one.at_home]
    page = (GUIDE / f"{lesson.name}.md").read_text("utf-8")
    assert all(one.id in page for one in asked if one.at_home)


def test_the_sessions_have_every_lesson_and_fit_into_two_hours():
    guide = (GUIDE / "guide.md").read_text("utf-8")
    rows = re.findall(r"^\| \d+ \| ([\d, ]+) \|([\d., ]*)\|$", guide, re.MULTILINE)
    assert f"for {len(rows)} sessions" in guide
    takes = {one.name[:2]: one.minutes for one in ALL}
    assert [name for names, _ in rows for name in names.split(", ")] == list(takes)
    for names, home in rows:
        saved = sum(MINUTES[one] for one in re.findall(r"\d+\.\d+", home))
        assert sum(takes[name] for name in names.split(", ")) - saved <= 120, names
    assert max(takes.values()) <= 75 and f"for {len(takes)} sessions" in guide


def test_a_mistake_is_listed_once_whatever_else_was_forgotten():
    """The checks tell it from the same with a slip besides; a list need not."""
    lines = {line[2:] for line in TEACHING.split("\n")}
    for exercise in exercises().values():
        listed = [one.sentence for one in exercise.traps if not one.variant]
        assert not [
            (one, other)
            for one in listed
            for other in listed
            if other.startswith(f"{one} And ")
        ]
        assert set(listed) <= lines


def test_what_the_page_of_lesson_15_says_of_memory_was_measured():
    path = ROOT / "data" / "results" / "full_methods.json"
    methods = json.loads(path.read_text("utf-8"))["methods"]
    page = " ".join((GUIDE / "15_offline.md").read_text("utf-8").split())
    ppo, offline, rloo, dpo = (
        f"{methods[name]['memory']:.1f}" for name in ("ppo", "offline", "rloo", "dpo")
    )
    assert f"take {ppo} and {offline} GiB, RLOO {rloo}, DPO {dpo}." in page
