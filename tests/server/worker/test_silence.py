from server.worker.silence import Silence


def test_silence_grows_until_there_is_a_sign_of_life() -> None:
    silence = Silence(now_s=100.0, longest_look_s=2.0)

    assert [silence.look(100.5), silence.look(101.5)] == [0.5, 1.5]
    silence.end()
    assert [silence.look(102.0), silence.look(102.5)] == [0.0, 0.5]


def test_who_stood_still_has_not_listened() -> None:
    silence = Silence(now_s=0.0, longest_look_s=2.0)

    assert silence.look(600.0) == 2.0
    assert silence.seconds == 2.0
