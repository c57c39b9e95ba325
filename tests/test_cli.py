"""`graft`: its help, its errors, and the Python that a command runs in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from research import cli
from research.runtime import environment

ROOT = Path(__file__).resolve().parents[1]


def run(folder, *arguments, without_libraries=False):
    """Runs `graft` as it lies in a folder, from another one."""
    switches = ["-S"] if without_libraries else []
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from research import cli; cli.main()"
    command = [sys.executable, *switches, "-c", code, *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder.anchor, env=variables, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path):
    """What decides where a command runs, in a repository of its own."""
    for file in (
        "__init__.py",
        "cli.py",
        "runtime/__init__.py",
        "runtime/environment.py",
        "runtime/signals.py",
    ):
        (tmp_path / "research" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "research").mkdir(exist_ok=True)
        shutil.copy(ROOT / "research" / file, tmp_path / "research" / file)
    return tmp_path


def test_help_names_every_command_with_the_first_line_of_its_own_help(capsys):
    pytest.raises(SystemExit, cli.main, ["--help"])
    listing = capsys.readouterr().out
    for name, module in cli.COMMANDS.items():
        line = f"  {name:{max(map(len, cli.COMMANDS))}}  {cli.summary(module)}"
        assert cli.summary(module) and line in listing.splitlines()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_has_help_under_its_own_name(name, capsys, monkeypatch):
    monkeypatch.setattr(environment, "reexec_if_needed", lambda argv, layer: None)
    pytest.raises(SystemExit, cli.main, [name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: graft {name}") and f"    graft {name}" in text


def test_the_console_script_works_from_any_folder():
    script = Path(sys.executable).parent / "graft"
    process = subprocess.run([script, "trian"], cwd="/", capture_output=True, text=True)
    assert process.returncode == 2 and "no command 'trian'; did you mean train?" in process.stderr


def test_help_loads_no_jax():
    code = "import sys; from research import cli; cli.main([]); sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not environment.has_glibc(), reason="memory is not given out by glibc")
@pytest.mark.parametrize("setting", [None, "", "glibc.malloc.arena_max=1"])
def test_commands_run_with_huge_pages_unless_a_user_says_otherwise(setting, tmp_path):
    """As the program that a shell starts sees itself: one that starts again keeps its flags."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nprint(os.environ.get('GLIBC_TUNABLES'), sys.flags.no_user_site)\n"
    )
    variables = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    variables |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    variables |= {} if setting is None else {"GLIBC_TUNABLES": setting}
    command = [sys.executable, "-s", "-m", "research.cli", "tasks"]
    output = subprocess.run(command, capture_output=True, text=True, env=variables).stdout
    if setting is None:
        assert output.startswith("None 1\nglibc.malloc.hugetlb=1 1\n"), output[:200]
    else:
        assert output.startswith(f"{setting} 1\narithmetic"), output[:200]


def test_without_libraries_a_command_says_what_to_run(clone):
    process = run(clone, "train", "a b", without_libraries=True)
    assert process.returncode == 1 and process.stderr == "jax is not there: run tools/setup\n"


@pytest.mark.parametrize(("command", "layer"), [("train", ""), ("preflight", "preflight")])
def test_a_command_goes_on_in_the_environment_that_it_needs(clone, command, layer):
    python = clone / ".venv" / layer / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    process = run(clone, command, "a b", "--c", without_libraries=not layer)
    assert process.stdout.splitlines() == [str(clone), "-m", "research.cli", command, "a b", "--c"]


@pytest.mark.parametrize("module", ["research.cli", "research.train"])
@pytest.mark.parametrize(
    ("name", "status", "ending"), [("TERM", 143, "SIGTERM"), ("INT", 130, "Ctrl-C")]
)
def test_a_signal_while_a_program_still_imports_ends_it_and_nothing_was_begun(
    module, name, status, ending, tmp_path
):
    """The signal waits while Python starts, as one of `hold` does, and comes at the first line."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])\n"
        f"os.kill(os.getpid(), signal.SIG{name})\n"
        f"os.execv(sys.executable, [sys.executable, '-m', '{module}', *sys.argv[1:]])"
    )
    command = ["train"] * (module == "research.cli")
    command += ["--config", "absent.py", "--workdir", str(tmp_path / "run")]
    process = subprocess.run(
        [sys.executable, "-c", program, *command], cwd=ROOT, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout) == (status, "")
    assert process.stderr == f"graft train: ended by {ending}; nothing was begun\n"
    assert not list(tmp_path.iterdir())


def test_a_signal_between_two_environments_is_heard_in_the_second(tmp_path):
    """Not lost, and not Python's own: `kill` in the stead of the other environment's start."""
    python = tmp_path / "prepare" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nkill -TERM $$\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    program = (
        "import pathlib, sys\n"
        "from research import cli\n"
        "from research.runtime import environment\n"
        "environment.ENVIRONMENT = pathlib.Path(sys.argv.pop())\n"
        "cli.main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, "prepare", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 143, process.stderr
    assert process.stderr == "graft prepare: ended by SIGTERM; nothing was begun\n"


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("graft tr", {"train"}),
        ("graft train --workd", {"--workdir"}),
        ("graft generate --tempera", {"--temperature"}),
        ("graft generate --temp", {"--temperature", "--template-argument"}),
        ("graft adapters mer", {"merge"}),
    ],
)
def test_the_shell_completes_commands_and_flags(line, completions, tmp_path):
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-m", "research.cli"]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)
    assert set((tmp_path / "answer").read_text().split()) == completions
