"""Grammars that an answer must match, followed token by token with llguidance: text and ids, no tensors.

The same module serves both sides: the server compiles a grammar under limits before its request is queued, so that a
bad one is refused with the reason, and the worker compiles it again from its text and follows it. At every node of a
tree the tokens that may be drawn are those that may follow the node's own path.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from medusa_core.errors import InvalidParameter

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["Checked", "Constraint", "Grammar", "GrammarVocabulary"]

# One way to write JSON, that of Python's json.dumps, which models have read most of. Free white space would be room
# that a small model fills for ever, and would leave hardly anything that the grammar forces.
_JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Beyond this a grammar is data, not a form; llguidance's own budgets bound the work that smaller ones can cause.
_MAX_GRAMMAR_BYTES = 1_000_000
# llguidance reads GBNF character by character in Python.
_MAX_GBNF_CHARACTERS = 50_000
_KEPT_GRAMMARS = 16
# What llguidance says of a walk that has to stop, in words.
_REASONS = {
    "NoExtensionBias": "no text that this model's tokens spell matches it",
    "LexerTooComplex": "its expressions cost too much to follow",
    "ParserTooComplex": "its rules cost too much to follow",
}


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
        try:
            return cls(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"the schema cannot be used: {_one_line(error)}") from error

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, is_lenient=False)

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Text that matches a regular expression whole, in the syntax of Rust's regex crate (no look-around)."""
        from llguidance import LLMatcher

        return cls(LLMatcher.grammar_from_regex(pattern))

    @classmethod
    def choice(cls, options: Sequence[str]) -> Self:
        """One of several texts."""
        return cls.lark("start: " + " | ".join(json.dumps(option, ensure_ascii=False) for option in options))

    @classmethod
    def lark(cls, text: str) -> Self:
        """Text that a context-free grammar derives, in llguidance's Lark dialect or in llama.cpp's GBNF."""
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

        if not is_lark_syntax(text):
            _check_gbnf(text)
            text = gbnf_to_lark(text)
        return cls(LLMatcher.grammar_from_lark(text))


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

    def __init__(self, matcher: "LLMatcher", ends: Sequence[int]) -> None:
        self._matcher, self._ends = matcher, tuple(ends)

    def allowed(self) -> bytes:
        """The tokens that may come next, one bit a token, the lowest bit first; an end where the grammar is complete.

        Raises InvalidParameter when following the grammar costs more than its budget.
        """
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            reason = _one_line(self._matcher.get_error())
            raise InvalidParameter(f"the grammar cannot be followed further: {reason}; send a simpler one")
        return mask

    def forced(self) -> list[int]:
        """The span that must come next, empty where there is a choice."""
        if self._matcher.is_stopped():
            return list(self._ends) if len(self._ends) == 1 else []
        return self._matcher.compute_ff_tokens()

    def check(self, tokens: Sequence[int], parents: Sequence[int], used: Sequence[bool]) -> Checked:
        """Walk every used node of a tree whose root is the last token that `advance` was told; changes nothing.

        tokens, parents, used: N each; the root first, parents before children.
        """
        count = len(tokens)
        matchers: list[LLMatcher | None] = [self._matcher, *[None] * (count - 1)]
        masks: list[bytes | None] = [self.allowed(), *[None] * (count - 1)]
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
            mask = matcher.compute_bitmask()
            # a path that cannot be followed further is no worse than one that was not drafted
            if not matcher.is_error():
                matchers[node], masks[node] = matcher, mask
        return Checked([mask is not None for mask in masks], masks)

    def advance(self, tokens: Iterable[int]) -> None:
        """Follow what was emitted; tokens behind the grammar's end are those of an answer that is cut there."""
        for token in tokens:
            if self._matcher.is_stopped():
                return
            self._matcher.consume_token(token)


class GrammarVocabulary:
    """The tokens of one model as grammars see them; compiles grammars, keeps the latest. Safe to use from threads."""

    def __init__(self, tokenizer_json: str, vocab_size: int, ends: Sequence[int]) -> None:
        """A tokenizer as tokenizers' JSON, V, and the tokens that end an answer.

        Takes about a second for a large vocabulary. Raises InvalidParameter when no token ends an answer.
        """
        from llguidance import LLTokenizer

        if not ends:
            raise InvalidParameter("this model has no end token, so an answer that fits a grammar could not end")
        self._ends = tuple(ends)
        self._tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(ends))
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, grammar: str) -> Constraint:
        """A fresh walk through a grammar's text.

        Raises InvalidParameter for what is no grammar, matches nothing, uses what cannot be enforced, or is too large.
        """
        # Threads that meet here compile twice at worst: each of these calls is one operation of the interpreter.
        matcher = self._compiled.pop(grammar, None)
        matcher = matcher if matcher is not None else self._build(grammar)
        constraint = Constraint(matcher.deep_copy(), self._ends)
        self._compiled[grammar] = matcher
        if len(self._compiled) > _KEPT_GRAMMARS:
            self._compiled.popitem(last=False)
        return constraint

    def _build(self, grammar: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        size = len(grammar.encode())
        if size > _MAX_GRAMMAR_BYTES:
            raise InvalidParameter(f"the grammar has {size} bytes, at most {_MAX_GRAMMAR_BYTES} are taken")
        matcher = LLMatcher(self._tokenizer, grammar, limits=LLParserLimits(verbose_errors=False), log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some mistakes show with the first mask only
        if matcher.is_error():
            raise InvalidParameter(f"the grammar cannot be used: {_one_line(matcher.get_error())}")
        return matcher


def _check_gbnf(text: str) -> None:
    """Refuse what llguidance's reader of GBNF stumbles over with an error of no class of its own."""
    from llguidance.gbnf_to_lark import ASTNode, GbnfToLarkError, GrammarParser, RuleRefNode

    if len(text) > _MAX_GBNF_CHARACTERS:
        raise InvalidParameter(
            f"the grammar is GBNF of {len(text)} characters, at most {_MAX_GBNF_CHARACTERS} are taken; write it as Lark"
        )
    try:
        rules = GrammarParser().parse(text)
    except (GbnfToLarkError, ValueError, LookupError, RecursionError) as error:
        raise InvalidParameter(f"the grammar cannot be read: {_one_line(error)}") from error
    if "root" not in rules:
        raise InvalidParameter("the grammar cannot be read: it has no rule named root, nor one named start as Lark has")
    # what both notations allow in a name differs, and names are made alike
    names = [re.sub(r"([a-z])([A-Z])", r"\1_\2", name.replace("-", "_")).lower() for name in rules if name != "root"]
    twice = next((name for name in names if names.count(name) > 1 or name == "start"), None)
    if twice is not None or len(re.findall(r"(?m)^\s*root\s*::=", text)) > 1:
        raise InvalidParameter(f"the grammar cannot be read: the rule {twice or 'root'} stands twice; rename one")
    pending: list[ASTNode] = list(rules.values())
    while pending:
        node = pending.pop()
        if isinstance(node, RuleRefNode) and node.name not in rules:
            raise InvalidParameter(f"the grammar cannot be read: there is no rule named {node.name[:64]!r}")
        pending.extend(node.children())


def _holds(mask: bytes, token: int) -> bool:
    return token // 8 < len(mask) and bool(mask[token // 8] >> (token % 8) & 1)


def _one_line(reason: object) -> str:
    """A reason of llguidance's, which quotes the place of a mistake over several lines, on one."""
    text = " ".join(str(reason).replace("<non-verbose/>", "").split())
    return _REASONS.get(text, text)
