"""The config door: strict, with dotted paths and nearest keys in its errors."""

import dataclasses
import math
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_collections
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.config import cli, schema

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Model:
    width: int
    rope: float = 1e4
    remat: Literal["none", "full"] = "none"

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width {self.width} must be even")


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Full:
    kind: Literal["full"] = "full"


@dataclasses.dataclass(frozen=True)
class Lora:
    rank: int
    kind: Literal["lora"] = "lora"


@dataclasses.dataclass(frozen=True)
class Train:
    model: Model
    steps: int = 10
    clip: float | None = None
    debug: bool = False
    note: str | None = None
    parts: tuple[Part, ...] = ()
    rules: tuple[tuple[str, float], ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    eval: dict[str, Part] = dataclasses.field(default_factory=dict)
    tasks: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    method: Annotated[Full | Lora, pydantic.Field(discriminator="kind")] = Full()
    batch: Annotated[int, pydantic.Field(gt=0)] = 4


def loose(**changes: Any) -> dict[str, Any]:
    return {"model": {"width": 64}, **changes}


def test_build_converts_nested_dataclasses_and_promotes_int_to_float_only() -> None:
    mapping = ml_collections.ConfigDict(
        {
            "model": {"width": 64, "rope": 10},
            "clip": 1,
            "parts": [{"name": "law"}, ml_collections.ConfigDict({"name": "web", "weight": 2})],
            "rules": (("embedding/.*", 0),),
            "options": {"a": [1, {"b": None}]},
            "eval": {"held_out": {"name": "law"}},
            "method": {"kind": "lora", "rank": 4},
        }
    )
    config = schema.build(Train, mapping)
    assert config == Train(
        model=Model(64, 10.0),
        clip=1.0,
        parts=(Part("law"), Part("web", 2.0)),
        rules=(("embedding/.*", 0.0),),
        options={"a": [1, {"b": None}]},
        eval={"held_out": Part("law")},
        method=Lora(4),
    )
    assert type(config.clip) is float and type(config.model.rope) is float
    assert schema.build(Train, config) == config


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (loose(stpes=3), "config.stpes: no such key; did you mean config.steps?"),
        (
            {"model": {"width": 64, "ropee": 1.0}},
            "config.model.ropee: no such key; did you mean config.model.rope?",
        ),
        (
            loose(parts=[{"name": "a"}, {"name": "b", "wieght": 1}]),
            "config.parts[1].wieght: no such key; did you mean config.parts[1].weight?",
        ),
        (
            loose(eval={"x": {"nam": "b"}}),
            "config.eval.x.nam: no such key; did you mean config.eval.x.name?",
        ),
        (
            loose(tasks={"x": {"nam": "b"}}),
            "config.tasks.x.nam: no such key; did you mean config.tasks.x.name?",
        ),
        (
            loose(method={"kind": "lora", "rnak": 4}),
            "config.method.rnak: no such key; did you mean config.method.rank?",
        ),
        (
            loose(method={"kind": "full", "rank": 4}),
            "config.method.rank: its kind has no such key; give config.method as a whole",
        ),
        (loose(zzz=1), "config.zzz: no such key; there are: batch, clip, debug, eval, method,"),
        ({}, "config.model: missing"),
        (loose(method={"kind": "lora"}), "config.method.rank: missing"),
        (
            loose(method={"kind": "lra"}),
            "config.method.kind: there is no 'lra'; did you mean lora?",
        ),
        (loose(steps="3"), "config.steps: expected a valid integer, got '3' (str)"),
        (loose(steps=3.0), "config.steps: expected a valid integer, got 3.0 (float)"),
        (loose(steps=True), "config.steps: expected a valid integer, got True (bool)"),
        (loose(clip="1"), "config.clip: expected a valid number, got '1' (str)"),
        (loose(debug=1), "config.debug: expected a valid boolean, got 1 (int)"),
        (loose(batch=0), "config.batch: expected greater than 0, got 0 (int)"),
        (loose(rules=[["a", "b"]]), "config.rules[0][1]: expected a valid number, got 'b' (str)"),
        (
            {"model": {"width": 64, "remat": "all"}},
            "config.model.remat: expected 'none' or 'full', got 'all' (str)",
        ),
        ({"model": {"width": 63}}, "config.model: width 63 must be even"),
        (loose(options={"f": math.sin}), "config.options.f: a config holds numbers, strings"),
    ],
)
def test_bad_config_is_named_by_path(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        schema.build(Train, mapping)
    assert any(line.startswith(message) for line in str(caught.value).splitlines()), caught.value


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        schema.build(Train, loose(steps="3", clpi=1), where="run 7")
    assert str(caught.value).splitlines() == [
        "run 7.clpi: no such key; did you mean run 7.clip?",
        "run 7.steps: expected a valid integer, got '3' (str)",
    ]


configs = st.builds(
    Train,
    model=st.builds(
        Model,
        width=st.integers(0, 99).map(lambda n: 2 * n),
        rope=st.floats(0, allow_infinity=False),
    ),
    clip=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    note=st.none() | st.text(),
    parts=st.lists(st.builds(Part, st.text(), st.floats(0, 1)), max_size=3).map(tuple),
    rules=st.lists(st.tuples(st.text(), st.floats(0, 1)), max_size=2).map(tuple),
    eval=st.dictionaries(st.text(), st.builds(Part, st.text()), max_size=2),
    method=st.just(Full()) | st.builds(Lora, st.integers()),
)


@given(config=configs)
def test_json_round_trip_is_exact(config: Train, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("config") / "config.json"
    schema.dump_json(config, path)
    assert schema.load_json(Train, path) == config


def test_torn_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    schema.dump_json(Train(Model(64)), path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"config\.json, line \d: not JSON"):
        schema.load_json(Train, path)


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(
        textwrap.dedent("""
        import ml_collections

        def get_config(arg="64"):
            parts = [{"name": "law"}]
            return ml_collections.ConfigDict({"model": {"width": int(arg)}, "parts": parts})
        """)
    )
    return str(path)


def test_overrides_reach_every_field_and_take_its_type(config_file: str) -> None:
    overrides = [
        "model.rope=1e-3",
        "clip=0.5",  # None by default, and absent from the file
        "note=123",  # a text field takes digits as text
        "debug=true",
        "parts[0].weight=3",
        "rules=[['a', 1], ['b', 2.5]]",
        "options.new=[1, None]",
        'method={"kind": "lora", "rank": 2}',
        "method.rank=8",
    ]
    config = cli.load(Train, config_file + ":32", overrides)
    assert config == Train(
        model=Model(32, 1e-3),
        clip=0.5,
        note="123",
        debug=True,
        parts=(Part("law", 3.0),),
        rules=(("a", 1.0), ("b", 2.5)),
        options={"new": [1, None]},
        method=Lora(8),
    )
    assert cli.load(Train, config_file, ["note=None", "clip=None"]) == Train(
        model=Model(64), parts=(Part("law"),)
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=3", "config.model.widht: no such key; did you mean config.model.width?"),
        ("modle.width=3", "config.modle: no such key; did you mean config.model?"),
        ("steps.x=3", "config.steps.x: config.steps is 10, which has no keys"),
        ("parts[3].weight=3", "config.parts[3].weight: config.parts has 1 elements"),
        ("steps=many", "config.steps: expected a valid integer, got 'many' (str)"),
        ("steps", "--config.steps: write it as --config.key=value"),
    ],
)
def test_bad_override_is_named_by_path(config_file: str, override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        cli.load(Train, config_file, [override])
    assert any(line.startswith(message) for line in str(caught.value).splitlines()), caught.value


def test_misspelt_config_file_and_flag_name_the_nearest(
    config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean .*tiny\.py\?"):
        cli.load(Train, config_file.replace("tiny", "tniy"))
    parser = cli.program_parser("train", "Trains.")
    parser.add_argument("--workdir")
    arguments = cli.parse(parser, ["--config", "a.py:b", "--config.model.width=8"])
    assert (arguments.config, arguments.overrides) == ("a.py:b", ["model.width=8"])
    for argv, message in [
        (["--wrokdir=x"], "unknown argument --wrokdir; did you mean --workdir?"),
        (["--config.steps", "3"], "write it as --config.steps=value"),
    ]:
        with pytest.raises(SystemExit):
            cli.parse(parser, ["--config", "a.py", *argv])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nope\n", "faulty.py, line 1: ModuleNotFoundError: No module named 'nope'"),
        ("\ndef get_config(:\n", "faulty.py, line 2: SyntaxError: "),
        ("def get_config():\n    return {}['a']\n", "faulty.py, line 2: KeyError: 'a'"),
        ("x = 1\n", "faulty.py: defines no get_config()"),
    ],
)
def test_a_faulty_config_file_is_an_error_with_its_line(
    tmp_path: Path, code: str, message: str
) -> None:
    (tmp_path / "faulty.py").write_text(code)
    with pytest.raises(ValueError, match=re.escape(message)):
        cli.load(Train, str(tmp_path / "faulty.py"))


def test_help_shows_the_docstring_without_importing_jax() -> None:
    program = (
        "import sys; from research.config import cli\n"
        "try: cli.parse(cli.program_parser('teach', 'Teaches.\\n\\n  a  b'), ['--help'])\n"
        "finally: assert 'jax' not in sys.modules"
    )
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Teaches.\n\n  a  b\n" in result.stdout and "--config.a.b=value" in result.stdout
    assert time.monotonic() - start < 3
