"""Scores, statistics and the baselines that every result is set beside."""
