"""A log of rollouts: answers, how probable they were, and their scores, as a file.

Enough to learn from later, with another policy, on another machine: the tokens that
were sampled, the log-probabilities of the law that they were sampled from, the score.
Everything else (reference, values, advantages) can be worked out again.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.clock import Clock
from minipalm.config import PPOConfig
from minipalm.data.batches import pad_left, pad_right
from minipalm.data.datasets import DataError
from minipalm.data.files import write_text
from minipalm.model.generate import Sampled, generate
from minipalm.model.palm import PaLM
from minipalm.model.place import beside
from minipalm.parallel import barrier, check_same, is_first
from minipalm.rlhf.answers import Tokens, answer_bar
from minipalm.rlhf.rollout import Reward, final_scores, sample_answers

FIELDS = ("prompt", "response", "logprobs", "score")


@dataclass(frozen=True)
class Log:
    """Answers of an earlier policy b. Index it by rows.

    Attributes:
        prompts, prompt_mask: left-padded.
        responses, mask: right-padded; mask includes the end-of-sequence token.
        logprobs: log b(y_t), of the law that the tokens were drawn from, nats; 0 where
            mask is False. In bfloat16 as a training pass finds it, see `log_answers`.
        scores: of the whole answers, the penalty for a missing end included.
    """

    prompts: Int[Tensor, "N P"]
    prompt_mask: Bool[Tensor, "N P"]
    responses: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    logprobs: Float[Tensor, "N T"]
    scores: Float[Tensor, "N"]

    @property
    def tokens(self) -> Tokens:
        """What the models take."""
        return self.prompts, self.prompt_mask, self.responses, self.mask

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Int[Tensor, "R"] | slice) -> "Log":
        """Those rows, no wider than the longest of their answers."""
        few = self.uncut(rows)
        T = int(few.mask.sum(1).max())
        parts = (few.responses[:, :T], few.mask[:, :T], few.logprobs[:, :T])
        return Log(few.prompts, few.prompt_mask, *parts, few.scores)

    def uncut(self, rows: Int[Tensor, "R"] | slice) -> "Log":
        """Those rows, as wide as the whole log: what is compiled wants one width."""
        return Log(*(getattr(self, field.name)[rows] for field in fields(Log)))

    def to(self, device: torch.device | str) -> "Log":
        return Log(*(getattr(self, field.name).to(device) for field in fields(Log)))


@torch.no_grad()
def log_answers(
    policy: PaLM,
    reward: Reward,
    prompts: Int[Tensor, "N P"],
    prompt_mask: Bool[Tensor, "N P"],
    *,
    config: PPOConfig,
    max_response: int,
    eos_id: int,
    generator: torch.Generator,
    sample: Callable[..., Sampled] = generate,
    batch_size: int = 0,
) -> Log:
    """Let a policy answer, and note what a later one will need.

    What is noted as log b(y_t) is what an update would take for it: the sampler's own
    number, or, without `config.reuse_logprobs`, that of a training pass. So a policy
    that reads its own answers again finds weights of 1, if it lies on the machine as it
    did: in bfloat16 a frozen network and one with float32 weights round differently,
    which over a long answer adds up.

    Args:
        policy: b, writes the log.
        reward: scores the answers.
        prompts, prompt_mask: left-padded.
        config: temperature, missing_eos_penalty, reuse_logprobs and micro_batch are
            read.
        max_response, eos_id, generator, sample: see `minipalm.rlhf.rollout.collect`.
        batch_size: answers at a time; 0 for all at once.

    Returns:
        answers of max_response columns.

    Raises:
        ValueError, InvariantError: see `minipalm.rlhf.rollout.collect`.
    """
    clock, parts = Clock(policy), []
    prompts, prompt_mask = beside(policy, prompts), beside(policy, prompt_mask)
    for rows in torch.arange(len(prompts)).split(batch_size or len(prompts)):
        answers, logprobs = sample_answers(
            policy,
            prompts[rows],
            prompt_mask[rows],
            config=config,
            max_response=max_response,
            eos_id=eos_id,
            generator=generator,
            sample=sample,
            clock=clock,
            full_width=True,
        )
        scores = final_scores(reward, answers, config, eos_id)
        parts.append((*answers, logprobs, scores))
    return Log(*(torch.cat(column) for column in zip(*parts)))


# --- the file -----------------------------------------------------------------------


def log_in_parts(
    path: Path, count: int, size: int, ask: Callable[[range], Log]
) -> None:
    """Write a log that takes long: if it is cut short, it goes on with the next part.

    Parts stand beside the log, log.jsonl.part-256-512 and so on, until all are there.
    Several processes ask together, and the first one writes.

    Args:
        path: of the log, which is not there yet.
        count: answers in all.
        size: answers of a part.
        ask: gives the answers with these numbers. What it draws must depend on them
            only, and not on the parts before.
    """
    rows = [range(n, min(n + size, count)) for n in range(0, count, size)]
    name = f"{path.name}.part"
    parts = {path.with_name(f"{name}-{r.start}-{r.stop}"): r for r in rows}
    missing = [part for part in parts if not part.is_file()]
    check_same(str(path), str(missing))  # all have looked before one of them writes
    with answer_bar(count, path.name) as bar:
        for part, one in parts.items():
            if part in missing:
                write_log(part, ask(one))
            bar.update(len(one))
    if is_first():
        write_text(path, "".join(part.read_text("utf-8") for part in parts))
        for part in path.parent.glob(f"{name}-*"):  # also of another size
            part.unlink()
    barrier()


def write_log(path: str | Path, log: Log) -> None:
    """One answer a line, without padding; the file is there in full or not at all.

        {"prompt": [1, 5], "response": [6, 2], "logprobs": [-0.5, -1.2], "score": 0.25}

    The tokens that were sampled, never texts: a text encoded again may be other tokens
    than those that the log-probabilities belong to. A float32 comes back bit by bit.
    Of several processes the first one writes it.
    """
    if is_first():
        log, lines = log.to("cpu"), []
        for n in range(len(log)):
            kept = log.mask[n]
            line = {
                "prompt": log.prompts[n][log.prompt_mask[n]].tolist(),
                "response": log.responses[n][kept].tolist(),
                "logprobs": log.logprobs[n][kept].tolist(),
                "score": log.scores[n].item(),
            }
            lines.append(json.dumps(line) + "\n")
        write_text(path, "".join(lines))
    barrier()


def read_log(
    path: str | Path, *, vocab_size: int, max_prompt: int, max_response: int
) -> Log:
    """A log as tensors, padded to max_prompt and max_response tokens.

    Raises:
        DataError: "path:line: field 'logprobs': expected ..., got ...": a field is
            missing or of another kind, a token is not in the vocabulary, there is not
            one log-probability a token, a number is not finite, or a row is too long.
    """
    rows = [
        _checked(line, source, vocab_size, max_prompt, max_response)
        for source, line in _lines(Path(path))
    ]
    if not rows:
        raise DataError(
            f"{path}: expected a line for each answer, with {', '.join(FIELDS)}; "
            "got an empty file"
        )
    responses, mask = pad_right([row["response"] for row in rows], max_response)
    logprobs = torch.zeros(mask.shape)
    logprobs[mask] = torch.tensor([x for row in rows for x in row["logprobs"]])
    return Log(
        *pad_left([row["prompt"] for row in rows], max_prompt),
        responses,
        mask,
        logprobs,
        torch.tensor([float(row["score"]) for row in rows]),
    )


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """("path:line", what the JSON says) for each line that is not blank."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: expected a log of answers, got: {error.strerror}; write one with "
            "minipalm.rlhf.offline.write_log"
        ) from None
    for number, line in enumerate(raw.splitlines(), start=1):
        source = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            yield source, json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{source}: expected a JSON object in UTF-8 on one line ({error}); "
                "mend the line or remove it"
            ) from None


def _checked(
    row: Any, source: str, vocab_size: int, max_prompt: int, max_response: int
) -> dict[str, Any]:
    """The row itself, if its fields are what they should be."""

    def fail(field: str, expected: str, got: object) -> DataError:
        shown = repr(got)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return DataError(
            f"{source}: field {field!r}: expected {expected}, got {shown}; "
            "write the log anew or remove the line"
        )

    if not isinstance(row, dict):
        raise fail(FIELDS[0], "an object with " + ", ".join(FIELDS), row)
    for name in FIELDS:
        if name not in row:
            raise fail(name, "an object with " + ", ".join(FIELDS), list(row))
    for name, most in (("prompt", max_prompt), ("response", max_response)):
        ids = row[name]
        if not isinstance(ids, list) or not 1 <= len(ids) <= most:
            raise fail(name, f"a list of 1 to {most} tokens", ids)
        for token in ids:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise fail(name, f"tokens from 0 to {vocab_size - 1}", token)
    logprobs, count = row["logprobs"], len(row["response"])
    if not isinstance(logprobs, list) or len(logprobs) != count:
        raise fail(
            "logprobs", f"a list of {count}, one a token of the answer", logprobs
        )
    for logprob in logprobs:
        if not _is_finite(logprob) or logprob > 1e-4:  # float32 may round above 0
            raise fail("logprobs", "finite numbers, at most 0", logprob)
    if not _is_finite(row["score"]):
        raise fail("score", "a finite number", row["score"])
    return row


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
