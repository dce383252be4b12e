"""TensorBoard's event files: what is in them, and that they follow the run."""

import json
import threading
from importlib.util import find_spec

import pytest

from minipalm.train import events
from minipalm.train.progress import Training, read_progress

ROWS = [
    {"step": n, "loss": 3 / n, "seconds": 10.0, "tokens_per_second": 24e3, "ranks": 2}
    for n in range(1, 6)
]


class Writer:
    """In place of TensorBoard's: keeps what it was given."""

    def __init__(self, folder):
        self.seen = []

    def add_scalar(self, name, value, step, when):
        self.seen.append((name, step, value, when))

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A training with no event file of TensorBoard's own."""
    folder = tmp_path / "07_sft" / "policy"
    folder.mkdir(parents=True)
    (tmp_path / "07_sft" / "stage.json").write_text('{"scale": "full", "seed": 0}')
    (tmp_path / "machine.json").write_text('{"ranks": 2, "gpu": "NVIDIA H200"}')
    return tmp_path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder, text):
    new = folder / "new"
    new.write_text(text)
    new.replace(folder / "metrics.jsonl")  # as Run does when it resumes


@pytest.fixture
def written(run, monkeypatch):
    """A training's events with our writer, and its folder."""
    folder = run / "07_sft" / "policy"
    found = events.Events(folder)

    def begin(inode):
        found.writer, found.inode, found.offset = Writer(folder), inode, 0

    monkeypatch.setattr(found, "begin", begin)
    return found, folder, Training("07_sft/policy", 1000)


def steps(found):
    return [step for name, step, _, _ in found.writer.seen if name == "loss"]


def test_lines_are_taken_once_and_only_when_they_are_whole(written):
    found, folder, training = written
    path = folder / "metrics.jsonl"
    found.update(training)  # no file yet
    path.write_text(lines(ROWS[:2]) + '{"step": 3, "lo')
    found.update(training)
    found.update(training)
    assert steps(found) == [1, 2]
    path.write_text(lines(ROWS))
    found.update(training)
    assert steps(found) == [1, 2, 3, 4, 5]


def test_a_run_that_was_set_back_begins_anew(written):
    found, folder, training = written
    (folder / "metrics.jsonl").write_text(lines(ROWS))
    found.update(training)
    write(folder, lines(ROWS[:2]))  # resumed from step 2, and at 5 again before we look
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(lines(ROWS[2:]))
    found.update(training)
    assert steps(found) == [1, 2, 3, 4, 5]


def test_what_follows_from_a_row_is_shown_beside_it(run):
    (run / "07_sft" / "policy" / "metrics.jsonl").write_text(lines(ROWS))
    (training,) = read_progress(run).trainings
    shown = events.scalars(training.rows[-1], training)
    assert shown["progress"] == 0.005
    assert shown["hours_left"] == pytest.approx(995 * 10 / 3600)
    assert shown["share_of_ceiling"] == pytest.approx(0.73, abs=0.02)
    assert "step" not in shown and shown["loss"] == 0.6


def test_rows_have_the_time_at_which_they_were_logged():
    assert events.times(ROWS[:3], 1000.0) == [980.0, 990.0, 1000.0]


def test_without_tensorboard_a_run_goes_on_as_ever(run, monkeypatch, capsys):
    before = threading.active_count()  # tqdm may have one
    monkeypatch.setattr(events, "find_spec", lambda name: None)
    with events.following(run):
        pass
    assert threading.active_count() == before
    assert events.main([str(run)]) == 2
    assert 'pip install -e ".[full]"' in capsys.readouterr().err


@pytest.mark.skipif(not find_spec("tensorboard"), reason="needs tensorboard")
def test_tensorboard_reads_what_was_written_and_only_the_newest(run, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    folder = run / "07_sft" / "policy"
    write(folder, lines(ROWS))
    assert events.main([str(run)]) == 0
    write(folder, lines(ROWS[:2]))
    with events.following(run):  # its last look is after the block
        pass
    (_,) = folder.glob(events.FILES)
    read = EventAccumulator(str(folder))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 3.0), (2, 1.5)]
    assert {"hours_left", "share_of_ceiling", "progress"} <= set(read.Tags()["scalars"])


class FullDisk(Writer):
    """Has no room for a while; then TensorBoard's writer fails for good."""

    full = True
    broken = False

    def add_scalar(self, *given):
        self.broken |= FullDisk.full
        if self.broken:
            raise OSError(28, "No space left on device")
        super().add_scalar(*given)

    def close(self):
        if self.broken:
            raise OSError(28, "No space left on device")


def test_a_full_disk_is_said_once_and_events_go_on_when_there_is_room(
    run, monkeypatch, capsys
):
    made = []

    def begin(self, inode):
        self.close()
        self.writer, self.inode, self.offset = FullDisk(self.folder), inode, 0
        made.append(self.writer)

    class Looks(threading.Event):
        """In place of the event that ends it: five looks, with room at the fourth."""

        left = 5

        def wait(self, timeout=None):
            self.left -= 1
            FullDisk.full = self.left > 1
            return self.left == 0

    monkeypatch.setattr(events.Events, "begin", begin)
    write(run / "07_sft" / "policy", lines(ROWS))
    events.follow(run, Looks())
    said = capsys.readouterr().err
    assert said.count("No space left on device") == said.count("\n") == 1
    assert [step for name, step, *_ in made[-1].seen if name == "loss"] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert len(made) == 4
