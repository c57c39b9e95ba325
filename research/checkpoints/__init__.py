"""Checkpoints of named arrays, and the folders of runs that hold them."""
