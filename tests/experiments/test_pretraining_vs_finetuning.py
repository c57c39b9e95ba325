"""What the decisive study works out of its trials, on numbers that can be checked by hand."""

import math

import pytest

from experiments.pretraining_vs_finetuning import answers


def trials(form, qualities, task="licences"):
    """A trial for each of two seeds, whose mean is the quality."""
    return [
        {
            "stage": "confirm",
            "task": task,
            "form": form,
            "quality": quality + noise,
            "flops": 1e12,
            answers.LABELS: labels,
        }
        for labels, quality in qualities.items()
        for noise in (-0.01, 0.01)
    ]


def test_a_way_passes_another_where_their_lines_cross_for_the_last_time():
    low, high = {10: 0.2, 100: 0.4, 1000: 0.6}, {10: 0.4, 100: 0.5, 1000: 0.5}
    # half way between 100 and 1,000 labels, by their logarithm
    assert answers.passes(low, high) == f"{math.sqrt(100 * 1000):.0f}"
    assert answers.passes(high, low) == "never"
    assert answers.passes({10: 0.5, 100: 0.6}, {10: 0.4, 100: 0.5}) == "from 10 on"


def test_labels_of_pretraining_are_those_that_scratch_needs_more():
    content = trials("from scratch", {10: 0.1, 100: 0.3, 1000: 0.5})
    content += trials("full", {10: 0.3, 100: 0.4, 1000: 0.6})
    lines = answers.labels_of_pretraining(content).lines
    assert [line["needed"] for line in lines] == [
        "100",
        f"{math.sqrt(100 * 1000):.0f}",
        "over 1000",
    ]
    assert lines[0]["worth"] == "90" and lines[2]["worth"] == "over 0"


@pytest.mark.heavy
def test_costs_and_shares_of_large_models_are_closed_forms():
    content = trials("full", {10: 0.3}) + trials("LoRA", {10: 0.3})
    _, small, large = answers.cost_of_pretraining(content).lines
    # 6 FLOPs for each parameter and token: a table that is looked up takes none, attention more
    assert small["pretraining"] == pytest.approx(6 * 8.03e9 * 15e12, rel=0.1)
    # as above
    assert large["pretraining"] == pytest.approx(6 * 70.6e9 * 15e12, rel=0.1)
    assert small["orders"] > 6 and large["orders"] > 6
    shares = answers.share_of_lora().lines[1]
    # rank times the sides of Llama 3.1 8B's seven matrices in 32 layers
    sides = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    parameters = 8_030_261_248 + 32 * 16 * sides + 32 * 7  # and each one's scale
    assert shares["rank 16"] == 32 * 16 * sides / parameters
