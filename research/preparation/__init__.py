"""Preparation of documents on Apache Beam: from raw text to tokens, once, for every later run.

    documents -> quality, contamination -> exact duplicates -> near duplicates -> tokens

`pipeline.prepare` runs the stages; `graft prepare` is its command. Each stage writes what
it decides of every document under the hash of what that depends on (`stages`), in files of one
range of rows each (`documents`), and no text goes from one worker to another. Only this package
needs Apache Beam and datasketch: `tools/setup prepare`.
"""
