"""Run one notebook as a batch job.

    python -m minipalm.spmd solutions/06_palm.ipynb runs/a/06_palm.ipynb -p scale toy

papermill puts the parameters behind the notebook's own, runs its cells in order and
saves OUTPUT every few seconds. What the cells print is shown as it comes. The exit
status is 0 when every cell ran; otherwise one line says why, a note beside OUTPUT says
it again, and OUTPUT holds everything up to the cell that failed.

Under torchrun every rank runs the same notebook: rank 0 writes OUTPUT and shows what it
prints, rank k writes OUTPUT's name with .rank-k in it.
"""

import argparse
import ast
import json
import logging
import os
import runpy
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from minipalm.ends import end_of, forget_ends, write_end
from minipalm.stopping import die_with_parent, ignore_signals, stop_on_signals

# Optional to Jupyter; compiles a grammar when imported, which takes 3 s of CPU time.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

KERNEL = "--kernel"  # the first argument of a process that is to be a kernel
CLASSROOM = "classroom"  # tag of a cell that only teaches: batch runs leave it out


def known_parameters(notebook: Path) -> dict[str, Any]:
    """The names and defaults that the notebook's cell tagged `parameters` sets.

    Raises ValueError if the notebook is missing, is no notebook, or has no such cell.
    """
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{notebook}: cannot read the notebook ({reason})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook}: this is not a Jupyter notebook") from error
    for cell in cells:
        if "parameters" in cell["metadata"].get("tags", []):
            return {
                target.id: ast.literal_eval(line.value)
                for line in ast.parse("".join(cell["source"])).body
                if isinstance(line, ast.Assign)
                for target in line.targets
                if isinstance(target, ast.Name)
            }
    raise ValueError(f"{notebook}: no cell is tagged `parameters`")


def parse_parameters(
    known: dict[str, Any], given: list[tuple[str, str]]
) -> dict[str, Any]:
    """The values of given, read as YAML, for names that the notebook knows.

    >>> parse_parameters({"seed": 0, "lr": 0.1}, [("seed", "3"), ("lr", "1e-4")])
    {'seed': 3, 'lr': 0.0001}
    """
    import yaml

    values = {}
    for name, text in given:
        if name not in known:
            raise ValueError(
                f"the notebook has no parameter {name!r}; it has {', '.join(known)}"
            )
        try:
            values[name] = yaml.safe_load(text)
            if isinstance(known[name], float):  # YAML takes 1e-4 for a word
                values[name] = float(values[name])
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise ValueError(f"-p {name}: cannot read {text!r} as a value") from error
    return values


def write_kernelspec(folder: Path) -> str:
    """Describe this very Python as a kernel, and return the kernel's name.

    A user may have registered any program as `python3`; nobody else has this name.
    """
    name = "minipalm-this-python"
    spec = folder / "kernels" / name / "kernel.json"
    spec.parent.mkdir(parents=True)
    launch = [sys.executable, "-Xfrozen_modules=off", "-m", "minipalm.spmd", KERNEL]
    options = ["--HistoryManager.enabled=False", "-f", "{connection_file}"]
    text = {
        "argv": [*launch, *options],
        "display_name": name,
        "language": "python",
    }
    spec.write_text(json.dumps(text), "utf-8")
    return name


def execute(
    notebook: Path, output: Path, values: dict[str, Any], **options: Any
) -> None:
    """Run the notebook by papermill in a kernel of this Python, saving into output."""
    with tempfile.TemporaryDirectory("", "nb", ignore_cleanup_errors=True) as private:
        # Private, on a local disk, before Jupyter is imported: runs side by side
        # cannot meet.
        os.environ["JUPYTER_RUNTIME_DIR"] = private
        os.environ["JUPYTER_PATH"] = private
        os.environ["IPYTHONDIR"] = private  # nor do the user's own start-up files run
        kernel = write_kernelspec(Path(private))
        import papermill
        import psutil  # type: ignore[import-untyped]  # ipykernel has it
        from traitlets.config import Config

        log = logging.getLogger("papermill")
        log.addFilter(lambda line: "Kernel died" not in line.getMessage())  # we say it

        config = Config()
        if os.name != "nt" and len(private) < 80:  # a socket's path has 107 bytes
            # Sockets are files: no race for ports, nothing to reach from outside.
            config.KernelManager.transport = "ipc"
            config.KernelManager.ip = f"{private}/k"
        try:
            papermill.execute_notebook(
                papermill_path(notebook),
                papermill_path(output),
                values,
                kernel_name=kernel,
                language="python",
                progress_bar=False,  # the cells draw their own
                autosave_cell_every=5,
                start_timeout=180,
                coalesce_streams=True,  # a bar of 300 steps is one output, not 300
                shutdown_kernel="immediate",  # or ranks that wait for a dead one linger
                config=config,
                **options,
            )
        finally:  # stopped while the kernel starts, papermill leaves it behind
            for child in psutil.Process().children():
                child.kill()


def papermill_path(path: Path) -> str:
    """papermill fills parameters into paths, so braces in a path need doubling."""
    return str(path).replace("{", "{{").replace("}", "}}")


def become_kernel() -> None:
    """Be a kernel of Jupyter's, which cannot outlive its rank and hold its GPU.

    A kernel looks for its parent itself, but not while it computes in C.
    """
    if sys.platform == "linux":
        die_with_parent(signal.SIGKILL)
    runpy.run_module("ipykernel_launcher", run_name="__main__")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.spmd", description="Run one notebook as a batch job."
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter of the notebook; VALUE is read as YAML",
    )
    parser.add_argument(
        f"--{CLASSROOM}",
        action="store_true",
        help=f"run also the cells tagged {CLASSROOM}, which only teach",
    )
    parser.add_argument(
        "--with-parent",
        action="store_true",
        help="stop when the process that started this one dies (Linux)",
    )
    parser.add_argument(
        "--unless", type=Path, metavar="FILE", help="do nothing if this file is there"
    )
    args = parser.parse_args(argv)
    stop_on_signals()
    if args.unless and args.unless.exists():
        return 0
    try:
        values = parse_parameters(known_parameters(args.notebook), args.p)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2

    several = "RANK" in os.environ
    rank = int(os.environ.get("RANK", 0))
    output = args.output.with_suffix(f".rank-{rank}.ipynb") if rank else args.output
    options: dict[str, Any] = {}
    if not args.classroom:
        options.update(skip_cells_with_tag=CLASSROOM)
    if rank == 0:
        options.update(stdout_file=sys.stdout, stderr_file=sys.stderr)
    if args.with_parent or several:
        die_with_parent()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        if not several:  # of several ranks, who starts them does it
            forget_ends(output.parent)
        execute(args.notebook, output, values, **options)
    except BaseException as error:
        ignore_signals()
        end = end_of(error, output, rank if several else None)
        with suppress(OSError):  # a full disk may be what it is about
            write_end(output, end)
        who = f"[rank {rank}] " if several else ""
        kept = f" (partial notebook: {output})" if output.exists() else ""
        print(f"\n{who}{end.what}{kept}", file=sys.stderr, flush=True)
        return int(error.code or 0) if isinstance(error, SystemExit) else 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [KERNEL]:
        del sys.argv[1]
        become_kernel()
    else:
        sys.exit(main())
