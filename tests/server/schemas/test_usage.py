from server.schemas.usage import SpeculationStats, Usage


def test_what_was_not_asked_for_is_the_only_part_of_usage_and_statistics_that_may_be_missing() -> None:
    assert Usage.__optional_keys__ == {"completion_tokens_details"}
    assert SpeculationStats.__optional_keys__ == {"detail", "detail_left_out"}
