"""No bound of the tests is a bare number: it counts roundings, or a comment gives its reason."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in TESTS.rglob("*.py") if path.name != "rounding.py")
TOLERANCES = {"atol", "rtol", "abs", "rel", "abs_tol", "rel_tol", "decimal", "tol"}
# those whose default tolerance fits one number format only
COMPARISONS = {"allclose", "assert_allclose", "isclose", "assert_array_almost_equal"}
SMALL = 0.01


def bounds(module):
    """Nodes that hold a numeric bound. `pytest.approx(x)` alone is for a few steps in float64, of
    which its 1e-6 is far from both rounding and mistakes."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            tolerances = TOLERANCES & {keyword.arg for keyword in node.keywords}
            if name in COMPARISONS or (name == "approx" and (tolerances or len(node.args) > 1)):
                yield node
        elif isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Eq):
            sides = [part for side in node.comparators for part in ast.walk(side)]
            values = [side.value for side in sides if isinstance(side, ast.Constant)]
            if any(isinstance(value, float) and 0 < value < SMALL for value in values):
                yield node


def without_reason(text):
    """Lines of bounds without a comment on one of their lines or just above the statement."""
    module = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    statements = [node for node in ast.walk(module) if isinstance(node, ast.stmt)]
    lines = []
    for node in bounds(module):
        around = [s for s in statements if s.lineno <= node.lineno <= s.end_lineno]
        first = max(s.lineno for s in around)
        if not comments & set(range(first - 1, node.end_lineno + 1)):
            lines.append(node.lineno)
    return sorted(set(lines))


def test_every_bound_has_a_reason():
    bare = {path: without_reason(path.read_text()) for path in FILES}
    places = [f"{path.relative_to(TESTS)}:{line}" for path in FILES for line in bare[path]]
    assert not places, "count roundings (helpers/rounding.py) or give a reason in a comment"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("np.testing.assert_allclose(a, b)", [1]),
        ("# why\nnp.testing.assert_allclose(a, b, atol=1e-4)", []),
        ("assert x == pytest.approx(\n    y, rel=1e-3  # why\n)", []),
        ("assert x == pytest.approx(y, 1e-3)", [1]),
        ("assert x == pytest.approx(y)", []),
        ("assert abs(x - y) < 1e-5 * scale", [1]),
        ("if a:  # of another statement\n\n    assert x > 1e-6", [3]),
    ],
)
def test_a_bare_bound_is_seen(text, lines):
    assert without_reason(text) == lines
