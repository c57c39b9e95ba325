"""Python files of a user's own, such as configs: loaded, and their errors told with the line."""

import contextlib
import importlib.util
import traceback
import types
from collections.abc import Iterator
from pathlib import Path


def load_file(file: str) -> types.ModuleType:
    """Runs a Python file and returns it as a module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Python file, or running it fails; names the line.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: not a Python file, *.py")
    module = importlib.util.module_from_spec(spec)
    with errors_with_line(file):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def errors_with_line(file: str) -> Iterator[None]:
    """Turns whatever the file's code raises inside the block into a ValueError with its line."""
    try:
        yield
    except Exception as error:  # a user's code may raise anything
        if type(error) is ValueError and str(error).startswith(f"{file}, line "):
            raise  # it says more exactly where
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if _same_file(frame.filename, file)
        ]
        if isinstance(error, SyntaxError) and error.filename and _same_file(error.filename, file):
            lines.append(error.lineno)
        where = f"{file}, line {lines[-1]}" if lines else file
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{where}: {kind}{error}") from error


def _same_file(name: str, file: str) -> bool:
    return Path(name).absolute() == Path(file).absolute()
