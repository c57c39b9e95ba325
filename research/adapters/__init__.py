"""Adapters as things of their own: listed, summed, put side by side, merged into weights."""
