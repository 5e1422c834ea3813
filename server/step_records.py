"""The steps of answers as records to look at: the tree of each, what was accepted of it, what the tokens spell."""

from collections import Counter
from collections.abc import Sequence
from typing import cast

from medusa_core.text import TextCodec, TextStream
from server.schemas.usage import SpeculationStats, StepRecord, StepToken, TokenSource, TreeNode
from server.worker.messages import StepDetail, TokenDelta

__all__ = ["MOST_RECORDS", "Recorder", "StepRecords"]

# About 10 MB of JSON where trees have 64 nodes, 50 MB where they have 256.
MOST_RECORDS = 2048
# Of the probabilities, which are estimates.
_DIGITS = 4


class StepRecords:
    """The records of all answers of one request."""

    def __init__(self, codec: TextCodec, most_kept: int | None) -> None:
        """`most_kept` are kept until all answers are sent in one piece; None is for streams, which keep none."""
        self._codec, self._most_kept = codec, most_kept
        self._kept: dict[int, list[StepRecord]] = {}
        self._left_out: Counter[int] = Counter()

    def recorder(self, index: int, text: TextStream) -> "Recorder":
        """What records the steps of one answer, whose text has not begun."""
        return Recorder(self, self._codec, index, text.without_stops())

    def put(self, record: StepRecord) -> tuple[StepRecord, ...]:
        """Keep a record while there is room; what is returned is to be sent at once."""
        if self._most_kept is None:
            return (record,)
        if sum(map(len, self._kept.values())) < self._most_kept:
            self._kept.setdefault(record["index"], []).append(record)
        else:
            self._left_out[record["index"]] += 1
        return ()

    def tell(self, stats: SpeculationStats, chosen: Sequence[int]) -> None:
        """Add the records of the answers that are sent, in their order, to the request's statistics."""
        stats["detail"] = [
            {**record, "index": place} for place, index in enumerate(chosen) for record in self._kept.get(index, [])
        ]
        left_out = sum(self._left_out[index] for index in chosen)
        if left_out > 0:
            stats["detail_left_out"] = left_out


class Recorder:
    """The records of one answer as it grows."""

    def __init__(self, records: StepRecords, codec: TextCodec, index: int, text: TextStream) -> None:
        """`text` spells the answer, without regard to stop strings."""
        self._records, self._codec, self._index, self._text = records, codec, index, text
        self._steps = 0

    def take(self, delta: TokenDelta, used: int, was_stopped: bool) -> tuple[StepRecord, ...]:
        """Record the step of a delta, of which `used` tokens are the answer's; returns what is to be sent at once.

        was_stopped: whether a stop string has ended the answer.
        """
        if used == 0:
            return ()
        has_end = delta.finish_reason == "stop" and used == len(delta.tokens)
        texts = [self._text.push([token]).text for token in delta.tokens[: used - has_end]]
        texts += [""] * has_end
        if delta.finish_reason is not None and not was_stopped:
            # a text that ends within a character
            texts[-1] += self._text.finish()
        step, prompt = delta.step, delta.prompt
        detail = step.detail if step is not None else None
        seconds = step.seconds if step is not None else prompt.prefill_s if prompt is not None else 0.0
        self._steps += step is not None
        record: StepRecord = {
            "index": self._index,
            "step": self._steps,
            "tree": self._tree(detail) if detail is not None else [],
            "path": detail.path if detail is not None else [],
            "tokens": self._tokens(delta, detail, texts),
            "delivered": used,
            "seconds": round(seconds, 6),
        }
        return self._records.put(record)

    def _tree(self, detail: StepDetail) -> list[TreeNode]:
        return [
            {
                "id": node.token,
                "text": self._spelling(node.token),
                "parent": node.parent,
                "depth": node.depth,
                "source": _source(node.source),
                "rank": node.rank,
                "probability": float(f"{node.probability:.{_DIGITS}g}"),
            }
            for node in detail.nodes
        ]

    def _tokens(self, delta: TokenDelta, detail: StepDetail | None, texts: Sequence[str]) -> list[StepToken]:
        tokens = detail.tokens if detail is not None else delta.tokens
        nodes = detail.nodes if detail is not None else []
        sources = [nodes[node].source for node in (detail.path if detail is not None else [])]
        spelt = [*texts, *map(self._spelling, tokens[len(texts) :])]
        return [
            {"id": token, "text": text, "source": _source(sources[place] if place < len(sources) else None)}
            for place, (token, text) in enumerate(zip(tokens, spelt, strict=True))
        ]

    def _spelling(self, token: int) -> str:
        return self._codec.token_bytes(token).decode(errors="replace")


def _source(name: str | None) -> TokenSource:
    return cast(TokenSource, name) if name is not None else "base"
