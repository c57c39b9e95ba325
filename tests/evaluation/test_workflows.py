"""Workflows: steps that a question is answered in, and what each costs."""

import dataclasses
import json

import numpy as np
import pytest

from research.checkpoints import runs
from research.config.schema import build
from research.evaluation.generation_task import GenerationTask
from research.evaluation.passages import Prompt
from research.evaluation.question_task import add_turns
from research.evaluation.report import evaluate_run
from research.evaluation.results import read_result
from research.evaluation.tasks import Evaluation
from research.evaluation.workflows import AnyStep
from research.evaluation.workflows.run import Saying, check_workflow, run_workflow
from research.generation.sampling import Sampling
from research.text.conversation import from_messages
from tests.helpers.tiny_run import world

WARM = Sampling(temperature=1.0)
YEAR = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.getbasetemp())


def steps(*configs):
    return [build(AnyStep, config) for config in configs]


class Model:
    """A stand-in that says what is in a list, question by question and sample by sample."""

    def __init__(self, **texts):
        self.texts = {tuple(map(int, key[1:].split("_"))): value for key, value in texts.items()}
        self.calls = []

    def __call__(self, candidates, constraint, max_tokens):
        self.calls.append([(each.question, each.sample, each.turns) for each in candidates])
        self.limits = (constraint, max_tokens)
        texts = [self.texts[each.question, each.sample][each.attempts] for each in candidates]
        return [Saying(text, text, Prompt([1] * 10, False), len(text), False) for text in texts]


def test_only_answers_that_fail_are_asked_again_and_told_why():
    model = Model(
        _0_0=['{"year": 1889}'], _1_0=["about 1889", '{"year": "1889"}', '{"year": 1889}']
    )
    check = dict(kind="check", scorer=dict(kind="json", schema=YEAR), retries=3)
    outcome = run_workflow(steps(dict(kind="draft"), check), {0: {}, 1: {}}, model)
    pairs = [[call[:2] for call in calls] for calls in model.calls]
    assert pairs == [[(0, 0), (1, 0)], [(1, 0)], [(1, 0)]]
    first, second = model.calls[2][0][2]
    assert first[0] == "about 1889" and "no JSON" in first[1]
    assert second[0] == '{"year": "1889"}' and "year: '1889' is not of type 'integer'" in second[1]
    assert outcome.answers[1].text == '{"year": 1889}'
    assert all(answer.passes for answer in outcome.answers.values())
    costs = [(each.step, each.answers, each.prompt_tokens) for each in outcome.usage]
    assert costs == [("draft", 2, 20), ("check", 2, 20)]
    assert [each.new_tokens for each in outcome.usage] == [24, 30]
    assert [len(outcome.sayings[number]) for number in (0, 1)] == [1, 3]


def test_what_fails_to_the_end_says_so():
    model = Model(_0_0=["no", "nor this", "never"])
    check = dict(kind="check", scorer=dict(kind="pattern", pattern="[0-9]+"), retries=1)
    outcome = run_workflow(steps(dict(kind="draft"), check), {0: {}}, model)
    assert len(model.calls) == 2 and not outcome.answers[0].passes
    assert outcome.answers[0].text == "nor this"


def test_a_vote_is_among_those_that_pass():
    texts = {"_0_0": ["7"], "_0_1": ["x"], "_0_2": ["x"], "_0_3": ["8.0"], "_0_4": ["8"]}
    check = dict(kind="check", scorer=dict(kind="pattern", pattern="[0-9.]+"))
    vote = dict(kind="vote", samples=5, scorer=dict(kind="numeric"))
    outcome = run_workflow(steps(dict(kind="draft"), check, vote), {0: {}}, Model(**texts))
    assert outcome.answers[0].text == "8.0"
    only_vote = steps(dict(kind="draft"), dict(kind="vote", samples=5))
    assert run_workflow(only_vote, {0: {}}, Model(**texts)).answers[0].text == "x"


def test_a_second_draft_goes_on_from_the_first_under_its_own_limits():
    model = Model(_0_0=["It was built in 1889.", '{"year": 1889}'])
    constraint = dict(kind="json_schema", schema=YEAR)
    second = dict(kind="draft", instruction="As JSON.", constraint=constraint, max_tokens=20)
    outcome = run_workflow(steps(dict(kind="draft"), second), {0: {}}, model)
    assert model.calls[1] == [(0, 0, (("It was built in 1889.", "As JSON."),))]
    assert model.limits[0].schema == YEAR and model.limits[1] == 20
    assert outcome.answers[0].text == '{"year": 1889}'


def test_turns_are_messages_or_lines_of_the_text():
    question = from_messages([{"role": "user", "content": "When?"}])
    turns = [("Once.", "In numbers.")]
    chat = add_turns(question, turns, reads=True)
    assert [(each["role"], each["content"]) for each in chat.messages] == [
        ("user", "When?"),
        ("assistant", "Once."),
        ("user", "In numbers."),
    ]
    (text,) = add_turns(question, turns, reads=False).messages
    assert text["content"] == "When?\nOnce.\nIn numbers.\n"


EXACT = dict(kind="check", scorer=dict(kind="exact_match"))


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([dict(kind="vote", samples=2)], "begins with a draft"),
        ([dict(kind="draft", instruction="Now.")], "the first is asked the question alone"),
        ([dict(kind="draft"), dict(kind="draft")], "is told something first"),
        ([dict(kind="draft"), *[dict(kind="vote", samples=2)] * 2], "one answer left"),
        (
            [dict(kind="draft"), dict(kind="check", scorer=dict(kind="exact_match"))],
            "must not know",
        ),
    ],
)
def test_steps_that_make_no_sense_are_refused(configs, message):
    with pytest.raises(ValueError, match=message):
        check_workflow(steps(*configs), WARM)


def test_votes_of_the_likeliest_tokens_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        check_workflow(steps(dict(kind="draft"), dict(kind="vote", samples=2)), Sampling())


def task(place, **settings):
    source = place.questions().sources[0]
    defaults = dict(split="heldout", scorers=(dict(kind="exact_match"),), max_tokens=8)
    objective = dict(kind="supervised", template="Q: {prompt}\nA: ", answer_tokens=8)
    config = defaults | dict(batch_size=5, objective=objective) | settings
    return dataclasses.replace(
        build(GenerationTask, config | dict(source=dict(kind="tfds", name="a"))), source=source
    )


def test_answers_of_a_task_are_of_its_constraint(place):
    run = runs.open_run(place.base)
    choices = ["red or so", "green", "blue", "a colour"]
    constraint = dict(kind="choice", choices=choices)
    evaluation = Evaluation(tasks={"colours": task(place, constraint=constraint)})
    result = evaluate_run(run, evaluation).tasks["colours"]
    assert {answer.answer for answer in result.answers} <= set(choices)
    assert result.cut == 0
    short = task(place, constraint=dict(kind="choice", choices=["a very long text"]), max_tokens=3)
    with pytest.raises(ValueError, match=r"needs \d+ tokens.* may have 3"):
        evaluate_run(run, Evaluation(tasks={"colours": short}))


def test_a_tasks_workflow_says_what_each_step_costs_and_does_not_depend_on_batches(place):
    run = runs.open_run(place.base)
    check = dict(kind="check", scorer=dict(kind="pattern", pattern="[^e]*"), retries=2)
    workflow = [dict(kind="draft"), check, dict(kind="vote", samples=3)]
    sampling = dict(temperature=1.0, seed=3)

    def ask(batch_size):
        settings = dict(workflow=workflow, sampling=sampling, batch_size=batch_size)
        tasks = {"colours": task(place, **settings)}
        return evaluate_run(run, Evaluation(tasks=tasks)).tasks["colours"]

    result, other = ask(5), ask(2)
    assert [answer.answer for answer in result.answers] == [a.answer for a in other.answers]
    draft, check, vote = result.steps
    assert draft.answers == 3 * len(result.answers) and vote.answers == 0
    assert 0 < check.answers < 2 * draft.answers
    for name in ("prompt_tokens", "new_tokens"):
        assert getattr(result, name) == sum(getattr(step, name) for step in result.steps)
    passes = np.asarray([answer.scores["passes"] for answer in result.answers])
    assert passes.tolist() == [float("e" not in answer.answer) for answer in result.answers]
    again = read_result(json.loads(json.dumps(result.to_dict())))
    assert again.steps == result.steps
