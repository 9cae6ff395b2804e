"""A made-up run whose figures are chosen: artifacts of the real schemas, published as the steps publish theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparring.pipeline.report.data import ReportData
from sparring.pipeline.report.details import details_of
from sparring.pipeline.report.html.page import page
from sparring.pipeline.runs import run_record
from sparring.pipeline.runs.panel import METRICS, SOURCES
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.store.files import files_below
from sparring.pipeline.store.manifest import Artifact, Manifest, publish
from sparring.stages.annotate.calibrate import TARGETS_SCHEMA
from sparring.stages.annotate.config import PAIRS
from sparring.stages.annotate.gate import gated
from sparring.stages.annotate.pairs import PAIRS_SCHEMA, pair_row
from sparring.stages.annotate.rows import histogram
from sparring.stages.annotate.score import SCORES_SCHEMA
from sparring.stages.annotate.winrate import win_rates
from sparring.stages.evaluate.crossplay import game
from sparring.stages.sample.stage import SAMPLES_SCHEMA
from sparring.stages.train.steps.logprobs import SCHEMA as LOGPROBS

Array = NDArray[np.float64]
MADE_WITH = {
    "code": {"sparring": "0.1.0", "commit": "0" * 40, "dirty": False},
    "packages": {"numpy": "2.3.5", "torch": "2.13.0"},
    "hardware": {"cpu": "a processor", "cores": 2, "gpus": 0},
    "created": "2026-01-02T03:04:05+00:00",
}
SELECTION: dict[str, Any] = {
    "version": PAIRS.version,
    "identity": {
        "win_rate": "matrix",
        "selection": {"by": "extremes", "require_head_to_head": False, "capped": "keep"},
        "seed": 0,
        "gated": None,
    },
}
"""How pairs are made: `inspect` judges a prompt without one again, to say why."""


def gate_identity(name: str) -> dict[str, Any]:
    """How targets are made, as the step `calibrate` records it."""
    bounds = {"floor": 0.0, "floor_quantile": None, "ceil": 1.0, "ceil_quantile": None, "scope": "pairwise"}
    return {"gate": {**({} if name == "off" else bounds), "name": name}, "seed": 0, "dealt_over": "pairs"}


def named(name: str) -> dict[str, str]:
    """An input that is told from others by its name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": digest, "digest": digest}


def judge(kind: str, files: str = "files", **options: Any) -> dict[str, Any]:
    """Identity and inputs of a judge's scores."""
    identity = {"kind": kind, "options": options, "members": {}}
    return {"identity": identity, "inputs": {"judge": named(files)}}


JUDGES = {"oracle": judge("mini"), "second": judge("lexical")}


@dataclass(frozen=True)
class Played:
    """A prompt, its responses and P, which says who beats whom."""

    prompt: str
    texts: Sequence[str]
    p: Array


def duel(prompt: str, first: str, second: str, p: float) -> Played:
    """Two responses, of which the first one beats the second with probability p."""
    return Played(prompt, (first, second), np.array([[0.5, p], [1 - p, 0.5]]))


@dataclass(frozen=True)
class Run:
    """A run, or an arm of one, that is being made up."""

    root: Path
    name: str = "mine"

    @property
    def folder(self) -> Path:
        return self.root / "runs" / self.name

    @property
    def store(self) -> Path:
        return self.root / "store"

    def begin(self) -> Run:
        run_record.begin(self.folder, {}, "", [], str(self.store), {})
        return self

    def add(
        self,
        t: int,
        label: str,
        tables: Sequence[pa.Table] = (),
        *,
        files: Mapping[str, str] | None = None,
        dropped: Mapping[str, int] | None = None,
        **fields: Any,
    ) -> Manifest:
        """Publish the artifact of a step and note it in the run's record."""
        kind = label.partition("_")[0]
        fingerprint = hashlib.sha256(f"{self.name} {t} {label}".encode()).hexdigest()
        artifact = Artifact(self.store, kind, fingerprint)
        artifact.path.mkdir(parents=True)
        names = {}
        for index, table in enumerate(tables):
            names[f"part-{index:05d}.parquet"] = artifact.path / f"part-{index:05d}.test.parquet"
            pq.write_table(table, names[f"part-{index:05d}.parquet"])
        for name, text in (files or {}).items():
            names[name] = artifact.path / name
            names[name].write_text(text)
        out = sum(table.num_rows for table in tables)
        rows = {"in": out + sum((dropped or {}).values()), "out": out, "dropped": dict(dropped or {})}
        plain: dict[str, Any] = {"version": 1, "identity": {}, "summary": {}, "seconds": 10.0, "stats": {}}
        plain["inputs"] = {"of": {"name": "ab" * 32, "digest": "cd" * 32}}
        plain["made_with"] = MADE_WITH
        manifest = Manifest(
            fingerprint=fingerprint,
            step=kind,
            files=files_below(artifact.path, names),
            rows=rows,
            attempts=["test"],
            **{**plain, **fields},
        )
        publish(artifact, manifest)
        run_record.note(self.folder, self.store, (t, label), artifact.path.name, manifest)
        return manifest

    def annotated(self, t: int, parts: Sequence[Mapping[str, Played]], g: float = 0.5) -> None:
        """Add what an iteration samples and annotates; parts: id -> prompt; every two responses have gate g."""
        samples = [samples_table(part) for part in parts]
        self.add(t, "sample", samples, summary={"prompts": sum(map(len, parts))}, stats={"tokens": 500.0})
        self.add(t, "score", [_scores(part) for part in parts], summary={"tie_rate": 0.02}, seconds=20.0)
        pairs = [_pairs(part) for part in parts]
        kept = sum(table.num_rows for table in pairs)
        dropped = sum(map(len, parts)) - kept
        self.add(t, "pairs", pairs, dropped={"tie": dropped} if dropped else {}, **SELECTION)
        targets = [_targets(table, g) for table in pairs]
        pairs_of = (len(played.texts) * (len(played.texts) - 1) // 2 for part in parts for played in part.values())
        gates = histogram((np.full(n, g) for n in pairs_of), 0.0, 1.0)
        summary = {"gate": "linear" if g else "off", "g": gates, "strength": 1 - g}
        self.add(t, "calibrate", targets, identity=gate_identity("linear" if g else "off"), summary=summary)

    def trained(self, t: int, steps: int = 12) -> None:
        """Add a training whose records are straight lines."""
        records = [
            {"step": s, "loss": 9.0 - s / 4, "h_w": s / 10, "h_l": -s / 5, "grad_norm": 3.0, "distance": 0.5}
            | (
                {"in_band": 0.5, "reversed": 0.1, "rho_negative": 0.4, "r_star": 1.2, "incentive_ratio": 1.0}
                if s % 4 == 1
                else {}
            )
            for s in range(1, steps + 1)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in [*records, {"probe": []}])
        summary = {"steps": steps, "probe_h_w": 1.0, "probe_h_l": -2.0, "noise": 1e-6, "changed_fraction": 1.0}
        self.add(t, "train", files={"metrics.jsonl": lines}, summary=summary, seconds=100.0, stats={"tokens": 2000})

    def based(
        self, *, policy: str = "base", prompts: str = "prompts", says: str = "a", seed: int = 0, max_tokens: int = 32
    ) -> Run:
        """Add the base's held-out responses, in which it says one word to every prompt."""
        inputs = {"policy": named(policy), "prompts": named(prompts)}
        tables = [samples_table({"h": duel("Held out.", says, "b", 0.5)})]
        self.add(
            0, "sample_base", tables, inputs=inputs, identity={"sampler": {"max_tokens": max_tokens}, "seed": seed}
        )
        return self

    def evaluated(
        self,
        t: int,
        oracle: float | Mapping[str, float],
        second: float | Mapping[str, float],
        *,
        reach: float = 0.03,
        alarms: Sequence[str] = (),
        seed: int = 0,
        judges: Mapping[str, Any] = JUDGES,
    ) -> None:
        """Add held-out responses, their scores by both judges, and the comparison; win rates are against the base.

        oracle, second: win rate by prompt, or that of a single prompt. judges: identity and inputs of their scores.
        """
        said = samples_table({"h": duel("Held out.", f"{self.name} {t}", "b", 0.5)})
        samples = self.add(t, "sample_heldout", [said], summary=lengths(t))
        before = run_record.read(self.folder).steps.get(0, {})
        base = before.get("sample_base", run_record.MadeStep(fingerprint=""))
        met = {
            "samples": {"name": samples.fingerprint, "digest": samples.content},
            "opponents": {"name": base.fingerprint, "digest": base.content},
        }
        comparisons = []
        for judge, rates in (("oracle", oracle), ("second", second)):
            by_prompt = rates if isinstance(rates, Mapping) else {"h0": rates}
            for opponent in ("previous", "base"):
                self.add(
                    t,
                    f"score_{judge}_{opponent}",
                    [scores_table([*by_prompt.values()], [*by_prompt])],
                    identity={"oracle": judges[judge]["identity"]},
                    inputs={**met, **judges[judge]["inputs"]},
                    summary={"oracle": judges[judge]["identity"]["kind"], "card": None},
                )
                comparisons.append(comparison(judge, opponent, float(np.nanmean([*by_prompt.values()])), reach))
        identity = {"evaluate": {"resamples": 400, "confidence": 0.95}, "seed": seed}
        summary = {"confidence": 0.95, "comparisons": comparisons, "alarms": list(alarms), "alarm": bool(alarms)}
        self.add(t, "evaluate", identity=identity, summary=summary)

    def measured(self, iterations: Sequence[int]) -> None:
        """Add all that the collapse panel reads, every figure another number; counts are whole."""
        numbers, whole = (value / 1000 for value in range(1, 1000)), {"flips": 7, "probe_pairs": 60}
        summaries: dict[str, list[str]] = {}
        for source in SOURCES.values():
            summaries.setdefault(source.step, []).append(source.key)
        summaries.pop("")
        late = [source.name for source in SOURCES.values() if source.step == METRICS]
        summaries.pop(METRICS)
        self.add(0, "sample_base", summary={key: next(numbers) for key in summaries.pop("sample_base")})
        for t in iterations:
            record = {"step": 1, **{name: next(numbers) for name in (*late, "distance", "r_star")}}
            for label, keys in summaries.items():
                summary = {key: whole[key] + t if key in whole else next(numbers) for key in keys}
                lines = {"metrics.jsonl": json.dumps(record) + "\n"} if label == "train" else None
                self.add(t, label, files=lines, summary={**summary, "gate": "off"}, identity=gate_identity("off"))
            for number, whose in enumerate(("base", "previous", "own")):  # so that both KL are above 0
                values = [number * t + next(numbers), number * t + next(numbers) + 0.1 * number]
                rows = [{"id": f"h{i}", "response": 0, "logprob": v, "tokens": 9} for i, v in enumerate(values)]
                table = pa.Table.from_pylist(rows, schema=LOGPROBS)
                self.add(t, f"logprobs_{whose}", [table], summary={"mean_logprob": fmean(values)})
            rows = [
                {**comparison(judge, opponent, 0.5), **{key: next(numbers) for key in ("win_rate", "low", "high")}}
                for judge in ("oracle", "second")
                for opponent in ("previous", "base")
            ]
            self.add(t, "evaluate", summary={"confidence": 0.95, "comparisons": rows, "alarms": []})

    def crossplayed(self, t: int) -> None:
        """Add the cross-play of the policies 0 to t: the base, and each one ahead of those before by the oracle.

        By the second judge every three in a row go round: 1 beats 0, 2 beats 1, 0 beats 2.
        """
        pairs = [(i, j) for i in range(t + 1) for j in range(i)]
        second = {(i, j): 0.55 if i - j == 1 else 0.49 for i, j in pairs}
        rates = {"oracle": dict.fromkeys(pairs, 0.56), "second": second}
        judged = {judge: game(_duels(cells)) for judge, cells in rates.items()}
        self.add(t, "crossplay", summary={"policies": t + 1, "resamples": 9, "confidence": 0.95, "judges": judged})


def _duels(rates: Mapping[tuple[int, int], float]) -> list[dict[str, Any]]:
    """Rows of `crossplay`: (policy, opponent) -> win rate, with the interval of ± 0.02."""
    ends = {"win_rate": 0.0, "low": -0.02, "high": 0.02}
    cells = rates.items()
    return [{"policy": i, "opponent": j, **{name: p + end for name, end in ends.items()}} for (i, j), p in cells]


def history_of(steps: Mapping[int, Mapping[str, Manifest]], name: str = "mine") -> RunHistory:
    """A run of which nothing is on disk but, so it says, these manifests."""
    history = RunHistory(run=name, folder=Path(name), record=run_record.RunRecord(store="store"))
    vars(history)["steps"] = {t: dict(of) for t, of in steps.items()}
    return history


def page_of(arms: Sequence[RunHistory]) -> str:
    """The page of these arms."""
    return page(ReportData.of(arms), details_of(arms))


def section(html: str, name: str) -> str:
    """The section of a page under this head."""
    whole = html[html.index(f"<section><h2>{name}</h2>") :]
    return whole[: whole.index("</section>")]


def lengths(t: int) -> dict[str, float]:
    """What held-out responses of policy t are like."""
    return {"prompts": 1, "length_mean": 80.0 + 5 * t, "length_p95": 96.0, "cap_rate": 0.1 * t}


def comparison(judge: str, opponent: str, rate: float, reach: float = 0.03) -> dict[str, Any]:
    """A row of `evaluate`, with the interval rate ± reach over 64 prompts."""
    low, high = rate - reach, rate + reach
    informative = not low <= 0.5 <= high
    row = {"judge": judge, "opponent": opponent, "win_rate": rate, "low": low, "high": high}
    return {**row, "n": 64, "dropped": 0, "informative": informative}


def samples_table(part: Mapping[str, Played]) -> pa.Table:
    """The samples of id -> prompt; one token a character."""
    rows = [
        {
            "id": row_id,
            "messages": [{"role": "user", "content": played.prompt}],
            "prompt_ids": [1, 2, 3],
            "responses": [
                {"text": text, "ids": list(range(len(text))), "finish": "stop", "seed": i}
                for i, text in enumerate(played.texts)
            ],
        }
        for row_id, played in part.items()
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA)


def scores_table(rates: Sequence[float], ids: Sequence[str] = ()) -> pa.Table:
    """Scores of held-out prompts with one response of each policy; rates: what the left one wins, NaN: trained on."""
    named = ids or [f"h{i}" for i in range(len(rates))]
    logits = [0.0 if np.isnan(rate) else float(np.log(rate / (1 - rate))) for rate in rates]
    rows = [
        {"id": i, "n_left": 1, "n_right": 1, "logits": [x], "swapped": [-x], "trained_on": bool(np.isnan(rate))}
        for i, x, rate in zip(named, logits, rates, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)


def _scores(part: Mapping[str, Played]) -> pa.Table:
    """Scores of responses against each other, by which they have the P that was chosen."""
    rows = []
    for row_id, played in part.items():
        logits, k = np.log(played.p / (1 - played.p)).ravel(), len(played.p)
        row = {"id": row_id, "n_left": k, "n_right": k, "logits": logits, "swapped": -logits, "trained_on": False}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)


def _pairs(part: Mapping[str, Played]) -> pa.Table:
    rows = []
    for row_id, played in part.items():
        rates = win_rates(played.p)
        if rates.max() > rates.min():
            rows.append(pair_row(row_id, played.p, rates, (int(rates.argmax()), int(rates.argmin()))))
    return pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA)


def _targets(pairs: pa.Table, g: float) -> pa.Table:
    rows = []
    for row in pairs.to_pylist():
        n, w, loser = row["n"], row["chosen"], row["rejected"]
        p = np.array(row["P"]).reshape(n, n)
        gates = np.where(np.eye(n, dtype=bool), 1.0, g)
        after = gated(p, gates)
        rates = win_rates(after)
        rows.append(
            {
                "id": row["id"],
                "chosen": w,
                "rejected": loser,
                "p_w": row["win_rates"][w],
                "p_l": row["win_rates"][loser],
                "p_wl": p[w, loser],
                "target_w": rates[w],
                "target_l": rates[loser],
                "target_wl": after[w, loser],
                "gate_wl": g,
                "gate": gates.ravel(),
                "similarity_mean": g,
                "shift": 0.0,
                "flipped": False,
            }
        )
    return pa.Table.from_pylist(rows, schema=TARGETS_SCHEMA)
