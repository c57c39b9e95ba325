"""Text in: assets, TFDS builders, sources, tokenizer, packing, mixture and pipeline."""
