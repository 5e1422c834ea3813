"""Grammars as people write them: GBNF turned into Lark, and llguidance's complaints into one line.

llguidance's own converter raises errors of no class of its own, strips zeros from escapes and takes a time that grows
with the square of some texts, so what it is given is checked before.
"""

import re

from medusa_core.errors import InvalidParameter

__all__ = ["is_lark", "lark_of_gbnf", "one_line"]

# The converter reads character by character in Python.
MAX_GBNF_CHARACTERS = 50_000
# Of what is quoted, characters.
LONGEST_REASON = 400

LARK_START = re.compile(r"[ \t]*(?:%llguidance\b|start[ \t]*:)")
ROOT_RULE = re.compile(r"[ \t]*root[ \t]*::=")
ESCAPE = re.compile(r"\\(?:\\|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
# Characters that mean something in a literal or a class of either notation.
MEANINGFUL = frozenset('"\\[]^-/')

# What llguidance says of a walk that has to stop, in words.
REASONS = {
    "NoExtensionBias": "no text that this model's tokens spell matches it",
    "LexerTooComplex": "its expressions cost too much to follow",
    "ParserTooComplex": "its rules cost too much to follow",
}


def is_lark(text: str) -> bool:
    """Whether a grammar is written in Lark rather than in GBNF: it has a rule named start."""
    return any(LARK_START.match(line) is not None for line in text.splitlines())


def lark_of_gbnf(text: str) -> str:
    """A grammar of llama.cpp's in llguidance's Lark dialect.

    Raises InvalidParameter, or what the converter raises on texts that are no grammar: ValueError, LookupError,
    RecursionError.
    """
    from llguidance.gbnf_to_lark import ASTNode, GbnfToLarkError, GrammarParser, RuleRefNode, gbnf_to_lark

    if len(text) > MAX_GBNF_CHARACTERS:
        raise InvalidParameter(
            f"the grammar is GBNF of {len(text)} characters, at most {MAX_GBNF_CHARACTERS} are taken"
        )
    text = ESCAPE.sub(_spelt, text)
    try:
        rules = GrammarParser().parse(text)
    except GbnfToLarkError as error:
        raise InvalidParameter(f"the grammar cannot be read: {one_line(error)}") from error
    if "root" not in rules:
        raise InvalidParameter("the grammar has no rule named root, nor one named start as Lark has")
    # names are made alike on the way: in Lark they have no hyphens, and their case tells rules from terminals
    names = [re.sub(r"([a-z])([A-Z])", r"\1_\2", name.replace("-", "_")).lower() for name in rules if name != "root"]
    twice = "root" if sum(ROOT_RULE.match(line) is not None for line in text.splitlines()) > 1 else None
    seen = {"start"}
    for name in names:
        twice = name if name in seen else twice
        seen.add(name)
    if twice is not None:
        raise InvalidParameter(f"the grammar's rule {twice[:64]!r} stands twice; rename one")
    pending: list[ASTNode] = list(rules.values())
    while pending:
        node = pending.pop()
        if isinstance(node, RuleRefNode) and node.name not in rules:
            raise InvalidParameter(f"the grammar has no rule named {node.name[:64]!r}")
        pending.extend(node.children())
    return gbnf_to_lark(text)


def _spelt(escape: re.Match[str]) -> str:
    """The character that an escape stands for, unless it would then mean something else."""
    digits = escape[1] or escape[2]
    number = int(digits, 16) if digits is not None else None
    if number is None or number > 0x10FFFF:
        return escape[0]
    character = chr(number)
    return character if character.isprintable() and character not in MEANINGFUL else escape[0]


def one_line(reason: object) -> str:
    """A reason of llguidance's, which quotes the place of a mistake, however long, over several lines, on one."""
    text = " ".join(str(reason).replace("<non-verbose/>", "").split())
    words = REASONS.get(text, text)
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}..."
