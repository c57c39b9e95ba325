"""Packing: which pieces of documents share a row, and the rows themselves."""
