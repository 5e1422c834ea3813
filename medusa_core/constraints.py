"""Grammars that an answer must match, followed token by token with llguidance: text and ids, no tensors.

The same module serves both sides: the server compiles a grammar under limits before its request is queued, so that a
bad one is refused with the reason, and the worker compiles it again from its text and follows it. At every node of a
tree the tokens that may be drawn are those that may follow the node's own path.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

from medusa_core.errors import InvalidParameter
from medusa_core.gbnf import is_lark, lark_of_gbnf, one_line

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["Checked", "Constraint", "Grammar", "GrammarVocabulary"]

# One way to write JSON, that of Python's json.dumps, which models have read most of. Free white space would be room
# that a small model fills for ever, and would leave hardly anything that the grammar forces.
_JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Beyond this a grammar is data, not a form; llguidance's own budgets bound the work that smaller ones can cause.
_MAX_GRAMMAR_BYTES = 1_000_000
# See _check_depth: with 2 MB of stack 300 definitions in a row crash and 209 do not, 900 rules do and 522 do not.
_REFERENCE = re.compile(r'"\$ref"\s*:\s*"((?:[^"\\]|\\.)*)"')
_HIDDEN_LETTER = re.compile(r"\\u00[2-7]")
_MAX_REFERENCES, _MAX_RULES = 210, 525
# A compiled grammar holds up to about 20 MB of lexer states, and much more where its text is long.
_MAX_LEXER_STATES = 50_000
_KEPT_GRAMMARS = 8
_MAX_KEPT_CHARACTERS = 100_000
# Characters of a regular expression that stand for something else than themselves.
_MEANINGFUL = frozenset("\\.+*?()|[]{}^$")


@dataclass(frozen=True)
class Grammar:
    """What an answer must match, in llguidance's words.

    Each of the makers raises InvalidParameter, without a field's name, for what cannot even be written down.
    """

    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], is_lenient: bool) -> Self:
        """JSON that fits a schema.

        is_lenient: ignore keywords that cannot be enforced, instead of refusing the schema when it is compiled.
        """
        from llguidance import LLMatcher

        options: Any = {**_JSON_STYLE, "lenient": is_lenient}
        with _refusing("schema"):
            return cls(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, is_lenient=False)

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Text that matches a regular expression whole, in the syntax of Rust's regex crate (no look-around)."""
        from llguidance import LLMatcher

        with _refusing("expression"):
            return cls(LLMatcher.grammar_from_regex(pattern))

    @classmethod
    def choice(cls, options: Sequence[str]) -> Self:
        """One of several texts."""
        # one expression: of alternatives in a rule, each would be an item of every step
        return cls.regex("|".join(map(_literal, options)))

    @classmethod
    def lark(cls, text: str) -> Self:
        """Text that a context-free grammar derives, in llguidance's Lark dialect or in llama.cpp's GBNF."""
        from llguidance import LLMatcher

        with _refusing("grammar"):
            return cls(LLMatcher.grammar_from_lark(text if is_lark(text) else lark_of_gbnf(text)))


@dataclass(frozen=True)
class Checked:
    """What a grammar says of a drafted tree of N nodes.

    is_legal: for each node whether its path may be written; what follows an illegal node is illegal, too.
    masks:    for each legal node the tokens that may follow it, one bit a token, the lowest bit first; None for others.
    """

    is_legal: list[bool]
    masks: list[bytes | None]


class Constraint:
    """One answer on its way through a grammar."""

    # Copies of a matcher share the states of its lexer, which are bounded. What other answers and drafted nodes have
    # explored must not end this one, so a walk that hits the bound goes on, from where it is, in a matcher of its own.

    def __init__(self, vocabulary: "GrammarVocabulary", grammar: str, matcher: "LLMatcher") -> None:
        self._vocabulary, self._grammar, self._matcher = vocabulary, grammar, matcher
        self._written: list[int] = []
        self._allowed: bytes | None = None

    def allowed(self) -> bytes:
        """The tokens that may come next, one bit a token, the lowest bit first; an end where the grammar is complete.

        Raises InvalidParameter when following the grammar costs more than its budget.
        """
        if self._allowed is not None:
            return self._allowed
        mask = self._vocabulary.mask(self._matcher)
        if mask is None:
            self._matcher = self._vocabulary.fresh(self._grammar)
            self._matcher.consume_tokens(self._written)
            mask = self._vocabulary.mask(self._matcher)
        if mask is None:
            reason = one_line(self._matcher.get_error())
            raise InvalidParameter(f"the grammar cannot be followed further: {reason}; send a simpler one")
        self._allowed = mask
        return mask

    def forced(self) -> list[int]:
        """The span that must come next, empty where there is a choice."""
        if self._matcher.is_stopped():
            return self._vocabulary.ends if len(self._vocabulary.ends) == 1 else []
        span = self._matcher.compute_ff_tokens()
        return list(takewhile(lambda token: token < self._vocabulary.vocab_size, span))

    def check(self, tokens: Sequence[int], parents: Sequence[int], used: Sequence[bool]) -> Checked:
        """Walk every used node of a tree whose root is the last token that `advance` was told; changes nothing.

        tokens, parents, used: N each; the root first, parents before children.
        """
        count = len(tokens)
        masks: list[bytes | None] = [self.allowed(), *[None] * (count - 1)]
        # only now: `allowed` may have made a new one
        matchers: list[LLMatcher | None] = [self._matcher, *[None] * (count - 1)]
        for node in range(1, count):
            parent, above = parents[node], masks[parents[node]]
            if not used[node] or above is None or not _holds(above, tokens[node]):
                continue
            before = matchers[parent]
            assert before is not None, "a node with a mask has a matcher"
            matcher = before.deep_copy()
            # a complete grammar takes no token, not even the end that it allows; nothing follows that anyway
            if not matcher.is_stopped():
                matcher.consume_token(tokens[node])
            # a path that cannot be followed further is no worse than one that was not drafted
            matchers[node], masks[node] = matcher, self._vocabulary.mask(matcher)
        return Checked([mask is not None for mask in masks], masks)

    def advance(self, tokens: Iterable[int]) -> None:
        """Follow what was emitted; tokens behind the grammar's end are those of an answer that is cut there."""
        for token in tokens:
            # also true after an error, which `allowed` makes good
            if self._matcher.is_stopped() and not self._matcher.is_error():
                return
            self._written.append(token)
            self._matcher.consume_token(token)
            self._allowed = None


class GrammarVocabulary:
    """The tokens of one model as grammars see them; compiles grammars, keeps the latest. Safe to use from threads."""

    def __init__(self, tokenizer_json: str, tokenizer_size: int, vocab_size: int, ends: Sequence[int]) -> None:
        """A tokenizer as tokenizers' JSON and how many tokens it knows, V, and the tokens that end an answer.

        Takes about a second for a large vocabulary. Raises InvalidParameter when no token ends an answer.
        """
        from llguidance import LLTokenizer

        self.ends = [end for end in ends if end < vocab_size]
        if not self.ends:
            raise InvalidParameter("this model has no end token, so an answer that fits a grammar could not end")
        # some tokenizers know more tokens than their model has rows for
        self._hidden = max(0, tokenizer_size - vocab_size)
        self.vocab_size = vocab_size
        self._tokenizer = LLTokenizer(
            tokenizer_json, n_vocab=max(tokenizer_size, vocab_size), eos_token=list(self.ends)
        )
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, grammar: str) -> Constraint:
        """A fresh walk through a grammar's text.

        Raises InvalidParameter for what is no grammar, matches nothing, uses what cannot be enforced, or is too large.
        """
        # Threads that meet here compile twice at worst: each of these calls is one operation of the interpreter.
        matcher = self._compiled.pop(grammar, None)
        if matcher is None or self.mask(matcher.deep_copy()) is None:
            matcher = self.fresh(grammar)
        if len(grammar) <= _MAX_KEPT_CHARACTERS:
            self._compiled[grammar] = matcher
        if len(self._compiled) > _KEPT_GRAMMARS:
            self._compiled.popitem(last=False)
        return Constraint(self, grammar, matcher.deep_copy())

    def mask(self, matcher: "LLMatcher") -> bytes | None:
        """What a matcher allows next, one bit a token; None when it cannot go on."""
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return None
        if self._hidden == 0:
            return mask
        kept = bytearray(mask[: -(-self.vocab_size // 8)])
        kept[-1] &= 0xFF >> (-self.vocab_size % 8)
        return bytes(kept) if any(kept) else None

    def fresh(self, grammar: str) -> "LLMatcher":
        """A matcher that shares nothing with others; raises what `compile` raises."""
        from llguidance import LLMatcher, LLParserLimits

        size = len(grammar.encode())
        if size > _MAX_GRAMMAR_BYTES:
            raise InvalidParameter(f"the grammar has {size} bytes, at most {_MAX_GRAMMAR_BYTES} are taken")
        _check_depth(grammar)
        limits = LLParserLimits(verbose_errors=False, max_lexer_states=_MAX_LEXER_STATES)
        matcher = LLMatcher(self._tokenizer, grammar, limits=limits, log_level=0)
        # some mistakes show with the first mask only
        if matcher.is_error() or self.mask(matcher) is None:
            raise InvalidParameter(f"the grammar cannot be used: {one_line(matcher.get_error())}")
        return matcher


def _literal(text: str) -> str:
    """A regular expression that matches a text and nothing else."""
    return "".join(
        f"\\{character}"
        if character in _MEANINGFUL
        else character
        if character.isprintable()
        else f"\\x{{{ord(character):x}}}"
        for character in text
    )


def _check_depth(grammar: str) -> None:
    """Refuse grammars whose parts refer to each other too often.

    llguidance follows references by recursion: a few hundred in a row overflow a stack of 2 MB, which no caller could
    catch. Any of them might be in a row.
    """
    # letters of ASCII are escaped by hand only, which may hide a reference
    references = len(set(_REFERENCE.findall(grammar))) + len(_HIDDEN_LETTER.findall(grammar))
    rules = sum(":" in line for line in grammar.splitlines())
    if references / _MAX_REFERENCES + rules / _MAX_RULES > 1:
        raise InvalidParameter(
            f"the grammar has {references} definitions that are referred to and {rules} rules, at most "
            f"{_MAX_REFERENCES} and {_MAX_RULES} are taken"
        )


def _holds(mask: bytes, token: int) -> bool:
    return token // 8 < len(mask) and bool(mask[token // 8] >> (token % 8) & 1)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Whatever a reader of grammars raises on text it cannot read is the request's fault."""
    try:
        yield
    except (ValueError, LookupError, RecursionError) as error:
        raise InvalidParameter(f"the {what} cannot be read: {one_line(error)}") from error
