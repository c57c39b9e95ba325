"""Saved adapters: listed, added up, put side by side, merged into weights."""
