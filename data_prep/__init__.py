"""Raw data -> tokens -> shards -> which rows come next.

The first step from raw data to a scaling law. A `Domain` is a kind of data (8x8 pictures, mathematics); `build`
turns raw files of it into shards in Megatron's indexed format; `TokenDataset` reads rows of tokens back in any order;
`Sampler` says which row comes next as a pure function of its index. Nothing here imports torch.
"""
