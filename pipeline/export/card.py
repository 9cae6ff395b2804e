"""The model card of an exported policy, from manifests alone: what it is, how good, by whose judgement, made how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparring.pipeline.export.base import UNKNOWN, Base
from sparring.pipeline.export.choose import Choice
from sparring.pipeline.export.markdown import Safe, escaped, front, table
from sparring.pipeline.report import recipe
from sparring.pipeline.report.judging import apart, left_out, worth_of_judges
from sparring.pipeline.report.published import published_of, rows_of
from sparring.pipeline.report.table import Steps, alarms, compared, win_rate
from sparring.pipeline.run_history import RunHistory
from sparring.pipeline.store.manifest import Manifest
from sparring.stages.fields import setting

COMPARED = [(judge, opponent) for judge in ("oracle", "second") for opponent in ("previous", "base")]


def model_card(run: RunHistory, choice: Choice, base: Base, dtype: str, cast: bool) -> str:
    """Return README.md of the folder. dtype: of its weights; cast: they were published in another."""
    t = choice.iteration
    train = run.every[t]["train"]
    objective, gate, repulsion = _method(run, t)
    lines = [
        *front(_front(run, base, objective)),
        f"# {escaped(base.name)} after {t} {'iteration' if t == 1 else 'iterations'} of self-play",
        "",
        f"{escaped(base.name)}, aligned by self-play: in every iteration the policy answered prompts, a pairwise "
        "preference model judged the answers against each other, and the policy was trained toward the winners "
        f"(objective {objective}, semantic gate {gate}, latent repulsion {repulsion}). {_labels(run, t)} Made with "
        f"sparring {_version(train)}, run {escaped(run.name)}.",
        "",
        "## Why this iteration",
        "",
        *(f"- {line}" for line in choice.why),
        *_section("Results", _results(run, t)),
        *_section("Use", _use(run, t)),
        *_section("Base", _base(base)),
        *_section("Data", _data(run, t)),
        *_section("Recipe", _recipe(run, t)),
        *_section("Training", _training(run, t)),
        *_section("Limits", _limits(run, t, dtype, cast)),
        *_section("Licence", _licence(base)),
        *_section("Lineage", _lineage(run, t)),
        *_section("Made with", _made_with(train)),
    ]
    return "\n".join(lines) + "\n"


def datasets_of(run: RunHistory) -> list[str]:
    """Return the repositories of the prompts, [] where they are no dataset of the hub."""
    prompts = run.config.get("prompts", {})
    name = str(prompts.get("dataset") or "")
    if prompts.get("source") != "hub" or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return []
    slices = range(1, (prompts.get("slices") or 1) + 1)
    return [name.replace("{slice}", str(i)) for i in slices] if "{slice}" in name else [name]


def _front(run: RunHistory, base: Base, objective: str) -> dict[str, Any]:
    return {
        "base_model": base.repo,
        "base_model_relation": "finetune" if base.repo else None,
        **base.stated,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "datasets": datasets_of(run),
        "tags": ["sparring", "self-play", "preference-optimization", objective],
    }


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _method(run: RunHistory, t: int) -> tuple[str, str, str]:
    train, gate = run.every[t]["train"], run.manifest(t, "calibrate")
    return (
        escaped(train.setting("objective.name")),
        escaped(gate.setting("gate.name") if gate else "off"),
        escaped(train.setting("repulsion.name")),
    )


def _labels(run: RunHistory, t: int) -> str:
    brought = sorted({m.step for i in run.every if i <= t for m in run.every[i].values() if m.imported})
    if brought:
        return f"The {' and '.join(brought)} of iteration 1 were imported: who wrote or labelled them is not known."
    return "No human labelled anything."


def _results(run: RunHistory, t: int) -> Iterator[str]:
    """Yield a row for each iteration up to t, the interval in brackets, then what the judges are worth."""
    evaluated = {i: steps["evaluate"].summary for i, steps in run.every.items() if "evaluate" in steps and i <= t}
    if not evaluated:
        yield "Not evaluated."
        yield from _warned(run, t)
        return
    last = evaluated[max(evaluated)]
    yield (
        f"Win rates on {last['prompts']} held-out prompts, {last['confidence']:.0%} bootstrap intervals over prompts; "
        f"½ is as good as the other. The oracle taught the policy{_never(run.every[max(evaluated)])}."
    )
    yield ""
    head = ["iteration", *(f"{_judge(judge)}: vs {opponent}" for judge, opponent in COMPARED)]
    yield from table(head, ([i, *map(Safe, _rates(run.every[i]))] for i in evaluated))
    yield ""
    for i in evaluated:
        said = [*alarms(run.every[i]), *_left_out(run.every[i]), *_best_of(run.every[i])]
        yield from (f"- iteration {i}: {line}" for line in said)
    yield from _warned(run, t)
    judges = worth_of_judges(run.every[max(evaluated)])
    yield from (f"- {escaped(line)}" for line in judges or ["What the judges are worth was not measured."])
    yield from _published(run, t)


def _never(steps: Steps) -> str:
    return "; the second judge never did" if apart(steps) else ", and the second judge is it too, or a part of it"


def _warned(run: RunHistory, t: int) -> Iterator[str]:
    """Yield the rules of `diagnostics` that fire up to iteration t, by the thresholds that the run was begun with."""
    for one in run.fired:
        if one.iteration <= t:
            yield f"- iteration {one.iteration}: WARNING {escaped(str(one))}"


def _judge(name: str) -> str:
    return "second judge" if name == "second" else name


def _rates(steps: Steps) -> Iterator[str]:
    for judge, opponent in COMPARED:
        row = compared(steps, judge, opponent)
        yield _rate(row) if row else ""


def _rate(row: dict[str, Any]) -> str:
    return win_rate(row).replace("\n", ", ")


def _left_out(steps: Steps) -> list[str]:
    rows = steps["evaluate"].summary["comparisons"]
    told = ((f"{_judge(row['judge'])}: vs {row['opponent']}", left_out(steps, row)) for row in rows)
    return [f"{name}: left out of the held-out prompts are {why}" for name, why in told if why]


def _best_of(steps: Steps) -> Iterator[str]:
    """Yield what its best of n responses are worth, where the run has judged them."""
    rows = {judge: compared(steps, judge, "base", "evaluate_best") for judge in ("oracle", "second")}
    rates = [f"{_judge(judge)}: {_rate(row)}" for judge, row in rows.items() if row]
    if rates and "best" in steps:
        yield f"the oracle's best of {steps['best'].summary['n']} responses vs base: {'; '.join(rates)}"


def _published(run: RunHistory, t: int) -> Iterator[str]:
    published = published_of(run.config)
    if published:
        yield ""
        yield (
            f"Published for this recipe ({escaped(published.source)}), on {escaped(published.benchmark)}: another "
            "evaluation, with other prompts and another judge, so not comparable with the table above."
        )
        changed = ", ".join(map(escaped, recipe.differences(run.folder)))
        if changed:
            yield ""
            yield f"This run differs from the recipe in: {changed}."
        yield ""
        yield from table(["", "LC win rate", "win rate", "mean length"], rows_of(published))


def _use(run: RunHistory, t: int) -> Iterator[str]:
    """Yield code that answers a question, sampled as the policy was trained: top_k=0, since transformers has 50."""
    sample = run.manifest(t, "sample")
    identity = sample.identity if sample else {}
    drawn = {name: float(setting(identity, f"sampler.{name}", 1.0)) for name in ("temperature", "top_p")}
    longest = int(setting(identity, "sampler.max_tokens", 256))
    how = ", ".join(["do_sample=True", *(f"{name}={value:g}" for name, value in drawn.items()), "top_k=0"])
    yield from (
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'policy = AutoModelForCausalLM.from_pretrained(".", dtype="auto")  # this folder',
        'tokenizer = AutoTokenizer.from_pretrained(".")  # with its chat template',
        'messages = [{"role": "user", "content": "Why is the sky blue?"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
        f"output = policy.generate(**inputs, max_new_tokens={longest}, {how})",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        "```",
    )


def _base(base: Base) -> Iterator[str]:
    if base.repo:
        yield f"- model: {escaped(base.repo)}"
    else:
        yield f"- model: a local folder, {escaped(base.name)}"
    if base.commit:
        yield f"- commit: {escaped(base.commit)}"
    if base.note:
        yield f"- {escaped(base.note)}"
    yield f"- digest: `{escaped(base.digest)}`"


def _data(run: RunHistory, t: int) -> Iterator[str]:
    prompts, made = run.config.get("prompts", {}), run.manifest(0, "prompts")
    place = prompts.get("dataset") or Path(str(prompts.get("path") or prompts.get("source"))).name
    source = escaped(Path(place).name if str(place).startswith(("/", "~", ".")) else place)
    split = f", split {escaped(prompts.get('split'))}" if prompts.get("source") == "hub" else ""
    yield f"- prompts: {source}{split}"
    if made and "heldout" in made.summary:
        yield f"- {made.summary['train']:,} to play on, {made.summary['heldout']:,} held out, never trained on"
    yield ""
    yield from table(
        ["iteration", "prompts", "responses", "pairs", "dropped"],
        ([i, *_counts(run.every[i])] for i in run.every if 1 <= i <= t),
    )


def _counts(steps: Steps) -> list[object]:
    sample, pairs = (steps.get(label) for label in ("sample", "pairs"))
    summary = sample.summary if sample else {}
    dropped = pairs.rows["dropped"] if pairs else {}
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
    return [
        summary.get("prompts", ""),
        summary.get("responses", ""),
        pairs.rows["out"] if pairs else "",
        reasons or "0",
    ]


def _recipe(run: RunHistory, t: int) -> Iterator[str]:
    """Yield a row for each setting, of the identities of the steps of iteration t."""
    rows = [
        (f"{TITLES.get(label, label)}: {name}", value)
        for label, names in RECIPE.items()
        for name, value in _settings(run.manifest(t, label), names)
    ]
    yield from table(["setting", "value"], rows)


RECIPE: dict[str, tuple[str, ...]] = {
    "sample": (
        "sampler.k", "sampler.temperature", "sampler.top_p", "sampler.min_p", "sampler.max_tokens", "sampler.dtype",
        "sampler.engine", "seed",
    ),
    "score": ("oracle",),
    "score_second_base": ("oracle",),
    "pairs": ("win_rate", "selection.by", "selection.require_head_to_head", "selection.capped"),
    "calibrate": (
        "gate.name", "gate.exponent", "gate.floor", "gate.floor_quantile", "gate.ceil", "gate.ceil_quantile",
        "gate.scope",
    ),
    "train": (
        "objective", "repulsion", "calibration", "trainer.adapter", "trainer.optimizer", "trainer.lr",
        "trainer.warmup_ratio", "trainer.epochs", "trainer.global_batch", "trainer.max_grad_norm",
        "trainer.max_length", "trainer.truncate", "trainer.dtype", "trainer.publish_dtype", "seed",
    ),
}  # fmt: skip
TITLES = {"sample": "sampling", "score": "annotation", "score_second_base": "second judge", "calibrate": "gate"}


def _settings(manifest: Manifest | None, names: Iterable[str]) -> Iterator[tuple[str, object]]:
    for name in names:
        value = manifest.setting(name) if manifest else None
        if value is not None:
            yield name.removesuffix(".by").rpartition(".")[2], _flat(value)


def _flat(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    inner = ", ".join(f"{key} {_flat(one)}" for key, one in value.items() if key not in ("name", "kind") and one)
    name = str(value.get("name") or value.get("kind") or "")
    return name if not inner or name == "off" else f"{name} ({inner})" if name else inner


def _training(run: RunHistory, t: int) -> Iterator[str]:
    names = {
        "steps": "optimizer steps",
        "tokens": "tokens",
        "probe_h_w": "h chosen, after",
        "probe_h_l": "h rejected, after",
        "probe_pairs": "pairs that h is of",
        "changed_fraction": "share of weights changed",
        "mean_change": "mean change of a weight",
    }
    done = [(i, run.every[i]["train"].summary) for i in run.every if "train" in run.every[i] and 1 <= i <= t]
    yield "h: change of a response's log-prob in nats, since the policy that sampled it; mean over pairs drawn by seed."
    yield ""
    yield from table(
        ["iteration", *names.values()],
        ([i, *(_figure(summary.get(name)) for name in names)] for i, summary in done),
    )


def _figure(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _limits(run: RunHistory, t: int, dtype: str, cast: bool) -> Iterator[str]:
    yield "- Judged by models alone, on the held-out prompts of this run; no human has rated it."
    yield "- A win rate is what a judge prefers. It says nothing of truth, harm or bias, which were not evaluated."
    yield "- What the base gets wrong it may still get wrong; the prompts are those above and no others."
    if cast:
        yield (
            f"- Its weights were cast to {escaped(dtype)} for this folder: changes smaller than that format resolves "
            "are rounded away, and the results above are those of the weights before."
        )
    evaluated = run.manifest(t, "evaluate")
    if not evaluated:
        yield "- This iteration was not evaluated."


def _licence(base: Base) -> Iterator[str]:
    if base.licence == UNKNOWN:
        yield f"Of the base: {UNKNOWN}. Its source does not state it; its terms bind this model too."
    else:
        yield f"Of the base, as its source states it: {escaped(base.licence)}. Its terms bind this model too."


def _lineage(run: RunHistory, t: int) -> Iterator[str]:
    """Yield the artifacts that this policy and its results come from; content: the digest of their bytes."""
    rows = (
        (i, label, f"{manifest.step}-{manifest.fingerprint[:8]}", manifest.fingerprint, manifest.content)
        for i, steps in run.every.items()
        for label, manifest in steps.items()
        if i <= t
    )
    yield from table(["iteration", "step", "artifact", "fingerprint", "content"], rows)


def _version(manifest: Manifest) -> str:
    return escaped(manifest.made_with.get("code", {}).get("sparring", "of an unknown version"))


def _made_with(manifest: Manifest) -> Iterator[str]:
    made = manifest.made_with
    rows = [*made.get("code", {}).items(), *made.get("packages", {}).items(), *made.get("hardware", {}).items()]
    yield from table(["", ""], [*rows, ("trained", made.get("created", "")), ("seconds", f"{manifest.seconds:.0f}")])
