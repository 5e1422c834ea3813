import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medusa_core.constraints import Constraint, Grammar, GrammarVocabulary
from medusa_core.errors import InvalidParameter
from medusa_core.text import TextCodec
from tests.tiny_tokenizers import grammar_vocabulary, save_byte_level

END = 2
V = 23
TINY = grammar_vocabulary(V, END)
ARRAY = Grammar.json_schema({"type": "array", "items": {"enum": ["ab", "ba"]}, "maxItems": 3}, is_lenient=False)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def vocabulary(codec: TextCodec) -> GrammarVocabulary:
    return GrammarVocabulary(codec.tokenizer_json, codec.vocab_size, 320, [1])


def tokens_of(mask: bytes) -> set[int]:
    return {token for token in range(len(mask) * 8) if mask[token // 8] >> (token % 8) & 1}


def written(constraint: Constraint, end: int, seed: int = 0, most: int = 400) -> list[int]:
    """A random answer that the grammar allows, without its end."""
    generator, tokens = random.Random(seed), list[int]()
    while len(tokens) < most:
        token = generator.choice(sorted(tokens_of(constraint.allowed())))
        if token == end:
            return tokens
        constraint.advance([token])
        tokens.append(token)
    raise AssertionError("the answer did not end")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["module", "🙂 class"]},
        "n": {"type": "integer"},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_schema_allows_is_json_that_fits_it(
    vocabulary: GrammarVocabulary, codec: TextCodec, seed: int
) -> None:
    grammar = Grammar.json_schema({**SCHEMA, "properties": {**SCHEMA["properties"], "n": {"enum": [1, 20]}}}, False)
    text = codec.decode(written(vocabulary.compile(grammar.text), 1, seed))

    found = json.loads(text)
    assert {"name", "kind"} <= set(found) <= {"name", "kind", "n"}
    assert len(found["name"]) <= 6
    assert found["kind"] in ("module", "🙂 class")
    assert found.get("n", 1) in (1, 20)


def test_an_expression_a_choice_and_both_kinds_of_grammar_allow_what_they_say(
    vocabulary: GrammarVocabulary, codec: TextCodec
) -> None:
    choices = {
        codec.decode(written(vocabulary.compile(Grammar.choice(['a "b"', "c\nd"]).text), 1, n)) for n in range(9)
    }
    number = codec.decode(written(vocabulary.compile(Grammar.regex(r"[0-9]{3}-[a-c]").text), 1))
    lark = codec.decode(written(vocabulary.compile(Grammar.lark('start: "x" y\ny: "1" | "2"').text), 1))
    gbnf = codec.decode(written(vocabulary.compile(Grammar.lark('root ::= "x" y\ny ::= "1" | "2"').text), 1))

    assert choices == {'a "b"', "c\nd"}
    assert number[3] == "-" and number[:3].isdecimal() and number[4:] in ("a", "b", "c")
    assert lark in ("x1", "x2") and gbnf in ("x1", "x2")


def test_json_is_written_in_one_way_so_that_most_of_a_form_is_forced(
    vocabulary: GrammarVocabulary, codec: TextCodec
) -> None:
    constraint = vocabulary.compile(Grammar.json_schema(SCHEMA, False).text)

    assert codec.decode(constraint.forced()).startswith('{"name":')


def test_any_json_object_is_an_object(vocabulary: GrammarVocabulary, codec: TextCodec) -> None:
    first = {codec.decode([token]) for token in tokens_of(vocabulary.compile(Grammar.json_object().text).allowed())}

    assert first and all(text.startswith("{") for text in first)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "strin"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "#"}, "no text that"),
        ({"type": "string", "pattern": "(?=a)"}, "look-ahead"),
        ({"type": "string", "format": "blah"}, "blah"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "http://example.org/schema"}, "example.org"),
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_enforced_is_refused_with_the_reason(
    vocabulary: GrammarVocabulary, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidParameter, match=reason) as refused:
        vocabulary.compile(Grammar.json_schema(schema, is_lenient=False).text)

    assert "\n" not in str(refused.value)


def test_a_lenient_schema_leaves_out_what_cannot_be_enforced(vocabulary: GrammarVocabulary) -> None:
    vocabulary.compile(Grammar.json_schema({"type": "string", "not": {"enum": ["a"]}}, is_lenient=True).text)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def twofold(levels: int) -> dict[str, Any]:
    """Every level holds the one before it twice."""
    defs: dict[str, Any] = {"a0": {"type": "string"}}
    for level in range(1, levels + 1):
        half = {"$ref": f"#/$defs/a{level - 1}"}
        defs[f"a{level}"] = {"type": "object", "properties": {"l": half, "r": half}, "required": ["l", "r"]}
    return {"$defs": defs, "$ref": f"#/$defs/a{levels}"}


def chained(links: int) -> dict[str, Any]:
    """Every definition refers to the next."""
    defs: dict[str, Any] = {f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(links)}
    return {"$defs": {**defs, f"d{links}": {"type": "string"}}, "$ref": "#/$defs/d0"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "schema",
    [
        nested(400),
        nested(20_000),
        twofold(30),
        {"enum": [f"x{n}" for n in range(50_000)]},
        {"enum": [f"x{n}" for n in range(200_000)]},
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(3000)}},
        {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
        {"type": "string", "pattern": "(.*a){50}(.*b){50}"},
        {"anyOf": [{"type": "object", "properties": {f"k{n}": {"type": "integer"}}} for n in range(2000)]},
        chained(20_000),
    ],
    ids=["deep", "deeper", "twofold", "many", "too many", "wide", "powers", "backtracking", "branching", "chained"],
)
def test_a_hostile_schema_is_followed_or_refused_and_never_hangs(
    vocabulary: GrammarVocabulary, schema: dict[str, Any]
) -> None:
    try:
        constraint = vocabulary.compile(Grammar.json_schema(schema, is_lenient=False).text)
        for _ in range(20):
            constraint.advance([min(tokens_of(constraint.allowed()))])
    except InvalidParameter as refused:
        assert len(str(refused)) < 1000


@pytest.mark.parametrize(
    "grammar", ["nonsense", "start: undefined_rule", 'root ::= "a', "start: /(?!a)/", "start: \ud800"], ids=ascii
)
def test_what_is_no_grammar_is_refused(vocabulary: GrammarVocabulary, grammar: str) -> None:
    with pytest.raises(InvalidParameter, match="grammar"):
        vocabulary.compile(Grammar.lark(grammar).text)


@pytest.mark.parametrize("make", [Grammar.regex, lambda text: Grammar.choice([text])], ids=["regex", "choice"])
def test_half_a_surrogate_pair_is_no_text(vocabulary: GrammarVocabulary, make: Callable[[str], Grammar]) -> None:
    with pytest.raises(InvalidParameter):
        vocabulary.compile(make("a\ud800").text)


def test_a_model_without_an_end_cannot_follow_a_grammar() -> None:
    with pytest.raises(InvalidParameter, match="no end token"):
        GrammarVocabulary("{}", V, V, [])


def naive(tokens: list[int]) -> bytes | None:
    """What may follow a path, by walking it alone; None when it is not allowed."""
    constraint = TINY.compile(ARRAY.text)
    for token in tokens:
        if token not in tokens_of(constraint.allowed()):
            return None
        constraint.advance([token])
    return constraint.allowed()


@pytest.mark.parametrize("seed", range(30))
def test_every_node_of_a_tree_is_told_what_may_follow_its_own_path(seed: int) -> None:
    """Trees drawn at random among allowed and forbidden tokens, behind a random beginning."""
    generator = random.Random(seed)
    walk = TINY.compile(ARRAY.text)
    begun = written(TINY.compile(ARRAY.text), END, seed)
    begun = begun[: generator.randrange(1, len(begun) + 1)]
    walk.advance(begun)
    tokens, parents, used, paths = [begun[-1]], [0], [True], [list[int]()]
    for node in range(1, 12):
        parent = generator.randrange(node)
        above = naive(begun + paths[parent])
        wanted = sorted(tokens_of(above)) if above is not None and generator.random() < 0.7 else range(V)
        tokens.append(generator.choice(list(wanted)))
        parents.append(parent)
        used.append(used[parent] and generator.random() < 0.9)
        paths.append([*paths[parent], tokens[-1]])

    checked = walk.check(tokens, parents, used)

    for node, path in enumerate(paths):
        expected = naive(begun + path) if used[node] else None
        assert checked.masks[node] == expected
        assert checked.is_legal[node] == (expected is not None)
    assert walk.allowed() == naive(begun), "checking a tree moves nothing on"


def test_behind_a_complete_grammar_only_the_end_is_allowed_and_it_is_forced() -> None:
    walk = TINY.compile(Grammar.choice(["ab"]).text)
    walk.advance(walk.forced())

    assert tokens_of(walk.allowed()) == {END}
    assert walk.forced() == [END]
    checked = walk.check([0, END, 0], [0, 0, 1], [True, True, True])
    assert checked.is_legal == [True, True, False]
    walk.advance([END, 7, 7])
    assert tokens_of(walk.allowed()) == {END}


def test_two_walks_through_one_grammar_do_not_meet() -> None:
    first, second = TINY.compile(ARRAY.text), TINY.compile(ARRAY.text)
    before = second.allowed()
    first.advance(first.forced() or [min(tokens_of(first.allowed()))])

    assert second.allowed() == before


def test_only_the_latest_grammars_are_kept() -> None:
    for number in range(40):
        TINY.compile(Grammar.choice(["a" * (number + 1)]).text)

    assert tokens_of(TINY.compile(ARRAY.text).allowed())


def test_logits_beyond_the_tokenizer_are_never_allowed(vocabulary: GrammarVocabulary, codec: TextCodec) -> None:
    anything = vocabulary.compile(Grammar.regex("(?s:.*)").text)

    assert codec.vocab_size < 320
    assert max(tokens_of(anything.allowed())) < codec.vocab_size


def test_a_tokenizer_of_byte_pieces_spells_what_a_grammar_asks_for(tmp_path: Path) -> None:
    from tests.tiny_tokenizers import save_sentencepiece

    codec = TextCodec.load(str(save_sentencepiece(tmp_path / "vicuna")))
    vocabulary = GrammarVocabulary(codec.tokenizer_json, codec.vocab_size, codec.vocab_size, [2])
    texts = {codec.decode(written(vocabulary.compile(Grammar.choice(["Hello 日", "no"]).text), 2, n)) for n in range(8)}

    assert texts == {"Hello 日", "no"}


def test_a_text_that_no_token_can_spell_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="no text that this model's tokens spell"):
        TINY.compile(Grammar.choice(["z"]).text)


def test_what_others_have_explored_of_a_grammar_ends_no_walk() -> None:
    """Copies of a matcher share the states of its lexer; this pattern has far more of them than may be kept."""
    codec = TextCodec.load("demo")
    vocabulary = GrammarVocabulary(codec.tokenizer_json, codec.vocab_size, codec.vocab_size, [2])
    grammar = Grammar.regex(r"[ -~\n]*a[ -~\n]{400}[ -~\n]*").text
    replaced = 0
    for seed in range(3):
        walk, generator = vocabulary.compile(grammar), random.Random(seed)
        shared = vars(walk)["_matcher"]
        for _ in range(60):
            drafts = generator.sample(sorted(tokens_of(walk.allowed()) - {2}), 24)
            walk.check([0, *drafts], [0] * 25, [True] * 25)
            walk.advance([generator.choice(drafts)])
        replaced += vars(walk)["_matcher"] is not shared

    assert replaced > 0, "the pattern stayed within its bound, so nothing was shown"


def test_tokens_that_the_model_has_no_row_for_are_never_allowed(codec: TextCodec) -> None:
    shorter = GrammarVocabulary(codec.tokenizer_json, codec.vocab_size, 200, [1, codec.vocab_size + 5])
    walk = shorter.compile(Grammar.regex("(?s:.*)").text)

    assert max(tokens_of(walk.allowed())) < 200
    assert tokens_of(walk.allowed()) > {1}
    assert shorter.ends == [1]
    for seed in range(5):
        assert max(written(shorter.compile(Grammar.regex("[a-zA-Z]{5,9}").text), 1, seed)) < 200


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema(chained(300), is_lenient=False),
        Grammar("start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(600)) + '\nr600: "a"'),
        Grammar('start: %json {"$defs": {}, "anyOf": [' + ", ".join(['{"\\u0024ref": "#/x"}'] * 300) + "]}"),
        Grammar('start: %json {"$defs": {}, "anyOf": [' + ", ".join(['{"$\\u0072ef": "#/x"}'] * 300) + "]}"),
    ],
    ids=["definitions", "rules", "hidden", "hidden elsewhere"],
)
def test_what_would_overflow_the_stack_is_refused(vocabulary: GrammarVocabulary, grammar: Grammar) -> None:
    """llguidance follows references by recursion; beyond its stack the whole process ends."""
    with pytest.raises(InvalidParameter, match=r"at most 210 and 525 are taken"):
        vocabulary.compile(grammar.text)


def test_a_choice_may_be_among_many_and_hold_any_character(vocabulary: GrammarVocabulary, codec: TextCodec) -> None:
    options = [*(f"option {n}" for n in range(4095)), 'a.*[b](c){2}^$|\\ "/\n\t\x7f🙂 \ufeff#&~-']
    grammar = Grammar.choice(options).text
    walk = vocabulary.compile(grammar)
    for token in codec.encode(options[-1]):
        assert token in tokens_of(walk.allowed())
        walk.advance([token])

    assert 1 in tokens_of(walk.allowed())
    assert {codec.decode(written(vocabulary.compile(grammar), 1, seed)) for seed in range(20)} <= set(options)
