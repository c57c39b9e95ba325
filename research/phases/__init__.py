"""Runs in parts, one after the other on one model: supervised tuning and then preferences, say."""
