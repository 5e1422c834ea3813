"""Grammars tried before a request is queued: a bad one is refused with the reason, and the worker never sees it."""

from medusa_core.constraints import Grammar, GrammarVocabulary
from medusa_core.errors import InvalidParameter
from medusa_core.text import TextCodec
from server.schemas.formats import FormatFields
from server.worker.messages import WorkerInfo

__all__ = ["Grammars"]


class Grammars:
    """Compiles grammars for the tokens of one model, which are prepared with the first. Safe to use from threads."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._vocabulary: GrammarVocabulary | None = None

    def wished(self, fields: FormatFields, info: WorkerInfo) -> Grammar | None:
        """The grammar of the form that a request asks for, checked; None when it asks for none. See `check`."""
        wish = fields.wished_form()
        if wish is None:
            return None
        self.check_spelling(wish.grammar.text, wish.param)
        self.check(wish.grammar, info, wish.param)
        return wish.grammar

    def check_spelling(self, text: str, param: str) -> None:
        """Refuse a form that spells out a token the tokenizer would read as one: an end would stand for its letters."""
        name = self._codec.added_token_in(text)
        if name is not None:
            raise InvalidParameter(f"the form holds the text {name[:64]!r}, which is a token of its own here", param)

    def check(self, grammar: Grammar, info: WorkerInfo, param: str) -> None:
        """Compile a grammar and ask it what may come first; takes a moment, so not on the event loop.

        param: the field that asked for it.

        Raises InvalidParameter when it cannot be followed.
        """
        try:
            self._of(info).compile(grammar.text)
        except InvalidParameter as error:
            raise InvalidParameter(str(error), param) from error

    def _of(self, info: WorkerInfo) -> GrammarVocabulary:
        if self._vocabulary is None:
            # two first requests at once prepare it twice, and no more
            codec = self._codec
            self._vocabulary = GrammarVocabulary(
                codec.tokenizer_json, codec.vocab_size, info.vocab_size, info.eos_token_ids
            )
        return self._vocabulary
