"""Configuration of the sample stage: policy, prompts, sampler, and the settings of its steps. No heavy import."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sparring.stages.errors import ConfigError
from sparring.stages.fields import (
    ELSEWHERE,
    LOCATION,
    MOST_RESPONSES,
    NO_BOOL,
    RUNTIME,
    ByReference,
    Count,
    Fraction,
    Hashed,
    NonNegative,
    OnlyIf,
    Place,
    Text,
)
from sparring.stages.hardware import HardwareConfig
from sparring.stages.sample.engine_args import SPEED_ONLY
from sparring.stages.step import StepSpec

PROMPTS = StepSpec(
    kind="prompts",
    version=2,
    worker="sparring.stages.sample.prompts:PromptRenderer",
    shards="sparring.stages.sample.prompts:shards",
    finish="sparring.stages.sample.prompts:finish",
    pool="in_process",
)
SUITE_PROMPTS = StepSpec(
    kind="prompts",
    version=1,
    worker="sparring.stages.sample.suite_prompts:SuiteRenderer",
    shards="sparring.stages.sample.suite_prompts:shards",
    finish="sparring.stages.sample.prompts:finish",
    pool="in_process",
)
SAMPLE = StepSpec(
    kind="sample",
    version=3,
    worker="sparring.stages.sample.stage:Sampler",
    shards="sparring.stages.sample.stage:shards",
    finish="sparring.stages.sample.stage:finish",
    prepare="sparring.stages.sample.stage:prepare",
    at_once="sparring.stages.sample.request_queue:at_once",
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
    pool="in_process",
)

COLDEST = 0.01
"""Lowest temperature above 0. vLLM and its servers sample at 0.01 instead of a lower one (sampling_params.py,
_MAX_TEMP), and logits divided by 1e-320 are infinite."""
PAIRED = ("sppo_generated", "pairs", "sppo_pairs")
"""Layouts of imported files that mark the better response."""
DATA_FILE = re.compile(r"\.(jsonl?|parquet|csv)(\.gz)?$")

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
StopText = Annotated[str, Field(min_length=1)]
"""Not empty: an empty text would end every response at once."""


def _no_path(group: Any, _: Any) -> bool:
    return group.path is None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The settings of every policy."""

    name: Annotated[Text, RUNTIME]
    """Shown in reports."""
    tensor_parallel: Annotated[
        Count, ByReference("with hardware=cuda or h100x8, where hardware.engine_gpus is not set"), RUNTIME
    ]
    """GPUs that one sampling engine needs."""
    stop: tuple[StopText, ...]
    """Control tokens that end a response, beside those that the policy's folder names."""
    dtype: Annotated[Dtype, ByReference("where sampler.dtype is not set"), ELSEWHERE]
    """The sampling engine's."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedPolicy(Policy):
    source: Annotated[Literal["embedded"], LOCATION]
    parameters: Annotated[Count | None, RUNTIME]
    """How many weights it has, for plans before its files are prepared."""


@dataclass(frozen=True, kw_only=True)
class HubPolicy(Policy):
    source: Annotated[Literal["hub"], LOCATION]
    path: Annotated[Place | None, LOCATION]
    """A local copy of the model; null: downloaded."""
    repo: Annotated[Text, OnlyIf(_no_path, "without policy.path, which is a local copy"), LOCATION]
    """owner/name on the hub."""
    revision: Annotated[Text, OnlyIf(_no_path, "without policy.path, which is a local copy"), LOCATION]
    """A commit; a branch is resolved to one when the run begins, and written down."""
    parameters: Annotated[Count | None, OnlyIf(_no_path, "without policy.path, whose files are counted"), RUNTIME]
    """How many weights it has, for plans before its files are downloaded."""


@dataclass(frozen=True, kw_only=True)
class FolderPolicy(Policy):
    """Another model. With a preset, its stop tokens and dtype are those of the preset's policy."""

    source: Annotated[Literal["folder"], LOCATION]
    path: Annotated[Place, LOCATION]
    """A folder in the transformers layout."""


PolicyConfig = Annotated[EmbeddedPolicy | HubPolicy | FolderPolicy, Field(discriminator="source")]


def _from_hub(prompts: Any, _: Any) -> bool:
    return prompts.path is None and not Path(prompts.dataset).is_dir()


def _in_layout(prompts: Any, _: Any) -> bool:
    return prompts.path is None or not DATA_FILE.search(prompts.path)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The settings of every source of prompts; the files themselves are inputs, known by their bytes."""

    column: Text
    """Column that holds a string or a list of messages; `prompt` where there is none: as the file's layout has it."""
    limit: Count | None
    """Use only the first `limit + heldout` usable rows of the source; null uses all."""
    heldout: Count | None
    """Prompts kept out of training: the rows with the smallest sha256 of their text; null: a fifth, at most 64."""
    max_tokens: Count
    """Longest rendered prompt in tokens; longer ones are dropped and counted as `too_long`."""
    per_iteration: Annotated[Count | None, ELSEWHERE]
    """S: slice t is rows [(t-1)*S, t*S) of the dealt order; null: cut into `slices`, or, for source=file without
    them, 64, all where there are fewer, and as many as the optimizer's steps need."""
    slices: Annotated[Count | None, ELSEWHERE]
    """Disjoint slices of all training prompts, one an iteration; null: `per_iteration` is the size of one."""


@dataclass(frozen=True, kw_only=True)
class StarterPrompts(Prompts):
    source: Annotated[Literal["starter"], LOCATION]


@dataclass(frozen=True, kw_only=True)
class FilePrompts(Prompts):
    source: Annotated[Literal["file"], LOCATION]
    path: Annotated[Place, LOCATION]
    """A file, or a folder of them; `{slice}` in it stands for 1 .. slices."""
    split: Annotated[Text | None, LOCATION]
    """null: the only one of a folder."""


@dataclass(frozen=True, kw_only=True)
class HubPrompts(Prompts):
    source: Annotated[Literal["hub"], LOCATION]
    path: Annotated[Place | None, LOCATION]
    """A local copy of the dataset, a folder of its layout or a file; null: downloaded. `{slice}` as in FilePrompts."""
    dataset: Annotated[Place, OnlyIf(_no_path, "without prompts.path, which is a local copy"), LOCATION]
    """owner/name on the hub, or a local folder of its layout; `{slice}` as in path."""
    revision: Annotated[
        Text, OnlyIf(_from_hub, "of a dataset of the hub; prompts.path or dataset is a local copy"), LOCATION
    ]
    """A commit or a tag."""
    subset: Annotated[
        Text | None, OnlyIf(_in_layout, "of a folder of the hub's layout; prompts.path is a file"), LOCATION
    ]
    """The hub's configuration name."""
    split: Annotated[Text, OnlyIf(_in_layout, "of a folder of the hub's layout; prompts.path is a file"), LOCATION]


PromptsConfig = Annotated[StarterPrompts | FilePrompts | HubPrompts, Field(discriminator="source")]


def _not_speed_only(sampler: Any) -> dict[str, Any]:
    return {name: value for name, value in sampler.engine_args.items() if name not in SPEED_ONLY}


def _draws(sampler: Any, _: Any) -> bool:
    return bool(sampler.temperature > 0)


@dataclass(frozen=True, kw_only=True)
class SamplerBase:
    """The settings of every sampling engine."""

    k: Annotated[int, Field(ge=2, le=MOST_RESPONSES, description="a preference needs two responses"), NO_BOOL]
    """Responses per prompt: a preference needs two; the K x K scores of more than 64 are not worth their cost."""
    max_tokens: Count
    """Of a response."""
    temperature: NonNegative
    """1 is the policy itself; 0 is greedy, which `sparring answer` alone takes."""
    top_p: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False), NO_BOOL, OnlyIf(_draws, "with sampler.temperature above 0")
    ]
    min_p: Annotated[Fraction, OnlyIf(_draws, "with sampler.temperature above 0")]
    """Tokens less probable than min_p times the most probable one are never drawn; 0 is off."""
    stop: tuple[StopText, ...]
    """Texts that end a response, beside the policy's control tokens."""
    logprobs: bool
    """Keep each sampled token's log-prob under the policy itself: before temperature, top_p and min_p."""
    reproducible: bool
    """A seed for every response. Without, sampling is faster and a second run differs."""
    dtype: Dtype
    """For servers: the dtype that they were started with, which no answer of theirs shows."""
    shard_rows: Count
    """Prompts per shard: one `generate` call, one unit of resume."""


@dataclass(frozen=True, kw_only=True)
class EngineSampler(SamplerBase):
    engine: Literal["vllm", "transformers"]
    engine_args: Annotated[dict[str, Any], Hashed("but what changes its speed alone", _not_speed_only)]
    """Passed on to the engine: +sampler.engine_args.max_num_seqs=64. What changes its speed alone is not hashed."""


@dataclass(frozen=True, kw_only=True)
class ServerSampler(SamplerBase):
    engine: Literal["server"]
    urls: Annotated[tuple[str, ...], RUNTIME]
    """http://host:port, one or more."""


SamplerConfig = Annotated[EngineSampler | ServerSampler, Field(discriminator="engine")]


@dataclass(frozen=True, kw_only=True)
class PromptsSettings:
    """Settings of the step `prompts`.

    Inputs: `policy` (its tokenizer and chat template), and `source`, or `source_1` .. `source_n` where every slice has
    a source of its own, as published splits have.
    """

    prompts: Prompts
    """Its `heldout` is a number."""
    on_empty: Literal["refuse", "drop"]
    """`refuse` stops at a row without text (a file that the user can mend), `drop` counts it as `near_empty`."""


@dataclass(frozen=True, kw_only=True)
class SuitePromptsSettings:
    """Settings of the step `prompts` of a suite: all rows of its file, in their order.

    Inputs: `source` (one file), `policy` (its tokenizer and chat template).
    """

    column: str
    """Column that holds a string or a list of {role, content} messages."""
    max_tokens: int
    """Longest rendered prompt in tokens; longer ones are dropped and counted as `too_long`."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Settings of the step `sample`. Inputs: `prompts`, `policy`."""

    sampler: SamplerConfig
    """Of held-out prompts with the k and shard_rows of `evaluate`."""
    stop_tokens: tuple[str, ...]
    """Control tokens of the policy that end a response, beside those its folder names: policy.stop."""
    seed: int
    split: Literal["train", "heldout"]
    slice: int
    """Which slice of the dealt training prompts, from 0 (0 for heldout)."""
    rows: int | None
    """Rows of a slice; null: the prompts are cut into `slices`, or, of heldout, all of them."""
    slices: int | None
    """Slices of one deal: as the sources are, else of equal size; null where `rows` is the size of one."""
    max_model_len: Annotated[int, RUNTIME]
    """Longest prompt plus response, in tokens."""
    hardware: Annotated[HardwareConfig, RUNTIME]

    def __post_init__(self) -> None:
        """Refuse temperatures at which responses to one prompt are equal."""
        k, temperature = self.sampler.k, self.sampler.temperature
        if temperature == 0 and k > 1:
            raise ConfigError(f"sampler.temperature=0 gives {k} equal responses; raise it (1.0 is the policy itself).")
        if 0 < temperature < COLDEST:
            greedy = f"all but {k} equal responses" if k > 1 else "all but the greedy one; write 0 for that"
            raise ConfigError(
                f"sampler.temperature={temperature} gives {greedy}; use {COLDEST} or more (1.0 is the policy itself). "
                f"vLLM samples at {COLDEST} whatever is below."
            )


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Settings of the step `sample` that imports responses in place of sampling a slice.

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
