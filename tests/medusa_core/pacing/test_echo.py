from medusa_core.pacing.echo import STRENGTHS, Echo


def strengths(echo: Echo, tokens: list[int]) -> list[int]:
    found = []
    for token in tokens:
        echo.extend([token])
        found.append(echo.strength)
    return found


def test_an_echo_is_heard_behind_three_tokens_and_grows_stronger_behind_six_and_twelve() -> None:
    found = strengths(Echo([[*range(20)]]), [*range(2, 19)])

    assert found == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    assert set(found) == set(STRENGTHS)


def test_an_echo_ends_with_the_first_token_that_is_another() -> None:
    assert strengths(Echo([[1, 2, 3, 4, 5]]), [1, 2, 3, 9, 4, 5]) == [0, 0, 1, 0, 0, 0]


def test_a_sequence_that_leaves_one_echo_for_another_has_said_all_of_that_before() -> None:
    said = [1, 2, 3, 4, 5, 6, 7, 70, 20, 1, 2, 3, 4, 90]

    # 90 stood behind 4 last; whoever says 5 has said five tokens as at first
    assert strengths(Echo([said]), [1, 2, 3, 4, 5, 6, 7]) == [0, 0, 1, 1, 1, 2, 2]


def test_the_end_of_a_sequence_is_no_echo_of_itself() -> None:
    assert Echo([[1, 2, 3]]).strength == 0
    assert Echo([[1, 1, 1, 1]]).strength == 1
    assert strengths(Echo([[1, 2, 3]]), [1, 2, 3, 1]) == [0, 0, 1, 1]


def test_nothing_is_foreseen_behind_the_end_of_a_text() -> None:
    assert strengths(Echo([[1, 2, 3], [9]]), [1, 2, 3]) == [0, 0, 0]
    assert strengths(Echo([[1, 2, 3, 4], [9]]), [1, 2, 3, 4]) == [0, 0, 1, 0]


def test_texts_do_not_run_into_each_other() -> None:
    assert strengths(Echo([[1, 2], [3, 4, 5]]), [1, 2, 3, 4]) == [0, 0, 0, 0]


def test_a_sequence_of_one_token_and_no_text_at_all_are_no_echo() -> None:
    assert Echo([[], [7]]).strength == 0
    assert Echo([]).strength == 0
