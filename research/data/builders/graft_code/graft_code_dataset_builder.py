"""Python source code: the standard library of the Python that runs."""

from __future__ import annotations

import platform
import sysconfig
import tokenize
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from research.data.builders.documents import Corpus, Document, DocumentBuilder

EXCLUDED = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__",
}  # fmt: skip
PYTHON = f"python-{platform.python_version()}"


def source_files(root: Path) -> list[Path]:
    """The .py files below `root`, sorted, without tests, installed packages and build settings."""
    files = []
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        # _sysconfigdata*.py holds the paths of the machine that built this Python.
        if not EXCLUDED.intersection(folders) and not path.name.startswith("_sysconfigdata"):
            files.append(path)
    return files


class Builder(DocumentBuilder):
    """One document per .py file; id = path below the library.

    Another Python is another configuration, so two environments never share data.
    """

    BUILDER_CONFIGS: ClassVar[list] = [tfds.core.BuilderConfig(name=PYTHON)]
    DESCRIPTION = "Python standard library sources (no tests), one file per document."
    HOMEPAGE = "https://www.python.org"
    LICENCE = "PSF-2.0"
    CITATION = "The Python Software Foundation: The Python Standard Library."

    def read_corpus(self) -> Corpus:
        """Reads `sysconfig.get_paths()["stdlib"]`; skips what does not decode (and counts it)."""
        root = Path(sysconfig.get_paths()["stdlib"])
        documents, undecodable = [], 0
        for path in source_files(root):
            try:
                with tokenize.open(path) as file:
                    documents.append(Document(path.relative_to(root).as_posix(), file.read()))
            except (SyntaxError, UnicodeDecodeError):
                undecodable += 1
        return Corpus(
            documents, {"source": f"standard library of {PYTHON}", "undecodable": undecodable}
        )
