"""Graft: pretrain a language model without labels, then adapt it with few labelled examples."""

__version__ = "0.1.0"
