"""Graft: pretrain a language model without labels, then adapt it with few labelled examples."""
