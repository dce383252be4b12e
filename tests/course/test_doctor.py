"""The doctor on ill machines: what it says, how to mend it, its exit status."""

import builtins
import importlib.metadata as metadata
import json
import re
import subprocess
import sys
from collections import namedtuple

import pytest

from minipalm.course import ROOT, doctor, documents

Usage = namedtuple("Usage", "total used free")
STEP = 0.02  # seconds, of a machine that is well


@pytest.fixture
def well(monkeypatch, tmp_path):
    """A machine on which nothing is wrong."""
    timings = tmp_path / "lessons.json"
    noted = {"lessons": {"10_gae": 120.0}, "step_seconds": STEP}
    timings.write_text(json.dumps(noted))
    monkeypatch.setattr(documents, "MEASURED", timings)
    monkeypatch.setattr(doctor, "seconds_of_work", lambda: STEP)
    monkeypatch.setattr(doctor, "memory_gb", lambda: (8.0, "free"))
    free = Usage(0, 0, 50 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: free)
    one = doctor.Finding("torch", True, "2.13")
    monkeypatch.setattr(doctor, "packages", lambda: [one])
    return monkeypatch


def lines(capsys):
    """(exit status, what is BAD, all that was said)."""
    status = doctor.main()
    said = capsys.readouterr().out
    return status, re.findall(r"^BAD  (\S+)", said, re.M), said


def test_a_machine_that_is_well_is_ready(well, capsys):
    status, bad, said = lines(capsys)
    assert (status, bad) == (0, []) and said.endswith("\nready\n")
    assert re.search(r"10_gae +\d+ +2\.0$", said, re.M)  # 120 CPU-seconds


def test_too_little_disk_or_memory(well, capsys):
    well.setattr(doctor.shutil, "disk_usage", lambda _: Usage(0, 0, 2**30))
    well.setattr(doctor, "memory_gb", lambda: (1.5, "free"))
    status, bad, said = lines(capsys)
    assert (status, bad) == (1, ["disk", "memory"])
    assert "1.0 GB free" in said and "1.5 GB free" in said and "2 to mend" in said


def test_a_slow_machine(well, capsys):
    well.setattr(doctor, "seconds_of_work", lambda: 5 * STEP)
    status, bad, said = lines(capsys)
    assert (status, bad) == (1, ["speed"]) and "5.0 times as long" in said
    assert re.search(r"10_gae +\d+ +10\.0$", said, re.M)


def test_without_timings_the_speed_is_not_judged(well, capsys, tmp_path):
    well.setattr(documents, "MEASURED", tmp_path / "none.json")
    status, bad, said = lines(capsys)
    assert (status, bad) == (0, []) and "not known: there is no" in said


def test_where_only_the_whole_memory_is_known_it_says_so(monkeypatch):
    def no_file(self, *_):
        raise FileNotFoundError

    sizes = {"SC_PHYS_PAGES": 2**21, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(doctor.Path, "read_text", no_file)
    monkeypatch.setattr(doctor.os, "sysconf", sizes.get)
    gigabytes, what = doctor.memory_gb()
    assert gigabytes == 8 and what.startswith("in all")


def test_a_missing_package_and_one_of_a_wrong_version(monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "einops":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else installed(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    found = {one.what: one for one in doctor.packages()}
    assert not found["einops"].well and found["einops"].said == "is missing"
    assert not found["torch"].well and found["torch"].said.startswith("1.0, not ")
    assert found["tqdm"].well
    for name in ("einops", "torch"):  # .venv may have no pip
        assert found[name].mend.startswith("./course clean --all")


def test_without_packaging_it_still_says_what_is_missing(monkeypatch):
    real, installed = builtins.__import__, metadata.version

    def no_packaging(name, *args, **kwargs):
        if name.startswith("packaging"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    def version(name):
        if name == "packaging":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(builtins, "__import__", no_packaging)
    monkeypatch.setattr(doctor.metadata, "version", version)
    found = {one.what: one.well for one in doctor.packages()}
    assert found["torch"] and not found["packaging"]


BARE = """
import importlib.metadata, sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "einops", "jaxtyping", "jupytext"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
old = importlib.metadata.version
def version(name):
    if name == "torch":
        raise importlib.metadata.PackageNotFoundError(name)
    return old(name)
importlib.metadata.version = version
from minipalm.course import doctor
sys.exit(doctor.main())
"""


def test_without_torch_it_names_torch_and_does_not_crash():
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        cwd=ROOT,
        env={**doctor.os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"^BAD  torch +is missing\n +to mend it: ./course clean --all",
                     done.stdout, re.M), done.stdout  # fmt: skip
    assert "could not be measured: ModuleNotFoundError" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
