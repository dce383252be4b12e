"""Public data sets: where their records are, and what becomes of each.

Each set has its own fields; a function of a few lines maps a record to ours, or to None
where it cannot be used. A dialogue becomes one text, and all of it but the last answer
is the prompt: `Human: ... Assistant:`.

Fields are those that the cards of the sets state on huggingface.co; read the cards, and
their licences, before you train on them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Ours = dict[str, str]


@dataclass(frozen=True)
class Source:
    """One of our files: where its records come from, and what becomes of each."""

    path: str  # of the data set
    split: str
    ours: Callable[[Record], Ours | None]
    config: str | None = None  # the part of the data set
    revision: str | None = None  # the branch
    once: bool = False  # leave out what has come before


# --- records to ours ------------------------------------------------------------------


def hh_preference(record: Record) -> Ours | None:
    """Two dialogues, which should differ in their last answer only."""
    prompt, better = last_answer(record["chosen"])
    other, worse = last_answer(record["rejected"])
    return preference(prompt, better, worse) if prompt == other else None


def last_answer(dialogue: str) -> tuple[str, str]:
    """`"\\n\\nHuman: a\\n\\nAssistant: b"` is ("Human: a\\n\\nAssistant:", " b")."""
    prompt, turn, answer = dialogue.rpartition("\n\nAssistant:")
    return (prompt + turn).lstrip("\n"), answer


def ultrafeedback_preference(record: Record) -> Ours | None:
    """Question and answer as messages, with scores; a tie is no preference."""
    if record["score_chosen"] == record["score_rejected"]:
        return None
    prompt = asked(record["prompt"])
    return preference(prompt, told(record["chosen"]), told(record["rejected"]))


def ultrafeedback_demonstration(record: Record) -> Ours | None:
    return demonstration(asked(record["prompt"]), told(record["messages"]))


def ultrafeedback_prompt(record: Record) -> Ours | None:
    return {"prompt": asked(record["prompt"])} if record["prompt"].strip() else None


def asked(question: str) -> str:
    """The form in which the dialogues of hh-rlhf are written."""
    return f"Human: {question}\n\nAssistant:"


def told(messages: Iterable[Mapping[str, str]]) -> str:
    """The last message, which is the assistant's; a space parts it from the prompt."""
    *_, last = messages
    return f" {last['content']}"


def tldr_preference(record: Record) -> Ours | None:
    """Two summaries of a post, and which a person chose (0 or 1)."""
    post = record["info"]
    if not post["post"]:
        return None  # a news article, of the validation split
    prompt = (
        f"SUBREDDIT: r/{post['subreddit']}\n\nTITLE: {post['title']}\n\n"
        f"POST: {post['post']}\n\nTL;DR:"
    )
    summaries = [one["text"] for one in record["summaries"]]
    choice = record["choice"]
    return preference(prompt, summaries[choice], summaries[1 - choice])


def plain_text(record: Record) -> Ours | None:
    return {"text": record["text"]} if record["text"].strip() else None


def preference(prompt: str, chosen: str, rejected: str) -> Ours | None:
    """None if a text is empty, or both answers are the same."""
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return row if chosen != rejected and all(map(str.strip, row.values())) else None


def demonstration(prompt: str, response: str) -> Ours | None:
    row = {"prompt": prompt, "response": response}
    return row if all(map(str.strip, row.values())) else None


def prompt_of(ours: Callable[[Record], Ours | None]) -> Callable[[Record], Ours | None]:
    """Of a preference the prompt alone."""

    def only_prompt(record: Record) -> Ours | None:
        row = ours(record)
        return row and {"prompt": row["prompt"]}

    return only_prompt


# --- the table ------------------------------------------------------------------------

HH = "Anthropic/hh-rlhf"
ULTRA = "HuggingFaceH4/ultrafeedback_binarized"
TLDR = "openai/summarize_from_feedback"
CONVERTED = "refs/convert/parquet"  # the set itself is a program, which is not run
FINEWEB = "HuggingFaceFW/fineweb-edu"


def comparisons(split: str, ours: Callable, once: bool = False) -> Source:
    return Source(TLDR, split, ours, "comparisons", CONVERTED, once)


SETS: dict[str, dict[str, Source]] = {
    "hh-rlhf": {
        "preferences": Source(HH, "train", hh_preference),
        "prompts": Source(HH, "train", prompt_of(hh_preference), once=True),
        "prompts_heldout": Source(HH, "test", prompt_of(hh_preference), once=True),
    },
    "ultrafeedback": {
        "demonstrations": Source(ULTRA, "train_sft", ultrafeedback_demonstration),
        "preferences": Source(ULTRA, "train_prefs", ultrafeedback_preference),
        "prompts": Source(ULTRA, "train_prefs", ultrafeedback_prompt, once=True),
        "prompts_heldout": Source(ULTRA, "test_prefs", ultrafeedback_prompt, once=True),
    },
    "tldr": {
        "preferences": comparisons("train", tldr_preference),
        "prompts": comparisons("train", prompt_of(tldr_preference), once=True),
        "prompts_heldout": comparisons(
            "validation", prompt_of(tldr_preference), once=True
        ),
    },
    "fineweb-edu": {"text": Source(FINEWEB, "train", plain_text, "sample-10BT")},
}
