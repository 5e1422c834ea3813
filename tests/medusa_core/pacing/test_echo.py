from medusa_core.pacing.echo import Echo


def test_an_echo_is_heard_when_four_tokens_stand_as_they_did_before() -> None:
    echo = Echo([[1, 2, 3, 4, 5]])
    heard = []
    for token in (1, 2, 3, 4, 5, 9):
        echo.extend([token])
        heard.append(echo.is_heard)

    assert heard == [False, False, False, True, True, False]


def test_the_end_of_a_sequence_is_no_echo_of_itself() -> None:
    assert not Echo([[1, 2, 3, 4]]).is_heard
    assert Echo([[1, 1, 1, 1, 1]]).is_heard


def test_texts_do_not_run_into_each_other() -> None:
    echo = Echo([[1, 2], [3, 4, 5]])
    echo.extend([1, 2, 3, 4])

    assert not echo.is_heard
