from medusa_core.evaluation.spread import Spread, rounded, spread


def test_the_percentiles_are_values_that_occurred() -> None:
    assert spread(range(11)) == Spread(median=5, p10=1, p90=9)


def test_one_value_is_all_three() -> None:
    assert spread([2.5]) == Spread(2.5, 2.5, 2.5)


def test_numbers_keep_five_digits_wherever_they_stand() -> None:
    assert rounded({"a": [1.23456789, 7], "b": (0.000123456, "x")}) == {"a": [1.2346, 7], "b": [0.00012346, "x"]}
