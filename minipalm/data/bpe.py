"""Byte pairs: learn which neighbouring pieces of text to glue together.

Start from the 256 bytes, so that any text can be spelled. Then again and again glue
the pair that occurs most often: "t" "h" -> "th", "th" "e" -> "the". After a few
hundred merges frequent words are one piece and rare ones a few.

Sennrich, Haddow, Birch 2016 (1508.07909), section 3.2, on bytes in place of letters.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
    """A new list with new_id wherever the pair stands.

    Args:
        ids: of pieces, in the order of the text; stays as it is.
        pair: a left and a right id, such as those of "t" and "h".
        new_id: of the two glued together.

    Found from the left, and no id is used twice:
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
    """The pairs of ids to merge, in the order in which they were found.

    Each text is cut by `CHUNK.findall(text)`, each chunk spelled by `byte_ids`. Then,
    again and again: count all pairs of neighbours inside chunks, and merge the most
    frequent one everywhere. Pair k makes the id FIRST_MERGE_ID + k = 259 + k, which
    takes part in later pairs.

    Args:
        texts: to learn from; a chunk counts as often as it occurs.
        number: merges at most. There are fewer if no pair is left that occurs twice.

    Counting is by places: "aaa" holds the pair (a, a) twice. Of pairs equally frequent
    the smaller one wins, as Python compares tuples. No pair goes across the border of
    two chunks.

    `learn_merges(["the then", "the"], 2) == [(107, 104), (119, 259)]`: with t = 119,
    h = 107 and e = 104 first "he", as frequent as "th" and smaller; then "the".

    Source: Sennrich, Haddow and Birch 2016 (arXiv 1508.07909), section 3.2.
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


def encode_chunk(chunk: str, rank: Mapping[Pair, int]) -> list[int]:
    """The ids of one chunk: its bytes, glued as the merges say.

    Args:
        chunk: a word with the space before it, or any text that `CHUNK` finds.
        rank: each merge -> its place in the order of learning, from 0. The merge of
            rank k makes the id FIRST_MERGE_ID + k = 259 + k.

    As long as any two neighbours are a merge, the one learned first is done next,
    wherever it stands; not the longest piece, and not the leftmost.

    `encode_chunk("the", {(119, 107): 0, (259, 104): 1}) == [260]`, and without merges
    `encode_chunk("the", {}) == [119, 107, 104]`.
    """
    ids = byte_ids(chunk)
    while known := [pair for pair in pairwise(ids) if pair in rank]:
        first = min(known, key=lambda pair: rank[pair])
        ids = merge(ids, first, FIRST_MERGE_ID + rank[first])
    return ids
