"""graft adapters and the programs that take several adapters, as a user calls them."""

import json
import re

import pytest

from research import cli
from research.methods import LoRA
from tests.helpers import tiny_run


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory):
    """A folder with a base and two adapters of it."""
    world = tiny_run.world(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("law", "style")):
        tiny_run.adapter(world.base, LoRA(rank=2), folder / name, seed)
    return folder, world.base


@pytest.fixture
def call(capsys):
    """Runs a command line of `graft`; gives what it printed, or its error where it fails."""

    def run(*arguments, fails=False):
        capsys.readouterr()
        if not fails:
            cli.main([*map(str, arguments)])
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as exit_info:
            cli.main([*map(str, arguments)])
        assert exit_info.value.code not in (None, 0)
        return f"{exit_info.value.code}\n{capsys.readouterr().err}"

    return run


@pytest.mark.heavy
def test_adapters_are_listed_merged_taken_out_added_and_put_side_by_side(
    adapter_folder, call, tmp_path
):
    folder, base = adapter_folder
    tool = ("adapters",)
    table = call(*tool, "list", folder)
    assert table.count("lora") == 4 and str(folder / "law") in table
    message = call(*tool, "merge", "--from", folder / "law", "--out", tmp_path / "whole")
    assert "differ by at most" in message
    before, after = re.search(r"fingerprint (\w+) before and (\w+) after", message).groups()
    assert before == after
    message = call(
        *tool, "unmerge", "--from", tmp_path / "whole", "--adapter", folder / "law",
        "--out", tmp_path / "apart",
    )  # fmt: skip
    assert "weights differ from the base's by at most" in message
    both = [f"--from=0.5={folder / name}" for name in ("law", "style")]
    call(*tool, "add", *both, "--out", tmp_path / "sum")
    adapters = [f"{name}={folder / name}" for name in ("law", "style")]
    call(*tool, "bank", *(f"--from={text}" for text in adapters), "--out", tmp_path / "bank")
    program = ("generate", "--tokens", 4, "--prompt", "red", "--prompt", "blue")
    separately = call(*program, "--run", base, *(f"--adapter={text}" for text in adapters))
    from_bank = call(*program, "--run", tmp_path / "bank")
    lines = [line.split(":")[0] for line in from_bank.splitlines() if ":" in line]
    assert lines == ["law", "style", "law", "style"] and separately == from_bank
    off = call(*program, "--run", folder / "law", "--switch-off", "lora")
    assert off == call(*program, "--run", base)


@pytest.mark.heavy
def test_mistakes_end_in_one_line(adapter_folder, call, tmp_path):
    folder, base = adapter_folder
    out = ("--out", tmp_path / "out")
    tool = ("adapters",)
    for arguments, message in [
        ((*tool, "merge", "--from", base, *out), "is a whole model"),
        ((*tool, "merge", "--from", folder / "nothing", *out), "no checkpoint"),
        ((*tool, "add", "--from", f"half={folder / 'law'}", *out), "write it as WEIGHT=RUN"),
        ((*tool, "bank", "--from", folder / "law", *out), "write it as NAME=RUN"),
        ((*tool, "list", folder / "nothing"), "there is no folder"),
        (
            ("generate", "--run", folder / "law", "--switch-off", "x"),
            "no adapter named 'x'",
        ),
    ]:
        assert message in call(*arguments, fails=True)
    content = {"text": None, "choice": None}
    config = tmp_path / "config.py"
    config.write_text(
        f"def get_config():\n    return {json.dumps(content).replace('null', 'None')}\n"
    )
    message = call(
        "evaluate", "--config", config, "--run", folder / "law",
        "--adapter", "law", fails=True,
    )  # fmt: skip
    assert "--adapter names one of a bank's adapters" in message
