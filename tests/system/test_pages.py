"""What README and docs/ say: their links, paths, commands and examples."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from research import cli
from research.config import cli as config_cli
from research.evaluation.tasks import Evaluation
from research.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOOLS = sorted(path for path in (ROOT / "tools").iterdir() if path.is_file())


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: str, first: str) -> str:
    """The Python block of a page that begins with `first`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    [block] = [block for block in blocks if block.startswith(first)]
    return block


@pytest.mark.parametrize("page", [*PAGES, *TOOLS], ids=page_id)
def test_what_a_page_points_to_exists(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)
    paths = re.findall(
        r"(?<![\w/.-])(?:configs|docs|experiments|research|tests|tools)/[\w/.]+", text
    )
    files = [ROOT / path.rstrip(".") for path in paths]
    targets = [(page.parent / link if link else page, anchor) for link, anchor in links]
    missing = [str(path) for path in (*(path for path, _ in targets), *files) if not path.exists()]
    assert missing == []
    assert [
        f"{path.name}#{anchor}"
        for path, anchor in targets
        if anchor and anchor not in anchors(path)
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_flag_of_our_programs_on_a_page_is_one(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    line = r"(tools/\w+|graft \w+|python -m research\.train)((?: +[^\s`#|]+)+)"
    for program, arguments in re.findall(line, text):
        names = re.findall(r"(?<=\s)'?(--[a-z][\w-]*)(?![\w.-])", arguments.split(" -- ")[0])
        unknown = {*names} - flags(program) - {"--help"}
        assert not unknown, f"{page_id(page)}: {program} knows no {unknown}"


def flags(program: str) -> set[str]:
    """The flags in a program's source, and those of every program that takes a config."""
    if program.startswith("tools/"):
        files = [ROOT / program]
    else:
        name = "train" if program.startswith("python") else program.partition(" ")[2]
        if name not in cli.COMMANDS:
            return set()
        files = [ROOT / f"{cli.COMMANDS[name].replace('.', '/')}.py"]
        for room in re.findall(r"from research\.(benchmarks|launch) import", files[0].read_text()):
            files += (ROOT / "research" / room).glob("*.py")
        for module in re.findall(r"from research\.commands import (\w+)", files[0].read_text()):
            files.append(ROOT / f"research/commands/{module}.py")
    text = "".join(file.read_text() for file in [*files, ROOT / "research/config/cli.py"])
    quote = '"' if files[0].suffix == ".py" else ""
    return {*re.findall(f"{quote}(--[a-z][\\w-]*){quote}", text)}


def test_figures_of_pretraining_beside_tuning_stand_in_the_studies_that_they_link_to() -> None:
    page = ROOT / "docs" / "pretraining_vs_finetuning.md"
    number = r"(?<![\w.])[-+]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:e[-+]\d+)?"
    for point in re.findall(r"^- .*?(?=^- |^$)", page.read_text(), re.MULTILINE | re.DOTALL):
        links = re.findall(r"\]\(([^)#]*)[^)]*\)", point)
        table = " ".join("".join((page.parent / link).read_text() for link in links).split())
        text = " ".join(re.sub(r"\]\([^)]*\)", "]", point).split())
        figures = re.findall(rf"{number} \[{number}, {number}\]", text)
        assert [figure for figure in figures if figure not in table] == []
        assert {*re.findall(number, text)} <= {*re.findall(number, table)}


def test_every_page_is_reachable_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    links = re.findall(r"\]\((?!https?:)([^)#]+)", index.read_text())
    assert {*(ROOT / "docs").rglob("*.md")} - {index} <= {
        (index.parent / x).resolve() for x in links
    }


def test_the_index_of_commands_has_them_all() -> None:
    page = (ROOT / "docs" / "reference" / "commands.md").read_text()
    assert set(re.findall(r"^\| `graft (\w+)` \|", page, re.MULTILINE)) == set(cli.COMMANDS)


def test_the_picture_has_every_room_and_is_what_its_script_draws() -> None:
    script = ROOT / "docs" / "images" / "floors.py"
    spec = importlib.util.spec_from_file_location("floors", script)
    assert spec is not None and spec.loader is not None
    floors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(floors)
    assert script.with_suffix(".svg").read_text() == floors.draw()
    rooms = {room for _, names in floors.FLOORS for room in names}
    assert rooms == {
        path.stem
        for path in (ROOT / "research").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}


@pytest.fixture
def tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README describes it: its config, and a few tickets of each team."""
    monkeypatch.chdir(tmp_path)
    teams = {"billing": "I was charged {} times", "technical": "Error {} at start"}
    for split, numbers in {"train": range(12), "test": range(20, 24)}.items():
        rows = [
            {"prompt": ticket.format(number), "completion": team}
            for number in numbers
            for team, ticket in teams.items()
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        Path(f"{split}.jsonl").write_text(lines)
    Path("tickets.py").write_text(code("README.md", "from ml_collections"))
    return tmp_path


def test_the_config_of_the_readme_is_short_and_fits(tickets: Path) -> None:
    assert len(Path("tickets.py").read_text().splitlines()) <= 16
    assert config_cli.load(Experiment, "tickets.py").init_from == "runs/smollm2"
    evaluation = config_cli.load(Evaluation, "tickets.py:evaluate")
    assert evaluation.choice is not None and evaluation.choice.split == "test"


def test_the_config_of_the_readme_trains_and_evaluates(tickets: Path, world) -> None:
    tiny = ["--config.schedule.warmup=1", "--config.data.batch_size=8", "--config.steps=2"]
    cli.main(
        ["train", "--config", "tickets.py", "--workdir", "runs/tickets", *tiny]
        + [f"--config.init_from={world.base}", "--config.method.rank=2"]
    )
    cli.main(
        ["evaluate", "--config", "tickets.py:evaluate", "--run", "runs/tickets"]
        + ["--out", "results.json"]
    )
    assert Path("results.json").stat().st_size


def test_the_method_of_the_tour_starts_as_the_base_and_trains_its_vectors() -> None:
    import numpy as np

    from research import methods, tree
    from tests.helpers import tiny

    names: dict = {"__name__": "shift"}
    exec(compile(code("docs/tour.md", '"""Shift'), "shift.py", "exec"), names)
    method = names["Shift"]()
    base, model, batch = tiny.model(), tiny.attached(method), tiny.batch()
    assert np.array_equal(tiny.logits(base, batch), tiny.logits(model, batch))
    trainable = methods.trainable(model, method)
    assert trainable and all(name.endswith("/site/shift/vector") for name in trainable)
    leaves = tree.flatten(model)
    updates = {name: leaves[name] + 1 for name in trainable}
    other = tree.unflatten(model, leaves | updates)
    # other numbers, not another rounding
    assert not np.allclose(tiny.logits(base, batch), tiny.logits(other, batch))
