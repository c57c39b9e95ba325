"""Answers on disk as they are made: no model is asked the same twice, and a killed evaluation goes
on with what is missing.

A model, a task and its questions have a folder of the cache, named by the hash of all that their
answers depend on; each part of the answers is a file in it. A file appears whole or not at all, and
two programs that ask the same write the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from research.checkpoints.checkpointer import library_versions
from research.checkpoints.runs import Run
from research.config.schema import to_dict
from research.data.sources.files import cache_errors, cache_folder, shared_cache
from research.evaluation.question_task import QuestionTask
from research.evaluation.questions import Question
from research.evaluation.results import Answer, Cost, Part, StepUsage
from research.evaluation.tasks import Evaluation
from research.runtime import files
from research.runtime.code_hash import code_hash

# What loads a model, asks it and scores its answers.
_CODE = ("research.evaluation.report",)
# What is asked: the questions themselves stand for it.
_OF_QUESTIONS = ("source", "sources", "split", "max_questions", "group", "breakdown")
_ABOUT = "about.json"


def default_cache() -> Path:
    """Folder of answers: `$GRAFT_CACHE/answers`, or ~/.cache/graft/answers."""
    return cache_folder("answers")


def key_of(
    run: Run,
    adapter: str | None,
    evaluation: Evaluation,
    task: QuestionTask,
    questions: Sequence[Question],
) -> dict[str, Any]:
    """All that the answers of a run depend on, as JSON.

    Args:
      adapter: of a bank: which one answers.
      evaluation: of the task; it says how devices are arranged and keys and values stored, on
        which roundings depend.
      questions: those of the task, with what was retrieved for them.
    """
    settings, mesh = to_dict(task), to_dict(evaluation.mesh)
    return {
        "model": _model_key(run) | {"adapter": adapter},
        "task": {name: value for name, value in settings.items() if name not in _OF_QUESTIONS},
        "task_key": [task.key, task.machine_key],
        "questions": digest_questions(questions),
        "code": code_hash(_CODE),
        "versions": library_versions(),
        "devices": {"kinds": sorted(d.device_kind for d in jax.devices()), "mesh": mesh},
        "cache_dtype": evaluation.cache_dtype,
    }


def _model_key(run: Run) -> dict[str, Any]:
    """A model's arrays, what is computed with them, and how it reads and ends."""
    data = run.experiment.data if run.experiment else None
    methods = []
    attached: Run | None = run
    while attached is not None:
        methods.append(to_dict(attached.method))
        attached = attached.base
    return {
        "fingerprint": run.fingerprint,
        "shape": to_dict(run.model),
        "methods": methods,
        "tokenizer": run.tokenizer.fingerprint(),
        "template_tokens": run.tokenizer.template_tokens,
        "files": {name: _digest(content.hex()) for name, content in run.sidecar_files.items()},
        "objective": None if data is None else to_dict(data.objective),
        "sequence_length": None if data is None else data.sequence_length,
    }


def digest_questions(questions: Sequence[Question]) -> str:
    """The same for the same questions with the same records and passages."""
    return _digest([_question_key(question) for question in questions])


def _question_key(question: Question) -> list[Any]:
    passages = question.passages
    retrieved = None
    if passages is not None:
        ids = (passages.ids, passages.texts, passages.documents)
        retrieved = [*map(list, ids), passages.scores, sorted(passages.right)]
    return [question.row, question.digest(None), question.record, retrieved]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class AnswerCache:
    """What one model has answered of one task."""

    folder: Path
    # what errors call it
    task: str

    def read(self) -> list[Part]:
        """The parts that are there.

        Raises:
          ValueError: a file is not what was written.
        """
        with cache_errors(self.folder.parent):
            names = sorted(self.folder.glob("[0-9]*.json"))
            return [self._read(path) for path in names]

    def add(self, part: Part) -> None:
        """Writes a part.

        Raises:
          OSError: the cache's disk is full, or it is another user's.
        """
        text = json.dumps(dataclasses.asdict(part))
        path = self.folder / f"{min(part.answers):08}.json"
        with cache_errors(self.folder.parent):
            # the checksum comes first, in a line of its own
            files.atomic_write(path, f"{self._checksum(path, text)}\n{text}\n", is_shared=True)

    def _checksum(self, path: Path, text: str) -> int:
        """Of a file's text and of its place: it is not another model's or question's."""
        return zlib.crc32(f"{self.folder.name}/{path.name}\n{text}".encode())

    def _read(self, path: Path) -> Part:
        checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
        text = text.removesuffix("\n")
        if checksum != str(self._checksum(path, text)):
            raise ValueError(
                f"answers of {self.task} from an earlier run are damaged ({path} is not what was "
                "written): --fresh asks again"
            )
        content = json.loads(text)
        answers = {int(number): Answer(**each) for number, each in content.pop("answers").items()}
        steps = tuple(StepUsage(**step) for step in content.pop("steps"))
        return Part(answers, cost=Cost(**content.pop("cost")), steps=steps, **content)


def open_cache(
    cache: Path, key: Mapping[str, Any], task: str, is_fresh: bool = False
) -> AnswerCache:
    """The answers that a key describes, in a folder of the cache, which is made.

    Args:
      cache: folder of all answers.
      key: as `key_of` gives it.
      task: its name, for errors.
      is_fresh: whether answers that are there are removed.

    Raises:
      OSError: the cache's disk is full, or it is another user's.
    """
    folder = cache / _digest(key)[:32]
    with shared_cache(cache):
        if is_fresh:
            files.remove(folder, cache)
        files.make_shared_folder(folder)
        if not (folder / _ABOUT).exists():
            content = json.dumps({"task_name": task, **key}, indent=1, default=repr)
            files.atomic_write(folder / _ABOUT, content, is_shared=True)
    return AnswerCache(folder, task)
