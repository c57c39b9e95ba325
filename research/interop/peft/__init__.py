"""Adapters in the format of Hugging Face PEFT, in and out."""
