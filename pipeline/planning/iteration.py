"""The loop: the steps of N iterations, each with the settings and inputs that define it and the workers that run it.

    build({"": config}, sources)        one plan for all arms; `Builder.build` has the loop, then one method a step

Neither Ray nor torch is loaded here: planning, `status` and a run with nothing to do stay instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sparring.pipeline.config.model import Config
from sparring.pipeline.planning.imported import entries
from sparring.pipeline.planning.plan import Plan, Step, Use
from sparring.pipeline.planning.prompt_count import MOST_HELDOUT, check_lengths, on_empty, with_prompt_counts
from sparring.pipeline.sources import Sources, judges
from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import (
    BEST,
    CALIBRATE,
    EMBED,
    IMPORT_PAIRS,
    PAIRS,
    BestSettings,
    CalibrateSettings,
    EmbedSettings,
    ImportPairsSettings,
    JudgeConfig,
    PairsSettings,
    ScoreSettings,
)
from sparring.stages.evaluate.config import CROSSPLAY, EVALUATE, EvaluateSettings
from sparring.stages.fields import identity, part
from sparring.stages.fingerprint import fingerprint
from sparring.stages.sample.config import (
    IMPORT,
    PAIRED,
    PROMPTS,
    SAMPLE,
    SUITE_PROMPTS,
    ImportSettings,
    PromptsSettings,
    SampleSettings,
    SuitePromptsSettings,
)
from sparring.stages.step import Input, StepSpec, Workers
from sparring.stages.train.config import LOGPROBS, REFERENCE, TRAIN, ReferenceSettings, Scoring, TrainSettings


def build(configs: Mapping[str, Config], sources: Sources) -> Plan:
    """Return one plan for all arms: steps that arms share are computed once."""
    counted = {arm: with_prompt_counts(config, sources) for arm, config in configs.items()}
    plan = Plan(
        steps={},
        externals={},
        configs={arm: config for arm, (config, _) in counted.items()},
        train_prompts={arm: train for arm, (_, train) in counted.items()},
    )
    for arm, config in plan.configs.items():
        Builder(arm, config, sources, plan).build()
        judges.check_second(config.oracle, config.judge, sources)
    return plan


class Builder:
    """Adds the steps of one arm to a plan."""

    def __init__(self, arm: str, config: Config, sources: Sources, plan: Plan) -> None:
        self.arm, self.config, self.sources, self.plan = arm, config, sources, plan
        self.scores_by_pair: dict[str, str] = {}
        """`oracle_03_01` -> the step that scores π_3 against π_1 by the oracle."""
        self.judge_inputs: dict[int, tuple[StepSpec, dict[str, str]]] = {}
        """id of a judge's configuration -> how it is run, and role -> name of what it is loaded from."""

    def build(self) -> None:
        """Add N iterations: sample, annotate, train, evaluate; each starts from the policy of the one before.

        Steps are made in the order in which they are added, and neighbours need the same weights: the held-out samples
        of π_t and slice t+1, all duels of a judge, the log-probs of π_t and reference t+1, those of the base for all t.
        Where a rule may stop the run, the next iteration begins after `evaluate`.
        """
        config = self.config
        prompts = self.prompts()
        base = self.external(self.sources.policy(config.policy))
        imported, policies = self.imported_steps(prompts, base), [base]
        heldout = [self.sample(0, "sample_base", prompts, base, "heldout")]
        samples, scores = self.slice(1, prompts, base, imported)
        for t in range(1, config.iterations + 1):
            pairs, targets = self.annotate(t, samples, scores, imported.get("pairs") if t == 1 else None)
            self.divergence(t - 1, heldout, policies)
            policies.append(self.train(t, prompts, samples, pairs, targets, policies[-1]))
            heldout.append(self.sample(t, "sample_heldout", prompts, policies[t], "heldout"))
            n, follows, may_stop = config.evaluate.best_of, t < config.iterations, bool(config.diagnostics.stop_on)
            drawn = self.sample(t, "sample_best", prompts, policies[t], "heldout", n) if n > 1 else ""
            if follows and not may_stop:
                samples, scores = self.slice(t + 1, prompts, policies[t])
            self.evaluate(t, heldout, self.best(t, drawn) if drawn else "")
            if follows and may_stop:
                samples, scores = self.slice(t + 1, prompts, policies[t])
        self.divergence(config.iterations, heldout, policies)
        for t in range(1, config.iterations + 1) if config.evaluate.kl else ():
            self.log_probs(t, "logprobs_base", LOGPROBS, {"samples": heldout[t], "policy": base})

    def prompts(self) -> str:
        prompts = self.config.prompts
        heldout = MOST_HELDOUT if prompts.heldout is None else prompts.heldout
        settings = PromptsSettings(prompts=replace(prompts, heldout=heldout), on_empty=on_empty(self.config))
        sources, policy = self.sources.prompts(prompts), self.sources.policy(self.config.policy)
        check_lengths(sources, policy, settings)
        inputs = {role: self.external(source) for role, source in sources.items()}
        return self.step(0, "prompts", PROMPTS, settings, {**inputs, "policy": self.external(policy)})

    def sample(self, t: int, label: str, prompts: str, policy: str, split: str, n: int | None = None) -> str:
        """Add the step that samples slice t of the training prompts, the held-out ones, or all of a suite.

        n: responses to a prompt, where it is not what the configuration says.
        """
        config, train = self.config, split == "train"
        sizes = config.sampler if train else config.evaluate
        sampler = replace(config.sampler, k=n or sizes.k, shard_rows=sizes.shard_rows)
        settings = SampleSettings(
            sampler=sampler,
            stop_tokens=config.policy.stop,
            seed=config.seed,
            split="train" if train else "heldout",
            slice=t - 1 if train else 0,
            rows={"train": config.prompts.per_iteration, "heldout": config.prompts.heldout}.get(split),
            slices=config.prompts.slices if train else None,
            max_model_len=config.prompts.max_tokens + sampler.max_tokens,
            hardware=config.hardware,
        )
        workers = config.hardware.engine_workers(sampler.shard_rows * sampler.k * sampler.max_tokens)
        if sampler.engine == "server":  # a client of servers needs no hardware
            workers = replace(workers, count=1, cpus=1, gpus=0)
        return self.step(t, label, SAMPLE, settings, {"prompts": prompts, "policy": policy}, workers)

    def slice(self, t: int, prompts: str, policy: str, imported: Mapping[str, str] | None = None) -> tuple[str, str]:
        """Return (samples, scores) of slice t; scores: '' where the pairs are imported."""
        oracle, ready = self.config.oracle, imported or {}
        samples = ready.get("sample") or self.sample(t, "sample", prompts, policy, "train")
        scores = "" if "pairs" in ready else self.score(t, "score", oracle, samples, anchors=oracle.opponents)
        return samples, scores

    def annotate(self, t: int, samples: str, scores: str, pairs: str | None) -> tuple[str, str]:
        """Return (pairs, targets); pairs: imported ones, which need no scores."""
        config = self.config
        inputs = {"samples": samples, "encoder": self.external(self.sources.encoder(config.encoder))}
        workers = config.hardware.annotator_workers()
        similar = self.step(t, "embed", EMBED, EmbedSettings(encoder=config.encoder), inputs, workers)
        gated = self.gate()
        pairs = pairs or self.pairs(t, gated, samples, scores, similar)
        inputs = {"pairs": pairs} if gated.gate.name == "off" else {"pairs": pairs, "embeddings": similar}
        return pairs, self.step(t, "calibrate", CALIBRATE, gated, inputs)

    def pairs(self, t: int, gated: CalibrateSettings, samples: str, scores: str, similar: str) -> str:
        selection, inputs = self.config.selection, {"samples": samples, "scores": scores}
        by_gate = selection.values == "gated" and gated.gate.name != "off"
        if by_gate:
            inputs["embeddings"] = similar
        settings = PairsSettings(
            win_rate=self.config.win_rate,
            selection=selection,
            seed=self.config.seed if selection.by == "top_vs_random" else 0,
            gated=gated if by_gate else None,
        )
        return self.step(t, "pairs", PAIRS, settings, inputs)

    def gate(self) -> CalibrateSettings:
        """Return how targets are gated; only `permuted` has a seed."""
        permuted = self.config.gate.control == "permuted"
        by_gate = permuted and self.config.selection.values == "gated"
        seed = self.config.seed if permuted else 0
        return CalibrateSettings(gate=self.config.gate, seed=seed, dealt_over="prompts" if by_gate else "pairs")

    def train(self, t: int, prompts: str, samples: str, pairs: str, targets: str, policy: str) -> str:
        config = self.config
        settings = TrainSettings(
            objective=config.objective,
            repulsion=config.repulsion,
            calibration=config.calibration,
            trainer=config.trainer,
            seed=config.seed,
            hardware=config.hardware,
            tracking=config.tracking,
            tracked_as="/".join(filter(None, (config.run.name, self.arm, f"iter-{t:02d}"))),
        )
        inputs = {
            "prompts": prompts,
            "samples": samples,
            "targets": targets,
            "policy": policy,
            **self.references(t, samples, pairs, policy),
        }
        return self.step(t, "train", TRAIN, settings, inputs, config.hardware.training_workers())

    def references(self, t: int, samples: str, pairs: str, policy: str) -> dict[str, str]:
        """Return what the objective reads of other policies, by role; at t = 1 the two are one step."""
        objective = self.config.objective
        policies = {"reference": policy} if objective.reads_reference else {}
        if objective.reads_base:
            policies["reference_base"] = self.external(self.sources.policy(self.config.policy))
        inputs = {"samples": samples, "pairs": pairs}
        four_bit = self.config.trainer.adapter.four_bit
        return {
            role: self.log_probs(t, role, REFERENCE, {**inputs, "policy": scoring}, four_bit)
            for role, scoring in policies.items()
        }

    def log_probs(self, t: int, label: str, spec: StepSpec, inputs: Mapping[str, str], four_bit: bool = False) -> str:
        """Add a step that scores responses as the trainer does."""
        settings = ReferenceSettings(trainer=part(self.config.trainer, Scoring), four_bit=four_bit)
        return self.step(t, label, spec, settings, inputs, self.config.hardware.annotator_workers())

    def divergence(self, t: int, heldout: Sequence[str], policies: Sequence[str]) -> None:
        """Add the log-probs of π_t's held-out responses under π_{t-1} and under π_t itself; that is the one to keep."""
        for label, s in (("previous", t - 1), ("own", t)) if self.config.evaluate.kl and t else ():
            inputs = {"samples": heldout[t], "policy": policies[s]}
            self.log_probs(t, f"logprobs_{label}", LOGPROBS, inputs)

    def best(self, t: int, samples: str) -> str:
        """Add the steps that choose the oracle's best of the n responses of π_t to each held-out prompt."""
        config = self.config
        scores = self.score(t, "score_best", config.oracle, samples, anchors=config.oracle.opponents)
        settings = BestSettings(win_rate="matrix" if config.win_rate == "cross_fit" else config.win_rate)  # no training
        return self.step(t, "best", BEST, settings, {"samples": samples, "scores": scores})

    def evaluate(self, t: int, heldout: Sequence[str], best: str) -> None:
        """Judge π_t against earlier policies, and where there is a `best`, that against a response of its own and one
        of the base. heldout: the held-out samples of π_0 .. π_t.

        Two policies are judged once: cross-play reads the scores of earlier iterations.
        """
        crossed = self.config.evaluate.crossplay
        opponents = {"previous": t - 1, "base": 0} | {f"vs{s:02d}": s for s in range(1, t - 1) if crossed}
        inputs, of_best = {"samples": heldout[t]}, {"samples": best}
        for judge, name in ((self.config.oracle, "oracle"), (self.config.judge, "second")):
            for opponent, s in opponents.items():
                scores = self.score(t, f"score_{name}_{opponent}", judge, heldout[t], heldout[s])
                self.scores_by_pair[f"{name}_{t:02d}_{s:02d}"] = scores
                if opponent in ("previous", "base"):
                    inputs[f"{name}_{opponent}"] = scores
            for opponent, s in (("single", t), ("base", 0)) if best else ():
                scores = self.score(t, f"score_best_{name}_{opponent}", judge, best, heldout[s])
                of_best[f"{name}_{opponent}"] = scores
        settings = EvaluateSettings(evaluate=self.config.evaluate, seed=self.config.seed)
        self.step(t, "evaluate", EVALUATE, settings, inputs)
        if crossed and t > 1:  # at t = 1 there are two policies, and `evaluate` compares them
            self.step(t, "crossplay", CROSSPLAY, settings, self.scores_by_pair)
        if best:
            self.step(t, "evaluate_best", EVALUATE, settings, of_best)

    def score(
        self,
        t: int,
        label: str,
        judge: JudgeConfig,
        samples: str,
        opponents: str | None = None,
        anchors: int | None = None,
    ) -> str:
        if id(judge) not in self.judge_inputs:
            folders = {role: self.external(source) for role, source in judges.folders(judge, self.sources).items()}
            self.judge_inputs[id(judge)] = judges.spec(judge), folders
        spec, inputs = self.judge_inputs[id(judge)]
        seed = self.config.seed if anchors else 0
        workers = self.config.hardware.annotator_workers()
        oracle = oracles.resolved(part(judge, JudgeConfig), workers.gpus)
        settings = ScoreSettings(oracle=oracle, anchors=anchors, seed=seed)
        inputs = {"samples": samples, **inputs, **({"opponents": opponents} if opponents else {})}
        return self.step(t, label, spec, settings, inputs, workers)

    def imported_steps(self, prompts: str, policy: str) -> dict[str, str]:
        """Return label -> name of the steps of iteration 1 that imported artifacts stand for."""
        imported = entries(self.arm, self.config, prompts, policy)
        self.plan.entries.extend(imported)
        return {entry.label: self.external(entry.source) for entry in imported}

    def step(
        self,
        t: int,
        label: str,
        spec: StepSpec,
        settings: object,
        inputs: Mapping[str, str],
        workers: Workers | None = None,
    ) -> str:
        name = fingerprint(spec.kind, spec.version, identity(settings), inputs)
        if name not in self.plan.steps:
            workers = workers or Workers(max_failures=self.config.hardware.max_failures)
            step = Step(spec=spec, settings=settings, workers=workers, inputs=dict(inputs), fingerprint=name)
            self.plan.steps[name] = step
        self.plan.steps[name].uses.append(Use(arm=self.arm, iteration=t, label=label))
        return name

    def external(self, source: Input) -> str:
        """Add an input from outside the plan, and return its name."""
        return self.plan.externals.setdefault(source.digest, source).digest


@dataclass(frozen=True, kw_only=True)
class Question:
    """A file of prompts that a policy answers."""

    source: Input
    column: str
    policy: Input | None
    """A trained policy; None: the base."""
    iteration: int
    n: int
    """Samples of each prompt; the oracle's best of them is the answer."""
    temperature: float | None = None
    """The suite's own; None: sampler.temperature."""


def build_answers(config: Config, sources: Sources, *questions: Question) -> Plan:
    """Return the plan of a policy's answers to files: the prompts, `n` samples each, and for n > 1 their scores."""
    plan = Plan(steps={}, externals={}, configs={"": config})
    for one in questions:
        t, temperature = one.iteration, config.sampler.temperature if one.temperature is None else one.temperature
        builder = Builder("", replace(config, sampler=replace(config.sampler, temperature=temperature)), sources, plan)
        base = builder.external(sources.policy(config.policy))
        policy = builder.external(one.policy) if one.policy else base
        settings = SuitePromptsSettings(column=one.column, max_tokens=config.prompts.max_tokens)
        inputs = {"source": builder.external(one.source), "policy": base}
        prompts = builder.step(t, "prompts", SUITE_PROMPTS, settings, inputs)
        samples = builder.sample(t, "sample", prompts, policy, "suite", one.n)
        if one.n > 1:
            builder.score(t, "score", config.oracle, samples, anchors=config.oracle.opponents)
    return plan


def build_import(config: Config, sources: Sources, source: Input, settings: ImportSettings) -> Plan:
    """Return the plan of an import: prompts (it leaves out the held-out ones), samples, pairs."""
    plan = Plan(steps={}, externals={}, configs={"": config})
    builder = Builder("", config, sources, plan)
    prompts = builder.prompts()
    policy = builder.external(sources.policy(config.policy))
    inputs = {"source": builder.external(source), "policy": policy, "prompts": prompts}
    samples = builder.step(1, "sample", IMPORT, settings, inputs)
    if settings.layout in PAIRED:
        builder.step(1, "pairs", IMPORT_PAIRS, ImportPairsSettings(), {"samples": samples})
    return plan
