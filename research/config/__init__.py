"""Configs: a file and overrides from the command line, converted to checked frozen dataclasses."""
