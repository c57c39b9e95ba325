"""Whether the advice of `graft decide` is right, against every way asked to the end."""
