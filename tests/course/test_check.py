"""check() survives whatever a learner writes, and says what is wrong."""

import builtins
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F

from minipalm.course import check as front
from minipalm.course import judge as judging
from minipalm.course.exercise import Case, Exercise, Trap, Twin, exercises
from minipalm.course.guard import TimeUp, within
from minipalm.course.judge import difference, judge
from minipalm.rlhf.gae import gae, whiten

ID = exercises()["whiten"].id


@pytest.fixture
def said(capsys):
    """Check a candidate under the name of an exercise: what came back, and the line."""

    def checked(candidate, name="whiten"):
        scope = {name: candidate, "check": front.check}
        capsys.readouterr()
        exec(f"result = check({name})", scope)
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 84  # a page's width
        return scope["result"], printed.replace("\n    ", " ")

    return checked


def right(x, mask, shift_mean=True):
    chosen = x[mask]
    sd = chosen.std(correction=0)
    sd = sd if sd > 1e-6 else 1.0
    return torch.where(mask, (x - chosen.mean() * shift_mean) / sd, 0.0)


def test_a_right_answer_is_ok_and_comes_back(said):
    result, line = said(right)
    assert result is right
    assert line == f"{ID} whiten: ok\n"


def test_an_untouched_stub_is_todo_and_the_packaged_one_goes_on(said):
    def stub(x, mask, shift_mean=True):
        raise NotImplementedError

    result, line = said(stub)
    assert result is whiten
    assert line.startswith(f"{ID} whiten: todo")
    assert "the package's whiten is used" in line


def test_the_packaged_one_put_there_by_a_check_is_not_taken_for_the_learners(said):
    result, line = said(whiten)
    assert result is whiten and "todo: run your cell again" in line


def test_a_trap_is_named_and_any_other_mistake_shown_with_its_place(said):
    result, line = said(lambda x, mask, shift_mean=True: right(x, mask, True))
    assert result is whiten
    assert "shift_mean=False must leave the mean where it is" in line
    _, line = said(lambda x, mask, shift_mean=True: 1.25 * right(x, mask, shift_mean))
    assert re.search(
        r"expected -1\.3416 at \[0, 0\], got -1\.677\d* \(the example", line
    )


def endless(x, mask, shift_mean=True):
    while True:
        try:
            while True:
                pass
        except:  # noqa: E722
            pass


def sleeping(x, mask, shift_mean=True):
    time.sleep(1000)


def deep(x, mask, shift_mean=True):
    return deep(x, mask, shift_mean)


def leaving(x, mask, shift_mean=True):
    sys.exit(3)


def interrupted(x, mask, shift_mean=True):
    raise KeyboardInterrupt


def strange(x, mask, shift_mean=True):
    class Odd:
        def __eq__(self, other):
            raise RuntimeError("no comparing")

        def __repr__(self):
            raise RuntimeError("no showing")

    return Odd()


def exotic(x, mask, shift_mean=True):
    raise type("Mine", (BaseException,), {"__str__": lambda self: 1 / 0})


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (endless, "does a loop never end?"),
        (sleeping, "does a loop never end?"),
        (deep, "RecursionError"),
        (leaving, "SystemExit"),
        (interrupted, "KeyboardInterrupt"),
        (strange, "expected a tensor, got a Odd"),
        (exotic, "Mine"),
        (lambda x, mask, shift_mean=True: None, "got nothing (None)"),
        (lambda x, mask, shift_mean=True: right(x, mask).double(), "torch.float64"),
        (lambda x, mask, shift_mean=True: right(x, mask)[0], "expected the shape"),
        (lambda x, mask, shift_mean=True: 1 / 0, "ZeroDivisionError in line "),
        (lambda x: x, "TypeError"),
        (lambda x, mask, shift_mean=True: x.nope, "AttributeError"),
        (lambda x, mask, shift_mean=True: [1, 2], "expected a tensor, got a list"),
        (3, "TypeError"),
        (None, "TypeError"),
    ],
)
def test_it_survives(said, monkeypatch, candidate, message):
    monkeypatch.setattr(judging, "SECONDS", 0.3)
    monkeypatch.setattr(judge, "__defaults__", (0, 0.3))
    result, line = said(candidate)
    assert result is whiten
    assert line.startswith(f"{ID} whiten: not yet: ") and line.count("\n") == 1
    assert message in line


def test_it_survives_a_change_of_the_inputs(said):
    def in_place(x, mask, shift_mean=True):
        result = right(x, mask, shift_mean)
        x += 1
        return result

    result, line = said(in_place)
    assert result is whiten and "it changes its argument x" in line


def test_what_the_learner_prints_does_not_hide_the_verdict(said):
    def loud(x, mask, shift_mean=True):
        print(f"{ID} whiten: ok")
        print(f"{ID} whiten: ok", file=sys.stderr)
        return x

    _, line = said(loud)
    assert line.startswith(f"{ID} whiten: not yet") and line.count("\n") == 1


def test_a_library_that_is_replaced_inside_comes_back_and_is_named(said):
    original = torch.where

    def patching(x, mask, shift_mean=True):
        torch.where = lambda *args: x
        return right(x, mask, shift_mean)

    _, line = said(patching)
    assert torch.where is original
    assert "it replaces torch.where" in line


@pytest.mark.parametrize(
    ("library", "name"),
    [(torch, "isclose"), (F, "softmax"), (torch.Tensor, "tolist"), (builtins, "sum")],
)
def test_a_library_that_was_replaced_before_does_not_fool_it(said, library, name):
    original = getattr(library, name)
    setattr(library, name, lambda *args, **kwargs: True)
    try:
        assert "not yet" in said(lambda x, mask, shift_mean=True: x)[1]
        assert getattr(library, name) is original
    finally:
        setattr(library, name, original)


def test_switches_and_random_states_are_as_before(said):
    before = torch.get_rng_state()

    def switching(x, mask, shift_mean=True):
        torch.manual_seed(99)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return right(x, mask, shift_mean)

    said(switching)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_a_name_that_is_no_exercise_gives_the_thing_back(said):
    result, line = said(right, name="my_whiten")
    assert result is right and "keep the name of the stub" in line


def test_a_function_under_another_name_is_known_by_the_variable(said):
    result, line = said(lambda *args, **kwargs: right(*args, **kwargs))
    assert line == f"{ID} whiten: ok\n" and result is not whiten


def test_the_board_counts_what_is_right(said, capsys, monkeypatch):
    monkeypatch.setattr(front, "board", {})
    front.progress()
    assert "no exercise checked yet" in capsys.readouterr().out
    said(right)
    said(lambda *args, **kwargs: None, name="gae")
    front.progress()
    shown = capsys.readouterr().out
    assert re.search(rf"^● {re.escape(ID)} .* ok$", shown, re.M)
    assert re.search(r"^◐ 10\.\d .*gae.* not yet$", shown, re.M)
    assert re.search(r"^1 of \d+ right$", shown, re.M)


# --- the parts ----------------------------------------------------------------------


def plain():
    while True:
        pass


@pytest.mark.parametrize("in_thread", [False, True])
def test_time_is_up_again_and_again_but_never_outside(in_thread):
    outcome = []

    def attempt():
        try:
            within(0.1, lambda: plain() if in_thread else endless(0, 0))
        except TimeUp:
            outcome.append("up")
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:  # a late bell would ring here
            pass
        outcome.append("alive")

    if in_thread:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join(20)
    else:
        attempt()
    assert outcome == ["up", "alive"]


def test_a_call_that_ends_in_time_gives_its_value():
    assert within(5.0, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 / 0)


ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        (ONE, ONE + 1e-6, ""),
        (ONE, ONE + 0.1, "expected 1 at [0], got 1.1"),
        (ONE, torch.tensor([1.0, float("nan")]), "expected 1 at [1], got nan"),
        (ONE * float("nan"), ONE * float("nan"), ""),
        (ONE, ONE.double(), "expected the type torch.float32, got torch.float64"),
        (ONE, ONE.clone().requires_grad_(), "the result should carry no gradient"),
        (ONE.clone().requires_grad_(), ONE, "the result should carry a gradient"),
        (ONE, [1.0, 1.0], "expected a tensor, got a list"),
        (ONE, None, "expected a tensor, got nothing (None)"),
        ((ONE, 2), (ONE, 2), ""),
        ((ONE, 2), (ONE,), "expected 2 items, got 1"),
        ((ONE, 2), [ONE, 2], "expected a tuple, got a list"),
        ([1, 2], [1, 3], "expected 2 in item 1, got 3"),
        ({"a": 1.0}, {"a": 1.5}, "expected 1 in 'a', got 1.5"),
        ({"a": 1}, {"b": 1}, "expected the keys ['a'], got ['b']"),
        (0.25, 0.25 + 1e-7, ""),
        (3, 3.0, "expected the int 3, got the float 3.0"),
        (100_000, 100_001, "expected 100000, got 100001"),
        (3.0, 3, ""),
        (True, 1, "expected True, got 1"),
        ("ab", "ac", "expected 'ab', got 'ac'"),
        (0.5, torch.tensor(0.5), "expected 0.5, got a Tensor"),
    ],
)
def test_differences_are_found_and_worded(expected, got, words):
    found = difference(expected, got, "")
    assert found.startswith(words) if words else found == ""


def wrong_gradient(x):
    return x.detach() ** 2 + 0 * x


def test_a_wrong_gradient_under_a_right_value_is_seen(monkeypatch):
    exercise = Exercise(
        id="99.1", answer=gae, why="", difficulty=1, importance=1, minutes=1,
        hints=("", "", ""), bonus="",
        cases=lambda seed: [Case("one", torch.ones(3, requires_grad=True))],
        oracle=lambda x: x**2,
        traps=(Trap("lost", lambda x: x.detach() ** 2),), twins=(Twin(torch.square),),
    )  # fmt: skip
    monkeypatch.setitem(exercises(), "nothing", exercise)
    judging.expected_of.cache_clear()
    judging.trap_outcome.cache_clear()
    assert judge(exercise, torch.square).status == "ok"
    verdict = judge(exercise, wrong_gradient)
    assert "its gradient is not" in verdict.message
    assert judge(exercise, lambda x: x.detach() ** 2).message == "lost"
    judging.expected_of.cache_clear()
    judging.trap_outcome.cache_clear()


def test_a_verdict_is_the_same_in_a_fresh_process():
    code = (
        "from minipalm.course.check import check\n"
        "def whiten(x, mask, shift_mean=True):\n    return x * 2\n"
        "whiten = check(whiten)"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = {
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    }
    assert len(lines) == 1 and f"{ID} whiten: not yet: expected" in lines.pop()


def test_a_mistake_is_named_whatever_words_a_refusal_has_or_without_any(said):
    """rotations must refuse an odd width; the mistake is another one."""

    def angles(positions, head_dim, base):
        exponents = torch.arange(head_dim // 2) / head_dim  # not 2i/K
        turned = positions[:, None, :, None] * base**-exponents
        return turned.cos(), turned.sin()

    def refusing(positions, head_dim, base=10_000.0):
        if head_dim % 2:
            raise ValueError("my own words")
        return angles(positions, head_dim, base)

    def unrefusing(positions, head_dim, base=10_000.0):
        return angles(positions, head_dim, base)

    for candidate in (refusing, unrefusing):
        assert "exponent is 2i/K" in said(candidate, name="rotations")[1]


RECURSIVE = type("R", (), {"__getattr__": lambda self, name: getattr(self, name)})


@pytest.mark.parametrize(
    "candidate",
    [
        lambda x, mask, shift_mean=True: torch.sparse_coo_tensor(size=x.shape),
        lambda x, mask, shift_mean=True: torch.empty(x.shape, device="meta"),
        lambda x, mask, shift_mean=True: 10**5000,
        lambda x, mask, shift_mean=True: type("S", (str,), {"__repr__": lambda s: 1})(),
        lambda x, mask, shift_mean=True: RECURSIVE(),
    ],
)
def test_a_result_that_cannot_be_looked_at_is_not_yet(said, candidate):
    assert "not yet" in said(candidate)[1]


def test_a_type_that_torch_does_not_support_is_not_taken_for_a_stub(said):
    def wrong_type(gate, up):
        return F.silu(gate > 0) * up

    _, line = said(wrong_type, name="swiglu")
    assert "not yet: it raises NotImplementedError" in line


def test_an_answer_that_remembers_what_it_has_seen_is_not_right(said):
    known = {}

    def remembering(positions, head_dim, base=10_000.0):
        from minipalm.model.rope import rotations

        key = positions.shape, head_dim, base
        if key not in known:
            known[key] = rotations(positions, head_dim, base)
        return known[key]

    assert "not yet" in said(remembering, name="rotations")[1]


@pytest.mark.parametrize("when", ["before", "inside"])
def test_the_default_type_and_device_do_not_matter(said, when):
    def set_both():
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")

    def candidate(x, mask, shift_mean=True):
        if when == "inside":
            set_both()
        return right(x, mask, shift_mean)

    judging.expected_of.cache_clear()
    try:
        if when == "before":
            set_both()
        _, line = said(candidate)
        if when == "before":
            assert line == f"{ID} whiten: ok\n"
            assert torch.get_default_dtype() == torch.float64  # as the lesson had it
        else:
            assert torch.get_default_device().type == "cpu"
            assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert said(right)[1] == f"{ID} whiten: ok\n"


def test_switches_are_put_back(said):
    import gc
    import random

    random.seed(1)
    drawn, depth = random.getstate(), sys.getrecursionlimit()

    def switching(x, mask, shift_mean=True):
        gc.disable()
        random.seed(2)
        sys.setrecursionlimit(depth + 7)
        torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(True)
        return right(x, mask, shift_mean)

    said(switching)
    assert gc.isenabled() and sys.getrecursionlimit() == depth
    assert random.getstate() == drawn
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_anomaly_enabled()


def test_an_alarm_and_a_trace_of_somebody_else_go_on():
    import signal

    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    trace = sys.gettrace()
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    try:
        with pytest.raises(TimeUp):
            within(0.1, lambda: endless(0, 0))
        assert sys.gettrace() is trace
        deadline = time.monotonic() + 2
        while not rang and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rang
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_whole_numbers_in_tensors_are_compared_exactly():
    one = torch.tensor([100_000])
    assert difference(one, one + 5, "") == "expected 100000 at [0], got 100005"
    phase = torch.tensor([1 + 2j])
    assert difference(phase, phase.conj(), "") != ""


def test_numpys_numbers_count_as_numbers():
    import numpy as np

    assert difference(0.5, np.float64(0.5), "") == difference(3, np.int64(3), "") == ""


def test_a_kind_of_the_error_that_is_asked_for_is_right(said):
    class TooOdd(ValueError):
        pass

    def refusing(error):
        def candidate(positions, head_dim, base=10_000.0):
            if head_dim % 2:
                raise error
            from minipalm.model.rope import rotations

            return rotations(positions, head_dim, base)

        return said(candidate, name="rotations")[1]

    assert refusing(TooOdd("odd")).endswith("rotations: ok\n")
    line = refusing(AssertionError("odd"))
    assert "it should raise ValueError, not AssertionError" in line


def test_the_board_is_of_the_lesson_checked_last(said, capsys, monkeypatch):
    monkeypatch.setattr(front, "board", {})
    said(right)
    said(lambda gate, up: 0, name="swiglu")
    said(right)
    front.progress()
    assert f"● {ID}" in capsys.readouterr().out


def test_the_line_of_a_decorated_answer_is_its_own(said):
    @torch.no_grad()
    def broken(x, mask, shift_mean=True):
        return x.nope

    line = broken.__wrapped__.__code__.co_firstlineno + 2
    assert f"in line {line} of the cell" in said(broken)[1]
