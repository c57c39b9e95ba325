"""What holds for the repository as a whole: reasons, locks, sizes, and the scripts' own errors."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = listing.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def requirements() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def test_every_dependency_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra, entries in requirements().items():
        for entry in entries:
            match = re.search(rf'^    "{re.escape(entry)}",  # \w.{{8,}}$', text, re.MULTILINE)
            assert match, f"[{extra}] {entry}: give a reason on its line"


def test_every_direct_dependency_is_locked_in_its_lock() -> None:
    for lock in LOCKS:
        if lock.stem in ("build", "interop"):
            continue
        pinned = set(re.findall(r"^([a-z0-9-]+)==", lock.read_text(), re.MULTILINE))
        name = {"evaluate": "lm-eval"}.get(lock.stem, lock.stem)
        extra = requirements().get(name, [])
        for entry in [*requirements()[""], *requirements()["test"], *extra]:
            name = re.split(r"[\[<>=]", entry)[0].lower().replace("_", "-")
            assert name in pinned, f"{lock.name} lacks {name}: run tools/lock"


def test_locks_are_hashed_and_hold_no_address_and_no_torch() -> None:
    assert [lock.stem for lock in LOCKS] == [
        *("buckets", "build", "cpu", "cuda", "evaluate", "interop", "preflight", "prepare"),
        *("serve", "services", "tpu"),
    ]
    for lock in LOCKS:
        text = re.sub(r" \\\n", " ", lock.read_text())
        assert not re.search(r"://|file:|/opt|/home|/root|@ ", text), lock.name
        for line in text.splitlines():
            if not line.startswith("#"):
                assert re.match(r"[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line
                assert not line.startswith("torch"), line


def test_the_locks_agree_on_versions() -> None:
    versions_of: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE):
            versions_of.setdefault(name, set()).add(version)
    # Beam holds these back; its environment has its own of them, beside those of .venv. What reads
    # s3:// holds back the last.
    held_back = {"protobuf", "pyarrow", "pillow", "python-dateutil"}
    assert {name for name, versions in versions_of.items() if len(versions) > 1} <= held_back


def test_no_source_file_is_over_400_lines(tracked: list[Path]) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked
        if path.suffix == ".py" or path.parent.name == "tools"
        if (lines := path.read_bytes().count(b"\n")) > 400
    }
    assert long == {}


def test_no_tracked_file_is_ignored_or_huge(tracked: list[Path]) -> None:
    assert [path for path in tracked if path.stat().st_size > 2**20] == []
    ignored = subprocess.run(
        ["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    assert ignored.stdout == ""


@pytest.fixture
def setup_copy(tmp_path: Path) -> Path:
    """tools/setup with its locks and a PATH on which only a stand-in `python3` can be found."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup", tmp_path / "tools" / "setup")
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "head", "cat", "sha256sum", "mv", "rm", "mkdir"):
        if match := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(match)
    return tmp_path


def run_setup(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON"}
    environment["PATH"] = str(folder / "bin")
    command = [str(folder / "bin" / "bash"), str(folder / "tools" / "setup"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def stand_in(folder: Path, script: str) -> None:
    path = folder / "bin" / "python3"
    path.write_text(f"#!{folder}/bin/bash\n{script}\n")
    path.chmod(0o755)


def test_setup_says_what_is_missing(setup_copy: Path) -> None:
    too_old = 'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac'
    no_venv = 'case "$2" in *ensurepip*) exit 1;; *) echo Python 3.11.2;; esac'
    for script, message in [
        (too_old, "needs Python 3.11 or newer; found Python 3.9.2."),
        (no_venv, "apt-get install python3-venv"),
    ]:
        stand_in(setup_copy, script)
        result = run_setup(setup_copy)
        assert result.returncode == 1 and message in result.stderr, result.stderr
    result = run_setup(setup_copy, "gpu")
    assert result.returncode == 2 and "choose cpu, tpu or cuda" in result.stderr


def test_setup_empties_no_environment_of_another_folder(setup_copy: Path) -> None:
    stand_in(setup_copy, "rm -rf .venv/*")
    other = setup_copy / "other"
    other.mkdir()
    (other / "python").touch()
    (setup_copy / ".venv").symlink_to(other)
    result = run_setup(setup_copy)
    assert result.returncode == 1 and (other / "python").exists()
    assert f".venv is a symbolic link to {other.resolve()}" in result.stderr, result.stderr


def test_interrupted_setup_is_done_again_and_a_finished_one_is_not(setup_copy: Path) -> None:
    # The stand-in's "virtual environment" holds itself; its pip fails while `broken` exists.
    stand_in(
        setup_copy,
        f"""
        case "$*" in
          *"venv --clear"*) rm -rf .venv; mkdir -p .venv/bin; cat "$0" >.venv/bin/python
                            /bin/chmod +x .venv/bin/python;;
          *pip*) echo "$*" >>calls; [ ! -e {setup_copy}/broken ];;
          *--version*) echo Python 3.11.2;;
        esac""",
    )
    (setup_copy / "broken").touch()
    assert run_setup(setup_copy).returncode != 0
    assert not (setup_copy / ".venv" / "graft-setup").exists()
    (setup_copy / "broken").unlink()
    (setup_copy / "calls").unlink()
    assert run_setup(setup_copy).returncode == 0
    calls = (setup_copy / "calls").read_text()
    assert calls.count("--require-hashes") == 2 and "requirements/cpu.txt" in calls
    assert run_setup(setup_copy).returncode == 0
    assert (setup_copy / "calls").read_text() == calls
    with (setup_copy / "requirements" / "cpu.txt").open("a") as lock:
        lock.write("# changed\n")
    assert run_setup(setup_copy).returncode == 0
    assert (setup_copy / "calls").read_text() == calls * 2
