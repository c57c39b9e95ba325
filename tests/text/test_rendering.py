"""Templates run in a process of their own, which has limits and is started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.text import chat_template, rendering
from research.text.rendering import RenderingError, View

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def process(monkeypatch):
    """A process of the test's own, whose renderings may take a third of a second."""
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    process = rendering._Process()
    monkeypatch.setattr(rendering, "_shared", process)
    yield process
    process.close()


def _render(template, views=None, **variables):
    return rendering.render_views(template, MESSAGES, variables, views or [View(2)])


def test_views_are_beginnings_with_changes(process):
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ add_generation_prompt }}{{ x }}"
    )
    views = [
        View(1, ask=True),
        View(2),
        View(2, changes=((0, "content", "c"), (1, "content"))),
        View(2, without=("x",)),
    ]
    assert _render(template, views, x="!") == ["aTrue!", "abFalse!", "cFalse!", "abFalse"]


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 2.0 ** 10000 }}", "OverflowError"),
        ("{{ 'x'.center(10 ** 12) }}", "MiB of memory"),
        ("{{ [0] * 10 ** 12 }}", "MiB of memory"),
        ("{{ messages[0].content * 4 * 10 ** 7 }}", "writes more than"),
        ("{{ messages[0].content.no() }}", "has no attribute 'no'"),
        ("{{ ''.__class__.mro() }}", "unsafe"),
        ("{{ tojson }", "line 1"),
        ("{{ raise_exception('a' * 10 ** 7) }}", r"^a{1000}\.\.\.$"),
        ("{{ {}['a' * 10 ** 7].b }}", r"^.{1000}\.\.\.$"),
        ("{% for x in [0] recursive %}{{ loop([0]) }}{% endfor %}", "recursion"),
    ],
)
def test_what_a_template_does_wrong_is_its_error(template, match):
    (result,) = _render(template)
    assert isinstance(result, RenderingError)
    with pytest.raises(RenderingError, match=match):
        raise result


def test_a_template_that_never_ends_is_stopped_and_the_next_is_rendered(process):
    endless = "{{ messages[0].content }}{% if messages | length > 1 %}" + (
        "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3 + "{% endif %}"
    )
    texts = _render(endless, [View(1), View(2), View(1)])
    assert texts[::2] == ["a", "a"] and "computes for more than 0.3 seconds" in str(texts[1])
    assert _render("{{ messages[0].content }}") == ["a"]


def test_a_process_that_was_killed_is_started_again(process):
    _render("{{ 1 }}")
    os.kill(process._child.pid, signal.SIGKILL)
    process._child.wait()
    assert _render("{{ 1 }}") == ["1"]


def test_the_process_ends_with_the_one_that_started_it():
    program = (
        "import os, signal; from research.text import rendering as r;"
        "r.render_views('{{ 1 }}', [], {}, [r.View(0)]);"
        "print(r._shared._child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    line = [sys.executable, "-c", program]
    output = subprocess.run(line, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    deadline = time.monotonic() + 60
    while _is_running(int(output)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(int(output))


def _is_running(pid):
    """Whether there is such a process that has not ended; a zombie waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_no_json_is_named(process):
    with pytest.raises(ValueError, match="no JSON: Object of type set"):
        _render("{{ x }}", x={1})


def test_json_is_written_as_transformers_writes_it(process):
    template = "{{ x | tojson }}{{ x | tojson(indent=1, sort_keys=true, separators=(',', ':')) }}"
    assert _render(template, x={"b": "<é", "a": 1}) == [
        '{"b": "<é", "a": 1}{\n "a":1,\n "b":"<é"\n}'
    ]


def test_a_template_with_generation_blocks_is_one():
    contents = chat_template.read_contents("{% generation %}{{ x }}{% endgeneration %}")
    assert contents.has_generation and contents.names == {"x"}
    assert not chat_template.read_contents("{{ generation }}").has_generation
    with pytest.raises(ValueError, match="no template of Jinja"):
        chat_template.check("{% generation %}")
