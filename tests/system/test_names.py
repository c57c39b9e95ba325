"""Names are the field's own words: what must not come back into identifiers."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("research", "configs", "experiments", "tests")

# bare participles, which do not say of what: `matched_names`, `message`, `row_lengths` do
PARTICIPLES = frozenset(
    """
    asked built chosen done drawn found gathered given gone got grown held kept learnt looked lost
    made meant named opened placed reached read said seen sent shown spelt spent started stored
    taken told torn used wanted written
    """.split()
)
# words that only this project used, for things that have a name
DIALECT = frozenset("companions door foreign lasting shelf speaks voice voices".split())
VERBS = frozenset({"read"})  # what a function may be called
# how long a function may be, from `def` to its last line
LONGEST = 80


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Path -> syntax tree of every Python file."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in files}


def defined_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of variables, arguments, functions, classes and own attributes, with their lines.

    Not those of fields that hold functions, nor keys of a TypedDict, which are on disk.
    """
    fields = {
        id(field.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and ("Callable" in ast.unparse(field.annotation) or is_typed_dict(node))
    }
    for node in ast.walk(tree):
        if id(node) in fields:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.strip("_") not in VERBS:
                yield node.name, node.lineno
        elif isinstance(node, ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno


def is_typed_dict(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).endswith("TypedDict") for base in node.bases)


def annotated_names(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """Name, annotation and line of arguments and variables that have an annotation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation:
            yield node.arg, ast.unparse(node.annotation), node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, ast.unparse(node.annotation), node.lineno


def test_no_identifier_is_a_bare_participle_or_of_the_dialect():
    places = [
        f"{path}:{line}: {name}"
        for path, tree in trees().items()
        for name, line in defined_names(tree)
        if name.strip("_").lower() in PARTICIPLES | DIALECT
    ]
    assert not places, "name what it is:\n" + "\n".join(sorted(places))


def test_a_tokenizer_is_called_one():
    places = [
        f"{path}:{line}: {name}: {annotation}"
        for path, tree in trees().items()
        for name, annotation, line in annotated_names(tree)
        if name.strip("_") == "words" and re.search(r"\bTokenizer\b", annotation)
    ]
    assert not places, places


def test_no_lambda_has_a_name():
    places = [
        f"{path}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda)
    ]
    assert not places, f"write a def: {places}"


def test_no_function_is_long():
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {place: length for place, length in lengths.items() if length > LONGEST}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("found = 1", ["found"]),
        ("for told, x in y: pass", ["told", "x"]),
        ("def made(kept, *, given=1): pass", ["made", "kept", "given"]),
        ("self.held = 1", ["held"]),
        ("import research.text as shelf", ["shelf"]),
        ("x.found(kept=1)", []),
        ("def read(path): pass", ["path"]),
        ("class Entry(TypedDict):\n    kept: int", ["Entry"]),
        ("class Entry:\n    kept: int\n    read: Callable[[], int]", ["Entry", "kept"]),
    ],
)
def test_defined_names_are_seen(source, names):
    assert sorted(name for name, _ in defined_names(ast.parse(source))) == sorted(names)
