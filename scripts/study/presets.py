"""The studies that have a name. Each is the overrides of one `sparring run -m`; later overrides replace its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparring.stages.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms of one plan, and which are compared."""

    overrides: tuple[str, ...]
    """`seed` comes before what else is swept: what is left half-done is then one seed of every arm."""
    baseline: str
    """The arm that every other one is compared with."""
    also: tuple[tuple[str, str], ...] = ()
    """Further comparisons (arm, than)."""
    own_prompts: bool = False
    """Whether it needs more prompts than the starter file has."""
    note: str = ""
    """What the report must say of it."""

    def comparisons(self, arms: Iterable[str]) -> list[tuple[str, str]]:
        """Return the comparisons (arm, than) between these arms."""
        names = list(arms)
        pairs = [(arm, self.baseline) for arm in names if arm != self.baseline]
        return [pair for pair in [*pairs, *self.also] if set(pair) <= set(names)]


STUDIES: Mapping[str, Study] = {
    "smoke": Study(
        overrides=(
            "run.name=study-smoke",
            "seed=0",
            "experiment=sppo,s_sppo",
            "iterations=2",
            "evaluate.crossplay=false",
            "evaluate.kl=false",
            "evaluate.k=1",
            "prompts.heldout=64",
            "prompts.per_iteration=27",
            "sampler.max_tokens=48",
            "trainer.global_batch=3",
        ),
        baseline="sppo",
        note="A check that studies run. Nothing this small can show a difference between the arms.",
    ),
    "small": Study(
        overrides=(
            "run.name=study-small",
            "seed=0,1",
            "experiment=sppo,s_sppo,gate_only,repulsion_only,gate_permuted,dpo",
            "iterations=3",
            "evaluate.crossplay=false",
            "evaluate.kl=false",
            "prompts.per_iteration=36",
            "prompts.slices=null",
            "prompts.heldout=400",
            "prompts.max_tokens=60",
            "sampler.max_tokens=32",
            "sampler.shard_rows=36",
            "evaluate.shard_rows=200",
            "trainer.lr=1e-5",
            "trainer.global_batch=4",
        ),
        baseline="sppo",
        also=(("s_sppo", "gate_permuted"),),
        own_prompts=True,
        note="What the gate owes to semantics is s_sppo against gate_permuted, its control: the same gates, dealt to "
        "other prompts.",
    ),
    "sweep": Study(
        overrides=(
            "run.name=study-sweep",
            "seed=0",
            "trainer.lr=3e-6,1e-5,3e-5",
            "trainer.global_batch=8,4",
            "iterations=1",
            "evaluate.kl=false",
            "evaluate.k=1",
            "prompts.limit=256",
            "prompts.heldout=64",
            "prompts.per_iteration=64",
            "sampler.max_tokens=96",
        ),
        baseline="lr=1e-05,global_batch=8",
        note="The best of six is chosen on the prompts it is measured on: its own win rate is flattered.",
    ),
}


def overrides_of(study: Study, more: Sequence[str]) -> list[str]:
    """Return the overrides of the study, those of `more` in the places of their keys: the order of sweeps is kept."""
    if study.own_prompts and not any(key(one) == "prompts" for one in more):
        raise ConfigError(
            "this study holds out 400 prompts and trains on 108; the starter prompts are too few. Say which to take: "
            'make study-small PROMPTS=my.jsonl (a column `prompt`), or ARGS="prompts=ultrafeedback".'
        )
    own = {key(one): [other for other in more if key(other) == key(one)] or [one] for one in study.overrides}
    return [*(one for ones in own.values() for one in ones), *(one for one in more if key(one) not in own)]


def key(override: str) -> str:
    """Return what an override sets: `seed` of `seed=0,1` and of `++seed=0`."""
    return override.partition("=")[0].lstrip("+~")


def label(arm: str) -> str:
    """Return the name of an arm of a multirun without its seed: `s_sppo` of `seed=0,experiment=s_sppo`."""
    words = [word for word in arm.split(",") if not word.startswith("seed=")]
    return ",".join(word.removeprefix("experiment=").removeprefix("trainer.") for word in words)
