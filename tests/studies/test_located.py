"""A study that cannot be is refused before anything runs, with its file and line."""

import re

import pytest

from research import cli
from tests.helpers import tiny_run

TEXT = """from research.studies import Comparison, Form, Stage, Study, Sweep, axis


def get_study():
    return Study(
        claim="",
        source="",
        refuted_if="",
        config={config!r},
        forms={{"low": Form({{"learning_rate": 1e-3}}), "high": Form({{"learning_rate": 1e-2}})}},
        bases={{"not/there": "graft convert import --from nothing --out not/there"}},
        {more}
    )
"""


@pytest.mark.parametrize(
    "more, message",
    [
        ("comparison=()", r"line 5: .*'comparison'; did you mean comparisons\?"),
        ('axes=axis("data.batch_sise", 1)', r"line 12: .*did you mean data.batch_size\?"),
        ('changes={"learnin_rate": 1}', r"line 12: .*did you mean schedule.learning_rate\?"),
        ('axes=axis("log_every", 1, 2), metric="los"', "line 12: no trial will .*'los'; did you"),
        ('comparisons=(Comparison("low", "hihg"),)', r"line 12: .*'hihg'.*did you mean high\?"),
        ('comparisons=(Comparison("low", "high", metric="x"),)', "will have the metric 'x'"),
        ('stages=(Stage("s", (0,), {"learning_rate": 1.0}),)', "line 10: two cells are the same"),
        ('sweep=Sweep((1e-3,), "steps", factr=2)', r"line 12: .*'factr'; did you mean factor\?"),
    ],
)
def test_what_cannot_be_is_refused_before_a_base_is_made(world, tmp_path, more, message):
    config = str(tiny_run.config_file(tmp_path, world.tuning(4, evaluate_split="heldout")))
    file = tmp_path / "study.py"
    file.write_text(TEXT.format(config=config, more=more))
    with pytest.raises(SystemExit) as end:
        cli.main(["study", "run", str(tmp_path), "--folder", str(tmp_path / "out")])
    error = str(end.value)
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
