"""What ./course calls. Nothing above this folder imports it.

build      lessons/*.py -> solutions/*.ipynb, notebooks/*.ipynb
run     the pipeline: its stages in order, each a notebook
seeds   the pipeline on several seeds, with mean and spread
verify  lint, types, unit tests, notebooks
lab     JupyterLab on the lessons
"""

import sys
from pathlib import Path

# Optional to Jupyter; compiles a grammar when imported, which takes 3 s of CPU time.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

ROOT = Path(__file__).resolve().parents[2]  # of the clone; lessons/ and data/ lie here
