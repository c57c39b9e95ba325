"""Responders to a prompt, the template that each puts it in, and the tokens that end an answer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence

from research.batch import NO_ADAPTER
from research.checkpoints.runs import Run
from research.objectives.base import Objective, bare_prompt, only_text
from research.text import chat_template
from research.text.conversation import Conversation
from research.text.conversation_writer import Writer
from research.text.thoughts import ThoughtMarks, find_marks
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Responder:
    """A run that answers, by itself or as one of a bank's adapters."""

    # its model may be attached to another's, its template is its own
    run: Run
    # of the adapter, where several answer
    name: str = ""
    # of the adapter in its bank (`Batch.adapter`); None: the model is no bank
    number: int | None = None

    @property
    def objective(self) -> Objective | None:
        """The objective that the run was trained with; None: it was imported."""
        return self.run.experiment.data.objective if self.run.experiment else None

    @property
    def reads_conversations(self) -> bool:
        """Whether it may be asked with several messages: there is a chat template."""
        if self.objective is not None:
            return self.objective.reads_conversations
        return chat_template.find_template(self.run.sidecar_files) is not None

    @property
    def writer(self) -> Writer | None:
        """What writes conversations as it reads them; None: it reads one text."""
        if self.objective is not None:
            return self.objective.conversation_writer(self.run.tokenizer)
        template = chat_template.find_template(self.run.sidecar_files)
        return None if template is None else Writer(template, self.run.tokenizer)

    def thought_marks(self, pair: Sequence[str] | None = None) -> ThoughtMarks:
        """What marks the thoughts in its answers; `pair`: the mark before them and the one behind
        them, where a setting says so."""
        writer = self.writer if self.reads_conversations else None
        return find_marks(self.run.tokenizer, writer, pair)

    def prompt_ids(self, conversation: Conversation, raw: bool = False) -> list[int]:
        """As `prompt`; says on the terminal that a prompt was cut."""
        ids, is_truncated = self.prompt(conversation, raw)
        if is_truncated:
            print(f"(cut to fit {len(ids)} tokens)", file=sys.stderr)
        return ids

    def prompt(self, conversation: Conversation, raw: bool = False) -> tuple[list[int], bool]:
        """Token ids of a prompt in the objective's template, or the imported model's chat template,
        and whether it was cut.

        Args:
          conversation: the turns so far, the user's last; its tools and template arguments.
          raw: no template, only the text.

        Raises:
          ValueError: no token to begin with, or a template that refuses the conversation or leaves
            out something of it.
        """
        tokenizer, experiment = self.run.tokenizer, self.run.experiment
        if raw:
            return bare_prompt(tokenizer, only_text(conversation)), False
        if experiment is not None:
            length = experiment.data.sequence_length
            return experiment.data.objective.prompt_ids(tokenizer, conversation, length)
        if (writer := self.writer) is None:
            return bare_prompt(tokenizer, only_text(conversation)), False
        return writer.prompt_ids(conversation), False


def find_responders(
    run: Run, adapters: Mapping[str, Run], switched_off: Sequence[str]
) -> list[Responder]:
    """The run itself, or one responder for each adapter of a bank.

    Args:
      run: a run, the base of `adapters`.
      adapters: name -> run, side by side; empty: those of the run itself, if it is a bank.
      switched_off: adapters that do not answer; without a bank they are not looked at.

    Raises:
      ValueError: a name of `switched_off` that the bank does not have.
    """
    bank = dict(adapters) or {name: run for name in run.method.bank_names}
    if not bank:
        return [Responder(run)]
    if set(switched_off) - set(bank):
        raise ValueError(f"--switch-off: the adapters side by side are {', '.join(bank)}")
    responders = [
        Responder(adapter_run, name, number)
        for number, (name, adapter_run) in enumerate(bank.items())
    ]
    remaining = [responder for responder in responders if responder.name not in switched_off]
    return remaining or [Responder(run.base or run, "base", NO_ADAPTER)]


def tell_left_out(
    marks: ThoughtMarks,
    tokenizer: Tokenizer,
    answers: Sequence[Sequence[int]],
    known: Collection[str] = (),
) -> set[str]:
    """Says on the terminal which special tokens of answers their texts leave out: around what
    nobody said to be thoughts, say. Those in `known` are not named; returns those that are.
    """
    counts = marks.count_left_out(tokenizer, answers)
    new_counts = {name: count for name, count in sorted(counts.items()) if name not in known}
    if new_counts:
        names = ", ".join(f"{name} in {count}" for name, count in new_counts.items())
        print(
            f"(of {len(answers)} answers, special tokens are no part of the text, but what stands "
            f"between them is: {names}. Where they mark thoughts, set `thoughts` of the task)",
            file=sys.stderr,
        )
    return set(new_counts)


def find_stops(run: Run, responders: Sequence[Responder]) -> tuple[int, ...]:
    """Tokens besides end-of-text that end an answer.

    Raises:
      ValueError: one of them was trained to fill in masked tokens, and does not write.
    """
    stops = chat_template.find_stops(run.sidecar_files)
    for responder in responders:
        objective = responder.objective
        if objective is None:
            continue
        if objective.head_outputs:
            raise ValueError(
                f"{responder.name or 'it'} says classes or a number by a head of its own "
                f"({objective.kind}), and writes no text: ask it with graft evaluate "
                "(docs/guides/classify.md)"
            )
        if not objective.generates:
            raise ValueError(
                f"{responder.name or 'it'} was trained to fill in masked tokens: it reads both "
                "ways and does not write text. Tune it with another objective first."
            )
        stops += objective.stop_ids(responder.run.tokenizer)
    return stops
