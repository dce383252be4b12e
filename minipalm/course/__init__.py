"""What ./course calls. Nothing above this folder imports it.

What a learner and a teacher call:

run        the pipeline: its stages in order, each a notebook
full       the same on many ranks and machines: nodes, supervise, heartbeat
lab        JupyterLab on the notebooks
check      in a lesson: check(f), progress()
checks     ./course check: one's notebooks, exercise by exercise
grade      a folder of notebooks
doctor     is this machine ready
nbval      makes pytest --nbval-lax a grader

How they judge:

exercise   what an exercise is; exercises/ has one module a lesson
judge      right, or which mistake
guard      a learner's code runs, and the world is as before
mutants    the proof that a check notices small changes
submission, apart    a learner's notebook is read, and judged in its own process

What is built:

build      lessons/*.py -> solutions/*.ipynb, notebooks/*.ipynb
source     the package's text, with a hole or a change
outputs    what solutions show
documents  tables and the teacher's guide
results    the README's results, from seeds and methods

seeds, methods, bugs, overoptimisation    what data/results/ holds is made by these
wrong_rewards, watch    what overoptimisation trains against, and what it notes
remake     ./course results: runs them again

verify     ./course test: lint, types, spelling, tests
"""

import sys
from pathlib import Path

# Optional to Jupyter; compiles a grammar when imported, which takes 3 s of CPU time.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

ROOT = Path(__file__).resolve().parents[2]  # of the clone; lessons/ and data/ lie here
