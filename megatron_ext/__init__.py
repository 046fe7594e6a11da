"""What this project adds to megatron-core: the papers' shapes, our core attention, the loss in nats."""
