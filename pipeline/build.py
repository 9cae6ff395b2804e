"""A configuration becomes a plan: the steps of N iterations, of answers to files, or of an import.

Neither Ray nor torch is loaded here: planning, `status` and a run with nothing to do stay instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparring.pipeline import judges
from sparring.pipeline.builder import Builder
from sparring.pipeline.plan import Plan
from sparring.pipeline.prompt_count import fitted
from sparring.pipeline.schema import Config
from sparring.pipeline.sources import Sources
from sparring.stages.annotate.config import IMPORT_PAIRS, ImportPairsSettings
from sparring.stages.sample.config import IMPORT, PAIRED, SUITE_PROMPTS, ImportSettings, SuitePromptsSettings
from sparring.stages.step import Input


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of which policy."""

    source: Input
    column: str
    policy: Input | None
    """A trained policy; None: the base."""
    iteration: int
    n: int
    """Samples of each prompt, of which the oracle's best is the answer."""
    temperature: float | None = None
    """What the suite samples it at; None: as the configuration says."""


def build(configs: Mapping[str, Config], sources: Sources) -> Plan:
    """Return one plan for all arms: steps that arms share are computed once."""
    found = {arm: fitted(config, sources) for arm, config in configs.items()}
    counts = {arm: train for arm, (_, train) in found.items()}
    plan = Plan(steps={}, externals={}, configs={arm: c for arm, (c, _) in found.items()}, train_prompts=counts)
    for arm, config in plan.configs.items():
        Builder(arm, config, sources, plan).build()
        judges.check_second(config.oracle, config.judge, sources)
    return plan


def build_answers(config: Config, sources: Sources, *asked: Asked) -> Plan:
    """Return the plan of a policy's answers to files: the prompts, `n` samples each, and for n > 1 their scores."""
    plan = Plan(steps={}, externals={}, configs={"": config})
    for one in asked:
        _add_answers(plan, config, sources, one)
    return plan


def _add_answers(plan: Plan, config: Config, sources: Sources, asked: Asked) -> None:
    heat = config.sampler.temperature if asked.temperature is None else asked.temperature
    config = replace(config, sampler=replace(config.sampler, temperature=heat))
    builder = Builder("", config, sources, plan)
    base = builder.external(sources.policy(config.policy))
    settings = SuitePromptsSettings(column=asked.column, max_tokens=config.prompts.max_tokens)
    inputs = {"source": builder.external(asked.source), "policy": base}
    prompts = builder.step(asked.iteration, "prompts", SUITE_PROMPTS, settings, inputs)
    policy = builder.external(asked.policy) if asked.policy else base
    samples = builder.sample(asked.iteration, "sample", prompts, policy, "suite", asked.n)
    if asked.n > 1:
        builder.score(asked.iteration, "score", config.oracle, samples, anchors=config.oracle.opponents)


def build_import(config: Config, sources: Sources, source: Input, settings: ImportSettings) -> Plan:
    """Return the plan of an import, all of it made in this process: prompts (who is held out), samples, pairs."""
    plan = Plan(steps={}, externals={}, configs={"": config})
    builder = Builder("", config, sources, plan)
    prompts = builder.prompts()
    policy = builder.external(sources.policy(config.policy))
    inputs = {"source": builder.external(source), "policy": policy, "prompts": prompts}
    samples = builder.step(1, "sample", IMPORT, settings, inputs)
    if settings.layout in PAIRED:
        builder.step(1, "pairs", IMPORT_PAIRS, ImportPairsSettings(), {"samples": samples})
    return plan
