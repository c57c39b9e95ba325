"""Who answers a prompt, in which template it is put, and which tokens end the answer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from research.adapters import banks
from research.checkpoints.runs import Run
from research.data.examples import make_objective
from research.objectives import Chat, Masked, Supervised
from research.objectives.base import Objective
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
        return make_objective(self.run.experiment.data) if self.run.experiment else None

    def ids(self, prompt: str, said: Sequence[Turn] = (), raw: bool = False) -> list[int]:
        """A prompt in the template of what it was trained with, or of the imported model's chat.

        Args:
          said: the conversation so far.
          raw: no template, only the text.

        Raises:
          ValueError: nothing to begin with, or a template that refuses the conversation.
        """
        words, objective = self.run.tokenizer, self.objective
        turns = [*map(dict, said), {"role": "user", "content": prompt}]
        if not raw:
            template = (
                None if self.run.experiment else chat_template.find_template(self.run.sidecar_files)
            )
            if template is not None:
                begin, end = words.roles["begin"], words.roles["end"]
                return words.encode(
                    chat_template.render(template, turns, begin=begin, end=end), special=True
                )
            if isinstance(objective, Chat):
                return objective.prompt_ids(words, turns)
            if isinstance(objective, Supervised):
                assert self.run.experiment is not None
                length = self.run.experiment.data.sequence_length
                found, cut = objective.prompt_ids(words, prompt, length)
                if cut:
                    print(f"(cut to fit {length} tokens)", file=sys.stderr)
                return found
        found = [*words.opening, *words.encode(prompt)]
        if not found:
            raise ValueError("the prompt is empty, and this model has no token to begin with")
        return found


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
        if isinstance(objective, Masked):
            raise ValueError(
                f"{voice.name or 'it'} was trained to fill in masked tokens: it reads both ways "
                "and does not write text. Tune it with another objective first."
            )
        if isinstance(objective, Chat):
            stops += (objective.end_id(voice.run.tokenizer),)
    return stops
