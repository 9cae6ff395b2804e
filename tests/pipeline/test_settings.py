"""No setting is accepted without effect: what each option reads is derived from the models and the files of conf/."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from sparring.pipeline import config
from sparring.pipeline.config import groups, messages, overrides
from sparring.pipeline.config.model import Config
from sparring.stages import fields
from sparring.stages.errors import ConfigError
from tests.pipeline.plans import labels, plan_of
from tests.refusals import refused

ALSO = {  # what an option needs beside itself
    "prompts=file": ["prompts.path=p.jsonl"],
    "prompts=hub": ["prompts.dataset=a/b"],
    "policy=folder": ["policy.path=model"],
    "encoder=folder": ["encoder.path=model"],
    "encoder=hub": ["encoder.repo=a/b"],
    "sampler=server": ["sampler.urls=[http://a:1]"],
}
KINDS = {  # of options that set the same keys, one
    (group, frozenset(groups.option_keys(group, option))): option
    for group in groups.group_names()
    if group != "experiment"
    for option in groups.options_of(group)
}
OPTIONS = [(group, option) for (group, _), option in KINDS.items()]


def chosen(group: str, option: str) -> list[str]:
    words = [f"{group}={option}", "prompts.per_iteration=512", "prompts.slices=null"]
    words = [word for word in words if group != "prompts" or "prompts." not in word]
    return [
        *words,
        *ALSO.get(f"{group}={option}", []),
        *(["hardware=cpu"] if group != "hardware" else ["trainer.global_batch=8"]),
    ]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_sets_what_it_reads_and_refuses_what_only_others_read(group: str, option: str) -> None:
    """A key that the models lack would be dropped in silence; one that another option reads is refused by its name."""
    words, own = chosen(group, option), groups.option_keys(group, option)
    found = config.load(words)
    known = fields.dotted(asdict(found))
    assert own.keys() <= known.keys()
    idle = {key for key, _ in fields.unread(found, found)}
    assert [key for key in own if key in idle and own[key] not in (None, "main")] in ([], ["hardware.kv_cache_gb"])
    everywhere = set(groups.known_keys(overrides.parse(words)))
    others = {key for other in groups.options_of(group) for key in groups.option_keys(group, other)} - set(own)
    whole = {key for key in others for name in everywhere if name.startswith(f"{key}.")}
    foreign = sorted(key for key in others - everywhere - whole if ".members." not in key)
    for sign, key in zip(("", "++"), foreign[:1] + foreign[-1:], strict=False):
        with refused(ConfigError, f"{key} ") as caught:
            config.load([*words, f"{sign}{key}=1"])
        assert str(caught.value).startswith(key) and str(caught.value).count(f"{group}=") >= 2


IDLE = [
    (["gate=off", "gate.floor=.3"], "gate.floor", "gate=linear"),
    (["gate=linear", "gate.exponent=1.0"], "gate.exponent", "gate=power"),
    (["gate.floor=.3", "gate.floor_quantile=.5"], "gate.floor", "gate.floor_quantile"),
    (["experiment=sppo", "gate.scope=pair"], "gate.scope", "gate=linear"),
    (["repulsion=off", "repulsion.weight=.1"], "repulsion.weight", "repulsion=hinge"),
    (["repulsion=log", "repulsion.margin=1"], "repulsion.margin", "repulsion=hinge"),
    (["calibration.ema=.98"], "calibration.ema", "calibration=reward"),
    (["trainer.adapter_lr=1e-4"], "trainer.adapter_lr", "adapter=lora"),
    (["adapter=lora", "trainer.lr=1e-4", "trainer.adapter_lr=1e-4"], "trainer.adapter_lr", "trainer.lr"),
    (["trainer.adapter.rank=4"], "trainer.adapter.rank", "adapter=lora"),
    (["prompts.path=my.jsonl", "policy.path=m"], "prompts.path", "add prompts=file"),
    (["prompts=file", "prompts.path=my.jsonl", "policy.path=m"], "policy.path", "add policy=folder"),
    (["prompts=ultrafeedback", "prompts.path=x.parquet", "prompts.split=y"], "prompts.split", "prompts.path"),
    (["prompts=ultrafeedback", "prompts.path=x", "prompts.revision=y"], "prompts.revision", "prompts.path"),
    (["policy=qwen2.5-0.5b", "policy.path=m", "policy.revision=main"], "policy.revision", "policy.path"),
    (["policy.tensor_parallel=2"], "policy.tensor_parallel", "hardware=cuda"),
    (["policy.dtype=auto", "sampler.dtype=auto"], "policy.dtype", "sampler.dtype"),
    (["encoder.path=m"], "encoder.path", "encoder=folder"),
    (["sampler.urls=[http://a:1]"], "sampler.urls", "add sampler=server"),
    (["sampler.temperature=0", "sampler.min_p=.1"], "sampler.min_p", "sampler.temperature"),
    (["sampler=server", "sampler.urls=[http://a:1]", "hardware.engines=2"], "hardware.engines", "servers"),
    (["sampler=transformers", "hardware.kv_cache_gb=2"], "hardware.kv_cache_gb", "sampler=vllm"),
    (["hardware.gpu_memory=.5"], "hardware.gpu_memory", "hardware=cuda"),
    (["oracle.urls=[http://a:1]"], "oracle.urls", "add oracle=llm"),
    (["oracle.options.tau=.1"], "oracle.options.tau", "oracle=gpm"),
    (["oracle.revision=x"], "oracle.revision", "repo"),
    (["oracle=pairrm", "oracle.path=m", "oracle.repo=a/b"], "oracle.repo", "path"),
    (
        ["oracle=llm", "oracle.urls=[http://a:1]", "oracle.options.model=m", "oracle.options.dtype=float32"],
        "oracle.options.dtype",
        "folder",
    ),
    (["judge=gpm", "judge.urls=[http://a:1]"], "judge.urls", "judge=llm"),
    (["judge.opponents=2"], "judge.opponents", "oracle.opponents"),
    (
        ["oracle=ensemble", "judge=pairrm", "oracle.members.first.urls=[http://a:1]"],
        "oracle.members.first.urls",
        "=llm",
    ),
    (["selection.values=gated", "gate=off"], "selection.values", "gate"),
    (["entry.samples=sample-1f2e3d4c", "entry.pairs=pairs-1f2e3d4c"], "entry.samples", "entry.pairs"),
    (["hydra.run.dir=x"], "hydra.run.dir", "read"),
]


@pytest.mark.parametrize("words", [case[0] for case in IDLE], ids=" ".join)
def test_a_setting_without_effect_is_refused_with_who_reads_it(words: list[str]) -> None:
    key, reader = next((key, reader) for one, key, reader in IDLE if one == words)
    with refused(ConfigError, reader) as caught:
        config.load(["hardware=cpu", *words])
    assert str(caught.value).startswith(key)


def leaves(model: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """All keys of a model and of every kind of its groups."""
    found = []
    for one in fields.members(model):
        if fields.is_model(one):
            for name, hint in fields.hints(one).items():
                found += leaves(hint, f"{prefix}.{name}" if prefix else name) or [(f"{prefix}.{name}".strip("."), hint)]
    return found


NUMBERS = sorted({key for key, hint in leaves(Config) if {int, float} & set(fields.members(hint))})


def test_every_number_is_found() -> None:
    assert len(NUMBERS) > 80 and {"seed", "gate.floor", "hardware.expect.start_s", "objective.z_min"} <= set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_takes_what_is_none(key: str) -> None:
    """By the models alone: nan, infinities and booleans; floats where a number counts."""
    from pydantic import TypeAdapter, ValidationError

    for hint in fields.at(Config, key):
        wrong: list[object] = [float("nan"), float("inf"), -float("inf"), True, "much"]
        for value in wrong + [2.5] * (float not in fields.members(hint)):
            with pytest.raises(ValidationError):
                TypeAdapter(hint).validate_python(value)


BOUNDS = {
    "seed": "-1", "iterations": "0", "prompts.max_tokens": "-5", "prompts.limit": "0", "prompts.heldout": "0",
    "prompts.per_iteration": "0", "sampler.temperature": "-1", "sampler.top_p": "0", "sampler.min_p": "1",
    "sampler.k": "65", "sampler.shard_rows": "0", "gate.floor": "2", "gate.ceil_quantile": "1.5",
    "repulsion.weight": "-1", "repulsion.margin": "0", "trainer.lr": "nan", "trainer.warmup_ratio": "1",
    "trainer.epochs": "0", "trainer.global_batch": "-8", "trainer.max_grad_norm": "inf", "trainer.truncate": "cut",
    "hardware.engines": "0", "hardware.max_failures": "-1", "hardware.worker_cpus": "0", "hardware.offload": "gpu",
    "hardware.usd_per_hour": "-1", "hardware.expect.start_s": "-1", "hardware.micro_batch": "some",
    "evaluate.k": "0", "evaluate.confidence": "1", "evaluate.resamples": "99", "evaluate.best_of": "0",
    "evaluate.kl": "2", "win_rate": "mean", "selection.by": "best", "selection.capped": "cut",
    "sampler.dtype": "half", "trainer.publish_dtype": "auto", "encoder.window": "0", "objective.beta": "nan",
    "diagnostics.longer": "inf", "diagnostics.ties": "2",
}  # fmt: skip


@pytest.mark.parametrize("key", BOUNDS)
def test_a_value_out_of_range_names_the_key_and_the_range(key: str) -> None:
    with refused(ConfigError) as caught:
        config.load([f"{key}={BOUNDS[key]}"])
    assert str(caught.value).startswith(f"{key}={BOUNDS[key]}: ")


def test_the_range_is_said() -> None:
    with refused(ConfigError, "sampler.temperature=nan", "≥ 0"):
        config.load(["sampler.temperature=nan"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["oracle.opponents=99", "sampler.k=3"], ("oracle.opponents=99", "sampler.k=3")),
        (["oracle.opponents=2", "sampler.k=2"], ("oracle.opponents=2", "sampler.k=2")),
        (["iterations=1e3"], ("iterations=1000", "evaluate.crossplay=true")),
        (["iterations=1001", "evaluate.crossplay=false"], ("iterations=1001: ", "1 to 1000")),
        (["gate.floor_quantile=.9", "gate.ceil_quantile=.1"], ("gate.floor_quantile=0.9", "gate.ceil_quantile=0.1")),
        (["seed=1", "seed=2"], ("seed ", "2 times")),
        (["gate=off", "gate=linear"], ("gate ", "2 times")),
        (["seed=1", "++seed=1"], ("seed ", "2 times")),
    ],
)
def test_keys_that_contradict_each_other_are_refused(words: list[str], names: tuple[str, ...]) -> None:
    with refused(ConfigError, *names) as caught:
        config.load(words)
    assert str(caught.value).startswith(names[0])


# Text


@pytest.mark.parametrize("name", ["20261129", "007", "1e3", "true", "null", "0x1F", "1_000", "1.50", "2026-11-29"])
def test_text_is_what_was_written(name: str) -> None:
    assert config.load([f"run.name={name}"]).run.name == name
    assert config.load([f"run.name='{name}'"]).run.name == name


@pytest.mark.parametrize(
    "path",
    ["a b (1).jsonl", "a:b=c.jsonl", "50%.jsonl", "été 日本.jsonl", "it's.jsonl", "p{slice}.jsonl", "007",
     "[x](y).jsonl", "a&b;c#d.jsonl", "x*?.jsonl", "$HOME.jsonl", "null.jsonl", "back\\slash.jsonl"],
)  # fmt: skip
def test_a_path_needs_no_quotes(path: str) -> None:
    found = config.load(["prompts=file", f"prompts.path={path}"])
    assert found.prompts.path == path
    for arm in (words for _, words in config.expand(["prompts=file", f"prompts.path={path}", "seed=0,1"])):
        assert config.load(arm).prompts.path == path


def test_a_path_with_a_comma_is_quoted_or_a_sweep() -> None:
    with refused(ConfigError, "-m", """'prompts.path="a,b.jsonl"'"""):
        config.load(["prompts=file", "prompts.path=a,b.jsonl"])
    assert config.load(["prompts=file", 'prompts.path="a,b.jsonl"']).prompts.path == "a,b.jsonl"


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["prompts=file", "prompts.path=~/x.jsonl", "policy=folder", "policy.path=~/m", "paths.store=~/s"]
    found = config.load([*words, "oracle.path=~/o"])
    assert (found.policy.path, found.paths.store, found.oracle.path) == ("/home/me/m", "/home/me/s", "/home/me/o")


def test_lists_of_text_keep_their_elements() -> None:
    assert config.load(['sampler.stop=[1,007,"a, b",true]']).sampler.stop == ("1", "007", "a, b", "true")


# Sweeps


SWEEPS = {
    "gate=glob(*)": 5,
    "gate=glob(*,exclude=off)": 4,
    "gate=glob([l*,p*])": 3,
    "seed=range(0,6,2)": 3,
    "seed=choice(1,2)": 2,
    "seed=shuffle(1,2,3)": 3,
    "seed=shuffle(range(0,3))": 3,
    "seed=sort(3,1,2)": 3,
    "seed=tag(a,choice(1,2))": 2,
    "seed=int(1.0,2.0)": 2,
    "++seed=1,2": 2,
    "sampler.stop=[a],[b]": 2,
    "run.name=007,7": 2,
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_of_hydra_is_expanded(sweep: str) -> None:
    arms = config.expand(["evaluate.kl=false", sweep])
    assert len({arm for arm, _ in arms}) == SWEEPS[sweep]
    assert len({str(config.load(words)) for _, words in arms}) == SWEEPS[sweep]


@pytest.mark.parametrize(
    "sweep",
    ["seed=interval(0,1)", "seed=range(0,0)", "seed=range(0,1000000000)", "seed=shuffle(range(0,1000000000))",
     "seed=range(0,10,0)", "gate=glob(x*)", "seed=glob(*)", "seed=1,1", "gate=bogus(1)", "seed=range(0,257)"],
)  # fmt: skip
def test_a_sweep_that_makes_no_arms_is_refused(sweep: str) -> None:
    with refused(ConfigError) as caught:
        config.expand([sweep])
    assert str(caught.value).startswith(sweep.partition("=")[0])


def test_arms_have_names_that_folders_can_have() -> None:
    arms = config.expand(["prompts=file", "prompts.path=a/b,a-b,'c/../d','e\\'f'", f"run.name={'x' * 300},y"])
    names = [arm for arm, _ in arms]
    assert len(set(names)) == 8 and not any("/" in name or "'" in name for name in names)
    assert max(len(name.encode()) for name in names) < 255


@pytest.mark.parametrize(
    "word",
    ["lr", "--seed=1", "=3", "", "run.name=${x}", "run.name=${oc.env:NO_SUCH}", "seed=${seed}", "gate=null",
     "gate=[off]", "experiment=[sppo,dpo]", "experiment=sppo,dpo", "~gate", "~entry.samples", "~nothing",
     "+gate=linear",
     "gate@sampler=linear", "+seed=3", "nogate=off", "foo.path=1", "gate=", "seed=", "run.name=", "trainer={lr:1}",
     "sampler.engine_args=3", "oracle.options.weights={a:1", "trainer.lr=(", "paths=x", "prompts={path: x}"],
)  # fmt: skip
def test_whatever_hydra_refuses_is_one_line(word: str) -> None:
    with refused(ConfigError) as caught:
        config.load([word])
    assert str(caught.value) and "Exception" not in str(caught.value)


HINTS = {
    "trainer.lrr=1": "trainer.lr",
    "samplr.k=3": "sampler.k",
    "lr=1": "trainer.lr",
    "sampler.lr=1": "trainer.lr",
    "objective.btea=1": "objective.beta",
    "learning_rate=1": "trainer.lr",
    "trainer.num_train_epochs=2": "trainer.epochs",
    "sampler.max_new_tokens=8": "sampler.max_tokens",
    "foo.path=1": None,
    "wandb.name=1": None,
    "trainer.quantum=1": None,
    "learning=1": None,
}


@pytest.mark.parametrize("word", HINTS)
def test_only_a_key_that_is_near_is_proposed(word: str) -> None:
    with refused(ConfigError) as caught:
        config.load([word])
    hint = HINTS[word]
    assert (f" {hint}?" in str(caught.value)) if hint else ("?" not in str(caught.value))


# Local copies


@pytest.mark.parametrize("words", [["policy.path=m"], ["policy=folder", "policy.path=m"]])
def test_a_local_copy_of_a_model_keeps_the_recipe(words: list[str]) -> None:
    before = config.load(["experiment=sppo_llama3_8b"])
    after = config.load(["experiment=sppo_llama3_8b", *words])
    assert after.policy.path == "m"
    assert (after.policy.stop, after.policy.dtype) == (before.policy.stop, before.policy.dtype) == (
        ("<|eot_id|>",), "bfloat16"
    )  # fmt: skip
    assert after.sampler == before.sampler and after.prompts == before.prompts and after.trainer == before.trainer
    own = config.load(["experiment=sppo_llama3_8b", *words, "policy.stop=[]", "policy.dtype=float32"])
    assert (own.policy.stop, own.sampler.dtype) == ((), "float32")


def test_a_local_copy_of_judge_encoder_and_prompts_keeps_theirs() -> None:
    before = config.load(["experiment=sppo_llama3_8b"])
    after = config.load(["experiment=sppo_llama3_8b", "oracle.path=judge", "prompts.path=data/iter{slice}"])
    assert after.oracle.options == before.oracle.options and after.oracle.path == "judge"
    assert (after.prompts.slices, after.prompts.heldout) == (before.prompts.slices, before.prompts.heldout)
    assert config.load(["encoder=hub", "encoder.repo=a/b"]).encoder.window == 256


def test_a_gate_that_is_named_by_its_key_is_that_gate() -> None:
    assert labels(plan_of("gate.name=off")) == labels(plan_of("gate=off"))
    with refused(ConfigError, "gate.floor", "gate.name=off"):
        config.load(["gate.name=off", "gate.floor=.3"])


def test_what_others_call_a_setting_leads_to_one_there_is() -> None:
    every = {*groups.known_keys(), *(key for one in OPTIONS for key in groups.option_keys(*one))}
    assert set(messages.OTHER_NAMES.values()) <= every
    assert not {key.rpartition(".")[2] for key in every} & messages.OTHER_NAMES.keys()
