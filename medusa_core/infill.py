"""Special tokens with which models were trained to write the middle of a text.

A row is used when the tokenizer knows all tokens of its order; the first such row counts. The orders are those of the
model cards: everything is written in one left-to-right prompt, at whose end the model writes the middle.
"""

from dataclasses import dataclass

__all__ = ["INFILL_FORMATS", "PREFIX", "SUFFIX", "InfillFormat"]

# Stand for the two texts in an order; no tokenizer's token is spelt like this.
PREFIX, SUFFIX = "{prefix}", "{suffix}"


@dataclass(frozen=True)
class InfillFormat:
    """How one family writes the task.

    order:            special tokens, and where the two texts stand among them.
    ends:             tokens that end the middle besides the model's own end of text; those a tokenizer lacks are
                      passed over.
    is_suffix_joined: the suffix goes on from the middle's last word, so that no space is put before it.
    """

    order: tuple[str, ...]
    ends: tuple[str, ...]
    is_suffix_joined: bool

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens of the order."""
        return tuple(part for part in self.order if part not in (PREFIX, SUFFIX))


INFILL_FORMATS: tuple[InfillFormat, ...] = (
    # Qwen2.5-Coder, CodeGemma, Granite 3.3
    InfillFormat(
        ("<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>"),
        ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
        False,
    ),
    # StarCoder, StarCoder2, Granite Code
    InfillFormat(
        ("<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>"),
        ("<|endoftext|>", "<fim_pad>", "<file_sep>", "<repo_name>"),
        False,
    ),
    # DeepSeek-Coder, DeepSeek-V2 and V3; the bars and underscores are not ASCII
    InfillFormat(
        ("<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>"),  # noqa: RUF001
        (),
        False,
    ),
    # CodeLlama: llama/generation.py of its repository encodes the suffix "without an implicit leading space"
    InfillFormat(("▁<PRE>", PREFIX, "▁<SUF>", SUFFIX, "▁<MID>"), ("▁<EOT>",), True),
)
