"""What a prompt says, letter by letter."""

import pytest

from research.decisions.rungs.few_shot import draw
from research.decisions.templates import PromptTemplate, Shot, default_templates, read_templates

OWN = PromptTemplate("own", question="Notice: {prompt}\nLicence:", delimiter=" ")


def test_examples_come_first_then_the_instruction_then_the_question():
    template = PromptTemplate("a", "Choose.", "Q: {prompt}\nA:", " ")
    shots = (Shot("one {brace}", "x"), Shot("two", "{y}"))
    text = template.format(shots).format(prompt="three {z}")
    assert text == "Q: one {brace}\nA: x\n\nQ: two\nA: {y}\n\nChoose.\n\nQ: three {z}\nA:"
    assert OWN.format().format(prompt="n") == "Notice: n\nLicence:"
    assert OWN.passage.format(text="t", completion="mit") == "Notice: t\nLicence: mit"


def test_labels_are_listed_where_they_are_few():
    names = [template.name for template in default_templates(OWN, ("yes", "no"))]
    assert names == ["own", "question and answer", "labels first", "labels last"]
    listed = default_templates(OWN, ("yes", "no"))[2].format()
    assert listed.startswith("Answer with one of: yes, no.\n\n")
    many = default_templates(OWN, [str(n) for n in range(99)])
    assert all("98" not in template.format() for template in many)


def test_examples_are_of_as_many_answers_as_there_are():
    examples = [Shot(f"q{n}", "rare" if n == 7 else "usual") for n in range(20)]
    for seed in range(3):
        shots = draw(examples, 4, seed)
        assert {shot.completion for shot in shots} == {"rare", "usual"} and len(set(shots)) == 4
    assert draw(examples, 4, 0) == draw(examples, 4, 0) != draw(examples, 4, 1)


def test_a_file_of_templates_is_read_or_its_line_is_named(tmp_path):
    path = tmp_path / "templates.jsonl"
    path.write_text('{"name": "a", "question": "{prompt}?"}\n\n{"name": "b"}\n')
    assert [template.format() for template in read_templates(path)] == ["{prompt}?", "{prompt}"]
    for line, error in {
        '{"name": "a", "question": "no place"}': "must have {prompt} once, not 0",
        '{"name": "a", "colour": "red"}': "colour",
        '{"name": 3}': "a value is no text",
        "[1]": "no template such as",
    }.items():
        path.write_text(f'{{"name": "b"}}\n{line}\n')
        with pytest.raises(ValueError, match=f"templates.jsonl:2: .*{error}"):
            read_templates(path)
    path.write_text('{"name": "b"}\n{"name": "b"}\n')
    with pytest.raises(ValueError, match="two templates are called 'b'"):
        read_templates(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="there is no template"):
        read_templates(path)
