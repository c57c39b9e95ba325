"""GGUF, llama.cpp's files: reading, writing, and the tokenizers inside."""
