from server.schemas.usage import SpeculationStats, Usage


def test_details_of_a_prediction_are_the_only_part_of_usage_that_may_be_missing() -> None:
    assert Usage.__optional_keys__ == {"completion_tokens_details"}
    assert SpeculationStats.__optional_keys__ == frozenset()
