# %% [markdown]
# # 01 · Text, tokens, a toy world
#
# A network reads numbers. You build the way from text to numbers and to
# batches of them, and you get to know the small world in which this course
# plays: its authors, the reward that is true, and the labeller who sees it
# dimly. Many failures of RLHF that never raise an error begin here, with one
# token too many or one that is masked.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
text = "data/text.jsonl"

# %%
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor

from minipalm.course import ROOT
from minipalm.data.batches import Padded, prompt_ids, response_ids
from minipalm.data.bpe import CHUNK, FIRST_BYTE_ID, FIRST_MERGE_ID, Pair
from minipalm.data.datasets import read_texts
from minipalm.data.gold import LABEL_TEMPERATURE, gold_parts, gold_reward
from minipalm.data.lexicon import TRAINING_PAIRS, VOCABULARY, prompts_about
from minipalm.data.tinytales import CAREFUL, SLOPPY, tell
from minipalm.data.tokenizer import (
    BytePairTokenizer,
    Tokenizer,
    WordTokenizer,
)
from minipalm.plot.interactive import interactive
from minipalm.plot.tokens import (
    authors,
    cut,
    labeller,
    pieces_a_word,
    token_grid,
)

# %% tags=["classroom"]
from minipalm.course.check import check, progress

# %%
os.chdir(ROOT)  # paths are from the repository's folder
texts = [record.text for record in read_texts(text)]
tale = texts[0]
print(tale)

# %% [markdown]
# ## Text is bytes
#
# Every text is a row of bytes, and there are few different ones. So bytes
# could be the tokens: nothing is ever unknown. What would that cost?

# %% tags=["define"]
from minipalm.data.bpe import byte_ids

# %%
for word in ("fox", "é", "狐", "🦊"):
    print(word, byte_ids(word))
print(f"{len(tale.split())} words, {len(byte_ids(tale))} bytes: {tale}")

# %% [markdown]
# The ids below the first byte are kept for three tokens that no text holds:
# `<pad>` fills rows, `<bos>` begins a prompt, `<eos>` ends an answer.
#
# Attention costs the square of the length, and a model that predicts bytes
# must learn to spell. Longer pieces are cheaper. Which pieces?
#
# ## Glue what stands together
#
# Byte pairs: take the pair of neighbours that occurs most often and make it a
# token of its own. Again and again. First the gluing.

# %% tags=["exercise"]
from minipalm.data.bpe import merge

# %%
ids = byte_ids("the otter met the other")
t, h = byte_ids("th")
print(len(ids), ids)
print(len(merge(ids, (t, h), 259)), merge(ids, (t, h), 259))

# %% [markdown]
# ## Learn the merges
#
# Texts are first cut into chunks, a word with the space before it, so that no
# piece goes across two words:

# %%
print(CHUNK.findall("once there was an owl ."))

# %% [markdown]
# $$n(i, j) = \sum_{\text{chunks}} \#\{t : (i_t, i_{t+1}) = (i, j)\}$$
#
# The pair with the largest $n$ becomes a new id, everywhere. Then count again:
# the new piece has neighbours of its own. Two things decide whether your
# tokenizer is the same as everybody's: what happens at a tie, and when you
# stop.

# %% tags=["exercise"]
from minipalm.data.bpe import learn_merges

# %% [markdown]
# The packaged one, which you see in the solution, counts again only the words
# that hold the pair. Yours may count everything again: it gets fewer tales.

# %%
some = texts[:200]
merges = learn_merges(some, 300)
tokenizer = BytePairTokenizer(merges)
for k in (0, 1, 2, 3, 10, 30, 100, len(merges) - 1):
    left, right = (tokenizer.pieces[i].decode() for i in merges[k])
    print(f"merge {k:3}: {left!r:9} + {right!r}")

# %% [markdown]
# ## Cut a text
#
# The merges are a recipe: any text is cut by repeating them in the order in
# which they were learned.

# %% tags=["exercise"]
from minipalm.data.bpe import encode_chunk

# %%
rank = {pair: k for k, pair in enumerate(merges)}


def encode(sentence, number=300):
    """A sentence by your merges, or by the first of them."""
    known = {pair: k for pair, k in rank.items() if k < number}
    chunks = CHUNK.findall(sentence)
    return [i for chunk in chunks for i in encode_chunk(chunk, known)]


print([tokenizer.pieces[i].decode() for i in encode(tale)])

# %% [markdown]
# **Predict.** With no merge, a word is a piece for each letter and one for its
# space. With all merges, how many pieces is a word of these tales? Is the way
# there a straight line, or do the first merges do more than the last?

# %%
few = some[:50]
words = sum(len(one.split()) for one in few)
counts = {
    number: sum(len(encode(one, number)) for one in few) / words
    for number in (0, 10, 20, 40, 80, 120, 160, 200, 250, len(merges))
}
pieces_a_word(counts)

# %% [markdown]
# Move the slider and watch one tale: letters, then syllables that mean
# nothing, then words.

# %% tags=["classroom"]
interactive(
    lambda merges: cut(
        [tokenizer.pieces[i] for i in encode(tale, merges)], merges
    ),
    merges=(0, len(merges), 5, 40),
)

# %% [markdown]
# **Predict.** Here is a sentence with a word that no tale holds. What does a
# tokenizer of words do with it, and what does yours? How many pieces is the
# new word?

# %%
word_tokenizer = WordTokenizer(VOCABULARY)
sentence = "the fox met a zeppelin"
try:
    word_tokenizer.encode(sentence)
except ValueError as error:
    print("words:", error)
print("pieces:", [tokenizer.pieces[i].decode() for i in encode(sentence)])

# %% [markdown]
# ## Words will do here
#
# TinyTales has few words, and a tale is shortest in words. So the small
# presets count words; the large ones learn byte pairs. Everything that follows
# takes either: it asks a tokenizer for `encode`, `decode`, `bos_id`, `eos_id`.

# %%
ids = word_tokenizer.encode(tale)
print(word_tokenizer.vocab_size, "ids, the special ones included")
print(ids)
print(word_tokenizer.decode(ids) == tale)

# %% [markdown]
# ## One long row
#
# Pretraining reads all texts end to end and cuts the row into windows. How
# should a model know where one tale ends?

# %% tags=["exercise"]
from minipalm.data.batches import text_stream

# %%
stream = text_stream(word_tokenizer, texts)
names = ["<pad>", "<bos>", "<eos>", *word_tokenizer.words]
print(f"{len(stream)} tokens:", " ".join(names[i] for i in stream[:40]))

# %% [markdown]
# ## Rows of unequal length
#
# Prompts are answered many at a time. They have unequal lengths, and a tensor
# has none: it needs padding, and a mask that says where it is. Every answer
# shall begin in the same column. So on which side of the prompts does the
# padding stand?

# %% tags=["exercise"]
from minipalm.data.batches import pad_left

# %% [markdown]
# Answers are padded on the other side. That is the same, seen in a mirror:

# %% tags=["define"]
from minipalm.data.batches import pad_right

# %%
told = {
    "sad story about the fox :": "it wept .",
    "write a sad story about the boy :": "he was very sad .",
    "tell a tale about the queen :": "she ran .",
}
rows = [prompt_ids(word_tokenizer, prompt) for prompt in told]
prompts, prompt_mask = pad_left(rows, 9)
rows = [response_ids(word_tokenizer, answer) for answer in told.values()]
answers, mask = pad_right(rows, 6)
batch = torch.cat([prompts, answers], dim=1)
shown = [[names[i] for i in row] for row in batch]
token_grid(shown, torch.cat([prompt_mask, mask], dim=1), divide=9)

# %% [markdown]
# The answers of all rows begin in one column, right of the line. What is
# generated next for every row stands in one column, too: that is what makes
# sampling in batches simple.

# %% [markdown]
# ## Break it: one token too few
#
# Many tokenizers come without a `<pad>`, and the usual advice is to use
# `<eos>` in its place, and to mask by `ids != pad`. Look at the last token of
# each answer.

# %% tags=["classroom"]
pad = word_tokenizer.eos_id  # the usual advice
padded = torch.where(mask, answers, pad)
wrong = padded != pad
ends = mask & (answers == word_tokenizer.eos_id)
token_grid(
    [[names[i] for i in row] for row in padded],
    wrong,
    title=f"Masked by ids != pad, {int((wrong & ends).sum())} of "
    f"{int(ends.sum())} answers' ends count",
)

# %% [markdown]
# What does not count is not learned. Fine-tuned on this, a model writes well
# and never stops, without an error or a warning. Your mask comes from lengths,
# so the end of an answer counts whatever its number is.

# %% [markdown]
# ## Break it: text is not tokens
#
# PPO samples tokens, shows their text to a judge, and trains on the tokens.
# Suppose somebody keeps only the text and encodes it again. The same text,
# surely the same tokens?

# %% tags=["classroom"]
sampled = encode(tale, 120)  # a policy may well choose shorter pieces
kept = tokenizer.decode(sampled)
again = encode(kept)
print("the same text:  ", kept == tale)
print("the same tokens:", again == sampled)
print(f"{len(sampled)} tokens were sampled, {len(again)} would be trained on")

# %% [markdown]
# Their probabilities belong to other tokens than those that were drawn. The
# ratio of PPO is then wrong from the start. Token in, token out: what was
# sampled is kept as ids, as `Answers.tokens` does in this package.

# %% [markdown]
# ## A world with a truth
#
# Who wrote the tales? A small grammar with slots. A careful author fills them
# well; a sloppy one takes a wrong article, drifts to another mood, or forgets
# whom the tale is about. The demonstrations are the sloppy one's, which leaves
# something to improve.

# %%
rng = Random(seed)
asked_for = "sad story about the king :"
for name, author in (("careful", CAREFUL), ("sloppy", SLOPPY)):
    for _ in range(3):
        print(f"{name:8} {tell(author, 'sad', 'king', rng)}")

# %% [markdown]
# A program reads a tale and says how good it is, from 0 to 10: is it about the
# subject, in the mood, grammatical, without repetition, of a good length?
# **Predict.** Which of these three is best, and which part does each lose?

# %%
candidates = (
    "once there was a gloomy king in the castle . he sighed and wept .",
    "the king was sad . the king was sad . the king was sad .",
    "a old owl laughed with joy",
)
for candidate in candidates:
    parts = gold_parts(asked_for, candidate)
    print(f"{parts.total:4.1f}  {candidate}")
    print("     ", *(f"{name} {one:.2f}" for name, one in vars(parts).items()))

# %%
told_by = {
    name: [
        (prompt, tell(author, *pair, rng), tell(author, *pair, rng))
        for prompt, pair in prompts_about(TRAINING_PAIRS).items()
    ]
    for name, author in (("sloppy", SLOPPY), ("careful", CAREFUL))
}
golds = {
    name: [gold_reward(prompt, one) for prompt, *two in tales for one in two]
    for name, tales in told_by.items()
}
authors(golds)

# %% [markdown]
# ## A labeller who errs
#
# No learner of this course sees the gold reward. They get what people give:
# "this one is better", wrong now and then. The nearer two answers are to each
# other, the oftener.
#
# $$P(a \succ b) = \sigma\!\left(\frac{g_a - g_b}{\tau}\right)$$

# %% tags=["exercise"]
from minipalm.data.gold import preference

# %% tags=["define"]
from minipalm.data.gold import label_pair

# %%
prompt, first, second = told_by["sloppy"][57]
gold_a, gold_b = gold_reward(prompt, first), gold_reward(prompt, second)
votes = Counter(label_pair(gold_a, gold_b, rng) for _ in range(1000))
print(f"{prompt}\n  a {gold_a:.1f} {first}\n  b {gold_b:.1f} {second}")
print(f"P(a is preferred) = {preference(gold_a, gold_b):.1%}")
print(f"a has {votes[True]} of {votes.total()} labels")

# %% [markdown]
# If the labels themselves err, even a judge who knew the gold reward would not
# always agree with them. How often, at best? You will need this number in
# lesson 08 to say whether a reward model is good.

# %% tags=["exercise"]
from minipalm.data.gold import bayes_accuracy

# %%
golds_a = [gold_reward(prompt, one) for prompt, one, _ in told_by["sloppy"]]
golds_b = [gold_reward(prompt, one) for prompt, _, one in told_by["sloppy"]]
print(f"at best {bayes_accuracy(golds_a, golds_b):.1%} of the labels")
agreed = [
    label_pair(a, b, rng) == (a > b)
    for a, b in zip(golds_a, golds_b)
    for _ in range(100)
]
print(f"tried 100 times for each pair: {sum(agreed) / len(agreed):.1%}")

# %% [markdown]
# **Predict.** Make the labeller less reliable: a larger temperature. Where
# does the accuracy go that nobody can beat? And does a reward model then need
# fewer comparisons, or more?

# %% tags=["classroom"]
interactive(
    lambda temperature: labeller(
        preference, bayes_accuracy, golds_a, golds_b, temperature
    ),
    temperature=(0.1, 4.0, 0.1, 0.8),
)

# %% [markdown]
# ## What changed
#
# You can take any text to ids and back, lay texts in one row or in padded rows
# whose mask keeps the ends, and you know a world in which "better" has a
# number. Next: how a network knows which token came first.

# %% [markdown]
# ## What real systems do differently
#
# - They learn many more merges from far more text; the loop is yours, in a
#   faster language.
# - They cut chunks by finer rules, which keep digits and contractions apart,
#   and add tokens for roles and tools. Such a token must never come out of a
#   user's text.
# - They pack several short texts into one row in place of padding; you build
#   that in lesson 07.
# - Their labellers are people: they differ from each other, tire, and are
#   taken in by length and confidence.

# %% [markdown]
# ## Left out on purpose
#
# Unigram tokenizers and sampling among several ways to cut a word
# ([SentencePiece](https://github.com/google/sentencepiece) has both), Unicode
# normalisation, and speed
# ([Hugging Face tokenizers](https://github.com/huggingface/tokenizers): the
# tests of this package compare with it). Models that read bytes directly.

# %% [markdown]
# ## Further reading
#
# - Sennrich, Haddow and Birch 2016, *Neural machine translation of rare words
#   with subword units*, arXiv 1508.07909, section 3.2: the loop of exercise
#   1.2.
# - Christiano et al. 2017, *Deep reinforcement learning from human
#   preferences*, arXiv 1706.03741, section 2.2: a labeller by Bradley and
#   Terry, and a reward model fitted to it.
# - Gao, Schulman and Hilton 2022, *Scaling laws for reward model
#   overoptimization*, arXiv 2210.10760: a gold reward in the place of people.

# %% tags=["classroom"]
progress()
