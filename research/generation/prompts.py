"""Who answers a prompt, in which template it is put, and which tokens end the answer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from research.adapters import banks
from research.checkpoints.runs import Run
from research.objectives.base import Objective, bare_prompt
from research.text import chat_template

Turn = Mapping[str, str]  # of a conversation: its role and content


@dataclasses.dataclass(frozen=True)
class Responder:
    """One that answers."""

    # its model may be attached to another's, its template is its own
    run: Run
    # what it is called where several answer
    name: str = ""
    # the number by which a row of a bank says whom it asks; None: the model is no bank
    number: int | None = None

    @property
    def objective(self) -> Objective | None:
        """What it was trained with; None: it was imported."""
        return self.run.experiment.data.objective if self.run.experiment else None

    def ids(self, prompt: str, said: Sequence[Turn] = (), raw: bool = False) -> list[int]:
        """A prompt in the template of what it was trained with, or of the imported model's chat.

        Args:
          said: the conversation so far.
          raw: no template, only the text.

        Raises:
          ValueError: nothing to begin with, or a template that refuses the conversation.
        """
        tokenizer, experiment = self.run.tokenizer, self.run.experiment
        messages = [*map(dict, said), {"role": "user", "content": prompt}]
        if raw:
            return bare_prompt(tokenizer, prompt)
        if experiment is not None:
            length = experiment.data.sequence_length
            ids, truncated = experiment.data.objective.prompt_ids(tokenizer, messages, length)
            if truncated:
                print(f"(cut to fit {length} tokens)", file=sys.stderr)
            return ids
        template = chat_template.find_template(self.run.sidecar_files)
        if template is None:
            return bare_prompt(tokenizer, prompt)
        begin, end = tokenizer.roles["begin"], tokenizer.roles["end"]
        text = chat_template.render(template, messages, begin=begin, end=end)
        return tokenizer.encode(text, special=True)


def find_voices(run: Run, named: Mapping[str, Run], switched_off: Sequence[str]) -> list[Responder]:
    """Who answers: the run; or each adapter of a bank, given by name or the run's own.

    Args:
      switched_off: names that do not answer; of a run that is no bank they are another's matter.

    Raises:
      ValueError: such a name that the bank does not have.
    """
    bank = dict(named) or {name: run for name in run.method.bank_names}
    if not bank:
        return [Responder(run)]
    if set(switched_off) - set(bank):
        raise ValueError(f"--switch-off: the adapters side by side are {', '.join(bank)}")
    voices = [Responder(of, name, number) for number, (name, of) in enumerate(bank.items())]
    left = [voice for voice in voices if voice.name not in switched_off]
    return left or [Responder(run.base or run, "base", banks.NO_ADAPTER)]


def find_stops(run: Run, voices: Sequence[Responder]) -> tuple[int, ...]:
    """Tokens besides end-of-text that end an answer.

    Raises:
      ValueError: one of them was trained to fill in masked tokens, and does not write.
    """
    stops = chat_template.find_stops(run.sidecar_files)
    for voice in voices:
        objective = voice.objective
        if objective is None:
            continue
        if not objective.generates:
            raise ValueError(
                f"{voice.name or 'it'} was trained to fill in masked tokens: it reads both ways "
                "and does not write text. Tune it with another objective first."
            )
        stops += objective.stop_ids(voice.run.tokenizer)
    return stops
