"""Whether a program that an answer gives passes its tests."""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from research.config.schema import Positive, PositiveNumber
from research.evaluation.sandbox import run
from research.evaluation.scorers.base import Scorer, Scores, references

# the first block, to its end or to that of an answer that was cut
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Code(Scorer):
    """1 where the Python program of an answer passes all its tests (functional correctness: Chen
    2021, arXiv:2107.03374, section 2.1).

    `code/runs` is 1 where nothing went wrong but assertions of tests, `code/ends` where it was not
    stopped for its time, and `code/tests` the share of tests that passed, where a record has a list
    of them.

    The program is the first block between ``` and ```, or else all that is said; of an answer that
    goes on with `beginning`, it is that up to the first line that is not indented. It runs in a
    sandbox (research/evaluation/sandbox/run.py), with Python's standard library alone.
    """

    # the field with the tests: a text that raises where one fails, or a list of such texts
    reference: str = "tests"
    # the field with what programs begin with, as HumanEval's prompts, which end in a function's
    # documentation: an answer goes on there, or says the function anew; None: it is a whole program
    beginning: str | None = None
    # most seconds: of CPU time of a process, and in all
    cpu_seconds: Positive = 5
    seconds: PositiveNumber = 15.0
    # most memory of a process, and most that is written, in MiB
    memory_mib: Positive = 512
    files_mib: Positive = 16
    # most processes and threads
    processes: Positive = 4
    name: str = ""
    kind: Literal["code"] = "code"
    runs_code = True

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(filter(None, (self.reference, self.beginning)))

    def check(self, record: Mapping[str, Any]) -> None:
        """Runs nothing of the record: a sandbox for each of many would take seconds."""
        for number, test in enumerate(references(record, self.reference), start=1):
            if error := _syntax_error(test):
                raise ValueError(f"its {self.reference!r} are no Python (test {number}: {error})")
        if self.beginning is not None and _entry_point(_text(record, self.beginning)) is None:
            raise ValueError(f"its {self.beginning!r} is no beginning of a Python function")
        run.check()

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        self.check(record)
        tests = references(record, self.reference)
        names = ["", "runs", "ends"]
        names += ["tests"] if isinstance(record[self.reference], list | tuple) else []
        values = {f"{self.label}/{name}".removesuffix("/"): 0.0 for name in names}
        program = self.find_program(answer, record)
        if isinstance(program, SyntaxError):
            line = "" if program.lineno is None else f", line {program.lineno}"
            return Scores(values, f"no program: {program.msg}{line}")
        outcome = run.run(program, tests, self._limits())
        values[self.label] = float(outcome.kind == "passed")
        values[f"{self.label}/runs"] = float(outcome.kind in ("passed", "failed"))
        values[f"{self.label}/ends"] = float(outcome.kind != "timeout")
        if "tests" in names:
            values[f"{self.label}/tests"] = outcome.tests_passed / len(tests)
        return Scores(values, remark=outcome.message)

    def reading(self, answer: str) -> str | None:
        block = _FENCE.search(answer)
        return (answer if block is None else block[1]).strip()

    def find_program(self, answer: str, record: Mapping[str, Any]) -> str | SyntaxError:
        """The program of an answer, or what is wrong with the text in its place."""
        beginning = "" if self.beginning is None else _text(record, self.beginning)
        block = _FENCE.search(answer)
        text = answer if block is None else block[1]
        if not beginning:
            error = _syntax_error(text)
            empty = SyntaxError("there is nothing in it")
            return error or (text if text.strip() else empty)
        if _entry_point(beginning) in _functions(text):  # imports may be those of the beginning
            body = "\n    pass" if _syntax_error(beginning) else ""
            return f"{beginning.rstrip()}{body}\n\n{text}"
        if block is None:
            text = _indented_part(text)
        program = beginning + text
        return _syntax_error(program) or program

    def _limits(self) -> run.Limits:
        names = [field.name for field in dataclasses.fields(run.Limits)]
        return run.Limits(**{name: getattr(self, name) for name in names})


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise ValueError(f"its {field!r} is no text, but {value!r:.60}")
    return value


def _parse(text: str) -> ast.Module | SyntaxError:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that mean nothing, and the like
        try:
            return ast.parse(text)
        except SyntaxError as error:
            return error
        except (ValueError, RecursionError, MemoryError) as error:
            return SyntaxError(str(error) or "too deep")


def _syntax_error(text: str) -> SyntaxError | None:
    tree = _parse(text)
    return tree if isinstance(tree, SyntaxError) else None


def _functions(text: str) -> list[str]:
    """Functions that a text defines, in their order; none where it is no Python."""
    tree = _parse(text)
    nodes = [] if isinstance(tree, SyntaxError) else tree.body
    return [node.name for node in nodes if isinstance(node, ast.FunctionDef)]


def _entry_point(beginning: str) -> str | None:
    """The function with which a beginning ends, whose body it may lack."""
    names = _functions(beginning) or _functions(f"{beginning.rstrip()}\n    pass")
    return names[-1] if names else None


def _indented_part(text: str) -> str:
    """The rest of the line on which a text begins, and what is indented or empty after it."""
    first, *lines = text.splitlines(keepends=True) or [""]
    end = next((n for n, line in enumerate(lines) if line.strip() and line[0] not in " \t"), None)
    return "".join([first, *lines[:end]])
