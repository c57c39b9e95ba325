"""Programs of a model, run against tests where they can do no harm."""
