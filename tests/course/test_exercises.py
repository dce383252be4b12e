"""The checks are proved: what is wrong is rejected and named, what is right passes."""

import pytest

from minipalm.course.exercise import exercises
from minipalm.course.judge import expected_of, judge, trap_outcome
from minipalm.course.mutants import alive

EVERY = [pytest.param(one, id=one.id) for one in exercises().values()]
SEEDS = range(5)


@pytest.mark.parametrize("exercise", EVERY)
def test_the_packaged_answer_passes(exercise):
    for seed in SEEDS:
        verdict = judge(exercise, exercise.answer, seed)
        assert verdict.status == "ok", verdict.message


@pytest.mark.parametrize("exercise", EVERY)
def test_every_twin_passes(exercise):
    assert len(exercise.twins) >= 2
    for number, twin in enumerate(exercise.twins):
        for seed in SEEDS:
            verdict = judge(exercise, twin.candidate(exercise.answer), seed)
            assert verdict.status == "ok", f"twin {number}: {verdict.message}"


@pytest.mark.parametrize("exercise", EVERY)
def test_every_trap_is_rejected_and_named_on_every_seed(exercise):
    assert len(exercise.traps) >= 5
    for number, trap in enumerate(exercise.traps):
        for seed in SEEDS:
            verdict = judge(exercise, trap.candidate(exercise.answer), seed)
            assert verdict.status == "not yet", f"trap {number} passes"
            assert verdict.message == trap.sentence, f"trap {number}, seed {seed}"


@pytest.mark.parametrize("exercise", EVERY)
def test_no_trap_is_a_slip_of_ours(exercise):
    """A trap that calls what is not there would name every learner's typing error."""
    for number in range(len(exercise.traps)):
        for case in range(len(expected_of(exercise.id, 0))):
            error = trap_outcome(exercise.id, 0, number, case).error
            assert not isinstance(error, NameError), f"trap {number}: {error}"


@pytest.mark.parametrize("exercise", EVERY)
def test_no_mutant_lives_without_a_reason(exercise):
    living, _ = alive(exercise)
    names = {mutant.name for mutant in living}
    assert names == set(exercise.equivalent), "living and explained mutants differ"
    assert all(exercise.equivalent.values())


@pytest.mark.parametrize("exercise", EVERY)
def test_the_header_is_complete(exercise):
    assert 1 <= exercise.difficulty <= 5 and 1 <= exercise.importance <= 5
    assert 1 <= exercise.minutes <= 45
    assert all((exercise.why, exercise.bonus, *exercise.hints))
    sentences = [trap.sentence for trap in exercise.traps]
    assert len(set(sentences)) == len(sentences)
    assert all(20 <= len(one) <= 240 for one in sentences), max(map(len, sentences))


def test_ids_follow_each_other_in_every_lesson():
    ids = [one.id for one in exercises().values()]
    assert len(set(ids)) == len(ids)
    for lesson in {one.lesson for one in exercises().values()}:
        mine = [one.id for one in exercises().values() if one.lesson == lesson]
        assert mine == [f"{int(lesson)}.{n}" for n in range(1, len(mine) + 1)]
