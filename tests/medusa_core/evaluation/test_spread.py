from medusa_core.evaluation.spread import Spread, spread


def test_the_percentiles_are_values_that_occurred() -> None:
    assert spread(range(11)) == Spread(median=5, p10=1, p90=9)


def test_one_value_is_all_three() -> None:
    assert spread([2.5]) == Spread(2.5, 2.5, 2.5)
