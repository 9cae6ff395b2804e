"""Plans: fingerprints name definitions, arms share, ablations redo little."""

import re
from pathlib import Path

import pytest

from sparring.pipeline import config
from sparring.pipeline.cli import run as cli_run
from sparring.pipeline.config.model import Config
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.plan import Plan, Step
from sparring.stages.digests import cache_folder
from sparring.stages.errors import ConfigError
from tests.pipeline.plans import Fixed, labels, plan_of
from tests.refusals import refused


def changed(*overrides: str) -> set[str]:
    """Kinds of iteration 1 that an override redoes."""
    before, after = labels(plan_of()), labels(plan_of(*overrides))
    return {label for (t, label), name in after.items() if t == 1 and before.get((t, label)) != name}


def test_golden_fingerprints_of_the_default_config() -> None:
    """A change here redoes every user's artifacts: mean it, and bump the step's version if its output changed."""
    found = {f"{t}/{label}": name[:16] for (t, label), name in labels(plan_of()).items()}
    assert found == GOLDEN


def test_n_is_in_no_fingerprint() -> None:
    one, three = labels(plan_of("iterations=1")), labels(plan_of("iterations=3"))
    assert one.items() <= three.items() and len(three) > len(one)


def test_a_first_run_says_what_going_on_takes(tmp_path: Path) -> None:
    said = cli_run._onward(plan_of("iterations=1"), tmp_path)
    assert re.fullmatch(r"Few .*: iterations=3 \(make iter N=3\) goes on from here, about \d\d minutes\.", said)
    mine = ["prompts=file", "prompts.path=p.jsonl", "prompts.per_iteration=64", "prompts.heldout=64"]
    assert not any(cli_run._onward(plan_of(*words), tmp_path) for words in (["iterations=3"], mine))


def of_iteration(plan: Plan, t: int) -> set[str]:
    return {label for iteration, label in labels(plan) if iteration == t}


def test_every_policy_meets_every_other_one_once() -> None:
    """One more score a judge for each policy that is neither the new one, the one before it, nor the base."""
    plan = plan_of("iterations=4")
    found = labels(plan)
    assert "crossplay" not in of_iteration(plan, 1) and len(of_iteration(plan, 2) - of_iteration(plan, 1)) == 1
    assert of_iteration(plan, 3) - of_iteration(plan, 2) == {"score_oracle_vs01", "score_second_vs01"}
    assert of_iteration(plan, 4) - of_iteration(plan, 3) == {"score_oracle_vs02", "score_second_vs02"}
    last = plan.steps[found[4, "crossplay"]]
    pairs = [(i, j) for i in range(5) for j in range(i)]
    assert set(last.inputs) == {f"{judge}_{i:02d}_{j:02d}" for judge in ("oracle", "second") for i, j in pairs}
    samples = [found[0, "sample_base"], *(found[t, "sample_heldout"] for t in range(1, 5))]
    for role, name in last.inputs.items():
        _, i, j = role.split("_")
        score = plan.steps[name].inputs
        assert (score["samples"], score["opponents"]) == (samples[int(i)], samples[int(j)])
    sampled = [step for step in plan.steps.values() if step.spec.kind == "sample"]
    assert len(sampled) == 9  # the base once; each iteration once to play, once held out


def loads(plan: Plan) -> list[str]:
    """What the steps load in their order: small models once, of the large ones one at a time."""
    small: set[str] = set()
    large, loaded = "", []
    for step in plan.steps.values():
        kind = step.spec.kind
        if kind in ("score", "embed"):
            name = f"{kind} {[own for role, own in sorted(step.inputs.items()) if role in ('judge', 'encoder')]}"
            if name not in small:
                loaded.append(name)
            small.add(name)
        elif kind in ("sample", "reference", "logprobs", "train"):
            name = f"{'log-probs' if kind in ('reference', 'logprobs') else kind} {step.inputs['policy']}"
            if name != large:
                loaded.append(name)
            large = name
    return loaded


def test_neighbours_need_the_same_weights() -> None:
    """18 loads in three iterations: 4 engines, 8 of a policy for its log-probs, 3 trainings, 2 judges, the encoder."""
    assert len(loads(plan_of("iterations=3"))) == 18
    assert len(loads(plan_of("iterations=2", "evaluate.best_of=4"))) == len(loads(plan_of("iterations=2")))


def test_what_may_stop_a_run_is_known_before_the_next_iteration() -> None:
    """And without such a rule the engine that is loaded samples the next slice first."""
    for more, first in ((["diagnostics.stop_on=[longer]"], "evaluate"), ([], "sample")):
        order = [(use.iteration, use.label) for use, _ in plan_of("iterations=2", *more).arm("")]
        assert (order.index((1, "evaluate")) < order.index((2, "sample"))) == (first == "evaluate")
        assert max(map(order.index, [(1, "evaluate"), (2, "sample")])) < order.index((2, "train"))
    assert labels(plan_of("iterations=2")) == labels(plan_of("iterations=2", "diagnostics.stop_on=[longer]"))


def test_best_of_n_adds_steps_and_changes_none() -> None:
    """16 held-out samples a policy, which meet the base's one response and the policy's own, by both judges."""
    plan = plan_of("iterations=2", "evaluate.best_of=16")
    found = labels(plan)
    scored = {f"score_best_{judge}_{foe}" for judge in ("oracle", "second") for foe in ("single", "base")}
    added = {"sample_best", "score_best", "best", "evaluate_best", *scored}
    plain = labels(plan_of("iterations=2"))
    assert plain.items() <= found.items() and set(found) - set(plain) == {(t, one) for t in (1, 2) for one in added}
    sampled = plan.steps[found[2, "sample_best"]]
    assert (sampled.settings.sampler.k, sampled.settings.split) == (16, "heldout")
    assert plan.steps[found[2, "best"]].inputs == {
        "samples": found[2, "sample_best"],
        "scores": found[2, "score_best"],
    }
    for judge in ("oracle", "second"):
        for foe, theirs in (("single", found[2, "sample_heldout"]), ("base", found[0, "sample_base"])):
            score = found[2, f"score_best_{judge}_{foe}"]
            assert plan.steps[score].inputs.items() >= {("samples", found[2, "best"]), ("opponents", theirs)}
            assert plan.steps[found[2, "evaluate_best"]].inputs[f"{judge}_{foe}"] == score


def test_crossplay_is_in_no_fingerprint() -> None:
    played, off = labels(plan_of("iterations=3")), labels(plan_of("iterations=3", "evaluate.crossplay=false"))
    assert off.items() <= played.items()
    assert set(played) - set(off) == {
        (2, "crossplay"), (3, "crossplay"), (3, "score_oracle_vs01"), (3, "score_second_vs01")
    }  # fmt: skip
    assert labels(plan_of("iterations=2")).items() <= played.items()


def test_an_adapter_redoes_training_and_four_bits_the_reference_too() -> None:
    assert changed("adapter=lora") == changed("trainer.lr=3e-5")
    assert changed("adapter=qlora") - changed("adapter=lora") == {"reference"}


def test_runtime_is_in_no_fingerprint() -> None:
    runtime = [
        "hardware.micro_batch=2",
        "hardware.workers=2",
        "hardware.offload=all",
        "hardware.engines=2",
        "run.name=other",
        "paths.store=x",
    ]
    assert labels(plan_of(*runtime)) == labels(plan_of())


@pytest.mark.parametrize(
    ("key", "others"),
    [
        ("sampler.urls", ["sampler=server"]),
        ("oracle.urls", ["oracle=llm", "oracle.options.model=m"]),
        ("judge.urls", ["judge=llm", "judge.options.model=m"]),
        (
            "oracle.members.first.urls",
            [
                "oracle=ensemble",
                "judge=pairrm",
                "oracle@oracle.members.first=llm",
                "oracle.members.first.options.model=m",
            ],
        ),
    ],
)
def test_addresses_of_servers_are_in_no_fingerprint(key: str, others: list[str]) -> None:
    one, two = (plan_of(*others, f"{key}=[{urls}]") for urls in ("http://a:1", "http://b:1,http://c:2"))
    assert labels(one) == labels(two)
    assert "http" not in str([step.identity for step in one.steps.values()])
    assert "http://a:1" in str([step.settings for step in one.steps.values()]), "they are not read at all"


def test_a_shard_of_the_default_profile_has_minutes_one_of_ultrafeedback_hours() -> None:
    def deadline(*overrides: str) -> float:
        found = plan_of(*overrides)
        step = found.steps[labels(found)[1, "sample"]]
        return float(step.workers.deadline_s)

    assert deadline() == 10 * (12 + 32 * 4 * 32 / 180)
    assert deadline("prompts=ultrafeedback", "sampler.k=5", "sampler.max_tokens=512") > 10 * 3600
    assert deadline("hardware.shard_deadline_s=7") == 7


AFTER_TRAIN = {
    "train",
    "sample_heldout",
    "logprobs_own",
    "logprobs_previous",
    "logprobs_base",
    "score_oracle_previous",
    "score_oracle_base",
    "score_second_previous",
    "score_second_base",
    "evaluate",
}


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("trainer.lr=2e-5", AFTER_TRAIN),
        ("repulsion=off", AFTER_TRAIN),
        ("repulsion.layer=12", AFTER_TRAIN),
        ("calibration=reward", AFTER_TRAIN),
        ("trainer.band_every=1", set()),
        ("gate.floor=0.3", AFTER_TRAIN | {"calibrate"}),
        ("gate=off", AFTER_TRAIN | {"calibrate"}),
        ("win_rate=aggregate_score", AFTER_TRAIN | {"pairs", "calibrate", "reference"}),
        ("evaluate.resamples=500", {"evaluate"}),
        ("judge=pairrm", {"score_second_previous", "score_second_base", "evaluate"}),
        ("gate=power", AFTER_TRAIN | {"calibrate"}),
        ("gate.ceil_quantile=0.9", AFTER_TRAIN | {"calibrate"}),
        ("selection.by=all_pairs", AFTER_TRAIN | {"pairs", "calibrate", "reference"}),
        ("selection.by=top_vs_random", AFTER_TRAIN | {"pairs", "calibrate", "reference"}),
        ("selection.values=gated", AFTER_TRAIN | {"pairs", "calibrate", "reference"}),
        ("oracle.opponents=2", AFTER_TRAIN | {"score", "pairs", "calibrate", "reference"}),
    ],
)
def test_an_ablation_redoes_only_what_it_changes(override: str, redone: set[str]) -> None:
    assert changed(override) == redone


def test_the_gate_is_part_of_a_selection_that_it_has_a_say_in() -> None:
    def pairs_of(*overrides: str) -> Step:
        return next(step for step in plan_of(*overrides).steps.values() if step.spec.kind == "pairs")

    assert (
        pairs_of("selection.values=gated").fingerprint
        != pairs_of("selection.values=gated", "gate.floor=0.2").fingerprint
    )
    assert pairs_of("gate.floor=0.2").fingerprint == pairs_of().fingerprint
    with refused(ConfigError, "selection.values", "gate"):
        plan_of("selection.values=gated", "gate=off")
    control = plan_of("selection.values=gated", "gate=permuted")
    dealt = {s.spec.kind: s.identity for s in control.steps.values()}
    assert dealt["pairs"]["gated"] == dealt["calibrate"] and dealt["calibrate"]["dealt_over"] == "prompts"
    with refused(ConfigError, "selection.values=gated", "gate.scope=pair"):
        plan_of("selection.values=gated", "gate.scope=pair")
    with refused(ConfigError, "selection.values=gated", "gate=rescaled"):
        plan_of("selection.values=gated", "gate=rescaled")


def references(*overrides: str) -> list[tuple[str, str, str]]:
    """(iteration/role, the step's name, the policy it scores under) of what train is given of other policies."""
    plan = plan_of("iterations=2", *overrides)
    trained = [step for step in plan.steps.values() if step.spec.kind == "train"]
    return [
        (f"{train.uses[0].iteration}/{role}", name, plan.steps[name].inputs["policy"])
        for train in trained
        for role, name in sorted(train.inputs.items())
        if role.startswith("reference")
    ]


@pytest.mark.parametrize("name", ["sppo", "sppo_single", "sppo_hard", "dpo", "ipo", "spo"])
def test_an_objective_redoes_only_the_training(name: str) -> None:
    assert changed(f"objective={name}") == (set() if name == "sppo" else AFTER_TRAIN)
    found = references(f"objective={name}")
    assert [place for place, _, _ in found] == ["1/reference", "2/reference"]


def test_inpo_scores_the_pairs_under_the_base_as_well() -> None:
    (_, first, base), (_, first_base, _), (_, second, trained), (_, second_base, policy) = references("objective=inpo")
    assert first == first_base and len({first, second, second_base}) == 3
    assert policy == base != trained
    assert labels(plan_of("objective=inpo"))[1, "reference"] == labels(plan_of())[1, "reference"]
    assert {(2, "reference"), (2, "reference_base")} <= labels(plan_of("objective=inpo", "iterations=2")).keys()


def test_simpo_has_no_reference() -> None:
    assert references("objective=simpo") == []
    assert not any(label.startswith("reference") for _, label in labels(plan_of("objective=simpo", "iterations=2")))


EXPERIMENTS = {
    "sppo": ("sppo", "off", "off"),
    "s_sppo": ("sppo", "linear", "hinge"),
    "gate_only": ("sppo", "linear", "off"),
    "repulsion_only": ("sppo", "off", "hinge"),
    "gate_permuted": ("sppo", "permuted", "hinge"),
    "sppo_rescaled": ("sppo", "rescaled", "off"),
}


def test_experiments_differ_in_targets_and_training_alone() -> None:
    arms = {name: config.load(["hardware=cpu", f"experiment={name}"]) for name in EXPERIMENTS}
    for name, found in arms.items():
        assert (found.objective.name, found.gate.name, found.repulsion.name) == EXPERIMENTS[name]
    kinds = [step.spec.kind for step in build(arms, Fixed()).steps.values()]
    assert {kind: kinds.count(kind) for kind in ("sample", "score", "embed", "pairs", "reference")}["pairs"] == 1
    assert (kinds.count("reference"), kinds.count("calibrate"), kinds.count("train")) == (1, 4, 6)


def test_members_of_an_ensemble_are_inputs_of_their_own() -> None:
    plan = plan_of("oracle=ensemble", "judge=pairrm")
    score = next(step for step in plan.steps.values() if step.uses[0].label == "score")
    assert set(score.inputs) == {"samples", "first.judge", "first.encoder", "second.judge"}
    assert score.settings.oracle.members["second"].kind == "lexical"
    other = plan_of("oracle=ensemble", "judge=pairrm", "oracle.options.weights.first=0.7")
    assert "1/score" not in {f"{t}/{label}" for (t, label), name in labels(other).items() if name in plan.steps}


@pytest.mark.parametrize(("hardware", "dtype"), [("cpu", "float32"), ("h100x8", "bfloat16")])
@pytest.mark.parametrize("place", ["oracle", "oracle.members.second"])
def test_pairrm_is_named_by_the_precision_that_it_has_there(hardware: str, dtype: str, place: str) -> None:
    """By default it is the step that names the dtype."""
    member = ["oracle=ensemble", "oracle@oracle.members.second=pairrm", "judge=lexical"]
    chosen = [f"hardware={hardware}", "hardware.workers=1", *(["oracle=pairrm"] if place == "oracle" else member)]

    def names(*overrides: str) -> set[str]:
        return set(build({"": config.load([*chosen, *overrides])}, Fixed()).steps)

    by_dtype = {one: names(f"{place}.options.dtype={one}") for one in ("float32", "bfloat16")}
    assert names() == by_dtype[dtype] and by_dtype["float32"] != by_dtype["bfloat16"]


WRONG = [
    (["gate.exponent=2"], ("gate.exponent", "gate=linear")),
    (["gate=power", "gate.exponent=0"], ("gate.exponent=0", "> 0")),
    (["gate.ceil_quantile=1.5"], ("gate.ceil_quantile=1.5", "0 to 1", "null")),
    (["gate.floor=1"], ("gate.floor=1.0", "gate.ceil=1.0")),
    (["selection.by=best"], ("selection.by=best", "extremes, all_pairs, top_vs_random")),
    (["selection.values=gates"], ("selection.values=gates", "win_rates, gated")),
    (["oracle.opponents=1"], ("oracle.opponents=1", "≥ 2")),
    (["oracle.opponents=2", "selection.require_head_to_head=true"], ("require_head_to_head", "oracle.opponents=2")),
    (["oracle.kind=gpt"], ("oracle.kind=gpt", "ensemble, ", "mini")),
    (["oracle.urls=[http://a:1]"], ("oracle.urls", "oracle=mini", "oracle=llm")),
    (["oracle=llm", "oracle.urls=[http://a:1]"], ("oracle.urls", "model")),
    (["oracle=llm", "oracle.options.model=gpt"], ("oracle.options.model=gpt", "urls")),
    (["judge=llm", "judge.options.template=x"], ("judge.options.template",)),
    (["oracle=llm", "oracle.urls=[a]"], ("oracle.urls: a ", "http://host:port")),
    (["+oracle.options.flor=1"], ("oracle.options.flor", "mini")),
    (["judge=mini"], ("judge (mini)", "oracle", "judge=lexical")),
    (["oracle=lexical"], ("judge (lexical)", "oracle", "judge=mini")),
    (["oracle=ensemble"], ("judge (lexical)", "oracle.members.second", "judge=pairrm")),
    (["oracle=pairrm", "oracle.options.dtype=half"], ("oracle.options.dtype=half", "float32, bfloat16")),
    (["trainer.optimizer=adam"], ("trainer.optimizer=adam", "rmsprop, adamw, adamw_8bit")),
    (["hardware.offload=gpu"], ("hardware.offload=gpu", "none, optimizer, all")),
]


@pytest.mark.parametrize(("overrides", "names"), WRONG)
def test_a_mistake_has_one_message(overrides: list[str], names: tuple[str, ...]) -> None:
    with refused(ConfigError, names):
        plan_of(*overrides)


def test_arms_share_what_they_have_in_common() -> None:
    arms = {
        name: config.load(overrides) for name, overrides in config.expand(["hardware=cpu", "experiment=sppo,s_sppo"])
    }
    plan = build(arms, Fixed())
    kinds = [step.spec.kind for step in plan.steps.values()]
    assert kinds.count("prompts") == kinds.count("pairs") == kinds.count("reference") == 1
    assert kinds.count("train") == kinds.count("calibrate") == 2
    assert {len(step.uses) for step in plan.steps.values() if step.spec.kind == "pairs"} == {2}


def test_the_cache_is_the_users() -> None:
    assert cache_folder().is_absolute()


def test_configs_are_kept_by_arm() -> None:
    assert isinstance(plan_of().configs[""], Config)


GOLDEN: dict[str, str] = {
    "0/prompts": "2d8ea36fee6e2932",
    "1/sample": "797a3945add9cfa5",
    "0/sample_base": "6b0b76cd126a242f",
    "1/score": "48a3c32352055d7a",
    "1/embed": "1f3ff9fd94a9ee87",
    "1/pairs": "6bae5dc33f88f81d",
    "1/calibrate": "9482ac3afb1ca40b",
    "1/reference": "454b34a1c85423f5",
    "1/train": "d5f23737bbb68be9",
    "1/sample_heldout": "914ce7734e12e2b1",
    "1/score_oracle_previous": "f959a1e9f3a1b192",
    "1/score_oracle_base": "f959a1e9f3a1b192",
    "1/score_second_previous": "af5a43e2d91e4395",
    "1/score_second_base": "af5a43e2d91e4395",
    "1/evaluate": "9287ef7ca4806ac9",
    "1/logprobs_own": "92b81da24fab1cbe",
    "1/logprobs_previous": "974f0b02e87dfcde",
    "1/logprobs_base": "974f0b02e87dfcde",
}
