"""A small tokenizer and a small model for the training tests."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medusa_core.demo.tokenizer import train_tokenizer
from medusa_core.training.base import FrozenBase
from medusa_core.training.encoding import Example
from medusa_core.training.packing import Batch, Examples, PackedRows

TEXTS = (
    "def dedent(text):\n    return text.strip()\n",
    "What does textwrap.dedent do? It removes any common leading whitespace.",
    "Yes. Yes. No. user assistant system",
)
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(chat_template: str | None = None, begin: bool = False) -> PreTrainedTokenizerFast:
    """The demo tokenizer on a few words; `begin` makes it put <|endoftext|> before every text."""
    made = train_tokenizer(TEXTS, 300)
    if chat_template is not None:
        made.chat_template = chat_template
    if begin:
        made.bos_token = "<|endoftext|>"
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return made


@cache
def base(seed: int = 0) -> FrozenBase:
    """A random two-layer Llama over the small tokenizer."""
    own = tokenizer()
    return FrozenBase.of("tiny", tiny_llama(len(own), seed), own)


def tiny_llama(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def saved_base(folder: Path, **generation: Any) -> Path:
    """The tiny model and its tokenizer in a folder."""
    own = base()
    for name, value in generation.items():
        setattr(own.model.generation_config, name, value)
    own.model.save_pretrained(folder)
    own.tokenizer.save_pretrained(folder)
    return folder


def packed(*examples: Example, length: int = 32, seed: int = 0, together: bool = True) -> PackedRows:
    """Examples in rows."""
    return PackedRows.pack(Examples.of(examples), length, seed, together)


def alone(*tokens: int) -> Batch:
    """One text in a row of its own, judged throughout."""
    return packed(Example(tokens, (True,) * len(tokens)), length=max(1, len(tokens))).chosen([0])


def counting(count: int = 20, length: int = 16) -> list[Example]:
    """Texts that count up, which heads learn quickly."""
    starts = range(0, 2 * count, 2)
    return [Example(tuple((start + step) % 40 + 5 for step in range(length)), (True,) * length) for start in starts]
