"""The nearest known names, in errors about unknown ones."""

from research.config.suggestions import nearest_names, suggestion


def test_the_nearest_name_is_suggested_and_else_all_are_listed():
    assert suggestion("stpes", ["steps", "seed"], "config.") == "; did you mean config.steps?"
    assert suggestion("zzz", ["steps", "seed"]) == "; there are: seed, steps"
    assert suggestion("zzz", []) == ""


def test_several_names_come_in_the_order_of_their_likeness():
    names = ["layers/0/mlp", "layers/1/attention", "embedding"]
    assert nearest_names("layers/attention", names, 2, cutoff=0.0) == [names[1], names[0]]
    assert nearest_names("zzz", names) == []
