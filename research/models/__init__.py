"""The decoder: its config, its layers, and the sites where tuning methods attach."""
