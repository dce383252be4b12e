"""Parts of `bench.full_size`: each function measures one thing on a bare GPU."""
