"""All data of a run, looked at before its first stage: what is wrong costs no training.

The checks are those of the notebooks, by the same functions. Of large files these make
tables, which the stages then find; so the tokenizer is made here, too. A process of its
own does it: it sees no GPU, and its memory is free again when the training begins.
Stages that are complete are left out.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

from minipalm.config import Preset, get_preset
from minipalm.course.inputs import in_folder
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
from minipalm.data.records import Records
from minipalm.data.tokenizer import Tokenizer
from minipalm.rlhf.labeller import check_known
from minipalm.rlhf.pairs import encode_pairs
from minipalm.rlhf.sft import pack_examples
from minipalm.stopping import die_with_parent, stop_on_signals
from minipalm.train.networks import tokenizer_of

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
        [sys.executable, "-m", "minipalm.course.data_check", json.dumps(given)],
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


if __name__ == "__main__":
    sys.exit(main())
