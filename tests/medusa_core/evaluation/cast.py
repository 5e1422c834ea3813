"""A tiny model with heads in a folder, and prompts to measure it with."""

import json
from pathlib import Path

from medusa_core.calibration import Calibration
from medusa_core.checkpoints import save_heads
from medusa_core.engine import Engine
from medusa_core.evaluation.prompts import Prompt
from tests.cast import MockBackbone, make_engine, random_heads, tiny_model
from tests.tiny_tokenizers import save_byte_level

PROMPTS = [Prompt(1, "chat", (3, 1, 4, 1, 5)), Prompt(2, "text", (2, 7, 1, 8)), Prompt(4, "text", (9, 9, 3))]
CALIBRATION = Calibration(((0.5, 0.2, 0.1),) * 3, (9, 8, 7), (1.0, 1.0, 1.0))


def mock_engine(tree_nodes: int = 8, has_heads: bool = True, sharpness: float = 4.0) -> Engine:
    """An engine that costs nothing, whose float64 sums are exact."""
    backbone = MockBackbone(sharpness=sharpness)
    return make_engine(backbone, random_heads(backbone.lm_head) if has_heads else None, tree_nodes)


def saved_model(folder: Path, calibration: Calibration | None = CALIBRATION) -> Path:
    """A tiny Llama, its tokenizer and three heads, calibrated or not."""
    model = tiny_model("llama", vocab_size=300, eos_token_id=1, bos_token_id=None, pad_token_id=None)
    model.save_pretrained(folder)
    save_byte_level(folder)
    save_heads(folder / "heads", random_heads(model.get_output_embeddings().weight.detach(), 3), str(folder))
    if calibration is not None:
        calibration.save(folder / "heads" / "calibration.json")
    return folder


def saved_prompts(folder: Path) -> Path:
    """One conversation with an answer, one without, and a text."""
    question = {"role": "user", "content": "Hello world"}
    entries = [
        {"messages": [question, {"role": "assistant", "content": "how are you today?"}]},
        {"messages": [question], "id": 7},
        {"text": "def dedent(text):"},
    ]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n", encoding="utf-8")
    return path
