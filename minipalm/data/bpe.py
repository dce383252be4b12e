"""Byte pairs: learn which neighbouring pieces of text to glue together.

Start from the 256 bytes, so that any text can be spelled. Then again and again glue
the pair that occurs most often: "t" "h" -> "th", "th" "e" -> "the". After a few
hundred merges frequent words are one piece and rare ones a few.

Sennrich, Haddow, Birch 2016 (1508.07909), section 3.2, on bytes in place of letters.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

FIRST_BYTE_ID = 3  # the ids below are <pad>, <bos> and <eos>
FIRST_MERGE_ID = FIRST_BYTE_ID + 256

Pair = tuple[int, int]

# A space stays with the word after it. Each character falls under one of \w, \s or
# neither, so that the chunks joined are the text.
CHUNK = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")


def byte_ids(text: str) -> list[int]:
    """`byte_ids("é") == [3 + 0xC3, 3 + 0xA9]`: its UTF-8, each byte an id."""
    return [FIRST_BYTE_ID + byte for byte in text.encode()]


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Put new_id wherever the pair stands, from the left.

    `merge([5, 5, 5, 6], (5, 5), 9) == [9, 5, 6]`
    """
    merged: list[int] = []
    at = 0
    while at < len(ids):
        if tuple(ids[at : at + 2]) == pair:
            merged.append(new_id)
            at += 2
        else:
            merged.append(ids[at])
            at += 1
    return merged


def learn_merges(texts: Iterable[str], number: int) -> list[Pair]:
    """The pairs of ids to merge, most frequent first; pair k makes id 259 + k.

    Of pairs equally frequent the one with the smaller ids wins. There are fewer than
    `number` if no pair is left that occurs twice.
    """
    counts = Counter(chunk for text in texts for chunk in CHUNK.findall(text))
    words = [byte_ids(chunk) for chunk in counts]
    weights = list(counts.values())

    frequency: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # words that hold a pair
    for at, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += weights[at]
            where[pair].add(at)

    merges: list[Pair] = []
    while len(merges) < number and frequency:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        if frequency[best] < 2:
            break
        # Only words that hold the pair change: count those again, not all.
        for at in where.pop(best):
            for pair in pairwise(words[at]):
                frequency[pair] -= weights[at]
            words[at] = merge(words[at], best, FIRST_MERGE_ID + len(merges))
            for pair in pairwise(words[at]):
                frequency[pair] += weights[at]
                where[pair].add(at)
        merges.append(best)
    return merges
