from medusa_core.demo.chat import FAMILIAR_WEIGHT, ChatMaker, ChatMix, exchange, repeats
from medusa_core.demo.corpus import Entry

ENTRIES = [
    Entry(f"box.{name}", "function", f"```python\nbox.{name}()\n```\n\nDoes {name}.\n\nMore.", held_out=False)
    for name in ("open", "close", "lock")
]
PLAIN = ChatMix(system=0.0, two_turns=0.0, reverse=0.0, listing=0.0, small_talk=0.0)


def test_the_same_seed_gives_the_same_conversations() -> None:
    assert list(ChatMaker(ENTRIES, ChatMix(), 1).epoch()) == list(ChatMaker(ENTRIES, ChatMix(), 1).epoch())
    assert list(ChatMaker(ENTRIES, ChatMix(), 1).epoch()) != list(ChatMaker(ENTRIES, ChatMix(), 2).epoch())


def test_an_epoch_asks_about_every_entry_and_answers_with_its_documentation() -> None:
    answers = {messages[-1]["content"] for messages in ChatMaker(ENTRIES, PLAIN, 0).epoch()}

    assert answers == {entry.answer for entry in ENTRIES}


def test_the_question_names_what_it_asks_about() -> None:
    maker = ChatMaker(ENTRIES, PLAIN, 0)

    assert all("box.open" in maker.question(ENTRIES[0]) for _ in range(50))


def test_every_form_ends_with_the_assistant() -> None:
    mixes = [
        ChatMix(system=1.0),
        ChatMix(two_turns=1.0),
        ChatMix(reverse=1.0),
        ChatMix(listing=1.0),
        ChatMix(small_talk=1.0),
    ]
    for mix in mixes:
        for messages in ChatMaker(ENTRIES, mix, 0).epoch():
            roles = [message["role"] for message in messages if message["role"] != "system"]
            assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_a_reverse_question_is_answered_by_the_name() -> None:
    mix = ChatMix(system=0.0, two_turns=0.0, reverse=1.0, listing=0.0, small_talk=0.0)
    [question, answer] = ChatMaker(ENTRIES, mix, 0).conversation(ENTRIES[0])

    assert question["content"].endswith("Does open.")
    assert answer["content"] == "That is `box.open`."


def test_familiar_names_are_asked_about_more_often() -> None:
    weights = {
        name: repeats(Entry(name, "function", "", False)) for name in ("textwrap.dedent", "str.split", "nntplib.a")
    }

    assert weights == {"textwrap.dedent": FAMILIAR_WEIGHT, "str.split": FAMILIAR_WEIGHT, "nntplib.a": 1}


def test_an_exchange_is_a_question_and_an_answer() -> None:
    assert [message["role"] for message in exchange("a", "b")] == ["user", "assistant"]
