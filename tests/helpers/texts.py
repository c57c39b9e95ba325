"""Words that made-up documents are drawn from."""

WORDS = "the a of stone river under cold bright runs falls sings über naïve 😀".split()
