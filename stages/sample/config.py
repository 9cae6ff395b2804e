"""Configuration of the sample stage: prompts, chat rendering, the sampling engine. No heavy import.

Identity dataclasses hold what changes the distribution of the result and are hashed; runtime dataclasses hold what
changes at most rounding and are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparring.stages.errors import ConfigError
from sparring.stages.step import StepSpec

PROMPTS = StepSpec(
    kind="prompts",
    version=2,
    worker="sparring.stages.sample.prompts:Cleaner",
    shards="sparring.stages.sample.prompts:shards",
    finish="sparring.stages.sample.prompts:finish",
)
ASKED = StepSpec(
    kind="prompts",
    version=1,
    worker="sparring.stages.sample.asked:Asker",
    shards="sparring.stages.sample.asked:shards",
    finish="sparring.stages.sample.prompts:finish",
    pool="here",
)
SAMPLE = StepSpec(
    kind="sample",
    version=3,
    worker="sparring.stages.sample.stage:Sampler",
    shards="sparring.stages.sample.stage:shards",
    finish="sparring.stages.sample.stage:finish",
    prepare="sparring.stages.sample.stage:prepare",
    narrow="sparring.stages.sample.stage:narrow",
    modules="sparring.stages.sample.engine:modules",
    pool="engines",
)
IMPORT = StepSpec(
    kind="sample",
    version=2,
    worker="sparring.stages.sample.imported:Importer",
    shards="sparring.stages.sample.imported:shards",
    finish="sparring.stages.sample.imported:finish",
    pool="here",
)

ENGINES = ("vllm", "transformers", "server")
DTYPES = ("float32", "bfloat16", "float16", "auto")
MOST_RESPONSES = 64
COLDEST = 0.01
"""Of temperatures above 0. vLLM, and its servers, take 0.01 for what is below (sampling_params.py, _MAX_TEMP), and the
quotients of logits and 1e-320 are infinite."""
PAIRED = ("sppo_generated", "pairs", "sppo_pairs")
"""Layouts of imported files that say which response is better."""


@dataclass(frozen=True, kw_only=True)
class PromptsIdentity:
    """What the cleaned prompts are.

    Inputs: `policy` (its tokenizer and chat template), and `source`, or `source_1` .. `source_n` where every slice has
    a source of its own, as published splits have.
    """

    column: str
    """Column that holds a string or a list of messages; `prompt` where there is none: as the file's layout has it."""
    heldout: int
    """Prompts kept out of training: the rows with the smallest sha256 of their text."""
    limit: int | None
    """Use only the first `limit + heldout` usable rows of the source; null uses all."""
    max_tokens: int
    """Longest rendered prompt in tokens; longer ones are dropped and counted as `too_long`."""
    on_empty: str
    """`refuse` stops at a row without text (a file that the user can mend), `drop` counts it as `near_empty`."""

    def __post_init__(self) -> None:
        if self.heldout < 1:
            raise ConfigError(f"prompts.heldout={self.heldout}: at least 1 held-out prompt is needed to evaluate.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"prompts.limit={self.limit}: use a positive number, or null for all prompts.")


@dataclass(frozen=True, kw_only=True)
class AskedIdentity:
    """What of a suite is asked: all of its rows, in their order.

    Inputs: `source` (one file), `policy` (its tokenizer and chat template).
    """

    column: str
    """Column that holds a string or a list of {role, content} messages."""
    max_tokens: int
    """Longest rendered prompt in tokens; longer ones are dropped and counted as `too_long`."""


@dataclass(frozen=True, kw_only=True)
class SampleIdentity:
    """What is sampled. Inputs: `prompts`, `policy`."""

    engine: str
    """vllm, transformers or server."""
    dtype: str
    k: int
    """Responses per prompt."""
    max_tokens: int
    temperature: float
    top_p: float
    min_p: float
    """Tokens less probable than min_p times the most probable one are never drawn; 0 is off."""
    stop: tuple[str, ...]
    """Texts that end a response, beside the policy's control tokens."""
    stop_tokens: tuple[str, ...]
    """Control tokens of the policy that end a response, beside those its folder names."""
    logprobs: bool
    """Keep each sampled token's log-prob under the policy itself: before temperature, top_p and min_p."""
    reproducible: bool
    """A seed for every response. Without, sampling is faster and a second run differs."""
    engine_args: Mapping[str, Any]
    """Further arguments of the engine that change what is sampled."""
    seed: int
    shard_rows: int
    """Prompts per shard: one `generate` call, one unit of resume."""
    split: str
    """train or heldout."""
    slice: int
    """Which slice of the dealt training prompts, from 0 (0 for heldout)."""
    rows: int | None
    """Rows of a slice; null: the prompts are cut into `slices`, or, of heldout, all of them."""
    slices: int | None
    """Slices of one deal: as the sources are, else of equal size; null where `rows` says how large one is."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"sampler.engine={self.engine}: choose {', '.join(ENGINES)}.")
        if self.split == "train" and not 2 <= self.k <= MOST_RESPONSES:
            raise ConfigError(
                f"sampler.k={self.k}: a preference needs at least 2 responses per prompt, "
                f"and the K x K scores of more than {MOST_RESPONSES} are not worth their cost."
            )
        if self.max_tokens < 1 or self.shard_rows < 1 or (self.rows is not None and self.rows < 1):
            raise ConfigError("sampler.max_tokens, sampler.shard_rows and prompts.per_iteration must be at least 1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ConfigError(
                "sampler.temperature must be >= 0, sampler.top_p in (0, 1] and sampler.min_p in [0, 1]; got "
                f"{self.temperature}, {self.top_p} and {self.min_p}."
            )
        if self.temperature == 0 and self.k > 1:
            raise ConfigError(
                f"sampler.temperature=0 gives {self.k} equal responses; raise it (1.0 is the policy itself)."
            )
        if 0 < self.temperature < COLDEST:
            greedy = f"all but {self.k} equal responses" if self.k > 1 else "all but the greedy one; write 0 for that"
            raise ConfigError(
                f"sampler.temperature={self.temperature} gives {greedy}; use {COLDEST} or more (1.0 is the policy "
                f"itself). vLLM samples at {COLDEST} whatever is below."
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"sampler.dtype={self.dtype}: choose {', '.join(DTYPES)}.")
        if any(not text for text in self.stop):
            raise ConfigError("sampler.stop: an empty text would end every response at once; remove it.")


@dataclass(frozen=True, kw_only=True)
class ImportIdentity:
    """What is imported in place of a sampled slice.

    Inputs: `source` (one file), `policy` (its tokenizer and chat template), `prompts` (which ones are held out).
    """

    layout: str
    """What the file holds, and how: stages/sample/layouts.py."""
    prompt: str | None
    """Column of the prompt; null: the responses are message lists that hold it."""
    columns: tuple[str, ...]
    """All columns that are read."""
    cut: bool
    """The responses were cut: no end-of-turn token is appended, and they count as ended by their length."""
    on_empty: str
    """`refuse` stops at a response without text, `drop` counts its row as `empty_response`."""
    max_tokens: int
    """Longest rendered prompt in tokens; longer ones are dropped and counted as `too_long`."""
    shard_rows: int
    """Prompts per part: the unit of resume of every step that reads them."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.shard_rows < 1:
            raise ConfigError("prompts.max_tokens and sampler.shard_rows must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class SampleRuntime:
    """How it is sampled; changes at most rounding."""

    actors: int
    """Engines side by side; 0: as many as the GPUs, or the cores, hold."""
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
    engine_args: Mapping[str, Any]
    """Further arguments of the engine that change its speed and memory alone."""
    urls: tuple[str, ...]
    """Servers, for engine=server."""
    max_failures: int
    """Times that a shard is done again after its worker failed, before the step fails."""
    deadline_s: float
    """A shard that takes longer ends its engine."""
