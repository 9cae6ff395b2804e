"""The page: whole, small, escaped, and the same figures as the table and the JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.pipeline import book
from sparring.pipeline.cli import main
from sparring.pipeline.report import numbers
from sparring.pipeline.report.answer import answer
from sparring.pipeline.report.html import browser, page
from sparring.pipeline.report.html.games import games
from sparring.pipeline.report.html.gather import Story, gather
from sparring.pipeline.report.html.prompts import DRAWN, WIDEST, Chosen, Prompt
from sparring.pipeline.report.table import FIGURES
from sparring.pipeline.run_history import find, iterations
from tests.pipeline.report.fabricated import Run, duel
from tests.pipeline.report.planted import NAME, RUNS, TEXTS, planted


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


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Story]:
    run = planted(tmp_path_factory.mktemp("planted"))
    return gather(find(run.root / "runs", [NAME]))


def test_what_was_planted_is_text(hostile: list[Story]) -> None:
    html = page.page(hostile)
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


def test_the_page_loads_nothing_and_runs_nothing_but_its_own_script(hostile: list[Story]) -> None:
    html = page.page(hostile)
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
    script = (page.HERE / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|fetch|XMLHttp", script)


def test_the_order_begins_with_the_answer(hostile: list[Story]) -> None:
    text = Elements(page.page(hostile)).text
    heads = ["Did it get better?", "Better than the base by the oracle", "Win rate by iteration", "Length by policy"]
    heads += ["Who beats whom", "Win rates, similarity, gate", "Training", "Band and distance"]
    heads += ["Collapse panel", "Time and cost", "Dropped", "Prompts", "All figures", "Lineage", "Made with"]
    places = [text.index(head) for head in heads]
    assert places == sorted(places)


def test_what_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    Run(tmp_path).begin().add(0, "prompts")
    text = Elements(page.page(gather(find(tmp_path / "runs", ["mine"])))).text
    for line in ("Win rate by iteration: left out, no evaluation yet.", "Training: left out, no training yet."):
        assert line in text
    assert "Not evaluated yet" in text and "Nothing was dropped" in text and "<h2>Training" not in text


def test_the_worst_texts_of_many_prompts_stay_below_3_mb(hostile: list[Story]) -> None:
    k = 16
    worst = "\u202e'\"" * 4000  # spelled out and escaped, a character becomes six
    response = {"text": worst, "ids": [0] * 2048, "finish": "length", "seed": 0}
    prompt = Prompt(
        id="0" * 16,
        messages=[{"role": "user", "content": worst}],
        responses=[response] * k,
        p=np.full((k, k), 0.5),
        rates=np.full(k, 0.5),
        gated=None,
        pairs=(),
        reason="tie",
    )
    shown = [replace(prompt, id=f"{i:016x}") for i in range(WIDEST + DRAWN)]
    many = replace(hostile[0], prompts={t: Chosen(prompts=list(shown), of=20_000) for t in (1, 2, 3)})
    html = page.page([many])
    assert len(html.encode()) < 3_000_000
    n = html.count('<details class="prompt"')
    assert 3 <= n < 120 and f"{n} of 60,000 prompts are shown" in html


@pytest.mark.parametrize("n", [24, 60])
def test_many_arms_stay_below_3_mb(hostile: list[Story], tmp_path: Path, n: int) -> None:
    """Three iterations of 17 steps each, the whole panel, 300 optimizer steps; prompts that would fill any room."""
    full = Run(tmp_path).begin()
    full.measured([1, 2, 3])
    (measured,) = gather(find(tmp_path / "runs", ["mine"]))
    one = hostile[0]
    every = {
        t: steps | {f"other_{i}": replace(steps["train"], fingerprint=f"{t}{i:063d}") for i in range(17 - len(steps))}
        for t, steps in one.done.items()
    }
    records: dict[int, list[Mapping[str, Any]]] = {}
    records |= {t: [{**one.records[t][0], "step": s, "loss": 9 / s} for s in range(1, 101)] for t in (1, 2, 3)}
    long = {
        t: replace(c, prompts=[replace(c.prompts[0], id=f"{i}") for i in range(40)]) for t, c in one.prompts.items()
    }
    shown = replace(one, every={0: one.every[0], **every}, records=records, panels=measured.panels)
    arms = [
        replace(shown, name=f"experiment=s_sppo,gate=linear,seed={i}", prompts={t: replace(c) for t, c in long.items()})
        for i in range(n)
    ]
    html = page.page(arms)
    assert 1_500_000 < len(html.encode()) < 3_000_000
    assert html.count("<summary>experiment=s_sppo,gate=linear,seed=23</summary>") >= 8
    assert html.count("<summary>experiment=s_sppo,gate=linear,seed=24</summary>") == 0
    assert (html.count(f"The first 24 of {n} arms; a report of fewer arms") >= 8) == (n > 24)
    assert html.count(f"seed={n - 1}") >= 3  # in the table of all arms and in the charts of all


def test_ordinary_texts_of_120_prompts_are_all_shown(hostile: list[Story]) -> None:
    story = hostile[0]
    prompt = next(p for p in story.prompts[1].prompts if p.id == "plain3")
    long = [{**row, "text": "word " * 400} for row in prompt.responses]
    shown = [replace(prompt, id=f"{i}", responses=long) for i in range(WIDEST + DRAWN)]
    many = replace(story, prompts={t: Chosen(prompts=list(shown), of=20_000) for t in (1, 2, 3)})
    html = page.page([many])
    assert html.count('<details class="prompt"') == 120 and len(html.encode()) < 1_000_000
    assert f"{'word ' * 140} … (1,300 more characters)" in html


def test_where_there_is_little_room_both_kinds_of_prompts_remain(hostile: list[Story]) -> None:
    prompt = hostile[0].prompts[1].prompts[0]
    shown = [replace(prompt, id=f"{i}") for i in range(5)]
    assert [one.id for one in browser._mixed(shown)] == ["0", "3", "1", "4", "2"]


def test_the_cross_play_says_what_kind_of_game_it_is(hostile: list[Story]) -> None:
    drawn = games(hostile[0])
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


def test_without_the_step_the_scores_alone_are_shown(hostile: list[Story]) -> None:
    drawn = games(replace(hostile[0], games={}))
    assert drawn.count("<svg") == 2 and "~" not in drawn and "yclic" not in drawn
    assert games(replace(hostile[0], games={}, crossplay={})) == ""


def test_a_cross_play_that_lags_behind_says_of_whom_it_is(hostile: list[Story], tmp_path: Path) -> None:
    made = Run(tmp_path).begin()
    made.crossplayed(2)
    (story,) = gather(find(tmp_path / "runs", ["mine"]))
    drawn = games(replace(story, crossplay=hostile[0].crossplay))
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
    arms = find(tmp_path / "runs", ["mine"])
    html = page.page(gather(arms))
    elements = Elements(html)
    assert ("details", {"class": "warned", "open": None}) in elements.found
    assert "⚠ Diagnostics warn: similar" in elements.text
    line = "the K responses of a prompt are alike: similarity 0.902 in the mean (diagnostics.similar=0.9)"
    assert elements.text.count(line) == 1 and elements.text.index(line) < elements.text.index("left out")
    assert f"<li>iteration 2: similar: {line}</li>" in html and "WARNING" not in html
    (arm,) = json.loads(numbers.as_json(arms, ()))["arms"]
    text = "the K responses of a prompt are alike: similarity 0.901 in the mean"
    assert arm["warnings"]["1"] == [{"rule": "similar", "threshold": 0.9, "text": text}] and set(arm["warnings"]) == {
        "1",
        "2",
    }
    assert arm["notes"]["1"] == [f"WARNING similar: {text} (diagnostics.similar=0.9)"]


def test_many_warnings_are_folded_under_the_names_of_their_rules(tmp_path: Path) -> None:
    warned(tmp_path, "m/a", page.OPEN + 1)
    warned(tmp_path, "m/b", 1)
    warned(tmp_path, "m/c", 0)
    html = page.page(gather(find(tmp_path / "runs", ["m"])))
    assert ("details", {"class": "warned"}) in Elements(html).found
    assert "<li>a, b: iteration 1: similar:" in html and "<li>a: iteration 9: similar:" in html
    only = page.page(gather(find(tmp_path / "runs", ["m/c"])))
    assert "Diagnostics warn" not in only and 'class="warned"' not in only


def test_several_arms_stand_beside_each_other(tmp_path: Path) -> None:
    for name, rate in (("m/gate=off", 0.55), ("m/gate=linear", 0.6)):
        run = Run(tmp_path, name).begin()
        run.annotated(1, [{"p": duel("?", "x", "y", 0.7)}], g=0.0 if "off" in name else 0.5)
        run.trained(1)
        run.evaluated(1, rate, rate)
    html = page.page(gather(find(tmp_path / "runs", ["m"])))
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
    forms = dict(FIGURES)
    for t, values in arm["iterations"].items():
        (steps,) = (found.done[int(t)] for found in find(tmp_path / "runs", [NAME]))
        assert {name: forms[name].show(value) for name, value in values.items()} == {
            name: text for name, figure in FIGURES if (text := figure(steps)) is not None
        }
        assert forms["oracle: vs base"].show(values["oracle: vs base"]).splitlines()[0] in printed
    assert "prompts dropped: 2 <b>over</b>" in arm["notes"]["1"][0]


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
    run = planted(tmp_path)
    arms = find(tmp_path / "runs", [NAME])
    (arm,) = json.loads(numbers.as_json(arms, ()))["arms"]
    told = answer(arms[0].done)
    assert arm["answer"] == {
        "iteration": 3,
        "headline": "Better than the base by the oracle; the second judge cannot tell",
        "tone": "open",
        "sentences": list(told.sentences),
    }
    assert len(told.sentences) == 3
    summary = iterations(book.read(run.folder), run.store)[3]["crossplay"].summary
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
    assert told.err == f"error: --json {place}: name a file in a folder that is there.\n" and not told.out
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


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nothing", "--runs", str(tmp_path)]) == 2
    assert "no such run" in capsys.readouterr().err
