"""One file per family of domains; a new domain touches one file.

`data_prep.domain` finds every module in this folder. Each one offers

    DOMAINS           the family's `Domain`s
    RAW               what `--raw` may be, for `python -m data_prep list`
    PATIENCE          longest silence of a worker (no item begun or done), in seconds, before it counts as hung
    CHUNKS_PER_SHARD  how many pieces make one shard
    DEDUPLICATE       whether items of equal content are written once
    CODEC             "", "tokenizer" or "codebook": what the build must be given
    plan(domain, raw, rows, listing, passed_over) -> Iterator[Piece]
                      cut the raw input into pieces that workers do alone; count the files that are of no use to it;
                      nothing grows with their number, and `listing` is whole behind the last one
    read(domain, piece, seed, codec, watch) -> Iterator[Item | Block | Refusal]
                      `watch.begin(key)` before each item, so that one that kills its process can be refused
    render(domain, tokens, kinds, codec) -> Shown    one row back, for `show` and the preview
    notes(domain, raw, codec) -> Notes               versions and whether the build can be repeated bit for bit
    check_codec(domain, codec)                       only with CODEC: ValueError if the file does not fit
    with_vocabulary(domain, pieces) -> Domain        only with a tokenizer: the domain called NAME-vPIECES

and imports nothing heavy until one of these functions is called.
"""
