"""Text in, tokens out: the toy world TinyTales, tokenizers, files of any size.

In reading order:
`lexicon`    the 141 words of TinyTales, its prompts, the six held-out pairs
`tinytales`  the authors: a small grammar with slots, and the slips they make
`gold`       the reward that plays the human: five parts, and a noisy labeller
`make`       writes the files of `data/`, the same bytes each time; `card` their card
`bpe`        byte pairs: which pieces of text to glue together
`tokenizer`  text to ids and back, by words or by byte pairs
`batches`    from texts to tensors: one long row, or padded rows with their mask
`datasets`   reads files of records, yours too, and says what is wrong with them

Below it are `fields`, `lines` (JSON lines), `parquet` and `files`. What does not fit
into memory: `records` reads it again and again, `workers` share the work, `shards`
keep the result on the disk, `bpe_fast` is quick; `corpus` is what the lessons call.
`hub` fetches public data sets, as `hub_sets` maps them.
"""
