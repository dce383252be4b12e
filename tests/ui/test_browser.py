"""A learner's hour in a real browser: JupyterLab, sliders, a wrong answer, a right one.

Skipped where playwright or Chromium is missing, but fails there if CI is set.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

from minipalm.course import ROOT
from minipalm.course.build import build
from minipalm.course.exercise import of_lesson
from minipalm.course.lab import command, environment
from minipalm.course.source import change, source_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if os.environ.get("CI"):  # there a missing browser is a failure
    from playwright import sync_api as playwright

    assert CHROMIUM, "CI is set, and there is no Chromium here"
else:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here", allow_module_level=True)
pytestmark = pytest.mark.timeout(900)

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
LESSONS = ["02_rope", "03_attention", "04_swiglu"]  # they need no earlier stage
WAIT = 240_000  # milliseconds; a busy machine starts a kernel slowly
NOTEBOOK = "jupyterapp.shell.currentWidget.content"
IDLE = (
    "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"
    "?.status === 'idle'"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on the student notebooks at smoke scale: its address."""
    home = tmp_path_factory.mktemp("lab")
    (home / "work").mkdir()
    for name in LESSONS:
        text = build(ROOT / "lessons" / f"{name}.py", student=True)
        text = text.replace('scale = \\"toy\\"', 'scale = \\"smoke\\"')
        (home / "work" / f"{name}.ipynb").write_text(text, "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR",
                 "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_RUNTIME_DIR"):  # fmt: skip
        env[name] = str(home / name.lower())
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    options += ["--ServerApp.port_retries=0", "--IdentityProvider.token="]
    options += [f"--ServerApp.root_dir={home / 'work'}"]
    options += ["--LabApp.expose_app_in_browser=True"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command(options), env=env, stdout=log, stderr=subprocess.STDOUT, cwd=home
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"{url}/api/status", timeout=5).read()
            break
        except OSError:
            assert time.monotonic() < deadline, (home / "log").read_text()
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.5)
    yield url
    server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request, lab, browser):
    """A lesson's student notebook after Run All: (its name, the page)."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(WAIT)
    page.goto(f"{lab}/lab/tree/{request.param}.ipynb?reset", wait_until="commit")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function(IDLE)
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(IDLE)
    yield request.param, page
    page.close()


def outputs(page):
    """The text of every cell's outputs, as the page's model has it."""
    return page.evaluate(
        f"() => {NOTEBOOK}.widgets.filter(w => w.model.type === 'code').map(w => "
        "w.model.sharedModel.getOutputs().map(o => o.text ? [o.text].flat().join('')"
        " : (o.ename || '')).join(''))"
    )


def place(page, exercise):
    """The number of the cell in which an exercise is written."""
    return page.evaluate(
        f"id => {NOTEBOOK}.widgets.findIndex(w => "
        "w.model.getMetadata('exercise') === id)",
        exercise.id,
    )


def type_answer(page, exercise, text):
    """Write into the exercise's cell as a learner would, run it and the check."""
    index = place(page, exercise)
    page.evaluate(
        f"async i => {{ {NOTEBOOK}.activeCellIndex = i; {NOTEBOOK}.mode = 'edit';"
        f" await {NOTEBOOK}.scrollToItem(i); {NOTEBOOK}.activeCell.editor.focus(); }}",
        index,
    )
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(text)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    page.wait_for_timeout(300)
    page.wait_for_function(IDLE)


def picture(page):
    """The bytes that the first interactive figure shows, as the page has them."""
    return page.evaluate(
        "() => document.querySelector('img.widget-image, .widget-image img')?.src"
    )


def keep(page, name):
    """A screenshot where MINIPALM_SHOTS says, for whoever wants to look."""
    if folder := os.environ.get("MINIPALM_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")


def test_every_cell_runs_and_every_exercise_is_todo(lesson):
    name, page = lesson
    said = "\n".join(outputs(page))
    for exercise in of_lesson(name):
        assert f"{exercise.id} {exercise.title}: todo" in said
    assert "Error" not in said and "Traceback" not in said
    keep(page, f"{name}-all")


def test_a_slider_moves_the_figure(lesson):
    name, page = lesson
    page.wait_for_selector(".noUi-handle", state="attached")
    handle = page.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => document.querySelector('img.widget-image, .widget-image img')"
    )
    before = picture(page)
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "old => document.querySelector('img.widget-image, .widget-image img')?.src"
        " !== old",
        arg=before,
    )
    page.wait_for_function(IDLE)
    keep(page, f"{name}-slider")


def test_a_wrong_answer_is_named_and_a_right_one_is_ok(lesson):
    name, page = lesson
    exercise = next(of_lesson(name))
    trap = next(one for one in exercise.traps if isinstance(one.how[0], tuple))
    wrong = change(source_of(exercise.answer), trap.how)
    type_answer(page, exercise, wrong)
    said = [text.replace("\n    ", " ") for text in outputs(page)]
    assert any(trap.sentence in text for text in said), said
    keep(page, f"{name}-wrong")
    type_answer(page, exercise, source_of(exercise.answer))
    verdict = f"{exercise.id} {exercise.title}: ok\n"
    assert verdict in outputs(page), outputs(page)
    keep(page, f"{name}-right")
