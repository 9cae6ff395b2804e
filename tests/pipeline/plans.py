"""Plans whose inputs have constant digests, and artifacts as their steps would publish them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sparring.pipeline import config
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.plan import Plan, Step
from sparring.pipeline.sources import Sources
from sparring.pipeline.store.manifest import Artifact, Manifest, publish
from sparring.stages.annotate.config import EncoderConfig, JudgeConfig
from sparring.stages.sample.config import PolicyConfig, PromptsConfig
from sparring.stages.step import File, Input, sha256_file

HERE = Path(__file__).parent


class Fixed(Sources):
    """Inputs with constant digests, so that golden fingerprints depend on the code alone."""

    def policy(self, config: PolicyConfig) -> Input:
        return Input(role="policy", root=HERE, digest="1" * 64)

    def encoder(self, config: EncoderConfig) -> Input:
        return self.minilm()

    def minilm(self) -> Input:
        return Input(role="encoder", root=HERE, digest="2" * 64)

    def judge(self, config: JudgeConfig) -> Input:
        return Input(role="judge", root=HERE, digest={"mini": "3", "lexical": "4"}.get(config.kind, "6") * 64)

    def prompts(self, config: PromptsConfig) -> dict[str, Input]:
        return {"source": Input(role="source", root=HERE, digest="5" * 64)}


def plan_of(*overrides: str) -> Plan:
    """The plan of a run with every step, KL's too, which the starter prompts leave out."""
    kl = [] if any(one.startswith("evaluate.kl=") for one in overrides) else ["evaluate.kl=true"]
    return build({"": config.load(["hardware=cpu", *kl, *overrides])}, Fixed())


def in_process(plan: Plan) -> Plan:
    """The same plan; every step is made in the driver's own process, without Ray."""
    specs = {name: replace(step.spec, pool="in_process", prepare="") for name, step in plan.steps.items()}
    return replace(plan, steps={name: replace(step, spec=specs[name]) for name, step in plan.steps.items()})


def labels(plan: Plan, arm: str = "") -> dict[tuple[int, str], str]:
    return {(use.iteration, use.label): step.fingerprint for use, step in plan.arm(arm)}


def finish(plan: Plan, step: Step, store: Path, content: str = "x") -> Manifest:
    """Publish a one-file artifact for `step` that records the inputs as they are now."""
    artifact = Artifact(store, step.spec.kind, step.fingerprint)
    artifact.path.mkdir(parents=True)
    path = artifact.path / "part-00000.aaaa.parquet"
    path.write_text(content)

    def content_of(name: str) -> str:
        made = plan.steps.get(name)
        manifest = Artifact(store, made.spec.kind, name).manifest() if made else None
        return manifest.content if manifest else name

    file = File(name="part-00000.parquet", path=path.name, sha256=sha256_file(path), bytes=path.stat().st_size)
    manifest = Manifest(
        fingerprint=step.fingerprint,
        step=step.spec.kind,
        version=step.spec.version,
        identity=step.identity,
        inputs={role: {"name": name, "digest": content_of(name)} for role, name in step.inputs.items()},
        files=(file,),
        rows={"in": 1, "out": 1, "dropped": {}},
        summary={},
        seconds=1.0,
        stats={},
        attempts=["aaaa"],
        made_with={},
    )
    return publish(artifact, manifest)
