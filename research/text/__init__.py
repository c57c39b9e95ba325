"""Text below objectives: tokenizers, chat templates, normalization, near duplicates, hashing."""
