"""`sparring oracle check`: is this oracle fit for these prompts? Measured on labelled pairs.

    sparring oracle check pairs.jsonl oracle=pairrm oracle.path=/models/PairRM
    sparring oracle check pairs.parquet --judge --limit 500 --json figures.json

The overrides are those of the run. The oracle judges both orders of every pair in this process, without Ray, on the
GPUs that `hardware` gives to an annotator. stages/annotate/fitness.py has the figures and the verdict. Left out, and
counted, are pairs of equal texts, which a run does not judge, and pairs whose prompt the oracle was trained on.
Probabilities of labels (chosen_probs) are not read.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sparring.pipeline.cli import options
from sparring.pipeline.cli.prepare import load_config, pins_of
from sparring.pipeline.config.model import Config
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.planning.estimate import HUB_PROMPTS
from sparring.pipeline.planning.prompt_count import with_prompt_counts
from sparring.pipeline.report.terminal import stdout_console
from sparring.pipeline.sources import Sources, hub, judges
from sparring.pipeline.store.files import check_target, write_target
from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import JudgeConfig
from sparring.stages.annotate.oracle import Duel, Messages, Oracle, prompt_key
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.plain import counts_text
from sparring.stages.step import Input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparring.stages.sample.layouts import Layout

MEND = "mend or remove the row."
FIRST_CHUNK, MOST_CHUNK, CHUNK_S = 8, 2048, 5.0
"""Pairs asked at once: twice as many as before while an answer takes less than CHUNK_S seconds."""
LOG_S = 30.0
"""Between lines of progress, where stderr is no terminal."""

ROWS = {
    "accuracy": "accuracy",
    "longer_wins": "  of the rule 'longer wins'",
    "accuracy_over_longer_wins": "  accuracy - 'longer wins'",
    "accuracy_over_shorter_wins": "  accuracy - 'shorter wins'",
    "length_matched": "accuracy, length-matched pairs",
    "longer_wins_length_matched": "  of the rule 'longer wins'",
    "length_matched_over_longer_wins": "  accuracy - 'longer wins'",
    "length_matched_over_shorter_wins": "  accuracy - 'shorter wins'",
    "prefers_longer": "length bias: prefers the longer",
    "label_longer": "  the label does",
    "leans_longer": "  oracle - label",
    "length_logit_spearman": "  Spearman of logit and length",
    "position_disagreement": "position: order changes winner",
    "first_wins": "  the first shown wins",
    "first_logit": "  mean logit of the first shown",
    "abs_logit": "confidence: mean |logit|",
    "ties": "  ties",
    "log_loss": "  log-loss of P (blind: 0.693)",
    "brier": "  Brier of P (blind: 0.250)",
    "ece": "  calibration error of P",
    "overconfidence": "  confidence - accuracy",
    "truncated": "truncated inputs",
}
SIGNED = ("first_logit", "leans_longer", "length_logit_spearman", "overconfidence")


class Pair(NamedTuple):
    """A row of the file, its texts without the white space around them, as a run shows them."""

    place: str
    """`pairs.jsonl: line 12`."""
    prompt: Messages
    chosen: str
    rejected: str

    def duels(self) -> tuple[Duel, Duel]:
        """Both orders."""
        return Duel(self.prompt, self.chosen, self.rejected), Duel(self.prompt, self.rejected, self.chosen)


class Answers(NamedTuple):
    """Of n pairs, in their order."""

    logits: NDArray[np.float64]
    """(n, 2): the chosen response shown first, the rejected one shown first."""
    truncated: NDArray[np.bool_]
    """(n,): a text was truncated, in either order."""
    duels_per_s: float
    reads_per_s: float
    """Of what the oracle's time grows with: see oracles.OracleOptions.cost_unit."""


def run(
    what: Annotated[Literal["check"], typer.Argument(help="check")],
    file: Annotated[
        Path, typer.Argument(parser=options.place, help="labelled pairs, in any layout that `import pairs` reads")
    ],
    overrides: Annotated[list[str], options.words("overrides of the run: oracle, prompts, sampler.k")],
    split: options.Split = None,
    limit: Annotated[int | None, options.value("N", "rows to read, the first N (default: all)")] = None,
    second: Annotated[bool, options.flag("--judge", "check the second judge instead of the oracle")] = False,
    to: options.Json = None,
    prompt_column: options.PromptColumn = None,
    drop_empty: options.DropEmpty = False,
) -> None:
    """Is the oracle fit for these prompts? Ask it about labelled pairs.

    Prints accuracy, biases, calibration and a verdict.

    Example: sparring oracle check pairs.jsonl oracle=pairrm --limit 500
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: give the number of rows to look at, 1 or more.")
    if to:
        check_target(to, "--json")
    chosen = load_config(overrides)
    judge = chosen.judge if second else chosen.oracle
    sources = Sources(pins_of(chosen))
    source = sources.imported(file, split)
    pairs, counts = read([source.root / one.path for one in source.files], prompt_column, limit, drop_empty=drop_empty)
    usable(pairs, counts, frozenset(), file)
    if chosen.prompts.source == "file":  # how many prompts a run plays on is the file's to say
        chosen, _ = with_prompt_counts(chosen, sources)
    folders = judges.folders(judge, sources)
    if hub.download_missing(folders.values()):
        folders = judges.folders(judge, sources)
    oracle = load(judge, folders, chosen)
    pairs, counts = usable(pairs, counts, oracle.trained_on, file)
    reads = judges.reads(judge)
    answers = ask(oracle, pairs, reads)
    card, due = card_of(pairs, answers, chosen.seed), run_reads(chosen, reads, second=second)
    facts = {
        "seat": "judge" if second else "oracle",
        "kind": judge.kind,
        "options": judge.options,
        "folders": {role: folder.digest for role, folder in folders.items()},
        "file": str(file),
        "sha256": source.files[0].sha256 if len(source.files) == 1 else source.digest,
        **counts,
        **card,
        "duels_per_s": round(answers.duels_per_s, 3),
        "reads": reads,
        "reads_per_s": round(answers.reads_per_s, 3),
        "run_reads": due,
        "run_minutes": round(due / answers.reads_per_s / 60, 3),
    }
    show(facts)
    if to:
        write_target(to, json.dumps(facts, indent=2) + "\n")


# The pairs


def read(
    paths: Sequence[Path], prompt_column: str | None = None, limit: int | None = None, *, drop_empty: bool = False
) -> tuple[list[Pair], dict[str, int]]:
    """Return the pairs of different texts, and how many rows there are and are left out; DataError names a bad row."""
    from sparring.stages.sample.layouts import recognise

    pairs, counts = [], {"rows": 0, "empty_response": 0, "identical": 0}
    layout = recognise(paths, "pairs", prompt_column)
    columns = tuple(name for name in layout.columns if not name.startswith("chosen_probs"))  # how sure labels are
    layout = layout._replace(name="pairs" if layout.name == "sppo_pairs" else layout.name, columns=columns)
    for pair in islice(_rows(paths, layout, drop_empty=drop_empty), limit):
        counts["rows"] += 1
        if pair is None:
            counts["empty_response"] += 1
        elif pair.chosen == pair.rejected:
            counts["identical"] += 1
        else:
            pairs.append(pair)
    if not counts["rows"]:
        raise DataError(f"{paths[0]}: holds no rows; give a file with at least one.")
    return pairs, counts


def _rows(paths: Sequence[Path], layout: Layout, *, drop_empty: bool) -> Iterator[Pair | None]:
    """Yield the rows; None for one with an empty response, where such are left out."""
    from sparring.stages.sample.layouts import EmptyResponse, parse
    from sparring.stages.sample.prompts import prompt_hash
    from sparring.stages.sample.source import placed

    for place, values in placed(paths, layout.columns):
        try:
            entry = parse(values, layout)
        except EmptyResponse as error:
            if not drop_empty:
                raise DataError(f"{place}: {error}; {MEND[:-1]}, or leave such rows out with --drop-empty.") from None
            yield None
            continue
        except ValueError as error:
            raise DataError(f"{place}: {error}; {MEND}") from None
        assert entry.preference is not None
        prompt_hash(entry.prompt, place)  # DataError where it is no text
        chosen, rejected = (entry.texts[i].strip() for i in (entry.preference.chosen, entry.preference.rejected))
        yield Pair(place, tuple((turn["role"], turn["content"]) for turn in entry.prompt), chosen, rejected)


def usable(
    pairs: Sequence[Pair], counts: dict[str, int], trained_on: frozenset[int], file: Path
) -> tuple[list[Pair], dict[str, int]]:
    """Return the pairs whose prompt the oracle was not trained on; DataError when none is left."""
    kept = [pair for pair in pairs if prompt_key(pair.prompt) not in trained_on]
    counts = {**counts, "trained_on": len(pairs) - len(kept)}
    if not kept:
        raise DataError(
            f"{file}: none of its {counts['rows']:,} rows can be used (left out: {_left_out(counts)}); "
            "give pairs of different texts whose prompts the oracle was not trained on."
        )
    return kept, counts


# The oracle


def load(judge: JudgeConfig, folders: dict[str, Input], chosen: Config) -> Oracle:
    """Load an oracle as the step `score` does, with all cores of this machine."""
    context = oracles.OracleContext(
        folders={role: source.folder() for role, source in folders.items()},
        judge=judge,
        cpus=os.cpu_count() or 1,
        gpus=min(chosen.hardware.annotator_gpus, ray_cluster.gpu_count()),
    )
    print(f"loading {judge.kind}", file=sys.stderr)
    return oracles.load(judge.kind, judge.options, context)


def ask(oracle: Oracle, pairs: Sequence[Pair], reads: str) -> Answers:
    """Have both orders of every pair judged, with progress on stderr; DataError names a pair whose logit is no number.

    The rates leave the first chunk out where there are more: an oracle warms up. reads: what to count.
    """
    import numpy as np

    from sparring.stages.annotate.rows import matrix

    logits, truncated, rates = [], [], []
    size, done = FIRST_CHUNK, 0
    with _progress(len(pairs)) as show_done:
        while done < len(pairs):
            chunk, begun = pairs[done : done + size], time.monotonic()
            verdicts = oracle([duel for pair in chunk for duel in pair.duels()])
            took = time.monotonic() - begun
            both = verdicts.logits.reshape(-1, 2)
            logits += [matrix(row, (1, 2), "oracle logit", pair.place) for pair, row in zip(chunk, both, strict=True)]
            truncated.append(verdicts.truncated.reshape(-1, 2).any(axis=1))
            rates.append((2 * len(chunk), read_of(chunk, reads), took))
            done += len(chunk)
            show_done(done)
            size = min(2 * size, MOST_CHUNK) if took < CHUNK_S else size
    duels, read, seconds = (max(sum(column), 1e-9) for column in zip(*(rates[1:] or rates), strict=True))
    return Answers(np.concatenate(logits), np.concatenate(truncated), duels / seconds, read / seconds)


def read_of(pairs: Sequence[Pair], reads: str) -> int:
    """Return how many duels, responses or texts an oracle reads of pairs that it is asked about together."""
    if reads == "duels":
        return 2 * len(pairs)
    responses = {(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)}
    return len(responses) + (len({pair.prompt for pair in pairs}) if reads == "texts" else 0)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Yield what shows how many pairs are judged: a bar on a terminal, else a line from time to time."""
    begun = printed = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    task = bar.add_task("pairs", total=total, rate="")

    def show_done(done: int) -> None:
        nonlocal printed
        now = time.monotonic()
        seconds = max(now - begun, 1e-9)
        rate = f"{2 * done / seconds:,.1f} duels/s"
        bar.update(task, completed=done, rate=rate)
        if bar.disable and now - printed > LOG_S:
            printed = now
            left = seconds * (total - done) / done
            print(f"{done:,}/{total:,} pairs {rate} ETA {left:,.0f} s", file=sys.stderr, flush=True)

    with bar:
        yield show_done


# The figures


def card_of(pairs: Sequence[Pair], answers: Answers, seed: int) -> dict[str, Any]:
    """Return the figures and the verdict; pairs of one prompt (prompt_key) are drawn together."""
    import numpy as np

    from sparring.stages.annotate.fitness import figures, verdict

    forth, back = answers.logits.T
    groups = np.array([prompt_key(pair.prompt) for pair in pairs])
    card = figures(pairs, forth, back, answers.truncated, groups, seed)
    fit, said = verdict(card)
    return {"duels": 2 * len(pairs), **card, "fit": fit, "verdict": said}


def run_reads(chosen: Config, reads: str, *, second: bool) -> int:
    """Return what an oracle, or the second judge, reads in one iteration: duels in both orders, responses or texts.

    The oracle's: the step `score`. Duels of each prompt: m (2K - m - 1), m = K or oracle.opponents; K (K - 1) without
    opponents. Responses: K, whoever meets whom. Without prompts.per_iteration its prompts are a slice, guessed.
    The second judge's: the responses to each held-out prompt against those of the previous policy and of the base.
    """
    prompts, k = chosen.prompts, chosen.sampler.k
    if second:
        each = {
            "duels": 2 * chosen.evaluate.k**2,
            "responses": 2 * chosen.evaluate.k,
            "texts": 2 * chosen.evaluate.k + 1,
        }
        return (prompts.heldout or 0) * 2 * each[reads]
    rows = prompts.per_iteration or (prompts.limit or HUB_PROMPTS) // (prompts.slices or 1)
    met = min(chosen.oracle.opponents or k, k)
    return rows * {"duels": met * (2 * k - met - 1), "responses": k, "texts": k + 1}[reads]


def show(facts: dict[str, Any]) -> None:
    """Print the table, the counts, what an iteration will take, and the verdict."""
    from sparring.stages.annotate.fitness import interval

    out = stdout_console()
    table = Table(title=f"{facts['seat']} {facts['kind']} on {facts['file']}", title_justify="left")
    table.add_column("")
    for name in ("figure [95%]", "pairs", "prompts"):
        table.add_column(name, justify="right")
    for name, label in ROWS.items():
        if name in facts:
            sign = "+" if name in SIGNED or "_over_" in name else ""
            table.add_row(
                label, interval(facts, name, sign), *(f"{facts[f'{name}_{of}']:,}" for of in ("pairs", "prompts"))
            )
    out.print(table)
    lines = [
        f"{facts['rows']:,} rows, {facts['accuracy_pairs']:,} pairs judged; left out: {_left_out(facts)}",
        f"{facts['reads_per_s']:,.1f} {facts['reads']}/s here: the {facts['run_reads']:,} that it reads in an "
        f"iteration of this run, as long as these, take {facts['run_minutes']:,.1f} minutes on one such worker",
        facts["verdict"],
    ]
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _left_out(counts: dict[str, Any]) -> str:
    names = {"identical": "identical", "trained_on": "trained on", "empty_response": "empty response"}
    return counts_text({label: counts[name] for name, label in names.items() if counts[name]}) or "none"
