import pytest

from medusa_core.errors import InvalidParameter
from medusa_core.gbnf import is_lark, lark_of_gbnf, one_line


def test_a_rule_named_start_makes_a_grammar_lark() -> None:
    assert is_lark('%llguidance {}\nstart: "a"')
    assert is_lark('  start : "a"')
    assert not is_lark('root ::= "start: a"')
    assert not is_lark("")


def test_a_grammar_of_llama_cpps_becomes_lark() -> None:
    found = lark_of_gbnf('root ::= "x" word-a*  # a comment\nword-a ::= [a-z]+')

    assert is_lark(found)
    assert "WORD_A" in found


@pytest.mark.parametrize(
    "grammar",
    [
        "",
        " ",
        "#",
        "nonsense",
        'root ::= "a',
        'word ::= "a"',
        "root ::= missing",
        'root ::= "a" | ("b" missing)',
        'root ::= "a"\nroot ::= "b"',
        'root ::= a-b\na-b ::= "x"\na_b ::= "y"',
        'root ::= aB\naB ::= "x" root?\na_b ::= "y" root?',
        "root ::= " + '"a" ' * 20_000,
    ],
    ids=lambda grammar: grammar[:30],
)
def test_what_cannot_be_read_is_refused_with_the_reason(grammar: str) -> None:
    with pytest.raises(InvalidParameter, match="grammar"):
        lark_of_gbnf(grammar)


@pytest.mark.parametrize("depth", [150, 300, 5000])
def test_nesting_has_a_bottom(depth: int) -> None:
    with pytest.raises((InvalidParameter, RecursionError)):
        lark_of_gbnf("root ::= " + '("a" "c" | "b" ' * depth + '"x"' + ")" * depth)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["\n" * 1_000_000, 'root ::= "a"' + "\n" * 49_000, " " * 1_000_000])
def test_long_runs_of_white_space_cost_no_more_than_other_text(text: str) -> None:
    assert not is_lark(text)
    if len(text) < 50_000:
        assert is_lark(lark_of_gbnf(text))


def test_escapes_stand_for_their_characters() -> None:
    found = lark_of_gbnf('root ::= "\\u0041\\u00e9\\U0001F642" [\\u00e0-\\u00ff] "\\\\u0041"')

    assert '"Aé🙂"' in found
    assert "[à-ÿ]" in found
    assert "\\\\u0041" in found


def test_a_reason_is_one_line_in_words() -> None:
    assert one_line("a\n  b\n<non-verbose/>") == "a b"
    assert "matches it" in one_line("NoExtensionBias\n<non-verbose/>")


def test_a_mistake_is_quoted_as_far_as_anybody_reads() -> None:
    assert one_line("a bad one: " + "(" * 50_000).startswith("a bad one: (((")
    assert len(one_line("(" * 50_000)) < 500
