"""Programs on PATH that stand in for gcloud, kubectl, sbatch and others: they write down how they
were called, and give prepared answers."""

import json
import os
import sys
from pathlib import Path

PROGRAM = """#!{python}
import json, os, shutil, subprocess, sys
from pathlib import Path
name, folder = Path(sys.argv[0]).name, Path({folder!r})
words = sys.argv[1:]
given = sys.stdin.read() if not sys.stdin.isatty() and {reads!r} else ""
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([name, *words, given] if given else [name, *words]) + "\\n")
answers = folder / (name + ".json")
for rule in json.loads(answers.read_text()) if answers.exists() else []:
    if all(part in " ".join(words) for part in rule["when"]):
        used = folder / (name + "." + str(rule["number"]))
        count = int(used.read_text()) if used.exists() else 0
        used.write_text(str(count + 1))
        answer = rule["answers"][min(count, len(rule["answers"]) - 1)]
        if "run" in answer:
            command = next(w for w in words if w.startswith("--command=")).partition("=")[2]
            for old, new in answer["run"].items():
                command = command.replace(old, new)
            done = subprocess.run(["sh", "-c", command], cwd=folder / "machine")
            sys.exit(answer.get("status", done.returncode))
        if "copy" in answer:
            source, place = words[answer["copy"] :][:2]
            shutil.copy(source, folder / "machine" / place.partition(":")[2])
        print(answer.get("says", ""), end="")
        print(answer.get("complains", ""), end="", file=sys.stderr)
        sys.exit(answer.get("status", 0))
"""


class StandIns:
    """A folder of such programs, first on PATH."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder = folder
        (folder / "machine").mkdir(parents=True)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def add(self, name: str, *rules: tuple, reads: bool = False) -> None:
        """A program.

        Args:
          rules: (parts that its arguments must have, what it answers the first time, the second
            time, ... and from then on); an answer has `says`, `complains`, `status`; or `run`, to
            run what follows `--command=` in the folder `machine`, with texts replaced; or `copy`,
            the place among its arguments of a file and of where to copy it, HOST:PATH.
          reads: whether it reads its standard input.
        """
        text = PROGRAM.format(python=sys.executable, folder=str(self.folder), reads=reads)
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)
        entries = [
            {"number": number, "when": when, "answers": answers}
            for number, (when, *answers) in enumerate(rules)
        ]
        (self.folder / f"{name}.json").write_text(json.dumps(entries))

    def calls(self) -> list[list[str]]:
        """How they were called, in order: the name, arguments, and standard input if any."""
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
