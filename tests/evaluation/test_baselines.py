import numpy as np
import pytest

from research.evaluation.baselines import BASELINES, majority, nearest_neighbour, tfidf_linear

TOPICS = {
    "law": "the court shall grant the licensee a perpetual licence to copy and distribute",
    "sea": "a ship with white sails left the harbour before the storm reached the coast",
    "code": "def main(argv): return parser.parse_args(argv) or sys.exit(len(argv))",
}


def _examples(seed: int, count: int) -> tuple[list[str], list[str]]:
    """Each text is a random half of its topic's words, so that no two sets share a sentence."""
    rng = np.random.default_rng(seed)
    labels = [str(label) for label in rng.choice(list(TOPICS), count, p=[0.5, 0.3, 0.2])]
    texts = [" ".join(rng.permutation(TOPICS[label].split())[:6]) for label in labels]
    return texts, labels


@pytest.mark.parametrize("name", ["tfidf_linear", "nearest_neighbour"])
def test_learnt_baselines_beat_the_majority_on_unseen_texts(name):
    texts, labels = _examples(0, 60)
    test_texts, test_labels = _examples(1, 40)
    predictions, cost = BASELINES[name](texts, labels, test_texts)
    common, _ = majority(texts, labels, test_texts)
    right = np.mean([p == t for p, t in zip(predictions, test_labels, strict=True)])
    assert right >= 0.9
    assert right > np.mean([p == t for p, t in zip(common, test_labels, strict=True)])
    assert all(type(label) is str for label in predictions)
    assert cost["fit_seconds"] > 0 and cost["predict_seconds"] > 0


def test_majority_takes_the_most_frequent_label_and_breaks_ties_by_name():
    predictions, cost = majority(["x"] * 5, ["b", "a", "c", "a", "b"], ["y", "z"])
    assert predictions == ["a", "a"]
    assert cost["parameters"] == 1 and cost["artifact_bytes"] == 1


def test_nearest_neighbour_returns_the_label_of_an_exact_copy():
    texts, _ = _examples(2, 20)
    labels = [str(i) for i in range(20)]
    texts = [f"{text} number{i}" for i, text in enumerate(texts)]
    assert nearest_neighbour(texts, labels, texts[::-1])[0] == labels[::-1]


def test_linear_parameter_count_is_classes_times_features_plus_biases_and_idf():
    # words w, x, y and pairs "w x", "x y": 5. Padded single letters " w ", " x ", " y ": 3.
    _, cost = tfidf_linear(["w x", "x y", "w x"], ["a", "b", "c"], ["w"])
    assert cost["parameters"] == 3 * 8 + 3 + 8
    assert cost["artifact_bytes"] > 4 * cost["parameters"]


@pytest.mark.parametrize("name", BASELINES)
def test_predictions_are_repeatable_and_do_not_depend_on_the_other_test_texts(name):
    texts, labels = _examples(3, 30)
    test_texts, _ = _examples(4, 12)
    first, _ = BASELINES[name](texts, labels, test_texts)
    assert BASELINES[name](texts, labels, test_texts[:5])[0] == first[:5]
    assert BASELINES[name](texts, labels, [])[0] == []


def test_bad_training_sets_are_refused():
    with pytest.raises(ValueError, match="2 training texts but 1 labels"):
        tfidf_linear(["a", "b"], ["x"], ["a"])
    with pytest.raises(ValueError, match="no training examples"):
        majority([], [], ["a"])
    with pytest.raises(ValueError, match="every training text is empty"):
        nearest_neighbour(["", " "], ["x", "y"], ["a"])
    with pytest.raises(ValueError, match="needs two labels, train has only 'x'"):
        tfidf_linear(["a", "b"], ["x", "x"], ["a"])
