"""Serving: the OpenAI chat completions protocol, for evaluation and demos, on the decoder."""
