"""The steps of one arm: what defines each of them, what it is made of, and where it runs; one method a step.

Neither Ray nor torch is loaded here: planning, `status` and a run with nothing to do stay instant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sparring.pipeline import judges
from sparring.pipeline.entry import entries
from sparring.pipeline.plan import Plan, Step, Use
from sparring.pipeline.prompt_count import MOST_HELDOUT, check_lengths, on_empty
from sparring.pipeline.schema import Config, ExpectConfig, HardwareConfig, JudgeConfig, ServerSampler
from sparring.pipeline.sources import Sources
from sparring.stages.annotate.config import (
    BEST,
    CALIBRATE,
    EMBED,
    PAIRS,
    BestIdentity,
    EmbedIdentity,
    GateIdentity,
    OracleIdentity,
    PairsIdentity,
    PoolRuntime,
    ScoreIdentity,
    ScoreRuntime,
)
from sparring.stages.evaluate.config import CROSSPLAY, EVALUATE, CrossplayIdentity, EvaluateIdentity
from sparring.stages.fingerprint import fingerprint
from sparring.stages.sample import engine_args
from sparring.stages.sample.config import (
    PROMPTS,
    SAMPLE,
    PromptsIdentity,
    SampleIdentity,
    SampleRuntime,
)
from sparring.stages.step import Input, StepSpec
from sparring.stages.train.config import (
    LOGPROBS,
    REFERENCE,
    TRAIN,
    AdapterIdentity,
    CalibrationIdentity,
    ReferenceIdentity,
    RepulsionIdentity,
    TrainIdentity,
    TrainRuntime,
)
from sparring.stages.train.objective_config import has_base, has_reference


class Builder:
    """Adds the steps of one arm to a plan."""

    def __init__(self, arm: str, config: Config, sources: Sources, plan: Plan) -> None:
        self.arm, self.config, self.sources, self.plan = arm, config, sources, plan
        self.met: dict[str, str] = {}
        """`oracle_03_01` -> the step that scores π_3 against π_1 by the oracle."""
        self.judged: dict[int, tuple[StepSpec, OracleIdentity, ScoreRuntime, dict[str, str]]] = {}
        """What `judge` returns of each of the configuration's judges."""

    def external(self, source: Input) -> str:
        """Note what comes from outside the store, and return its name."""
        return self.plan.externals.setdefault(source.digest, source).digest

    def step(
        self,
        t: int,
        label: str,
        spec: StepSpec,
        identity: object,
        runtime: object | None,
        inputs: Mapping[str, str],
    ) -> str:
        frozen = asdict(identity)  # type: ignore[call-overload]
        name = fingerprint(spec.kind, spec.version, frozen, inputs)
        settings = asdict(runtime) if runtime else {}  # type: ignore[call-overload]
        step = Step(spec=spec, identity=frozen, runtime=settings, inputs=dict(inputs), fingerprint=name)
        self.plan.steps.setdefault(name, step).uses.append(Use(arm=self.arm, iteration=t, label=label))
        return name

    def sample(self, t: int, label: str, prompts: str, policy: str, split: str, n: int | None = None) -> str:
        """Add the step that samples slice t of the training prompts, the held-out ones, or all of a suite.

        n: responses to a prompt, where it is not what the configuration says.
        """
        config, sampler, hardware = self.config, self.config.sampler, self.config.hardware
        train = split == "train"
        served = isinstance(sampler, ServerSampler)
        given = {} if isinstance(sampler, ServerSampler) else sampler.engine_args
        changing, speed_only = engine_args.split(sampler.engine, given)
        identity = SampleIdentity(
            engine=sampler.engine,
            dtype=sampler.dtype,
            k=n or (sampler.k if train else config.evaluate.k),
            max_tokens=sampler.max_tokens,
            temperature=sampler.temperature,
            top_p=sampler.top_p,
            min_p=sampler.min_p,
            stop=sampler.stop,
            stop_tokens=config.policy.stop,
            logprobs=sampler.logprobs,
            reproducible=sampler.reproducible,
            engine_args=changing,
            seed=config.seed,
            shard_rows=sampler.shard_rows if train else config.evaluate.shard_rows,
            split="train" if train else "heldout",
            slice=t - 1 if train else 0,
            rows={"train": config.prompts.per_iteration, "heldout": config.prompts.heldout}.get(split),
            slices=config.prompts.slices if train else None,
        )
        runtime = SampleRuntime(  # a client of servers needs no hardware
            actors=1 if served else _engines(hardware),
            cpus=1 if served else hardware.cores_per_engine or _share(_engines(hardware) or 1),
            gpus=0 if served else hardware.engine_gpus,
            kv_cache_gb=hardware.kv_cache_gb,
            gpu_memory=hardware.gpu_memory,
            max_model_len=config.prompts.max_tokens + sampler.max_tokens,
            engine_args=speed_only,
            urls=sampler.urls if isinstance(sampler, ServerSampler) else (),
            max_failures=hardware.max_failures,
            deadline_s=hardware.shard_deadline_s or _deadline_s(identity, hardware.expect),
        )
        return self.step(t, label, SAMPLE, identity, runtime, {"prompts": prompts, "policy": policy})

    def score(
        self,
        t: int,
        label: str,
        judge: JudgeConfig,
        samples: str,
        opponents: str | None = None,
        anchors: int | None = None,
    ) -> str:
        seed = self.config.seed if anchors else 0
        if id(judge) not in self.judged:
            self.judged[id(judge)] = self.judge(judge)
        spec, oracle, runtime, inputs = self.judged[id(judge)]
        identity = ScoreIdentity(oracle=oracle, anchors=anchors, seed=seed)
        met = {"opponents": opponents} if opponents else {}
        return self.step(t, label, spec, identity, runtime, {"samples": samples, **inputs, **met})

    def judge(self, judge: JudgeConfig) -> tuple[StepSpec, OracleIdentity, ScoreRuntime, dict[str, str]]:
        """Return how an oracle is run, what defines it, where it runs, and what it is loaded from, by role."""
        runtime = ScoreRuntime(**asdict(self.pool()), urls=judges.servers(judge))
        inputs = {role: self.external(source) for role, source in judges.folders(judge, self.sources).items()}
        return judges.spec(judge), judges.identity(judge), runtime, inputs

    def pool(self) -> PoolRuntime:
        hardware = self.config.hardware
        return PoolRuntime(
            actors=hardware.annotators,
            cpus=hardware.annotator_cpus or _share(hardware.annotators),
            gpus=hardware.annotator_gpus,
            max_failures=hardware.max_failures,
        )

    def prompts(self) -> str:
        prompts = self.config.prompts
        identity = PromptsIdentity(
            column=prompts.column,
            heldout=MOST_HELDOUT if prompts.heldout is None else prompts.heldout,
            limit=prompts.limit,
            max_tokens=prompts.max_tokens,
            on_empty=on_empty(self.config),
        )
        inputs = {role: self.external(source) for role, source in self.sources.prompts(prompts).items()}
        policy = self.sources.policy(self.config.policy)
        check_lengths(self.sources.prompts(prompts), policy, identity)
        inputs["policy"] = self.external(policy)
        return self.step(0, "prompts", PROMPTS, identity, None, inputs)

    def annotate(self, t: int, samples: str, pairs: str | None) -> tuple[str, str]:
        """Return (pairs, targets); pairs that are there need no scores."""
        config = self.config
        anchors = config.oracle.opponents
        scores = "" if pairs else self.score(t, "score", config.oracle, samples, anchors=anchors)
        encoder = self.external(self.sources.encoder(config.encoder))
        window = EmbedIdentity(window=config.encoder.window)
        similar = self.step(t, "embed", EMBED, window, self.pool(), {"samples": samples, "encoder": encoder})
        gate = self.gate()
        pairs = pairs or self.pairs(t, gate, samples, scores, similar)
        inputs = {"pairs": pairs} if gate.name == "off" else {"pairs": pairs, "embeddings": similar}
        return pairs, self.step(t, "calibrate", CALIBRATE, gate, None, inputs)

    def pairs(self, t: int, gate: GateIdentity, samples: str, scores: str, similar: str) -> str:
        selection, inputs = self.config.selection, {"samples": samples, "scores": scores}
        by_gate = selection.values == "gated" and gate.name != "off"
        if by_gate:
            inputs["embeddings"] = similar
        identity = PairsIdentity(
            win_rate=self.config.win_rate,
            selection=selection.by,
            seed=self.config.seed if selection.by == "top_vs_random" else 0,
            gate=gate if by_gate else None,
            require_head_to_head=selection.require_head_to_head,
            capped=selection.capped,
        )
        return self.step(t, "pairs", PAIRS, identity, None, inputs)

    def gate(self) -> GateIdentity:
        """Return what the gate is, with the defaults of what its kind does not read; only `permuted` has a seed."""
        permuted = self.config.gate.name == "permuted"
        by_gate = permuted and self.config.selection.values == "gated"
        seed = self.config.seed if permuted else 0
        return GateIdentity(**asdict(self.config.gate), seed=seed, dealt_over="prompts" if by_gate else "pairs")

    def train(self, t: int, prompts: str, samples: str, pairs: str, targets: str, policy: str) -> str:
        trainer = self.config.trainer
        identity = TrainIdentity(
            objective=self.config.objective,
            repulsion=RepulsionIdentity(**asdict(self.config.repulsion)),
            calibration=CalibrationIdentity(**asdict(self.config.calibration)),
            adapter=self.adapter(),
            optimizer=trainer.optimizer,
            lr=trainer.lr,
            warmup_ratio=trainer.warmup_ratio,
            epochs=trainer.epochs,
            global_batch=trainer.global_batch,
            max_grad_norm=trainer.max_grad_norm,
            max_length=trainer.max_length,
            truncate=trainer.truncate,
            min_steps=trainer.min_steps,
            dtype=trainer.dtype,
            publish_dtype=trainer.publish_dtype,
            seed=self.config.seed,
        )
        inputs = {
            "prompts": prompts,
            "samples": samples,
            "targets": targets,
            "policy": policy,
            **self.references(t, samples, pairs, policy),
        }
        return self.step(t, "train", TRAIN, identity, self.workers(t), inputs)

    def adapter(self) -> AdapterIdentity:
        return AdapterIdentity(**asdict(self.config.trainer.adapter))

    def references(self, t: int, samples: str, pairs: str, policy: str) -> dict[str, str]:
        """Return what the objective reads of other policies, by role; at t = 1 the two are one step."""
        objective = self.config.objective
        policies = {"reference": policy} if has_reference(objective) else {}
        if has_base(objective):
            policies["reference_base"] = self.external(self.sources.policy(self.config.policy))
        forward = self.forward(four_bit=self.adapter().four_bit)
        inputs = {"samples": samples, "pairs": pairs}
        return {
            role: self.step(t, role, REFERENCE, forward, self.pool(), {**inputs, "policy": scoring})
            for role, scoring in policies.items()
        }

    def forward(self, four_bit: bool) -> ReferenceIdentity:
        """Return how the trainer scores a response."""
        trainer = self.config.trainer
        return ReferenceIdentity(
            dtype=trainer.dtype, max_length=trainer.max_length, truncate=trainer.truncate, four_bit=four_bit
        )

    def divergence(self, t: int, samples: str, policies: Mapping[str, str]) -> None:
        """Score what π_t said to the held-out prompts under itself and under others: label -> policy."""
        for label, policy in policies.items():
            inputs = {"samples": samples, "policy": policy}
            self.step(t, f"logprobs_{label}", LOGPROBS, self.forward(four_bit=False), self.pool(), inputs)

    def workers(self, t: int) -> TrainRuntime:
        hardware, trainer = self.config.hardware, self.config.trainer
        named = (self.config.run.name, self.arm, f"iter-{t:02d}")
        return TrainRuntime(
            workers=hardware.workers,
            cpus=hardware.worker_cpus or _share(hardware.workers),
            gpus=hardware.worker_gpus,
            micro_batch=hardware.micro_batch,
            checkpoint_steps=trainer.checkpoint_steps,
            max_failures=hardware.max_failures,
            gradient_checkpointing=trainer.gradient_checkpointing,
            band_every=trainer.band_every,
            offload=hardware.offload,
            sinks=self.config.tracking.sinks,
            tracked_as="/".join(name for name in named if name),
        )

    def evaluate(self, t: int, heldout: Sequence[str]) -> None:
        """Judge π_t; heldout: what π_0 .. π_t said to the held-out prompts. Who met before is not judged again."""
        crossed = self.config.evaluate.crossplay
        opponents = {"previous": t - 1, "base": 0} | {f"vs{s:02d}": s for s in range(1, t - 1) if crossed}
        inputs = {"samples": heldout[t]}
        for judge, name in ((self.config.oracle, "oracle"), (self.config.judge, "second")):
            for opponent, s in opponents.items():
                scores = self.score(t, f"score_{name}_{opponent}", judge, heldout[t], heldout[s])
                self.met[f"{name}_{t:02d}_{s:02d}"] = scores
                if opponent in ("previous", "base"):
                    inputs[f"{name}_{opponent}"] = scores
        self.step(t, "evaluate", EVALUATE, EvaluateIdentity(**self.bootstrap()), None, inputs)
        if crossed and t > 1:  # of two policies all is said
            self.step(t, "crossplay", CROSSPLAY, CrossplayIdentity(**self.bootstrap()), None, self.met)

    def bootstrap(self) -> dict[str, Any]:
        evaluate = self.config.evaluate
        return {"resamples": evaluate.resamples, "confidence": evaluate.confidence, "seed": self.config.seed}

    def best_of(self, t: int, n: int, prompts: str, policy: str, heldout: Sequence[str]) -> None:
        """Judge the best of n responses of π_t by the oracle, against one response of the base, and one of its own."""
        config = self.config
        samples = self.sample(t, "sample_best", prompts, policy, "heldout", n)
        scores = self.score(t, "score_best", config.oracle, samples, anchors=config.oracle.opponents)
        chosen = {"samples": samples, "scores": scores}
        win_rate = "matrix" if config.win_rate == "cross_fit" else config.win_rate  # nothing is selected for training
        best = self.step(t, "best", BEST, BestIdentity(win_rate=win_rate), None, chosen)
        inputs = {"samples": best}
        for judge, name in ((config.oracle, "oracle"), (config.judge, "second")):
            for opponent, s in (("single", t), ("base", 0)):
                scores = self.score(t, f"score_best_{name}_{opponent}", judge, best, heldout[s])
                inputs[f"{name}_{opponent}"] = scores
        self.step(t, "evaluate_best", EVALUATE, EvaluateIdentity(**self.bootstrap()), None, inputs)

    def enter(self, prompts: str, policy: str) -> dict[str, str]:
        """Return label -> name of what iteration 1 does not make itself."""
        found = entries(self.arm, self.config, prompts, policy)
        self.plan.entries.extend(found)
        return {entry.label: self.external(entry.source) for entry in found}

    def build(self) -> None:
        config = self.config
        prompts = self.prompts()
        policy = base = self.external(self.sources.policy(config.policy))
        entered = self.enter(prompts, policy)
        heldout: list[str] = []
        for t in range(1, config.iterations + 1):
            given = entered if t == 1 else {}
            samples = given.get("sample") or self.sample(t, "sample", prompts, policy, "train")
            if not heldout:  # by the engine that is already loaded
                heldout.append(self.sample(0, "sample_base", prompts, policy, "heldout"))
            pairs, targets = self.annotate(t, samples, given.get("pairs"))
            before, policy = policy, self.train(t, prompts, samples, pairs, targets, policy)
            heldout.append(self.sample(t, "sample_heldout", prompts, policy, "heldout"))
            self.evaluate(t, heldout)
            if config.evaluate.kl:
                self.divergence(t, heldout[t], {"own": policy, "previous": before, "base": base})
            if config.evaluate.best_of > 1:
                self.best_of(t, config.evaluate.best_of, prompts, policy, heldout)


def _engines(hardware: HardwareConfig) -> int:
    """Return how many engines run side by side; 0 leaves it to the cluster: one for every `engine_gpus` GPUs."""
    if hardware.engines is not None:
        return hardware.engines
    if hardware.engine_gpus:
        return 0
    return max(1, (os.cpu_count() or 1) // (hardware.cores_per_engine or os.cpu_count() or 1))


def _deadline_s(identity: SampleIdentity, expect: ExpectConfig) -> float:
    """Return how long a shard may take at most: ten times the start and the most tokens at the expected speed."""
    tokens = identity.shard_rows * identity.k * identity.max_tokens
    return 10 * (expect.start_s + tokens / expect.sample_tokens_per_s)


def _share(actors: int) -> int:
    return max(1, (os.cpu_count() or 1) // actors)
