"""Cross-entropy over large vocabularies, in chunks of the sequence or of the vocabulary."""
