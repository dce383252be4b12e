"""Lesson 01: byte pairs, rows of tokens, and a labeller that errs."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import torch
from torch import Tensor

from minipalm.course.exercise import Candidate, Case, Exercise, Trap, Twin
from minipalm.data.batches import pad_left, text_stream
from minipalm.data.bpe import (
    CHUNK,
    FIRST_BYTE_ID,
    FIRST_MERGE_ID,
    Pair,
    byte_ids,
    encode_chunk,
    learn_merges,
    merge,
)
from minipalm.data.gold import bayes_accuracy, preference
from minipalm.data.lexicon import TRAINING_PAIRS
from minipalm.data.tinytales import SLOPPY, pick, tell
from minipalm.data.tokenizer import BytePairTokenizer, WordTokenizer


def tales(rng: Random, number: int) -> list[str]:
    return [tell(SLOPPY, *pick(rng, TRAINING_PAIRS), rng) for _ in range(number)]


# --- 1.1 merge ------------------------------------------------------------------------


def merge_cases(seed: int) -> list[Case]:
    rng = Random(seed)

    def some(length: int) -> list[int]:
        return [3 + int(3 * rng.random()) for _ in range(length)]

    # Python keeps one object of each small number, and a new one of each large: `is`.
    large = [int(one) for one in "50000 50001 7 50001 50000 50000 50001".split()]
    return [
        Case("the example of the docstring", [5, 5, 5, 6], (5, 5), 9),
        Case("the pair twice, and at the end", [5, 6, 7, 5, 6], (5, 6), 9),
        Case("the pair turned round", [6, 5, 5, 7, 6, 5], (5, 6), 9),
        Case("half of the pair at the end", [5, 6, 8, 5], (5, 6), 9),
        Case("nothing to merge", [5, 7, 6], (5, 6), 9),
        Case("no ids", [], (5, 6), 9),
        Case("the new id would make another pair", [5, 6, 6, 5, 5, 6], (5, 6), 5),
        Case("ids of several digits", [13, 4, 5, 3, 45, 3, 4], (3, 4), 260),
        Case("many ids", some(40), (3, 4), 259),
        Case("many equal ids", some(40), (3, 3), 259),
        Case(
            "ids as they come from bytes", [*byte_ids("the other"), 119], (119, 107), 7
        ),
        Case(
            "large ids, each a number of its own", large, (int("50000"), 50001), 50002
        ),
    ]


def merge_oracle(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Go from left to right; a place that is used up is skipped."""
    result, used = [], False
    for place in range(len(ids)):
        if used:
            used = False
        elif place + 1 < len(ids) and (ids[place], ids[place + 1]) == pair:
            result.append(new_id)
            used = True
        else:
            result.append(ids[place])
    return result


def run_merge(
    candidate: Candidate, ids: Sequence[int], pair: Pair, new_id: int
) -> list[int]:
    """A call; the list that was handed in is no new one, even if nothing is merged."""
    merged = candidate(ids, pair, new_id)
    if merged is ids:
        raise AssertionError("the list that was handed in comes back: make a new one")
    return merged


def merge_by_cuts(ids, pair, new_id):
    """Find the first pair, cut there, and go on with the rest."""
    for at in range(len(ids) - 1):
        if ids[at] == pair[0] and ids[at + 1] == pair[1]:
            return [*ids[:at], new_id, *merge_by_cuts(ids[at + 2 :], pair, new_id)]
    return list(ids)


def merge_by_letters(ids, pair, new_id):
    """As a text in which each id is one letter; `replace` goes from the left."""
    text = "".join(map(chr, ids)).replace(chr(pair[0]) + chr(pair[1]), "\U0010ffff")
    return [new_id if letter == "\U0010ffff" else ord(letter) for letter in text]


def merge_from_the_right(ids, pair, new_id):
    return merge(ids[::-1], pair[::-1], new_id)[::-1]


def merge_in_place(ids, pair, new_id):
    ids[:] = merge(ids, pair, new_id)
    return ids


def merge_again_and_again(ids, pair, new_id):
    merged = list(ids)
    while pair in pairwise(merged):
        at = list(pairwise(merged)).index(pair)
        merged[at : at + 2] = [new_id]
    return merged


def merge_without_the_last(ids, pair, new_id):
    merged, at = [], 0
    while at < len(ids) - 1:
        found = (ids[at], ids[at + 1]) == pair
        merged.append(new_id if found else ids[at])
        at += 2 if found else 1
    return merged


def merge_first_only(ids, pair, new_id):
    for at, two in enumerate(pairwise(ids)):
        if two == pair:
            return [*ids[:at], new_id, *ids[at + 2 :]]
    return list(ids)


def merge_digits(ids, pair, new_id):
    left, right = pair
    text = " ".join(map(str, ids)).replace(f"{left} {right}", str(new_id))
    return [int(one) for one in text.split()]


MERGE = Exercise(
    id="1.1",
    answer=merge,
    why="Gluing one pair of neighbours is all that a byte-pair tokenizer ever does.",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "In 5 5 5 the pair (5, 5) stands at two places. Which one is used, and what is "
        "left of the other?",
        "Walk with an index: where $(i_t, i_{t+1})$ is the pair, write the new id and "
        "go on two places further, else write $i_t$ and go on by one.",
        "`while at < len(ids):`",
    ),
    bonus="`learn_merges` calls this for every chunk after every merge. How would a "
    "linked list of ids save most of the copying?",
    run=run_merge,
    cases=merge_cases,
    oracle=merge_oracle,
    traps=(
        Trap(
            "The right half of the pair is still there: a merge replaces two ids, so "
            "go on two places further.",
            ("at += 2", "at += 1"),
        ),
        Trap(
            "Only the left id is compared. Both must agree, in this order.",
            ("tuple(ids[at : at + 2]) == pair", "ids[at] == pair[0]"),
        ),
        Trap(
            "The order of the pair counts: (5, 6) is not (6, 5).",
            ("tuple(ids[at : at + 2]) == pair", "set(ids[at : at + 2]) == set(pair)"),
        ),
        Trap(
            "Found from the right: of 5 5 5 the first two are glued, not the last two.",
            merge_from_the_right,
        ),
        Trap(
            "The last id is lost where it is no part of a pair: the walk must reach "
            "the end of the list.",
            merge_without_the_last,
        ),
        Trap(
            "Only the first place is merged. Put the new id wherever the pair stands.",
            merge_first_only,
        ),
        Trap(
            "What was just glued is looked at again. One walk over the ids as they "
            "were; a new id takes part only in later merges.",
            merge_again_and_again,
        ),
        Trap(
            "The list that was handed in is changed: others still use it. Build a new "
            "one.",
            merge_in_place,
        ),
        Trap(
            "Where nothing is merged, the list that was handed in comes back. Give a "
            "new one always: who changes the result must not change the ids.",
            lambda ids, pair, new_id: (
                merge(ids, pair, new_id) if pair in pairwise(ids) else ids
            ),
        ),
        Trap(
            "`is` asks for the same object; of equal numbers it holds only where they "
            "are small. Compare ids by ==.",
            (
                "tuple(ids[at : at + 2]) == pair",
                "len(ids) > at + 1 and ids[at] is pair[0] and ids[at + 1] is pair[1]",
            ),
        ),
        Trap(
            "Digits are searched in place of ids: 3 is found inside 13. Compare whole "
            "numbers.",
            merge_digits,
        ),
    ),
    twins=(Twin(merge_by_cuts), Twin(merge_by_letters)),
)

# --- 1.2 learn_merges -----------------------------------------------------------------


def learn_cases(seed: int) -> list[Case]:
    rng = Random(f"merges {seed}")
    letters = ["".join(pick(rng, "aab c") for _ in range(30)) for _ in range(4)]
    return [
        Case("the example of the docstring", ["the then", "the"], 2),
        Case("a tie", ["bc bc", "ab ab"], 3),
        Case("a chunk counts as often as it occurs", ["xy xy xy xy qa qb qc"], 3),
        Case("equal neighbours", ["aaaa bb bb bb aaa"], 2),
        Case("counted by places", ["aaaaa", "bcd", "bcd", "bcd"], 1),
        Case("nothing occurs twice", ["abc"], 10),
        Case("two words, often next to each other", ["a b a b a b a b cd cd"], 1),
        Case("a sentence", ["the fox met the otter. the otter met the fox"], 9),
        Case("letters of two bytes", ["né né dé", "né"], 4),
        Case("no merge asked for", ["the the"], 0),
        Case("no texts", [], 5),
        Case("few letters", letters, 12),
        Case("tales", tales(rng, 4), 25),
        Case("texts that come once", ["ab ab", "abc cd cd"], 3, once=True),
    ]


def run_learn(
    candidate: Candidate, texts: list[str], number: int, once: bool = False
) -> list[Pair]:
    """A call. once: the texts are an iterator, as lines of a file are."""
    return candidate(iter(texts) if once else texts, number)


def learn_oracle(texts: Iterable[str], number: int, once: bool = False) -> list[Pair]:
    """As the paper states it: count everything again each time."""
    chunks = [byte_ids(chunk) for text in texts for chunk in CHUNK.findall(text)]
    merges: list[Pair] = []
    for k in range(number):
        counts: dict[Pair, int] = {}
        for chunk in chunks:
            for left, right in zip(chunk, chunk[1:]):
                counts[left, right] = counts.get((left, right), 0) + 1
        often = [pair for pair, n in counts.items() if n == max(counts.values())]
        if not often or counts[often[0]] < 2:
            break
        best = sorted(often)[0]
        chunks = [merge_oracle(chunk, best, FIRST_MERGE_ID + k) for chunk in chunks]
        merges.append(best)
    return merges


def learn_plainly(
    texts: Iterable[str],
    number: int,
    cut: Callable[[str], list[str]] = CHUNK.findall,
    spell: Callable[[str], list[int]] = byte_ids,
    pairs: Callable[[Any], Any] = pairwise,
    order: Callable[[Counter[Pair]], Pair] = lambda counts: min(
        counts, key=lambda pair: (-counts[pair], pair)
    ),
    least: int = 2,
    weigh: Callable[[int], int] = lambda n: n,
    first_id: int = FIRST_MERGE_ID,
) -> list[Pair]:
    """The plain form with a Counter of words; what may be wrong is an argument."""
    words = Counter(tuple(spell(chunk)) for text in texts for chunk in cut(text))
    merges: list[Pair] = []
    while len(merges) < number:
        counts: Counter[Pair] = Counter()
        for word, n in words.items():
            for pair in pairs(word):
                counts[pair] += weigh(n)
        if not counts or max(counts.values()) < least:
            break
        best = order(counts)
        again: Counter[tuple[int, ...]] = Counter()
        for word, n in words.items():
            again[tuple(merge(word, best, first_id + len(merges)))] += n
        words = again
        merges.append(best)
    return merges


def learn_without_counter(texts, number):
    """All chunks in one row of ids with -1 at their borders."""
    row = []
    for text in texts:
        for chunk in CHUNK.findall(text):
            row += [*byte_ids(chunk), -1]
    merges = []
    for new_id in range(FIRST_MERGE_ID, FIRST_MERGE_ID + number):
        found = sorted(pair for pair in pairwise(row) if -1 not in pair)
        runs = [(-found.count(pair), pair) for pair in sorted(set(found))]
        if not runs or min(runs)[0] > -2:
            break
        merges.append(min(runs)[1])
        row = merge(row, merges[-1], new_id)
    return merges


def apart(word: tuple[int, ...]) -> list[Pair]:
    """Wrong: of the same pair only places that do not overlap."""
    found: list[Pair] = []
    ends: dict[Pair, int] = {}
    for at, pair in enumerate(pairwise(word)):
        if ends.get(pair, 0) <= at:
            found.append(pair)
            ends[pair] = at + 2
    return found


def learn_by_one_count(texts, number):
    """Wrong: counts only once."""
    chunks = [byte_ids(chunk) for text in texts for chunk in CHUNK.findall(text)]
    counts = Counter(pair for chunk in chunks for pair in pairwise(chunk))
    best = sorted(counts, key=lambda pair: (-counts[pair], pair))
    return [pair for pair in best if counts[pair] > 1][:number]


def with_options(**options: Any) -> Callable[..., list[Pair]]:
    return lambda texts, number: learn_plainly(texts, number, **options)


LEARN_MERGES = Exercise(
    id="1.2",
    answer=learn_merges,
    why="The vocabularies of most large language models were found by this loop.",
    difficulty=3,
    importance=4,
    minutes=12,
    hints=(
        "After th has become one piece, which pairs are there that were not there "
        "before, and which have become rarer?",
        "Again: $n(i, j) = \\sum_{\\text{chunks}} \\#\\{t : (i_t, i_{t+1}) = (i, j)\\}$"
        "; merge the pair with the largest $n$, of equal ones the smallest $(i, j)$; "
        "end when $n < 2$.",
        "`chunks = [byte_ids(chunk) for text in texts for chunk in "
        "CHUNK.findall(text)]`",
    ),
    bonus="Learn 400 merges from all 10,000 tales with your loop, then with the "
    "packaged one. What does the packaged one not count again?",
    run=run_learn,
    cases=learn_cases,
    oracle=learn_oracle,
    traps=(
        Trap(
            "It goes on with pairs that occur once: such a piece only learns its text "
            "by heart. End when the best pair occurs less than twice.",
            with_options(least=1),
        ),
        Trap(
            "A tie goes to the pair that was seen first, so the order of the texts "
            "changes the tokenizer. Of equally frequent pairs the smaller wins.",
            with_options(order=lambda counts: counts.most_common(1)[0][0]),
        ),
        Trap(
            "A tie goes to the larger pair. Of equally frequent pairs the smaller "
            "wins: compare (−count, pair), not (count, pair).",
            with_options(order=lambda c: max(c, key=lambda pair: (c[pair], pair))),
        ),
        Trap(
            "Every chunk counts once, however often the texts hold it. A frequent word "
            "must weigh as much as it is frequent.",
            with_options(weigh=lambda n: 1),
        ),
        Trap(
            "Pairs go across the borders of chunks. Cut each text by CHUNK first: a "
            "pair lies inside one chunk.",
            with_options(cut=lambda text: [text]),
        ),
        Trap(
            "The spaces are lost: split() throws them away, while CHUNK leaves each "
            "with the word after it.",
            with_options(cut=str.split),
        ),
        Trap(
            "Letters are not bytes: é is two bytes of UTF-8. Spell chunks with "
            "byte_ids.",
            with_options(spell=lambda text: [FIRST_BYTE_ID + ord(one) for one in text]),
        ),
        Trap(
            "A pair counts once in each chunk here. All its places count: mama holds "
            "(m, a) twice.",
            with_options(pairs=lambda word: set(pairwise(word))),
        ),
        Trap(
            "Overlapping places are left out of the count. The docstring counts by "
            "places: aaa holds (a, a) twice.",
            with_options(pairs=apart),
        ),
        Trap(
            "The pairs were counted once, at the start. Count again after each merge: "
            "it makes new pairs, and others rarer.",
            learn_by_one_count,
        ),
        Trap(
            "The new ids are too small: 3 special tokens and 256 bytes stand before "
            "them, so merge k makes 259 + k.",
            with_options(first_id=256),
        ),
        Trap(
            "One merge too many: `number` says how many there are at most.",
            lambda texts, number: learn_plainly(texts, number + 1),
        ),
        Trap(
            "`texts` is walked more than once. It may be an iterator, which gives each "
            "text once: walk once, and keep the chunks.",
            lambda texts, number: learn_plainly(texts, number) if list(texts) else [],
        ),
    ),
    twins=(Twin(learn_plainly), Twin(learn_without_counter)),
)

# --- 1.3 encode_chunk -----------------------------------------------------------------


def ranks(*merges: Pair) -> dict[Pair, int]:
    return {pair: k for k, pair in enumerate(merges)}


def encode_cases(seed: int) -> list[Case]:
    rng = Random(f"encode {seed}")
    learned = ranks(*learn_merges(tales(rng, 12), 60))
    a, b, c, d = byte_ids("abcd")
    right_first = ranks((b, c), (a, b), (c, d), (259, d))
    last_cuts = ranks((b, c), (a, 259), (c, d))
    longest = ranks((a, b), (c, d), (b, c), (261, d), (a, 262))
    words = [pick(rng, tell(SLOPPY, "sad", "king", rng).split()) for _ in range(3)]
    return [
        Case("the example of the docstring", "the", {(119, 107): 0, (259, 104): 1}),
        Case("no merges", "the", {}),
        Case("the earlier merge stands to the right", "abcd", right_first),
        Case("a long piece that is never reached", "abcd", longest),
        Case("the last merge would cut the second", "abcd", last_cuts),
        Case("the same merge twice", "abcabab", ranks((a, b))),
        Case("equal neighbours", " aaaaa", ranks((a, a), (259, 259))),
        Case("merges that do not occur", "cdab", ranks((b, a), (c, d), (a, d), (a, b))),
        Case("letters of two bytes", "é", ranks((3 + 0xC3, 3 + 0xA9))),
        Case("a letter that no merge knows", "éé", ranks((a, b), (b, c))),
        Case("one letter", "a", learned),
        Case("an unknown word", " zeppelin", learned),
        *(Case(f"the word {word}", f" {word}", learned) for word in words),
        Case("ranks in another order", "abcd", dict(reversed(right_first.items()))),
    ]


def encode_oracle(chunk: str, rank: Mapping[Pair, int]) -> list[int]:
    """Look through all merges, the first learned first, until none is found."""
    ids = byte_ids(chunk)
    found = True
    while found:
        found = False
        for k in sorted(rank.values()):
            for pair, place in rank.items():
                stands = any(ids[t : t + 2] == list(pair) for t in range(len(ids)))
                if place == k and stands and not found:
                    ids = merge_oracle(ids, pair, FIRST_MERGE_ID + k)
                    found = True
    return ids


def encode_in_one_walk(chunk, rank):
    """A merge needs only ids of earlier ones, so once through all of them will do."""
    ids = byte_ids(chunk)
    for pair in sorted(rank, key=rank.get):
        ids = merge(ids, pair, FIRST_MERGE_ID + rank[pair])
    return ids


def encode_one_place_at_a_time(chunk, rank):
    ids = byte_ids(chunk)
    while True:
        found = [(rank[p], t) for t, p in enumerate(pairwise(ids)) if p in rank]
        if not found:
            return ids
        k, t = min(found)
        ids = ids[:t] + [FIRST_MERGE_ID + k] + ids[t + 2 :]


def encode_longest(chunk, rank):
    """Wrong: the longest piece that fits, from the left."""
    pieces = {bytes([byte]): FIRST_BYTE_ID + byte for byte in range(256)}
    spelled = {i: piece for piece, i in pieces.items()}
    for (left, right), k in sorted(rank.items(), key=lambda item: item[1]):
        spelled[FIRST_MERGE_ID + k] = spelled[left] + spelled[right]
    pieces = {piece: i for i, piece in spelled.items()}
    rest, ids = chunk.encode(), []
    while rest:
        end = next(n for n in range(len(rest), 0, -1) if rest[:n] in pieces)
        ids.append(pieces[rest[:end]])
        rest = rest[end:]
    return ids


def encode_until_missing(chunk, rank):
    """Wrong: ends at the first merge that does not occur."""
    ids = byte_ids(chunk)
    for pair in sorted(rank, key=rank.get):
        if pair not in pairwise(ids):
            break
        ids = merge(ids, pair, FIRST_MERGE_ID + rank[pair])
    return ids


def encode_in_the_order_of_the_mapping(chunk, rank):
    """Wrong: the first in the mapping need not be the one of rank 0."""
    ids = byte_ids(chunk)
    for pair in rank:
        ids = merge(ids, pair, FIRST_MERGE_ID + rank[pair])
    return ids


ENCODE_CHUNK = Exercise(
    id="1.3",
    answer=encode_chunk,
    why="The same text must always become the same ids, or a model reads what it never "
    "saw in training.",
    difficulty=2,
    importance=4,
    minutes=7,
    hints=(
        "bc was learned before ab. What becomes of abc, and why must it be so in "
        "every text?",
        "While any pair of neighbours is in rank: take the one of smallest "
        "$\\text{rank}$, merge it to the id $259 + \\text{rank}$.",
        "`ids = byte_ids(chunk)`",
    ),
    bonus="Draw a path through the merges at random instead of the one of smallest "
    "rank (BPE dropout). What could a model learn from seeing a word cut in many ways?",
    cases=encode_cases,
    oracle=encode_oracle,
    traps=(
        Trap(
            "The leftmost pair is merged first. The one learned first comes first, "
            "wherever it stands.",
            ("min(known, key=lambda pair: rank[pair])", "known[0]"),
        ),
        Trap(
            "The pair learned last is merged first: take the smallest rank.",
            ("min(known,", "max(known,"),
        ),
        Trap(
            "One merge and no more: go on as long as any two neighbours are in rank.",
            ("while known :=", "if known :="),
        ),
        Trap(
            "This takes the longest piece that fits. Byte pairs repeat the merges in "
            "the order of learning, which may cut elsewhere.",
            encode_longest,
        ),
        Trap(
            "It ends at the first merge that does not occur in this chunk. Pass over "
            "it: later ones may occur.",
            encode_until_missing,
        ),
        Trap(
            "Letters are not bytes: é is two bytes of UTF-8. Start from byte_ids.",
            (
                "ids = byte_ids(chunk)",
                "ids = [FIRST_BYTE_ID + ord(letter) for letter in chunk]",
            ),
        ),
        Trap(
            "The new ids are too small: 3 special tokens and 256 bytes stand before "
            "them, so rank k makes 259 + k.",
            ("FIRST_MERGE_ID + rank[first]", "256 + rank[first]"),
        ),
        Trap(
            "A merge's number is taken to be its place in the mapping. A mapping may "
            "be in any order: the rank is the value, rank[pair].",
            lambda chunk, rank: encode_chunk(chunk, ranks(*rank)),
        ),
        Trap(
            "The merges are tried in the order of the mapping, which may be any. Go by "
            "rank, the smallest first.",
            encode_in_the_order_of_the_mapping,
        ),
    ),
    twins=(Twin(encode_in_one_walk), Twin(encode_one_place_at_a_time)),
)

# --- 1.4 text_stream ------------------------------------------------------------------


class OtherWords(WordTokenizer):
    """Its special tokens have other numbers."""

    pad_id, bos_id, eos_id = 1, 2, 0


def stream_cases(seed: int) -> list[Case]:
    rng = Random(f"stream {seed}")
    told = tales(rng, 3)
    pieces = BytePairTokenizer(learn_merges(told, 20))
    for text in told:
        pieces.encode(text)  # it remembers chunks, which would count as a change
    known = WordTokenizer(["a", "fox"])
    return [
        Case("the example of the docstring", known, ["fox", "a fox"]),
        Case("tales", WordTokenizer.train(told), told),
        Case("byte pairs", pieces, told[::-1]),
        Case("other numbers for <bos> and <eos>", OtherWords(["a", "fox"]), ["a fox"]),
        Case("an empty text among others", known, ["a", "", "fox fox"]),
        Case("no text", known, []),
    ]


def stream_oracle(tokenizer: Any, texts: Iterable[str]) -> Tensor:
    """One id after the other into a row of the right length."""
    texts = list(texts)
    length = sum(len(tokenizer.encode(text)) + 2 for text in texts)
    row, at = torch.zeros(length, dtype=torch.int64), 0
    for text in texts:
        row[at] = tokenizer.bos_id
        for i in tokenizer.encode(text):
            at += 1
            row[at] = i
        row[at + 1] = tokenizer.eos_id
        at += 2
    return row


def stream_by_cat(tokenizer, texts):
    """A tensor for each text; the empty one first, for when there are no others."""
    rows = [torch.zeros(0, dtype=torch.long)]
    for text in texts:
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        rows.append(torch.tensor(ids))
    return torch.cat(rows)


def stream_by_iterator(tokenizer, texts):
    def ids():
        for text in texts:
            yield tokenizer.bos_id
            yield from tokenizer.encode(text)
            yield tokenizer.eos_id

    return torch.tensor([*ids()], dtype=torch.int64)


LINE = "ids += [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]"

TEXT_STREAM = Exercise(
    id="1.4",
    answer=text_stream,
    why="Pretraining reads one endless row of ids; <bos> and <eos> are all that tells "
    "it where a text begins and where it ends.",
    difficulty=1,
    importance=4,
    minutes=4,
    hints=(
        "How does a model learn to stop, if no text that it reads ever ends?",
        "$\\langle bos\\rangle\\ x_1 \\dots x_n\\ \\langle eos\\rangle$ for each text, "
        "all in one row.",
        "`ids: list[int] = []`",
    ),
    bonus="Cut the stream into rows of 35. In how many rows does a model see the end "
    "of one tale and the beginning of another? What should it not look at?",
    cases=stream_cases,
    oracle=stream_oracle,
    traps=(
        Trap(
            "<eos> is missing: a model that never sees a text end never learns to end "
            "one.",
            (", tokenizer.eos_id]", "]"),
        ),
        Trap(
            "<bos> is missing: at sampling time a prompt begins with it, and the model "
            "would never have seen it.",
            ("[tokenizer.bos_id, *", "[*"),
        ),
        Trap(
            "<bos> and <eos> are exchanged: <bos> stands before a text, <eos> after.",
            (
                LINE,
                "ids += [tokenizer.eos_id, *tokenizer.encode(text), tokenizer.bos_id]",
            ),
        ),
        Trap(
            "All texts were made one: each has a <bos> and an <eos> of its own.",
            lambda tokenizer, texts: text_stream(tokenizer, [" ".join(texts)]),
        ),
        Trap(
            "The numbers of <bos> and <eos> are written out. They belong to the "
            "tokenizer: ask it for bos_id and eos_id.",
            (LINE, "ids += [1, *tokenizer.encode(text), 2]"),
        ),
        Trap(
            "Without a text the row is of floats: an empty list does not say that it "
            "holds ids. Name the dtype.",
            (", dtype=torch.long", ""),
        ),
        Trap(
            "Ids are whole numbers, int64: an embedding is asked for a row by its "
            "number.",
            ("dtype=torch.long", "dtype=torch.float"),
        ),
        Trap(
            "A row for each text: the stream is one row, end to end.",
            lambda tokenizer, texts: [text_stream(tokenizer, [one]) for one in texts],
        ),
        Trap(
            "An empty text is left out; it is a <bos> and an <eos>.",
            lambda tokenizer, texts: text_stream(tokenizer, [t for t in texts if t]),
        ),
    ),
    twins=(Twin(stream_by_cat), Twin(stream_by_iterator)),
)

# --- 1.5 pad_left ---------------------------------------------------------------------


def pad_cases(seed: int) -> list[Case]:
    rng = Random(f"pad {seed}")
    rows = [[int(9 * rng.random()) for _ in range(n)] for n in (4, 1, 6, 3)]
    rows[0][1], rows[0][2], rows[2][5] = 0, 7, 0
    return [
        Case("the example of the docstring", [[7, 8], [9]], 3),
        Case("rows of unequal lengths, with 0 among the ids", rows, 6),
        Case("room to spare", rows, 8),
        Case("an empty row", [[5, 6], [], [7]], 2),
        Case("no row", [], 4),
        Case("a row that is too long", [[3, 4], [3, 4, 5]], 2),
        Case("no room at all", [[]], 0),
    ]


def pad_oracle(rows: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
    """Count from the right end, one id after the other."""
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for n in range(len(rows)):
        if len(rows[n]) > width:
            raise ValueError("too long")
        for back in range(len(rows[n])):
            ids[n, width - 1 - back] = rows[n][len(rows[n]) - 1 - back]
            mask[n, width - 1 - back] = True
    return ids, mask


def pad_by_lists(rows, width):
    if any(len(row) > width for row in rows):
        raise ValueError(f"room is for {width}")
    full = [[0] * (width - len(row)) + list(row) for row in rows]
    kept = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    ids = torch.tensor(full, dtype=torch.long).view(len(rows), width)
    return ids, torch.tensor(kept, dtype=torch.bool).view(len(rows), width)


def pad_by_flipping(rows, width):
    """Right-padded from back to front, then turned round."""
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    if (lengths > width).any():
        raise ValueError("a row is too long")
    for n, row in enumerate(rows):
        for t, i in enumerate(reversed(row)):
            ids[n, t] = i
    return ids.flip(1), (torch.arange(width) < lengths[:, None]).flip(1)


PAD_LEFT = Exercise(
    id="1.5",
    answer=pad_left,
    why="Prompts of unequal length must end in one column, so that all answers begin "
    "in the next.",
    difficulty=2,
    importance=5,
    minutes=6,
    hints=(
        "In which column does a row of n ids begin, if it is to end in the last one? "
        "And a row without ids?",
        "Row $n$ fills columns $T - |r_n|$ to $T - 1$; the mask is True there.",
        "`ids = torch.zeros(len(rows), width, dtype=torch.long)`",
    ),
    bonus="Sort prompts by length before batching and pad each batch to its longest. "
    "How many places do you save on TinyTales, and what is lost?",
    cases=pad_cases,
    oracle=pad_oracle,
    traps=(
        Trap(
            "This pads on the right: the ids stand at the left end. A prompt's last "
            "token must stand in the last column.",
            ("ids[n, start:]", "ids[n, : len(row)]"),
            ("mask[n, start:]", "mask[n, : len(row)]"),
        ),
        Trap(
            "The ids stand at the right, but the mask is True at the left.",
            ("mask[n, start:]", "mask[n, : len(row)]"),
        ),
        Trap(
            "The mask is read off the ids: an id of 0 inside a row counts as padding. "
            "Take it from the lengths.",
            ("return ids, mask", "return ids, ids != 0"),
        ),
        Trap(
            "An empty row fails: row[-0:] is the whole row, not nothing. Count from "
            "the left, width − length.",
            ("width - len(row)", "-len(row)"),
        ),
        Trap(
            "A row that is too long was cut without a word. A prompt without its "
            "beginning asks for something else: raise ValueError.",
            lambda rows, width: pad_left([row[-width:] for row in rows], width),
        ),
        Trap(
            "The mask is turned round: True is where an id stands.",
            ("return ids, mask", "return ids, ~mask"),
        ),
        Trap(
            "The mask holds numbers. It is of True and False, torch.bool, so that it "
            "can choose places.",
            ("dtype=torch.bool", "dtype=torch.long"),
        ),
        Trap(
            "The rows come back as wide as the longest of them; `width` says how wide.",
            lambda rows, width: (
                pad_left(rows, max(map(len, rows), default=0))
                if max(map(len, rows), default=0) <= width
                else pad_left(rows, width)
            ),
        ),
        Trap(
            "The ids are turned round: they keep the order of the text.",
            ("torch.tensor(row, ", "torch.tensor(row[::-1], "),
        ),
    ),
    twins=(Twin(pad_by_lists), Twin(pad_by_flipping)),
)

# --- 1.6 preference -------------------------------------------------------------------


def preference_cases(seed: int) -> list[Case]:
    rng = Random(f"preference {seed}")

    def gold(low: float = 0.0, high: float = 10.0) -> float:
        return low + (high - low) * rng.random()

    return [
        Case("the example of the docstring", 5.0, 4.2),
        Case("equal golds", 6.5, 6.5),
        Case("the second is better", gold(2, 4), gold(4.5, 6)),
        Case("a labeller who errs often", gold(6, 9), gold(1, 4), 3.0),
        Case("a labeller who hardly errs", gold(5, 6), gold(4, 4.8), 0.25),
        Case("temperature by name", gold(3, 5), gold(5.5, 7), temperature=1.5),
        Case("no gold at all", 0.0, gold(0.5, 2)),
    ]


def preference_oracle(gold_a: float, gold_b: float, temperature: float = 0.8) -> float:
    """a's share of both strengths, where strength doubles every τ log 2 points."""
    strength_a = 2.0 ** (gold_a / (temperature * math.log(2.0)))
    strength_b = 2.0 ** (gold_b / (temperature * math.log(2.0)))
    return strength_a / (strength_a + strength_b)


PREFERENCE = Exercise(
    id="1.6",
    answer=preference,
    why="This sigmoid is the whole theory of preference that reward models rest on; "
    "DPO rests on it, too.",
    difficulty=1,
    importance=5,
    minutes=4,
    hints=(
        "What must it give for equal golds, and what if a is far ahead?",
        "$\\sigma\\big((g_a - g_b) / \\tau\\big)$ with "
        "$\\sigma(x) = 1 / (1 + e^{-x})$.",
        "`lead = (gold_a - gold_b) / temperature`",
    ),
    bonus="People may also say that both are equally good. Which term would you add to "
    "numerator and denominator (Rao and Kupper, or Davidson)?",
    cases=preference_cases,
    oracle=preference_oracle,
    traps=(
        Trap(
            "The temperature is missing: the difference is divided by it.",
            (") / temperature))", ")))"),
        ),
        Trap(
            "The difference is multiplied by the temperature. A larger temperature "
            "must bring the chance nearer to one half: divide.",
            (") / temperature", ") * temperature"),
        ),
        Trap(
            "The sign is turned round: this is the chance that b is preferred.",
            ("-(gold_a - gold_b)", "(gold_a - gold_b)"),
        ),
        Trap(
            "Shares of the golds themselves are not it: only the difference counts, so "
            "9 against 8 must give what 2 against 1 gives.",
            lambda gold_a, gold_b, temperature=0.8: gold_a / (gold_a + gold_b),
        ),
        Trap(
            "The better one always wins here. The labeller errs: the chance rises "
            "smoothly with the difference.",
            lambda gold_a, gold_b, temperature=0.8: (
                0.5 if gold_a == gold_b else float(gold_a > gold_b)
            ),
        ),
        Trap(
            "The temperature that was given has no effect: LABEL_TEMPERATURE is only "
            "its default.",
            (") / temperature", ") / LABEL_TEMPERATURE"),
        ),
        Trap(
            "This is the normal law (Thurstone's model). Bradley and Terry's chance is "
            "the logistic function, 1 / (1 + e^−x).",
            lambda gold_a, gold_b, temperature=0.8: (
                0.5 + 0.5 * math.erf((gold_a - gold_b) / temperature / math.sqrt(2.0))
            ),
        ),
        Trap(
            "tanh runs from −1 to 1; a chance runs from 0 to 1.",
            lambda gold_a, gold_b, temperature=0.8: math.tanh(
                (gold_a - gold_b) / temperature
            ),
        ),
    ),
    twins=(
        Twin(
            lambda gold_a, gold_b, temperature=0.8: (
                0.5 + 0.5 * math.tanh((gold_a - gold_b) / (2.0 * temperature))
            )
        ),
        Twin(
            lambda gold_a, gold_b, temperature=0.8: (
                torch.tensor([gold_a, gold_b], dtype=torch.float64)
                .div(temperature)
                .softmax(0)[0]
                .item()
            )
        ),
    ),
)

# --- 1.7 bayes_accuracy ---------------------------------------------------------------


def bayes_cases(seed: int) -> list[Case]:
    rng = Random(f"bayes {seed}")

    def golds(number: int) -> list[float]:
        return [3.0 + 5.0 * rng.random() for _ in range(number)]

    a, b = golds(9), golds(9)
    equal = golds(2)
    return [
        Case("the example of the docstring", [5.0, 4.2], [5.0, 5.0]),
        Case("pairs in both orders", a, b),
        Case("pairs in both orders, some equal", a[:3] + equal, b[:3] + equal),
        Case("one pair", [gold + 2.0 for gold in golds(1)], [3.1]),
        Case("a labeller who errs often", a, b, 2.5),
        Case("a labeller who hardly errs", a, b, temperature=0.2),
        Case("unequal lengths", a, b[:-1]),
        Case("no pairs", [], []),
    ]


def bayes_oracle(
    golds_a: Sequence[float], golds_b: Sequence[float], temperature: float = 0.8
) -> float:
    """Name the better one; add up how probable it is that the labeller does, too."""
    if len(golds_a) != len(golds_b) or len(golds_a) == 0:
        raise ValueError("lengths")
    right = 0.0
    for gold_a, gold_b in zip(golds_a, golds_b):
        better, worse = (gold_a, gold_b) if gold_a > gold_b else (gold_b, gold_a)
        right += preference_oracle(better, worse, temperature)
    return right / len(golds_a)


def bayes_by_gaps(golds_a, golds_b, temperature=0.8):
    one, two = torch.tensor(golds_a), torch.tensor(golds_b)
    if one.shape != two.shape or not len(one):
        raise ValueError("lists of one length")
    return torch.sigmoid((one - two).abs() / temperature).mean().item()


def bayes_by_distance(golds_a, golds_b, temperature=0.8):
    if not golds_a or len(golds_a) != len(golds_b):
        raise ValueError("lists of one length")
    chances = [preference(*pair, temperature) for pair in zip(golds_a, golds_b)]
    return 0.5 + sum(abs(chance - 0.5) for chance in chances) / len(chances)


LAST = "math.fsum(max(p, 1.0 - p) for p in chances) / len(chances)"

BAYES_ACCURACY = Exercise(
    id="1.7",
    answer=bayes_accuracy,
    why="An accuracy means nothing until you know the best that anyone could reach "
    "with labels as noisy as these.",
    difficulty=2,
    importance=4,
    minutes=5,
    hints=(
        "If the labeller prefers a with probability 0.3, what do you guess, and how "
        "often are you right?",
        "$\\frac{1}{N} \\sum_n \\max(p_n, 1 - p_n)$ with $p_n$ from `preference`.",
        "`chances = [preference(a, b, temperature) for a, b in zip(golds_a, golds_b)]`",
    ),
    bonus="Two labellers judge each pair, and only pairs on which they agree are kept. "
    "What is the Bayes accuracy of those, and what did it cost?",
    cases=bayes_cases,
    oracle=bayes_oracle,
    traps=(
        Trap(
            "This is the chance that a wins, averaged. One who knows the gold names "
            "the better one, be it a or b: max(p, 1 − p).",
            (LAST, "math.fsum(chances) / len(chances)"),
        ),
        Trap(
            "The larger of p and 1 − p is taken once, for the mean. Each pair has its "
            "own better answer: take it pair by pair.",
            (
                LAST,
                "max(math.fsum(chances), len(chances) - math.fsum(chances)) "
                "/ len(chances)",
            ),
        ),
        Trap(
            "Even one who knows the gold is not always right: the labels are noisy. "
            "The better one wins with probability p, not 1.",
            (
                LAST,
                "math.fsum(1.0 if p != 0.5 else 0.5 for p in chances) / len(chances)",
            ),
        ),
        Trap(
            "This is how often such a one is *wrong*: the smaller of p and 1 − p.",
            ("max(p, 1.0 - p)", "min(p, 1.0 - p)"),
        ),
        Trap(
            "The labeller's temperature has no effect: hand it on to `preference`.",
            ("preference(a, b, temperature)", "preference(a, b)"),
        ),
        Trap(
            "Pairs of equal gold are left out. They count: there the best guess is "
            "right half of the time.",
            ("for a, b in pairs]", "for a, b in pairs if a != b]"),
        ),
        Trap(
            "This is the sum over the pairs; an accuracy is their mean.",
            (LAST, "math.fsum(max(p, 1.0 - p) for p in chances)"),
        ),
        Trap(
            "Lists of unequal length must raise ValueError: zip would leave out the "
            "rest without a word.",
            ("len(golds_a) != len(golds_b) or not golds_a", "not golds_a"),
            (", strict=True", ""),
        ),
        Trap(
            "Without a pair there is no accuracy, and 0/0 no answer: raise ValueError.",
            (
                "len(golds_a) != len(golds_b) or not golds_a",
                "len(golds_a) != len(golds_b)",
            ),
        ),
    ),
    twins=(Twin(bayes_by_gaps), Twin(bayes_by_distance)),
    equivalent={
        "zip(golds_a, golds_b, strict=True) → zip(golds_b, golds_a, strict=True)": (
            "a and b exchanged: max(p, 1 − p) is the same"
        ),
        "preference(a, b, temperature) → preference(b, a, temperature)": (
            "p becomes 1 − p: max(p, 1 − p) is the same"
        ),
        "max(p, 1.0 - p) → max(1.0 - p, p)": "of two numbers in either order",
        "zip(golds_a, golds_b, strict=True) → zip(golds_a, golds_b)": (
            "the lengths have been compared above"
        ),
        "True → False": "the same: strict=False, and the lengths are equal",
    },
)

EXERCISES = (
    MERGE,
    LEARN_MERGES,
    ENCODE_CHUNK,
    TEXT_STREAM,
    PAD_LEFT,
    PREFERENCE,
    BAYES_ACCURACY,
)
