"""What the operator and the caller may choose about the engine, as frozen values with one default each."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from medusa_core.errors import ConfigurationError, InvalidParameter, ModelNotFound

__all__ = [
    "AcceptanceName",
    "AttentionName",
    "EngineConfig",
    "HeadsConfig",
    "Int8Heads",
    "Quantization",
    "RunnerName",
    "SpeculationMode",
    "SpeculationParams",
    "TreeKind",
    "model_location",
    "split_revision",
]

# Beyond this every known device spends more on computing the nodes than they bring (Medusa's own limit is 64).
_MAX_TREE_NODES = 256

SpeculationMode = Literal["auto", "tree", "static", "chain", "off"]
TreeKind = Literal["dynamic", "static"]
AcceptanceName = Literal["exact", "typical"]
Quantization = Literal["none", "int8", "int4", "fp8", "bnb8", "bnb4"]
RunnerName = Literal["auto", "eager", "cuda_graph"]
AttentionName = Literal["auto", "bucketed", "device_length"]
Int8Heads = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class EngineConfig:
    """How to load a model and how large its buffers are.

    model:             folder or Hugging Face id, which may name a revision as `owner/name@revision`; `demo` is the
                       shipped model.
    heads:             id, folder or file of the draft heads; None looks inside the checkpoint.
    device:            `auto` takes CUDA when there is one, else the CPU.
    dtype:             `auto` is float32 on a CPU and the checkpoint's own on CUDA.
    quantize:          how to hold the base's weights in few bits; `none` leaves them as they are stored.
    adapter:           whether an adapter that stands beside the heads is merged into the base; without it the base is
                       what it was, and the heads still propose.
    max_context:       cache rows for one sequence; None is the model's maximum, at most 8192.
    tree_nodes:        nodes of one verified tree, root included; None lets `auto` take the fastest size at every step,
                       which may be 1, and `tree` the size that was the fastest when measured on this very device, else
                       the default of the device.
    tree:              `dynamic` takes each step's best nodes, `static` fills the shape that is best on
                       average, with the heads alone.
    max_depth:         deepest branch any drafter may add, at least the number of heads.
    prompt_lookup:     whether trees also hold what followed earlier in the sequence; False leaves them to the heads.
    draft_vocabulary:  tokens that heads may propose: those of the smallest ids, which tokenizers that merge the most
                       frequent pair first give to the most frequent tokens, and the end tokens; None is all of them.
    recycling:         whether trees also hold what the model itself last found likeliest behind each token.
    prefix_cache:      MiB for the rows of earlier conversations, which then need not be computed again; with 0 only the
                       last is kept. None is 256 on a CPU, and on CUDA a tenth of what the weights leave free.
    prefill_chunk:     prompt tokens of one forward pass; bounds memory and the time a cancel takes.
    num_threads:       CPU threads of the worker; None is all cores but one, which the HTTP side needs.
    fuse:              whether the base is computed in fewer kernels than its own modelling code takes, where a trial at
                       load shows that the results are the same.
    compile:           whether kernels for small models in float32 on a CPU are built by the system's C compiler at
                       load; where there is none, and with False, torch's own are used.
    runner:            `cuda_graph` records a step once and replays it, `eager` issues every operation of every step;
                       `auto` records on CUDA.
    attention:         `bucketed` reads all rows of a bucket under a mask, `device_length` as many as there are, where a
                       trial at load shows the same results; `auto` does so where steps are then faster, too.
    compile_steps:     whether passes over trees are compiled by torch's inductor before they are recorded, which takes
                       a while for each size; where it cannot, they are recorded as they are.
    int8_heads:        `on` holds the LM heads of the draft heads in int8 as well, and drafts with those where that is
                       faster; `auto` does so on a CPU alone.
    record_prompts:    whether prompts are computed in a few recorded lengths, filled up, where steps are recorded.
    delivery_ms:       what each step takes beside its computation until its tokens are on their way, where a process on
                       the same cores sends them; `auto` counts it as part of every step, on a CPU.
    self_test:         whether heads are tried on a short greedy run, so that wrong ones are noticed at the start.
    """

    model: str = "demo"
    heads: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantization = "none"
    adapter: bool = True
    max_context: int | None = None
    tree_nodes: int | None = None
    tree: TreeKind = "dynamic"
    max_depth: int = 8
    prompt_lookup: bool = True
    draft_vocabulary: int | None = None
    recycling: bool = True
    prefix_cache: int | None = None
    prefill_chunk: int = 512
    num_threads: int | None = None
    fuse: bool = True
    compile: bool = True
    runner: RunnerName = "auto"
    attention: AttentionName = "bucketed"
    compile_steps: bool = False
    int8_heads: Int8Heads = "auto"
    record_prompts: bool = False
    delivery_ms: float = 0.0
    self_test: bool = True

    def __post_init__(self) -> None:
        for name in ("max_context", "tree_nodes", "max_depth", "prefill_chunk", "draft_vocabulary", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}, it must be at least 1")
        if self.prefix_cache is not None and self.prefix_cache < 0:
            raise ConfigurationError(f"prefix_cache is {self.prefix_cache}, it must be at least 0 MiB; 0 turns it off")
        if not 0.0 <= self.delivery_ms < math.inf:
            raise ConfigurationError(f"delivery_ms is {self.delivery_ms}, it must be at least 0, and finite")
        if self.max_context == 1:
            raise ConfigurationError("max_context is 1, it must hold a token of the prompt and one of the answer: 2")
        if self.tree_nodes is not None and self.tree_nodes > _MAX_TREE_NODES:
            raise ConfigurationError(f"tree_nodes is {self.tree_nodes}, it must be at most {_MAX_TREE_NODES}")
        choices = {"tree": TreeKind, "runner": RunnerName, "attention": AttentionName, "int8_heads": Int8Heads}
        for name, kinds in choices.items():
            if getattr(self, name) not in get_args(kinds):
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}, it must be {' or '.join(get_args(kinds))}"
                )


@dataclass(frozen=True)
class HeadsConfig:
    """Shape of a set of draft heads.

    num_heads:      K.
    num_layers:     residual blocks per head.
    hidden_size:    H, the base model's.
    vocab_size:     V, rows of the LM head used for drafting.
    shared_lm_head: whether all heads use the base model's LM head instead of one each.
    lm_head_rank:   r of a low-rank correction that each head adds to the shared LM head; None adds nothing.
    one_lm_head:    whether the heads share an LM head that is theirs and not the base model's.
    """

    num_heads: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    shared_lm_head: bool
    lm_head_rank: int | None = None
    one_lm_head: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_layers", "hidden_size", "vocab_size", "lm_head_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"heads need {name} >= 1, got {value}")
        if self.lm_head_rank is not None and not self.shared_lm_head:
            raise ConfigurationError("a low-rank LM head corrects the shared one; set shared_lm_head")
        if self.one_lm_head and self.shared_lm_head:
            raise ConfigurationError("heads use either the base model's LM head or one of their own, not both")


@dataclass(frozen=True)
class SpeculationParams:
    """How one request speculates.

    mode:       `tree` drafts the best nodes, `static` one fixed shape of them, `chain` only the top token of each
                head, `off` is a root-only tree, `auto` leaves the choice, and the nodes of each step, to the engine.
    max_nodes:  upper bound on the nodes of one tree, root included; None is the engine's own.
    acceptance: `exact` emits what plain decoding would emit; `typical` is the paper's lossy rule.
    epsilon:    typical rule: the probability above which any token passes.
    delta:      typical rule: the factor of exp(-entropy).
    """

    mode: SpeculationMode = "auto"
    max_nodes: int | None = None
    acceptance: AcceptanceName = "exact"
    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        if self.max_nodes is not None and self.max_nodes < 1:
            raise InvalidParameter(f"max_nodes is {self.max_nodes}, it must be at least 1", "speculation.max_nodes")
        for name in ("epsilon", "delta"):
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise InvalidParameter(f"{name} is {value}, it must be in (0, 1]", f"speculation.{name}")


def model_location(name: str) -> str:
    """Where a checkpoint is: `demo` is the one shipped with the package, anything else a folder, file or hub id.

    Raises ModelNotFound for what can only be a path and is not there: asking a hub for it would hide the mistake.
    """
    if name == "demo":
        return str(Path(__file__).parent / "demo" / "checkpoint")
    if name.startswith(("/", "./", "../", "~")):
        path = Path(name).expanduser()
        if not path.exists():
            raise ModelNotFound(f"there is no {name!r}; check the path, or give a hub id such as 'owner/name'")
        return str(path)
    return name


def split_revision(source: str) -> tuple[str, str | None]:
    """A hub id without the branch, tag or commit that it may name, `owner/name@revision`, and that one.

    What is on this disk names none, whatever signs are in its path.
    """
    name, _, revision = source.partition("@")
    return (source, None) if revision == "" or Path(source).exists() else (name, revision)
