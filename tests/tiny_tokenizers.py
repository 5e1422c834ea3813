"""Tokenizers small enough to train inside a test, saved the way checkpoints carry them."""

import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medusa_core.constraints import GrammarVocabulary

CORPUS = (
    "Hello world, how are you today?",
    "A chat between a curious user and an assistant. USER: ASSISTANT:",
    "def dedent(text):\n    return text.strip()",
    "Grüße aus Köln, 日本語 und 🙂🚀",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def save_byte_level(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A byte-level BPE of about 300 tokens with tokenizer.json, as Qwen's or the demo model's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(text, special=True) for text in ("<|start|>", "<|end|>")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=chat_template)
    tokenizer.save_pretrained(folder)
    return folder


def save_sentencepiece(folder: Path, tokenizer_class: str = "LlamaTokenizer", name: str = "vicuna-7b-v1.3") -> Path:
    """A sentencepiece BPE with byte fallback and nothing but tokenizer.model, as Llama's and Vicuna's."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS[:3] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": tokenizer_class,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": name}))
    return folder


# Enough to spell short JSON, with a few tokens that hold several characters, so that grammars meet tokens half way.
JSON_MERGES = [
    ('"', "a"),
    ('"', ","),
    ('",', "\u0120"),
    ("a", "b"),
    ("[", '"'),
    ('"', "b"),
    ("b", "a"),
    ('",\u0120', '"'),
]
JSON_TOKENS = ["[", "]", "{", "}", '"', ",", "\u0120", ":", "a", "b", "0", "1", "2"]


def grammar_vocabulary(vocab_size: int, end: int) -> GrammarVocabulary:
    """A vocabulary for models that have no tokenizer: 23 tokens or more, one of which ends an answer."""
    names = [*JSON_TOKENS, *("".join(merge) for merge in JSON_MERGES)]
    names.insert(end, "</s>")
    names.extend(f"<{number}>" for number in range(len(names), vocab_size))
    backend = Tokenizer(models.BPE(vocab={name: token for token, name in enumerate(names)}, merges=JSON_MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names if name.startswith("<")])
    return GrammarVocabulary(backend.to_str(), vocab_size, vocab_size, [end])
