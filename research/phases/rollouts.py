"""Rollouts: answers that a phase's start gives to prompts, their rewards, and their advantages.

Each prompt is answered several times; an answer's advantage is its reward less the mean of its
group (Shao 2024, arXiv:2402.03300). A reward is a metric of a scorer of `graft evaluate`. They are
written once, as JSON lines: the phase that learns from them is a run on them like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from research.checkpoints import runs
from research.config import schema
from research.config.schema import Positive
from research.config.suggestions import suggestion
from research.evaluation.generation_task import GenerationTask
from research.evaluation.passages import Prompt
from research.evaluation.questions import Question
from research.evaluation.report import loaded_model
from research.evaluation.writing import Draw, Writer
from research.generation.decode import Completion
from research.runtime import files, storage
from research.sharding import MeshConfig
from research.training.observers import show

# Part of what a file of rollouts says it was made of: raise it when they would differ.
_SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Which prompts a phase's start answers, and what its answers are worth."""

    # prompts, scorers, sampling and most tokens, as `tasks` of graft evaluate has them: `samples`
    # is the size of a group, `split` where prompts come from
    task: GenerationTask
    # the metric of the task's scorers that is the reward, such as exact_match
    reward: str
    # prompts of a phase; later phases have others until all were asked
    prompts: Positive = 16
    # divide advantages by the standard deviation of their group (GRPO; Dr. GRPO, arXiv:2503.20783,
    # does not)
    divide_by_deviation: bool = True

    def __post_init__(self) -> None:
        task = self.task
        if task.samples < 2:
            raise ValueError("rollouts.task.samples: a group of one answer has no advantage; set 2")
        if task.workflow or task.retrieval is not None:
            raise ValueError("rollouts.task: answers are drawn once; no workflow and no retrieval")


class EqualRewardsError(ValueError):
    """All answers to each prompt are worth the same: there is nothing to learn from them."""


def write_rollouts(
    config: RolloutConfig, start: str, path: Path, number: int, mesh: MeshConfig
) -> None:
    """Writes the rollouts of a phase, unless they are there.

    Args:
      start: the run that answers.
      path: of the file; what it was made of lies beside it.
      number: of the phase, which decides its prompts and draws.

    Raises:
      EqualRewardsError: in every group.
      ValueError: the file is of another start or config, the scorers have no such metric, or
        several processes would sample.
    """
    if jax.process_count() > 1:
        raise ValueError("phases: rollouts are sampled by one process; start this run with one")
    run = runs.open_run(start)
    made_of = {
        "schema": _SCHEMA,
        "start": run.fingerprint,
        "phase": number,
        "rollouts": _settings_of(config),
        "scorers": config.task.key,
    }
    about = storage.absolute(path.with_suffix(".json"))
    if storage.is_file(about):
        content = _read_about(about)
        if content["made_of"] != made_of:
            raise ValueError(
                f"{path} holds rollouts of another model or config: choose another --workdir, or "
                "remove the phases from this one on"
            )
        _check_whole(storage.absolute(path), content)
        return
    questions = read_prompts(config, number)
    with loaded_model(run, mesh=mesh) as model:
        writer, task = Writer(model, config.task), config.task
        task.check_model(model.responder, questions)
        prompts = [task.write(model.responder, question) for question in questions]
        places = [place for place in range(len(prompts)) for _ in range(task.samples)]
        draws = [
            Draw(question.row, number * task.samples + k)
            for question in questions
            for k in range(task.samples)
        ]
        answers = writer.complete([prompts[place].ids for place in places], draws)
    lines, statistics = _judge(config, writer, questions, prompts, answers)
    show(_describe(statistics))
    if not lines:
        raise EqualRewardsError(
            f"rollouts: in each of the {len(questions)} groups all rewards are equal (mean "
            f"{statistics['mean_reward']:.3g}), so that there is nothing to learn from: ask more "
            "prompts, draw more answers or at a higher temperature, or take a finer reward"
        )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files.atomic_write(storage.absolute(path), text)
    checksum = zlib.crc32(text.encode())
    files.write_json(about, {"made_of": made_of, "checksum": checksum, **statistics})


def _read_about(path: epath.Path) -> dict[str, Any]:
    """What lies beside a file of rollouts; ValueError where it is not whole."""
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content["made_of"], dict):
            return content
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{path} is damaged: remove it, and the rollouts are drawn anew, the same")


def _check_whole(path: epath.Path, about: Mapping[str, Any]) -> None:
    """Raises ValueError for rollouts that are not those that were written."""
    is_there = storage.is_file(path)
    if is_there and about.get("checksum") in (None, zlib.crc32(path.read_bytes())):
        return  # older ones have none
    raise ValueError(
        f"{path} {'is damaged' if is_there else 'is gone'}: remove {path.stem}.json beside it, and "
        "its rollouts are drawn anew, the same"
    )


def _settings_of(config: RolloutConfig) -> dict[str, Any]:
    """As JSON; what was not there when older rollouts were written counts where it is set."""
    settings = schema.to_dict(config)
    if config.task.thoughts is None:
        del settings["task"]["thoughts"]
    return settings


def read_prompts(config: RolloutConfig, number: int) -> list[Question]:
    """The prompts of a phase: the next of all in an order drawn once.

    Raises:
      ValueError: the reward is no metric of theirs, or a record cannot be scored.
    """
    questions = config.task.read()
    names = sorted({n for question in questions[:1] for n in _metric_names(config, question)})
    if config.reward not in names:
        raise ValueError(
            f"rollouts.reward: no metric {config.reward!r}{suggestion(config.reward, names)}; "
            f"there are {', '.join(names)}"
        )
    order = np.random.default_rng(config.task.sampling.seed).permutation(len(questions))
    count = min(config.prompts, len(questions))
    places = (number * count + np.arange(count)) % len(questions)
    return [questions[int(order[place])] for place in places]


def _metric_names(config: RolloutConfig, question: Question) -> list[str]:
    return [n for each in config.task.scorers for n in each.score("", question.record).values]


def _judge(
    config: RolloutConfig,
    writer: Writer,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    answers: Sequence[Completion],
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rollouts of all groups whose rewards differ, and what is to be said of all."""
    lines: list[dict[str, Any]] = []
    all_rewards, equal, size = [], 0, config.task.samples
    for place, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
        group = answers[place * size : (place + 1) * size]
        texts = [writer.decode(each.tokens) for each in group]
        rewards = np.asarray(
            [_reward(config, writer.plain_text(text, prompt), question) for text in texts]
        )
        all_rewards.append(rewards)
        if not np.ptp(rewards) > 0:
            equal += 1
            continue
        advantages = rewards - rewards.mean()
        if config.divide_by_deviation:
            advantages = advantages / rewards.std()
        for text, each, reward, advantage in zip(texts, group, rewards, advantages, strict=True):
            ids = each.tokens + ([] if each.end is None else [each.end])
            lines.append(
                {
                    "row": question.row,
                    "prompt": question.text,
                    "answer": text,
                    "reward": float(reward),
                    "advantage": float(advantage),
                    "is_cut": each.is_cut,
                    "prompt_ids": [int(token) for token in prompt.ids],
                    "answer_ids": [int(token) for token in ids],
                }
            )
    rewards = np.concatenate(all_rewards)
    return [line for line in lines if line["answer_ids"]], {
        "groups": len(questions),
        "equal_groups": equal,
        "answers": len(answers),
        "cut_answers": sum(each.is_cut for each in answers),
        "mean_reward": float(rewards.mean()),
        "answer_tokens": sum(len(each.tokens) for each in answers),
    }


def _reward(config: RolloutConfig, text: str, question: Question) -> float:
    for scorer in config.task.scorers:
        with contextlib.suppress(KeyError):
            return float(scorer.score(text, question.record).values[config.reward])
    return 0.0  # a metric that this answer alone does not have


def _describe(statistics: dict[str, float]) -> str:
    return (
        "rollouts   {answers:,} answers to {groups:,} prompts, mean reward {mean_reward:.4g}; "
        "{cut_answers:,} cut, {equal_groups:,} groups of equal rewards left out".format(
            **statistics
        )
    )
