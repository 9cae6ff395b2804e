"""How many prompts a run has: counted when it is planned, where the files are here, and cached by their digest.

The number decides `prompts.heldout` and `prompts.per_iteration` where a file leaves them open. Too few prompts to hold
some out, or for the optimizer's steps, are refused; prompts that are dealt again are said. The number is that of the
rows that differ. Prompts that the policy's tokenizer finds too long are dropped later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

from sparring.pipeline.config.model import Config
from sparring.pipeline.sources import Sources
from sparring.stages import digests
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample.config import PromptsSettings
from sparring.stages.step import Input

VERSION = 1
"""Of the way in which rows are read and counted."""
MOST_HELDOUT = 64
HELDOUT_SHARE = 5
"""Of a file without `prompts.heldout` at most one prompt in so many is held out."""
PER_ITERATION = 64


def on_empty(config: Config) -> Literal["refuse", "drop"]:
    """Return what a row without text does: in a file it is refused, since the user can mend it; of the hub dropped."""
    return "drop" if config.prompts.source == "hub" else "refuse"


def with_prompt_counts(config: Config, sources: Sources) -> tuple[Config, int | None]:
    """Return the configuration with its numbers of prompts decided, and how many there are to train on.

    That number is None where the files are not here. ConfigError or DataError where they are too few.
    """
    prompts = config.prompts
    inputs = sources.prompts(prompts)
    if not _are_here(inputs):
        return config, None
    different, dropped = _count(inputs, prompts.column, on_empty(config))
    first = next(iter(inputs.values()))
    name = str(first.root / first.files[0].path if len(first.files) == 1 else first.root)
    name += f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
    heldout = prompts.heldout
    if heldout is None:
        heldout = max(1, min(MOST_HELDOUT, different // HELDOUT_SHARE))
    if different <= heldout:
        from sparring.stages.sample.prompts import too_few

        raise DataError(too_few(name, different, heldout, dropped))
    train = different - heldout if prompts.limit is None else min(different - heldout, prompts.limit)
    rows = prompts.per_iteration
    if rows is None and prompts.slices is None:
        rows = _per_iteration(config, name, train, heldout)
    if rows is None and len(inputs) == 1:
        _check_slices(config, name, train, heldout)
    return replace(config, prompts=replace(prompts, heldout=heldout, per_iteration=rows)), train


def _per_iteration(config: Config, name: str, train: int, heldout: int) -> int:
    """Return 64, or all where there are fewer, but enough for the optimizer's steps: prompts are then dealt again."""
    trainer = config.trainer
    enough = trainer.global_batch * -(-trainer.min_steps // trainer.epochs)
    if train < trainer.global_batch:
        raise ConfigError(
            f"{name}: {train} prompts to train on, beside {heldout} held out, are fewer than one optimizer step takes "
            f"(trainer.global_batch={trainer.global_batch}), and {trainer.min_steps} steps are needed: {enough} "
            "prompts an iteration. Add prompts, or lower trainer.global_batch or prompts.heldout."
        )
    return max(enough, min(PER_ITERATION, train))


def _check_slices(config: Config, name: str, train: int, heldout: int) -> None:
    trainer, slices = config.trainer, config.prompts.slices or 1
    rows = -(-train // slices)
    steps = trainer.epochs * -(-rows // trainer.global_batch)
    if steps < trainer.min_steps:
        raise ConfigError(
            f"{name}: {train} prompts to train on, beside {heldout} held out, make {rows} in each of "
            f"prompts.slices={slices}: {steps} optimizer steps of trainer.global_batch={trainer.global_batch}, and "
            f"{trainer.min_steps} are needed. Add prompts, lower prompts.slices, or set prompts.per_iteration instead."
        )


def check_lengths(inputs: Mapping[str, Input], policy: Input, settings: PromptsSettings) -> None:
    """DataError where too few prompts fit the policy's tokenizer; where it or they are not here, the step looks."""
    path = policy.root / "tokenizer.json"
    if policy.wanted or not path.is_file() or not _are_here(inputs) or find_spec("tokenizers") is None:
        return
    from sparring.stages.sample.prompts import check_lengths as check
    from sparring.stages.sample.prompts import sources_of

    @cache
    def tokenizer() -> Any:  # loaded where a text is long enough to be counted
        import tokenizers  # without transformers, whose import takes seconds

        loaded = tokenizers.Tokenizer.from_file(str(path))
        loaded.no_truncation()
        loaded.no_padding()
        return loaded

    check(sources_of(inputs), settings, lambda text: len(tokenizer().encode(text, add_special_tokens=False).ids))


def _are_here(inputs: Mapping[str, Input]) -> bool:
    return all(source.files and not source.wanted for source in inputs.values())


def dealt_again(config: Config, train: int | None) -> str | None:
    """Return which iterations play on prompts that were played on before; None without any.

    train: how many prompts there are to train on, None where that is not known.
    """
    n, slices, rows = config.iterations, config.prompts.slices, config.prompts.per_iteration
    if slices and n > slices:
        again = f"from {slices + 1} on they are dealt again, newly permuted"
        return f"iterations 1 to {slices} play on every prompt once; {again}"
    if slices or train is None or rows is None or n * rows <= train:
        return None
    return (
        f"{n} iteration{'s' * (n > 1)} of {rows} prompts take{'s' * (n == 1)} {n * rows}, there are {train}: from "
        f"iteration {train // rows + 1} on prompts are dealt again, newly permuted, with other responses"
    )


def _count(inputs: Mapping[str, Input], column: str, empty: Literal["refuse", "drop"]) -> tuple[int, dict[str, int]]:
    """Return how many prompts differ and, by reason, how many are dropped; from the cache where they were counted."""
    counted = json.dumps([VERSION, [source.digest for source in inputs.values()], column, empty])
    name = f"prompts/{hashlib.sha256(counted.encode()).hexdigest()}.json"
    cached = digests.load(name)
    if isinstance(cached.get("different"), int) and isinstance(cached.get("dropped"), dict):
        return cached["different"], cached["dropped"]
    from sparring.stages.sample.prompts import count, sources_of

    prompts = count(sources_of(inputs), column, empty)
    digests.save(name, prompts._asdict())
    return prompts.different, prompts.dropped
