"""`sparring inspect`: what it shows of real artifacts, made by the steps themselves, of imported responses."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.cli import prepare as cli_prepare
from sparring.pipeline.cli import run as cli_run
from sparring.pipeline.execution.events import Events
from sparring.pipeline.execution.executor import Executor
from tests.pipeline.plans import in_process
from tests.refusals import named
from tests.tiny import tiny_policy

NILE = "The Nile is a river in Africa."
ROWS = [
    {"prompt": "Name a river.", "responses": [NILE, "no no no no no", "A \x1b[31mred [bold]river[/bold]", "x" * 900]},
    {"prompt": "Say it once more, twice.", "responses": ["It.", "It.", "It.", "It."]},
    {"prompt": "Another one, for the list.", "responses": ["Yes, of course.", "no", "I will not.", "Maybe later."]},
]
KINDS = ("prompts", "score", "embed", "pairs", "calibrate")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was annotated, in this process, and then stopped."""
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    played = [f"Filler number {i}, to be held out or played." for i in range(12)] + [str(row["prompt"]) for row in ROWS]
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in played))
    overrides = [
        "hardware=cpu",
        "policy=folder",
        f"policy.path={tiny_policy(folder / 'policy')}",
        "prompts=file",
        f"prompts.path={folder / 'p.jsonl'}",
        "prompts.heldout=2",
        "prompts.per_iteration=8",
        "prompts.max_tokens=64",
        "sampler.max_tokens=32",
        "trainer.global_batch=1",
        f"paths.store={folder / 'store'}",
        f"paths.runs={folder / 'runs'}",
        "run.name=mine",
    ]
    assert main(["import", "responses", str(folder / "r.jsonl"), *overrides]) == 0
    (sample,) = (folder / "store").glob("sample-*")
    overrides.append(f"entry.samples={sample.name}")
    plan = in_process(cli_prepare.plan_of({"": overrides}))
    steps = {name: step for name, step in plan.steps.items() if step.uses[0].label in KINDS}
    run = folder / "runs" / "mine"
    cli_run._begin(plan, "", overrides, {})
    events = Events(run / "events.jsonl")
    Executor(
        plan=replace(plan, steps=steps),
        store=folder / "store",
        run="mine",
        scratch=run / "logs",
        events=events,
        on_done=partial(cli_run._link_step, plan, folder / "store"),
    ).execute()
    events.close()
    return folder


def shown(folder: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["inspect", "mine", "--runs", str(folder / "runs"), *words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def id_of(folder: Path, capsys: pytest.CaptureFixture[str], first: str) -> str:
    """The id of the prompt that begins with a word, from the list."""
    lines = [line.split("│") for line in shown(folder, capsys).splitlines() if line.startswith("│")]
    return next(cells[1].strip() for cells in lines if cells[2].split()[0] == first)


def test_one_prompt(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = id_of(made, capsys, "Name")
    out = shown(made, capsys, "--iter", "1", "--prompt", name)
    assert "user: Name a river." in out and NILE in out
    assert "A \\x1b[31mred [bold]river[/bold]" in out and "\x1b" not in out  # neither ANSI nor markup of a response
    assert "… (500 more characters)" in out
    assert out.count("CHOSEN") == 1 and out.count("REJECTED") == 1
    for title in ("P: row beats column", "similarity", "gate g", "P̃"):
        assert title in out
    assert "-> target" in out and "P[w,l]" in out
    whole = shown(made, capsys, "--prompt", name[:6], "--full")
    assert "more characters" not in whole and whole.count("x") >= 900


def test_why_a_prompt_has_no_pair(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(made, capsys, "--prompt", id_of(made, capsys, "Say"))
    assert "dropped: 1 pair, tie" in out and "CHOSEN" not in out and "P: row beats column" in out


def test_what_is_not_there(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named(shown(made, capsys, "--prompt", "zzz", code=2), "--prompt zzz", "iteration 1")
    named(shown(made, capsys, "--iter", "7", code=2), "iteration 7", " 1")
    assert main(["inspect", "other", "--runs", str(made / "runs")]) == 2
