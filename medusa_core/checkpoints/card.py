"""The model card that goes with converted heads: what they are, what they belong to, what was measured."""

from medusa_core.calibration import Calibration
from medusa_core.checkpoints.layouts import LAYOUTS, kind_of
from medusa_core.config import HeadsConfig

__all__ = ["LM_HEAD_WORDS", "heads_card"]

LM_HEAD_WORDS = {
    "own": "one of its own for each head",
    "one": "one of their own for all heads",
    "shared": "the base model's",
    "low-rank": "the base model's, with a low-rank correction for each head",
}


def heads_card(
    base_model: str | None, layout: str, config: HeadsConfig, dtype: str, calibration: Calibration | None
) -> str:
    """README.md for a folder of heads, with the accuracies of a calibration where there is one."""
    named = base_model if base_model is not None else "a base model"
    # a path on somebody's machine is no model that a hub could link to
    is_hub_id = base_model is not None and base_model.count("/") == 1 and not base_model.startswith((".", "/", "~"))
    front = ["---", *([f"base_model: {base_model}"] if is_hub_id else []), "tags:", "- medusa", "---", ""]
    facts = {
        "base model": named,
        "layout": f"`{layout}` ({LAYOUTS[layout].title})",
        "heads": str(config.num_heads),
        "residual blocks per head": str(config.num_layers),
        "LM head": LM_HEAD_WORDS[kind_of(config)],
        "hidden size": str(config.hidden_size),
        "dtype": dtype,
    }
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    lines = [*front, f"# Medusa heads for {named}", "", *table, "", *_measured(calibration)]
    return "\n".join(lines) + "\n"


def _measured(calibration: Calibration | None) -> list[str]:
    if calibration is None:
        return ["No accuracies were measured; `medusa calibrate` measures them."]
    rows = [
        f"| {head} | {head + 1} | {shares[0]:.3f} | {sum(shares[:2]):.3f} | {sum(shares[:5]):.3f} | {samples} |"
        for head, (shares, samples) in enumerate(zip(calibration.accuracies, calibration.samples, strict=True), start=1)
        if shares
    ]
    counted = [f"{tokens:.2f} at {nodes} nodes" for nodes, tokens in sorted(calibration.tokens_per_step.items())]
    return [
        "How often the token that came was among the head's likeliest, on held-out text:",
        "",
        "| head | tokens ahead | top 1 | top 2 | top 5 | samples |",
        "|---|---|---|---|---|---|",
        *rows,
        *(["", f"Tokens per step, the model's own token included: {', '.join(counted)}."] if counted else []),
        "",
        "`calibration.json` has every rank, temperatures and trees.",
    ]
