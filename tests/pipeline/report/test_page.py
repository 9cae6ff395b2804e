"""The page: whole, small, escaped, and the same figures as the table and the JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.report.as_json import as_json
from sparring.pipeline.report.data import ArmReport, ReportData
from sparring.pipeline.report.details import ArmDetails, details_of
from sparring.pipeline.report.html import page
from sparring.pipeline.report.prompts import DRAWN, WIDEST, Prompt, ShownPrompts
from sparring.pipeline.runs.run_history import open_arms
from tests.pipeline.report.fabricated import Run, duel, history_of, page_of, section
from tests.pipeline.report.planted import NAME, RUNS, TEXTS, planted
from tests.refusals import named


class Elements(HTMLParser):
    """Every start tag and its attributes, and all that is text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@dataclass(frozen=True)
class Arm:
    """What the page shows of an arm."""

    report: ArmReport
    details: ArmDetails

    def prompts(self, prompts: Mapping[int, ShownPrompts]) -> Arm:
        """The same with other prompts."""
        return replace(self, details=replace(self.details, prompts=prompts))


def shown(*arms: Arm) -> str:
    """The page of these arms."""
    return page.page(ReportData(arms=[arm.report for arm in arms]), [arm.details for arm in arms])


def read(runs: Path, name: str = "mine") -> Arm:
    (arm,) = histories = open_arms(runs, [name])
    return Arm(ArmReport.of(arm), details_of(histories)[0])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    return read(planted(tmp_path_factory.mktemp("planted")).root / "runs", NAME)


def test_what_was_planted_is_text(hostile: Arm) -> None:
    html = shown(hostile)
    elements = Elements(html)
    names = [name for name, _ in elements.found]
    assert names.count("script") == 1 and names.count("style") == 1
    assert not {"img", "base", "a", "iframe", "object", "link"} & set(names)
    attributes = {key for _, attrs in elements.found for key in attrs}
    assert not [key for key in attributes if key.startswith("on") or key in ("style", "src", "href")]
    for text in TEXTS[:4]:
        assert text in elements.text
    assert NAME in elements.text and RUNS in elements.text and "<b>over</b>" in elements.text
    assert "\\x1b[31mred" in html and "\\u202egnp.exe" in html
    assert not set("\x1b\x00\u202e\u2066\u2028\u2029") & set(html)


def test_the_page_loads_nothing_and_runs_nothing_but_its_own_script(hostile: Arm) -> None:
    html = shown(hostile)
    assert not re.search(r"https?://|url\(|@import|//evil", re.sub("&lt;base.*?&gt;", "", html))
    found = dict.fromkeys(("style", "script"), "")
    for name in found:
        (text,) = re.findall(rf"<{name}>(.*?)</{name}>", html, re.DOTALL)
        found[name] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    (content,) = [attrs["content"] for _, attrs in Elements(html).found if attrs.get("http-equiv")]
    assert content == (
        f"default-src 'none'; style-src 'sha256-{found['style']}'; script-src 'sha256-{found['script']}'; "
        "base-uri 'none'; form-action 'none'"
    )
    script = (page.FOLDER / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|fetch|XMLHttp", script)


def test_the_order_begins_with_the_answer(hostile: Arm) -> None:
    text = Elements(shown(hostile)).text
    heads = ["Did it get better?", "Better than the base by the oracle", "Win rate by iteration", "Length by policy"]
    heads += ["Who beats whom", "Win rates, similarity, gate", "Training", "Band and distance"]
    heads += ["Collapse panel", "Time and cost", "Dropped", "Prompts", "All figures", "Lineage", "Made with"]
    places = [text.index(head) for head in heads]
    assert places == sorted(places)


def test_what_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    Run(tmp_path).begin().add(0, "prompts")
    text = Elements(page_of(open_arms(tmp_path / "runs", ["mine"]))).text
    for line in ("Win rate by iteration: left out, no evaluation yet.", "Training: left out, no training yet."):
        assert line in text
    assert "Not evaluated yet" in text and "Nothing was dropped" in text and "<h2>Training" not in text


def test_the_worst_texts_of_many_prompts_stay_below_3_mb(hostile: Arm) -> None:
    k = 16
    worst = "\u202e'\"" * 4000  # spelled out and escaped, a character becomes six
    response = {"text": worst, "ids": [0] * 2048, "finish": "length", "seed": 0}
    prompt = Prompt(
        id="0" * 16,
        messages=[{"role": "user", "content": worst}],
        responses=[response] * k,
        p=np.full((k, k), 0.5),
        rates=np.full(k, 0.5),
        g=None,
        gated=None,
        pairs=(),
        dropped={"tie": 1},
    )
    every = [replace(prompt, id=f"{i:016x}") for i in range(WIDEST + DRAWN)]
    html = shown(hostile.prompts({t: ShownPrompts(prompts=list(every), of=20_000) for t in (1, 2, 3)}))
    assert len(html.encode()) < 3_000_000
    n = html.count('<details class="prompt"')
    assert 3 <= n < 120 and f"{n} of 60,000 prompts are shown" in html


@pytest.mark.parametrize("n", [24, 60])
def test_many_arms_stay_below_3_mb(hostile: Arm, tmp_path: Path, n: int) -> None:
    """Three iterations of 17 steps each, the whole panel, 300 optimizer steps; prompts that would fill any room."""
    full = Run(tmp_path).begin()
    full.measured([1, 2, 3])
    measured, one = read(tmp_path / "runs").report, hostile.report
    every = {
        t: steps | {f"other_{i}": replace(steps["train"], fingerprint=f"{t}{i:063d}") for i in range(17 - len(steps))}
        for t, steps in one.history.iterations.items()
    }
    records: dict[int, list[Mapping[str, Any]]] = {}
    first = hostile.details.records
    records |= {t: [{**first[t][0], "step": s, "loss": 9 / s} for s in range(1, 101)] for t in (1, 2, 3)}
    long = {
        t: replace(c, prompts=[replace(c.prompts[0], id=f"{i}") for i in range(40)])
        for t, c in hostile.details.prompts.items()
    }
    history = history_of({0: one.history.steps[0], **every})
    vars(history)["panels"] = measured.history.panels
    full_report = replace(one, history=history, panel=measured.panel)
    arms = [
        Arm(
            replace(full_report, label=f"experiment=s_sppo,gate=linear,seed={i}"),
            replace(hostile.details, records=records, prompts={t: replace(c) for t, c in long.items()}),
        )
        for i in range(n)
    ]
    html = shown(*arms)
    assert 1_500_000 < len(html.encode()) < 3_000_000
    assert html.count("<summary>experiment=s_sppo,gate=linear,seed=23</summary>") >= 8
    assert html.count("<summary>experiment=s_sppo,gate=linear,seed=24</summary>") == 0
    assert (html.count(f"The first 24 of {n} arms; a report of fewer arms") >= 8) == (n > 24)
    assert html.count(f"seed={n - 1}") >= 3  # in the table of all arms and in the charts of all


def test_ordinary_texts_of_120_prompts_are_all_shown(hostile: Arm) -> None:
    prompt = next(p for p in hostile.details.prompts[1].prompts if p.id == "plain3")
    long = [{**row, "text": "word " * 400} for row in prompt.responses]
    every = [replace(prompt, id=f"{i}", responses=long) for i in range(WIDEST + DRAWN)]
    html = shown(hostile.prompts({t: ShownPrompts(prompts=list(every), of=20_000) for t in (1, 2, 3)}))
    assert html.count('<details class="prompt"') == 120 and len(html.encode()) < 1_000_000
    assert f"{'word ' * 140} … (1,300 more characters)" in html


def test_where_there_is_little_room_both_kinds_of_prompts_remain(hostile: Arm) -> None:
    prompt = hostile.details.prompts[1].prompts[0]
    assert [one.id for one in page.mixed([replace(prompt, id=f"{i}") for i in range(5)])] == ["0", "3", "1", "4", "2"]


def test_the_cross_play_says_what_kind_of_game_it_is(hostile: Arm) -> None:
    drawn = section(shown(hostile), "Who beats whom")
    text = Elements(drawn).text.replace("\u00a0", " ")
    assert "~ stands where the interval contains ½" in text and "of the policies up to" not in text
    assert "Not cyclic by point estimates: no round of policies in which each beats the next" in text
    assert "Cyclic, by point estimates alone: base beats iter 2 beats iter 1 beats base" in text
    exploited = "base: 0.060 (by iter 1), iter 1: 0.060 (by iter 2), iter 2: 0.060 (by iter 3), iter 3: 0"
    assert f"Exploitability within the set, by point estimates (win rate of the best answer - 1/2): {exploited}" in text
    assert "An equilibrium of the set, by point estimates: iter 3: 1.00" in text
    assert drawn.count(">~.49</text>") == drawn.count(">~.51</text>") == 3 and drawn.count("~.5") == 3
    assert "iter 2 against base: 0.490 [0.470, 0.510]</title>" in drawn
    rates = "<td>0.560 [0.540, 0.580]</td><td>0.550 [0.530, 0.570]</td>"
    assert f'<th scope="row">iter 3 against iter 2</th>{rates}' in drawn


def test_without_the_step_the_scores_alone_are_shown(hostile: Arm) -> None:
    unplayed = replace(hostile, report=replace(hostile.report, games={}))
    drawn = section(shown(unplayed), "Who beats whom")
    assert drawn.count("<svg") == 2 and "~" not in drawn and "yclic" not in drawn
    nothing = replace(unplayed, details=replace(hostile.details, scored={}))
    assert "Who beats whom: left out, no held-out scores yet." in shown(nothing)


def test_a_cross_play_that_lags_behind_says_of_whom_it_is(hostile: Arm, tmp_path: Path) -> None:
    made = Run(tmp_path).begin()
    made.crossplayed(2)
    one = read(tmp_path / "runs")
    drawn = section(shown(replace(one, details=replace(one.details, scored=hostile.details.scored))), "Who beats whom")
    assert "What stands below the maps is of the policies up to iteration 2." in drawn
    assert "iter 3 against base: 0.580</title>" in drawn and "iter 2 against base: 0.560 [0.540, 0.580]" in drawn


def warned(tmp_path: Path, name: str, iterations: int) -> None:
    """Add a run of which every iteration fires `similar`; 0: none does."""
    run = Run(tmp_path, name).begin()
    run.add(1, "prompts")
    for t in range(1, iterations + 1):
        run.add(t, "embed", summary={"similarity_mean": 0.9 + t / 1000})


def test_rules_that_fire_are_seen(tmp_path: Path) -> None:
    warned(tmp_path, "mine", 2)
    arms = open_arms(tmp_path / "runs", ["mine"])
    html = page_of(arms)
    elements = Elements(html)
    assert ("details", {"class": "warned", "open": None}) in elements.found
    assert "⚠ Diagnostics warn: similar" in elements.text
    line = "the K responses of a prompt are alike: similarity 0.902 in the mean (diagnostics.similar=0.9)"
    assert elements.text.count(line) == 1 and elements.text.index(line) < elements.text.index("left out")
    assert f"<li>iteration 2: similar: {line}</li>" in html and "WARNING" not in html
    (arm,) = json.loads(as_json(ReportData.of(arms)))["arms"]
    text = "the K responses of a prompt are alike: similarity 0.901 in the mean"
    assert arm["warnings"]["1"] == [{"rule": "similar", "threshold": 0.9, "text": text}] and set(arm["warnings"]) == {
        "1",
        "2",
    }
    assert arm["notes"]["1"] == [f"WARNING similar: {text} (diagnostics.similar=0.9)"]


def test_many_warnings_are_folded_under_the_names_of_their_rules(tmp_path: Path) -> None:
    warned(tmp_path, "m/a", page.UNFOLDED + 1)
    warned(tmp_path, "m/b", 1)
    warned(tmp_path, "m/c", 0)
    html = page_of(open_arms(tmp_path / "runs", ["m"]))
    assert ("details", {"class": "warned"}) in Elements(html).found
    assert "<li>a, b: iteration 1: similar:" in html and "<li>a: iteration 9: similar:" in html
    only = page_of(open_arms(tmp_path / "runs", ["m/c"]))
    assert "Diagnostics warn" not in only and 'class="warned"' not in only


def test_several_arms_stand_beside_each_other(tmp_path: Path) -> None:
    for name, rate in (("m/gate=off", 0.55), ("m/gate=linear", 0.6)):
        run = Run(tmp_path, name).begin()
        run.annotated(1, [{"p": duel("?", "x", "y", 0.7)}], g=0.0 if "off" in name else 0.5)
        run.trained(1)
        run.evaluated(1, rate, rate)
    html = page_of(open_arms(tmp_path / "runs", ["m"]))
    text = Elements(html).text
    assert (
        "By the second judge gate=linear stands highest by point estimate, at iteration 1: 0.600 [0.570, 0.630]."
        in text
    )
    assert "The interval of the other one overlaps with it." in text
    assert "Win rate against the base, oracle" in text and "No gate." in text
    assert html.count("<summary>gate=off</summary>") >= 4 and 'id="by-arm"' in html


def test_report_prints_the_table_and_writes_page_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = planted(tmp_path)
    out = tmp_path / "figures.json"
    assert main(["report", NAME, "--runs", str(tmp_path / "runs"), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(run.folder / "report.html")
    assert (run.folder / "report.html").read_bytes().startswith(b"<!doctype html>")
    assert not list(run.folder.glob(".report*"))
    (arm,) = json.loads(out.read_text())["arms"]
    assert arm["run"] == NAME and set(arm["iterations"]) == {"1", "2", "3"}
    (history,) = open_arms(tmp_path / "runs", [NAME])
    for t, figures in ArmReport.of(history).figures.items():
        values = arm["iterations"][str(t)]
        assert values == {name: figure.value for name, figure in figures.items()}
        assert figures["oracle: vs base"].text.splitlines()[0] in printed
    assert "prompts dropped: <b>over</b> 2" in arm["notes"]["1"][0]


@pytest.mark.parametrize(("columns", "least", "most"), [("", 100, 160), ("60", 40, 60)])
def test_where_it_is_piped_the_table_is_160_wide_or_as_columns_says(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    least: int,
    most: int,
) -> None:
    run = Run(tmp_path).begin()
    run.add(0, "prompts")
    for t in range(1, 6):
        run.evaluated(t, 0.6, 0.6)
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["report", "mine", "--runs", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert least < max(len(line) for line in printed.splitlines() if "│" in line) <= most
    assert ("0.600 [0.570, 0.630] │ 0.600 [0.570, 0.630]" in printed) == (most == 160)


def test_the_json_has_the_answer_and_the_cross_play(tmp_path: Path) -> None:
    planted(tmp_path)
    arms = open_arms(tmp_path / "runs", [NAME])
    (arm,) = json.loads(as_json(ReportData.of(arms)))["arms"]
    told = ArmReport.of(arms[0]).answer
    assert arm["answer"] == {
        "iteration": 3,
        "headline": "Better than the base by the oracle; the second judge cannot tell",
        "tone": "open",
        "sentences": list(told.sentences),
    }
    assert len(told.sentences) == 3
    summary = arms[0].steps[3]["crossplay"].summary
    assert arm["crossplay"] == {"3": summary}
    second = arm["crossplay"]["3"]["judges"]["second"]
    assert second["cycle"] == [0, 2, 1] and second["low"][1][0] == pytest.approx(0.53)


@pytest.mark.parametrize("place", ["missing/figures.json", "."])
def test_json_where_no_file_can_be_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Run(tmp_path).begin().add(0, "prompts")
    assert main(["report", "mine", "--json", place]) == 2
    told = capsys.readouterr()
    named(told.err, f"error: --json {place}: ")
    assert told.err.count("\n") == 1 and not told.out
    assert not (tmp_path / "runs/mine/report.html").exists()


def test_json_into_a_pipe_and_through_a_link(tmp_path: Path) -> None:
    Run(tmp_path).begin().add(0, "prompts")
    words = ["report", "mine", "--runs", str(tmp_path / "runs"), "--json"]
    (tmp_path / "link.json").symlink_to(tmp_path / "figures.json")
    assert main([*words, str(tmp_path / "link.json")]) == 0
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "figures.json").read_text())["arms"]
    read, write = os.pipe()
    assert main([*words, f"/dev/fd/{write}"]) == 0
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == (tmp_path / "figures.json").read_text()


@pytest.fixture(scope="module")
def ungated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with gate=off."""
    run = Run(tmp_path_factory.mktemp("ungated")).begin().based()
    run.annotated(1, [{"p": duel("?", "x", "y", 0.7), "tied": duel("?", "x", "x", 0.5)}], g=0.0)
    run.trained(1)
    run.evaluated(1, 0.6, 0.55)
    run.crossplayed(1)
    return run


STEPS = ("sample", "score", "pairs", "calibrate", "train", "evaluate", "crossplay", "sample_base", "sample_heldout")


@pytest.mark.parametrize("missing", ["", *STEPS, "score_oracle_base", "score_second_base"])
def test_a_run_without_a_gate_is_shown_whatever_step_is_missing(
    ungated: Run, missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((ungated.folder / "run.json").read_text())
    for steps in record["steps"].values():
        steps.pop(missing, None)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    words = ["mine", "--runs", str(tmp_path / "runs")]
    assert main(["report", *words, "--json", str(tmp_path / "figures.json")]) == 0
    text = Elements((folder / "report.html").read_text()).text
    assert ("Pair 0 over 1" in text) == (missing not in ("sample", "pairs"))
    prompts = ("p", "tied") if missing != "sample" else ()
    assert all(main(["inspect", *words, "--prompt", name]) == 0 for name in prompts)
    assert main(["inspect", *words]) == (0 if prompts else 2)
