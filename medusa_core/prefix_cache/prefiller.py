"""Computes prompts, of each only what no earlier request has left behind.

The live cache is the one place that steps write to. It goes on with the sequence it holds where that serves best;
otherwise what it would lose is copied into the store first, and what the store has of the new prompt comes back.
"""

from collections.abc import Callable

from medusa_core.decoding import Prefilled, Prompts, prefill
from medusa_core.kv_cache import KVCache, common_prefix
from medusa_core.prefix_cache.store import PrefixStore

__all__ = ["Prefiller"]

# Fewer rows are computed again in one pass, which costs little more than a step.
_WORTH_SAVING = 32


class Prefiller:
    """Fills the live cache with prompts. Not thread-safe, as the engine is not."""

    def __init__(self, prompts: Prompts, cache: KVCache, store: PrefixStore, chunk: int) -> None:
        """`prompts` computes what is missing in the cache, so many tokens as `chunk` says in one forward pass."""
        self._prompts, self._cache, self._store, self._chunk = prompts, cache, store, chunk
        self._salt: str | None = None

    def compute(
        self, prompt: tuple[int, ...], salt: str | None, top_logprobs: int | None, should_stop: Callable[[], bool]
    ) -> tuple[Prefilled | None, int]:
        """Compute a prompt, and say how many of its rows were there already; a prompt seen before costs nothing.

        Mutates the cache, which then holds the prompt's rows, or those that were computed when `should_stop` said so
        and None is returned.

        salt:         rows are shared between equal salts only.
        top_logprobs: score the prompt's own tokens, as decoding.prefill does; a row from the cache has no logits, and
                      so no score for the token behind it, hence all are computed anew. None does not.
        """
        if top_logprobs is not None:
            ending, usable = None, 0
        else:
            ending = self._store.recall(salt, prompt)
            # Computing the last token is what gives its logits and hidden state, unless both are known.
            usable = len(prompt) if ending is not None else len(prompt) - 1
        self._reuse(prompt[:usable], salt)
        cached_tokens = len(self._cache.tokens)
        if ending is not None and cached_tokens == len(prompt):
            return Prefilled(ending, ()), cached_tokens
        found = prefill(self._prompts, self._cache, prompt, self._chunk, should_stop, top_logprobs)
        if found is not None:
            self._store.remember(salt, prompt, found.last)
        return found, cached_tokens

    def forget(self) -> None:
        """Drop all that is held of earlier requests."""
        self._cache.keep(0)
        self._store.clear()

    def _reuse(self, tokens: tuple[int, ...], salt: str | None) -> None:
        """Leave in the live cache the longest beginning of `tokens` that it or the store knows, and nothing else."""
        cache, store = self._cache, self._store
        shared = common_prefix(cache.tokens, tokens) if salt == self._salt else 0
        # Found before saving, which may cost the very blocks that are wanted back: with a budget that one conversation
        # fills, the rows of two exist until they have changed places.
        pieces = store.find(salt, tokens)
        if len(cache.tokens) - shared >= _WORTH_SAVING:
            store.save(self._salt, cache)
        cache.keep(shared)
        self._salt, start = salt, 0
        for rows in pieces:
            end = start + rows.shape[4]
            held = max(start, len(cache.tokens))
            if held < end:
                cache.append(tokens[held:end], rows[..., held - start :, :])
            start = end
