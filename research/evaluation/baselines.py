"""Text classifiers without a neural network, set beside every fine-tuned model.

Each is `(train_texts, train_labels, test_texts) -> (predictions, cost)`. All settings are fixed
here beforehand; nothing is chosen by looking at test texts, and test labels are never passed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np


class Cost(TypedDict):
    """Cost of a baseline: `seconds` is wall clock, vectorizing the text included.

    parameters: fitted numbers. artifact_bytes: what must be kept to predict (arrays as stored,
    and the vocabulary as JSON in UTF-8).
    """

    fit_seconds: float
    predict_seconds: float
    parameters: int
    artifact_bytes: int


Baseline = Callable[[Sequence[str], Sequence[str], Sequence[str]], tuple[list[str], Cost]]


def majority(
    train_texts: Sequence[str], train_labels: Sequence[str], test_texts: Sequence[str]
) -> tuple[list[str], Cost]:
    """The most frequent training label for every text; the first in sorted order on a tie."""
    _check(train_texts, train_labels)
    start = time.perf_counter()
    counts = Counter(train_labels)
    label = min(counts, key=lambda name: (-counts[name], name))
    fit_end = time.perf_counter()
    predictions = [label] * len(test_texts)
    return predictions, Cost(
        fit_seconds=fit_end - start,
        predict_seconds=time.perf_counter() - fit_end,
        parameters=1,
        artifact_bytes=len(label.encode()),
    )


def tfidf_linear(
    train_texts: Sequence[str], train_labels: Sequence[str], test_texts: Sequence[str]
) -> tuple[list[str], Cost]:
    """A linear support vector machine on TF-IDF of words, word pairs and 3- to 5-character grams.

    Raises:
      ValueError: fewer than two labels in the training set.
    """
    from sklearn.svm import LinearSVC

    _check(train_texts, train_labels)
    if len(set(train_labels)) < 2:
        raise ValueError(f"a classifier needs two labels, train has only {train_labels[0]!r}")
    start = time.perf_counter()
    vectorizer = _vectorizer()
    features = vectorizer.fit_transform(train_texts)
    classifier = LinearSVC(C=1.0, random_state=0).fit(features, np.asarray(train_labels, object))
    fit_end = time.perf_counter()
    predictions = _predict(classifier, vectorizer, test_texts)
    weights = [classifier.coef_, classifier.intercept_]
    return predictions, Cost(
        fit_seconds=fit_end - start,
        predict_seconds=time.perf_counter() - fit_end,
        parameters=sum(array.size for array in weights) + _idf(vectorizer).size,
        artifact_bytes=sum(array.nbytes for array in weights)
        + _stored_bytes(vectorizer, classifier.classes_),
    )


def nearest_neighbour(
    train_texts: Sequence[str], train_labels: Sequence[str], test_texts: Sequence[str]
) -> tuple[list[str], Cost]:
    """The label of the most similar training text: cosine of the same TF-IDF features.

    Its parameters are the stored (non-zero) feature values of the training set.
    """
    from sklearn.neighbors import KNeighborsClassifier

    _check(train_texts, train_labels)
    start = time.perf_counter()
    vectorizer = _vectorizer()
    features = vectorizer.fit_transform(train_texts)
    classifier = KNeighborsClassifier(n_neighbors=1, metric="cosine", algorithm="brute")
    classifier.fit(features, np.asarray(train_labels, object))
    fit_end = time.perf_counter()
    predictions = _predict(classifier, vectorizer, test_texts)
    feature_bytes = features.data.nbytes + features.indices.nbytes + features.indptr.nbytes
    return predictions, Cost(
        fit_seconds=fit_end - start,
        predict_seconds=time.perf_counter() - fit_end,
        parameters=int(features.nnz) + _idf(vectorizer).size,
        artifact_bytes=feature_bytes + _stored_bytes(vectorizer, np.asarray(train_labels, object)),
    )


BASELINES: dict[str, Baseline] = {
    "majority": majority,
    "tfidf_linear": tfidf_linear,
    "nearest_neighbour": nearest_neighbour,
}


def _vectorizer() -> Any:
    """Words and character grams side by side, each with its own unit length."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    settings: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
    word_features = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+", **settings)
    character_features = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **settings)
    return FeatureUnion([("words", word_features), ("characters", character_features)])


def _predict(classifier: Any, vectorizer: Any, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    return [str(label) for label in classifier.predict(vectorizer.transform(texts))]


def _idf(vectorizer: Any) -> np.ndarray:
    return np.concatenate([part.idf_ for _, part in vectorizer.transformer_list])


def _stored_bytes(vectorizer: Any, labels: np.ndarray) -> int:
    names = [list(labels), *(sorted(part.vocabulary_) for _, part in vectorizer.transformer_list)]
    return _idf(vectorizer).nbytes + len(json.dumps(names, ensure_ascii=False).encode())


def _check(texts: Sequence[str], labels: Sequence[str]) -> None:
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} training texts but {len(labels)} labels")
    if not texts:
        raise ValueError("no training examples: a baseline needs at least one")
    if not any(text.strip() for text in texts):
        raise ValueError("every training text is empty: check which field holds the prompt")
