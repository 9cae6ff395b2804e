"""Configuration of the sample stage: prompts, chat rendering, the sampling engine. No heavy import.

Identity dataclasses hold what changes the distribution of the result and are hashed; runtime dataclasses hold what
changes at most rounding and are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.job import StepSpec

PROMPTS = StepSpec(
    kind="prompts",
    version=1,
    worker="stages.sample.prompts:Cleaner",
    shards="stages.sample.prompts:shards",
    finish="stages.sample.prompts:finish",
)
SAMPLE = StepSpec(
    kind="sample",
    version=1,
    worker="stages.sample.stage:Sampler",
    shards="stages.sample.stage:shards",
    finish="stages.sample.stage:finish",
    prepare="stages.sample.stage:prepare",
    pool="engines",
)


@dataclass(frozen=True, kw_only=True)
class PromptsIdentity:
    """What the cleaned prompts are. Inputs: `source` (one file), `policy` (its tokenizer and chat template)."""

    column: str
    """Column that holds a string or a list of {role, content} messages."""
    heldout: int
    """Prompts kept out of training: the rows with the smallest sha256 of their text."""
    limit: int | None
    """Use only the first `limit + heldout` usable rows of the source; null uses all."""
    max_tokens: int
    """Longest rendered prompt in tokens; longer ones are dropped and counted as `too_long`."""

    def __post_init__(self) -> None:
        if self.heldout < 1:
            raise ConfigError(f"prompts.heldout={self.heldout}: at least 1 held-out prompt is needed to evaluate.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"prompts.limit={self.limit}: use a positive number, or null for all prompts.")


@dataclass(frozen=True, kw_only=True)
class SampleIdentity:
    """What is sampled. Inputs: `prompts`, `policy`."""

    engine: str
    """vllm or transformers."""
    dtype: str
    k: int
    """Responses per prompt."""
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    shard_rows: int
    """Prompts per shard: one `generate` call, one unit of resume."""
    split: str
    """train or heldout."""
    start: int
    """First row of the dealt training prompts (0 for heldout)."""
    count: int
    """Rows of the slice."""

    def __post_init__(self) -> None:
        if self.engine not in ("vllm", "transformers"):
            raise ConfigError(f"sampler.engine={self.engine}: choose vllm or transformers.")
        if self.split == "train" and self.k < 2:
            raise ConfigError(f"sampler.k={self.k}: a preference needs at least 2 responses per prompt.")
        if self.max_tokens < 1 or self.shard_rows < 1 or self.count < 1:
            raise ConfigError("sampler.max_tokens, sampler.shard_rows and prompts.per_iteration must be at least 1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError("sampler.temperature must be >= 0 and sampler.top_p in (0, 1].")
        if self.temperature == 0 and self.k > 1:
            raise ConfigError(
                f"sampler.temperature=0 gives {self.k} equal responses; raise it (1.0 is the policy itself)."
            )


@dataclass(frozen=True, kw_only=True)
class SampleRuntime:
    """How it is sampled; changes at most rounding."""

    actors: int
    """Engines side by side."""
    cpus: int
    """CPU cores per engine."""
    gpus: int
    """GPUs per engine (its tensor-parallel size); 0 on the CPU."""
    kv_cache_gb: int
    """Key-value cache of one engine on the CPU, GiB."""
    gpu_memory: float
    """Share of a GPU's memory an engine may take."""
    max_model_len: int
    """Longest prompt plus response in tokens the engine must hold."""
