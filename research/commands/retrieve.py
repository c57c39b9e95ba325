"""Shows what is retrieved for a question: the best passages of a task's index, with their scores.

    graft retrieve --config CONFIG --query "When is a copy made?"
    graft retrieve --config CONFIG --task law --query "..." --run runs/smollm2 --prompt

CONFIG is one of `graft evaluate` in which a task has `retrieval` (docs/guides/retrieval.md):

    config.tasks = dict(notes=dict(..., retrieval=dict(
        kind="bm25", source=dict(kind="text", name="notes", path="notes"))))

A line for each passage: its place, its score, its id, the file and line that it is from, and its
beginning. The index is made once and kept in the cache, where `graft evaluate` finds it. Settings
can be tried on the way: `--config.tasks.notes.retrieval.passages=8`, or
`--config.tasks.notes.retrieval.diversity=0.3` for passages that differ.

--prompt shows what the model would read: the passages that the budget of tokens holds, as the
template writes them; --run names the model whose tokens are counted. The test's questions are not
looked at here, so nothing is refused as contaminated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.config import cli
from research.runtime.terminal import printable, show

if TYPE_CHECKING:
    from research.evaluation.tasks import Evaluation
    from research.retrieval import RetrievalConfig
    from research.text.tokenizer import Tokenizer

# Characters of a passage that are shown without --prompt.
_MAX_CHARACTERS = 300


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.program_parser("retrieve", __doc__)
    parser.add_argument(
        "--query", action="append", required=True, metavar="TEXT", help="may be given several times"
    )
    parser.add_argument("--task", metavar="NAME", help="which task; not needed where one retrieves")
    parser.add_argument("--run", metavar="DIR", help="the model that is asked: whose tokens count")
    parser.add_argument("--prompt", action="store_true", help="show the whole prompt instead")
    arguments = cli.parse(parser, argv)
    if arguments.prompt and not arguments.run:
        parser.error(
            "--prompt needs --run: the budget counts the tokens of the model that is asked"
        )

    from research.checkpoints import runs
    from research.evaluation import tasks
    from research.runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    with cli.clear_errors():
        evaluation = cli.load(tasks.Evaluation, arguments.config, arguments.overrides)
        config = _choose(evaluation, arguments.task)
        tokenizer = runs.open_run(arguments.run).tokenizer if arguments.run else None
        if tokenizer is not None and arguments.prompt:
            _show_prompts(config, arguments.query, tokenizer)
        else:
            _show_passages(config, arguments.query, tokenizer)


def _choose(evaluation: Evaluation, name: str | None) -> RetrievalConfig:
    """The retrieval of a task; ValueError where that is none, or one of several."""
    from research.config.suggestions import suggestion

    by_task = {key: task.retrieval for key, task in evaluation.tasks.items() if task.retrieval}
    if not by_task:
        raise ValueError("no task of the config has `retrieval`: docs/guides/retrieval.md")
    if name is None and len(by_task) > 1:
        raise ValueError(f"several tasks retrieve: choose one with --task: {', '.join(by_task)}")
    name = name or next(iter(by_task))
    if name not in by_task:
        raise ValueError(f"--task {name}: no such task that retrieves{suggestion(name, by_task)}")
    return by_task[name]


def _show_passages(
    config: RetrievalConfig, queries: Sequence[str], tokenizer: Tokenizer | None
) -> None:
    import numpy as np

    from research.retrieval.base import default_cache
    from research.retrieval.ranking import rank
    from research.retrieval.retrieve import open_passages

    cache = default_cache()
    passages = open_passages(config, tokenizer, cache)
    config = dataclasses.replace(config, relevant=None)  # what is right is not known here
    with config.open(passages, cache) as searcher:
        left_out = np.zeros(len(passages), bool)
        rankings = rank(config, searcher, passages, queries, left_out)
    kinds = "examples" if passages.are_examples else "passages"
    show(f"{passages.name}: {len(passages):,} {kinds}, {config.kind}")
    for query, ranking in zip(queries, rankings, strict=True):
        show(f"\n{query}")
        if not len(ranking.rows):
            show("  nothing: no passage has a word in common with it")
        best = zip(ranking.rows[: config.passages], ranking.scores, strict=False)
        for place, (row, score) in enumerate(best, start=1):
            passage = passages[row]
            text = " ".join(passage.content.split())
            text = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
            show(f"  {place}. {score:.3f}  {passage.id}  ({passages.origin(passage)})")
            show(f"     {printable(text, lines=False)}")


def _show_prompts(config: RetrievalConfig, queries: Sequence[str], tokenizer: Tokenizer) -> None:
    from research.retrieval.prompts import count_tokens
    from research.retrieval.retrieve import Query, retrieve

    config = dataclasses.replace(config, relevant=None)
    results = retrieve(config, [Query(query) for query in queries], tokenizer)
    for query, result in zip(queries, results, strict=True):
        count = len(result.texts)
        show(result.write(query, count))
        tokens = count_tokens(config, result.texts, tokenizer)
        show(f"\n({count} passages, {tokens} of at most {config.max_tokens} tokens)\n")
