"""All data of a run, looked at before its first stage: what is wrong costs no training.

The checks are those of the notebooks, by the same functions. Of large files these make
tables, which the stages then find; so the tokenizer is made here, too. A process of its
own does it: it sees no GPU, and its memory is free again when the training begins.
Stages that are complete are left out.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import Any

from minipalm.config import Preset, get_preset
from minipalm.course.heartbeat import JOIN
from minipalm.course.run import in_folder
from minipalm.data.corpus import (
    Examples,
    corpus_tokenizer,
    encode_examples,
    packed_rows,
    stored_pairs,
)
from minipalm.data.datasets import (
    check_prompt_lengths,
    check_window,
    fitting,
    hold_out,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_texts,
)
from minipalm.data.files import fingerprint, write_text
from minipalm.data.records import Records
from minipalm.data.tokenizer import Tokenizer
from minipalm.rlhf.labeller import check_known
from minipalm.rlhf.pairs import encode_pairs
from minipalm.rlhf.sft import pack_examples
from minipalm.stopping import die_with_parent, stop_on_signals
from minipalm.train.networks import tokenizer_of
from minipalm.train.progress import read_object

RECORD = "data.json"  # in the run's folder: machine 0's word, see `announced`
BEAT = 20.0  # seconds until it is written again
TELL = 10.0  # seconds until who waits says so
GONE = 120.0  # seconds without: a shared disk may show for a minute what was before
CHECKED = ("demonstrations", "prompts", "heldout", "preferences")
Files = Mapping[str, Mapping[str, Path]]  # of each stage, by the notebook's parameters


# --- the checks -----------------------------------------------------------------------


class Data:
    """The files of the stages that are to run; `check` reads all but the text.

    Args:
        out: the run's folder. What takes long to make of large files is left there.
        files: of these stages, in their order.
        preset, seed: the run's.
    """

    def __init__(self, out: Path, files: Files, preset: Preset, seed: int) -> None:
        self.out, self.files, self.preset, self.seed = out, files, preset, seed

    def check(self) -> None:
        """Raises DataError if a record is not what it should be, or does not fit."""
        tokenizer = self.tokenizer()
        if tokenizer is None:
            return
        self.check_prompts(tokenizer)
        sft, judge = (self.files.get(s, {}) for s in ("07_sft", "08_reward_model"))
        fits = tokenizer, self.preset.max_prompt, self.preset.max_response
        # All that lies in memory is checked before anything large is tokenized.
        if "demonstrations" in sft:
            demos = fitting(read_demonstrations(sft["demonstrations"]), *fits)
            trained, _ = hold_out(demos, 0.05, self.seed)
        if "preferences" in judge:
            pairs = fitting(read_preferences(judge["preferences"]), *fits)
            train, test = hold_out(pairs, 0.2, self.seed)
        if "demonstrations" in sft:
            examples = encode_examples(trained, tokenizer)
            if isinstance(examples, Examples):
                folder = self.out / "07_sft" / "rows"
                packed_rows(pack_examples, examples, self.preset.window, folder)
        if "preferences" in judge and isinstance(train, Records):
            folder = self.out / "08_reward_model" / "pairs"
            stored_pairs(train, *fits, folder)
            encode_pairs(test[: self.preset.reward.heldout_pairs], *fits)

    def tokenizer(self) -> Tokenizer | None:
        """The run's, as 06_palm makes it or has made it; None if it will have none."""
        files = self.files.get("06_palm", {})
        if "text" not in files or "demonstrations" not in files:
            done = (self.out / "06_palm" / "done.json").is_file()
            return tokenizer_of(self.out) if done else None
        texts = read_texts(files["text"])
        demos = read_demonstrations(files["demonstrations"])
        tokenizer = corpus_tokenizer(
            texts,
            demos,
            self.preset.tokenizer,
            self.preset.vocab_size,
            self.out / "06_palm" / "tokenizer",
        )
        check_window(demos, tokenizer, self.preset.window)
        return tokenizer

    def check_prompts(self, tokenizer: Tokenizer) -> None:
        """Those of all stages, each file once."""
        asked = {
            files[name]: None
            for files in self.files.values()
            for name in ("prompts", "heldout")
            if name in files
        }
        judge = self.files.get("08_reward_model", {})
        for path in asked:
            prompts = read_prompts(path)
            check_prompt_lengths(prompts, tokenizer, self.preset.max_prompt)
            if path == judge.get("prompts") and "preferences" not in judge:
                check_known(prompts, tokenizer)


def main() -> int:
    """The process of its own; its argument says, in JSON, what `Data` takes."""
    die_with_parent()
    stop_on_signals()
    given = json.loads(sys.argv[1])
    files = {
        stage: {name: Path(path) for name, path in some.items()}
        for stage, some in given["files"].items()
    }
    try:
        preset = get_preset(given["scale"])
        Data(Path(given["out"]), files, preset, given["seed"]).check()
    except (ValueError, RuntimeError) as error:
        print(f"./course full: {error}", file=sys.stderr)
        return 2
    return 0


# --- in the command that runs the stages ----------------------------------------------


def check_data(args: argparse.Namespace, keep_open: int) -> int:
    """Check the data of all stages that are to run. Returns 0, or an exit status.

    Args:
        args: those of `./course full`; `inputs` has each stage's files.
        keep_open: descriptor of the run's lock, which the process shall hold as well.
    """
    files = {
        stage: {name: str(path) for name, path in some.items()}
        for stage, some in args.inputs.items()
        if not (args.out / stage / "done.json").is_file()
    }
    if "08_reward_model" in files:
        say_what_is_not_used(args)
    if not any(name in CHECKED for some in files.values() for name in some):
        return 0
    given = {"scale": args.scale, "seed": args.seed, "out": str(args.out)}
    return in_a_process({**given, "files": files}, keep_open)


def fingerprints(args: argparse.Namespace) -> dict[str, Any]:
    """What tells a run's data, and what they must fit, from others."""
    inputs = {
        stage: {name: fingerprint(path) for name, path in files.items()}
        for stage, files in args.inputs.items()
    }
    return {"preset": repr(get_preset(args.scale)), "inputs": inputs}


def say_what_is_not_used(args: argparse.Namespace) -> None:
    """Comparisons that lie in the folder of one's own files count only if asked for."""
    if args.data and not args.preferences:
        path = in_folder(args.data, "preferences.jsonl")
        if glob(str(path)):
            print(
                f"{path} is not used: a program will compare answers to TinyTales' "
                f'prompts. To use it, add --preferences "{path}"',
                flush=True,
            )


def in_a_process(given: Mapping[str, Any], keep_open: int) -> int:
    """Run `main` in a process of its own; if we are stopped, stop it first."""
    alone = {"CUDA_VISIBLE_DEVICES": "", "RANK": "0", "WORLD_SIZE": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "minipalm.course.prepare", json.dumps(given)],
        env=os.environ | alone,
        pass_fds=() if os.name == "nt" else (keep_open,),
        start_new_session=True,  # or Ctrl-C in a terminal reaches it twice
    )
    again = "run the same command again."
    try:
        status = child.wait()
    except SystemExit as stop:
        print(f"\nStopped while data are read. To go on, {again}", file=sys.stderr)
        return int(stop.code or 0)
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
    if status not in (0, 2):
        print(f"The data could not be checked. Mend it and {again}", file=sys.stderr)
    return status if status >= 0 else 1


# --- several machines -----------------------------------------------------------------


@contextmanager
def announced(args: argparse.Namespace, several: bool) -> Iterator[Callable[[], None]]:
    """Around all that machine 0 does: the others learn that it lives, and how it goes.

    Its word is "reading" until what this yields is called, then "ready", and at last
    "ended". It is written again and again, with a count, and names this start: what an
    earlier one has left cannot be taken for it.

    several: there are others. If not, no word is left.
    """
    path = args.out / RECORD
    if not several:
        path.unlink(missing_ok=True)
        yield lambda: None
        return
    word: dict[str, Any] = {"start": secrets.token_hex(8), "count": 0}
    word["data"] = fingerprints(args)
    one_at_a_time, over = threading.Lock(), threading.Event()

    def say(state: str = "") -> None:
        with one_at_a_time:
            word["state"] = state or word["state"]
            word["count"] += 1
            write_text(path, json.dumps(word) + "\n")

    def repeat() -> None:
        left = JOIN.total_seconds()
        while left > 0 and not over.wait(BEAT):
            with suppress(OSError):  # the disk may soon be back
                say()
            left -= BEAT if word["state"] == "ready" else 0
        if not over.is_set():  # all have met, or never will
            with suppress(OSError):
                path.unlink(missing_ok=True)

    try:
        say("reading")
        threading.Thread(target=repeat, daemon=True).start()
        yield lambda: say("ready")
    finally:
        over.set()
        with suppress(OSError):  # what ended us shall be heard, not this
            say("ended")


def wait_for_data(args: argparse.Namespace) -> None:
    """On another machine: wait until machine 0 has checked the same data.

    That may take longer than machines wait for each other where a stage begins. A word
    that lay there before counts when it changes; only "ready" counts at once.

    Raises:
        ValueError: machine 0 has ended, is lost, or does not begin.
    """
    path, told = args.out / RECORD, False
    old, data = read_object(path), fingerprints(args)
    now: dict[str, Any] = {}
    begin = since = time.monotonic()
    while now.get("state") != "ready":
        before, now = now, read_object(path)
        known = now == old and now.get("state") != "ready"
        if known or now.get("data") != data:
            now = {}
        if now != before:
            since = time.monotonic()
        patience, why = until_when(now.get("state"), args.out)
        if time.monotonic() - since > patience:
            raise ValueError(why)
        if not told and time.monotonic() - begin > TELL:
            print(
                f"waiting for machine 0, {args.rdzv_endpoint}, to read the data: as "
                f"long as it takes, if it begins within {JOIN.seconds // 60} min",
                flush=True,
            )
            told = True
        time.sleep(0.2)


def until_when(state: str | None, out: Path) -> tuple[float, str]:
    """Seconds to wait for another word of machine 0; and why no longer."""
    if state == "reading":
        return GONE, f"machine 0 is lost: it gave no sign for {GONE:g} s"
    if state == "ended":  # there may be another start, which goes on
        return 2 * BEAT, "machine 0 ended before the first stage, and has said why"
    return JOIN.total_seconds(), (
        f"machine 0 has not begun within {JOIN.seconds // 60} min, or has said why "
        f"not. All machines must get the same command, and share {out}"
    )


if __name__ == "__main__":
    sys.exit(main())
