"""What a plan says of the number of prompts: counted once, refused where too few, dealt again where that is meant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparring.pipeline import config
from sparring.pipeline.cli import main
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.plan import Plan
from sparring.pipeline.planning.prompt_count import dealt_again, with_prompt_counts
from sparring.pipeline.sources import Sources
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample import prompts
from sparring.stages.sample.config import PolicyConfig
from sparring.stages.step import Input
from tests.pipeline.plans import Fixed, labels, plan_of
from tests.refusals import refused
from tests.stages.sample.jobs import jsonl
from tests.tiny import tokenizer_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Files(Fixed):
    """Fixed inputs but for the prompts, which are read."""

    prompts = Sources.prompts


def mine(folder: Path, n: int, name: str = "p.jsonl") -> Path:
    return jsonl(folder / name, [f"Question {i}: what is {i} + {i}?" for i in range(n)])


def plan(path: Path, *overrides: str) -> Plan:
    chosen = config.load(["hardware=cpu", "prompts=file", f"prompts.path={path}", *overrides])
    return build({"": chosen}, Files())


@pytest.mark.parametrize(
    ("n", "heldout", "train", "per_iteration"),
    [(10, 2, 8, 32), (40, 8, 32, 32), (100, 20, 80, 64), (400, 64, 336, 64)],
)
def test_the_default_of_a_file_fits_it(tmp_path: Path, n: int, heldout: int, train: int, per_iteration: int) -> None:
    made = plan(mine(tmp_path, n))
    chosen = made.configs[""].prompts
    assert (chosen.heldout, made.train_prompts[""], chosen.per_iteration) == (heldout, train, per_iteration)
    (step,) = (step for step in made.steps.values() if step.spec.kind == "prompts")
    assert step.settings.prompts.heldout == heldout
    explicit = plan(tmp_path / "p.jsonl", f"prompts.heldout={heldout}", f"prompts.per_iteration={per_iteration}")
    assert labels(explicit) == labels(made), "a number that is decided is the number that is written"


def test_more_prompts_where_the_steps_need_them(tmp_path: Path) -> None:
    path = mine(tmp_path, 400)
    assert plan(path, "trainer.global_batch=32").configs[""].prompts.per_iteration == 256
    assert plan(path, "trainer.global_batch=4").configs[""].prompts.per_iteration == 64
    assert plan(mine(tmp_path, 40, "q.jsonl"), "trainer.epochs=2").configs[""].prompts.per_iteration == 32


@pytest.mark.parametrize(
    ("n", "overrides", "error", "words"),
    [
        (40, ["prompts.heldout=64"], DataError, ["40 usable", "prompts.heldout=64"]),
        (4, [], ConfigError, ["3 prompts", "1 held", "trainer.global_batch=4", "8 steps"]),
        (60, ["prompts.slices=3"], ConfigError, ["prompts.slices=3", "16 in each", "4 optimizer steps"]),
        (1, [], DataError, ["1 usable", "prompts.heldout=1"]),
        (0, [], DataError, ["no prompts"]),
    ],
)
def test_too_few_are_refused_with_their_numbers(
    tmp_path: Path, n: int, overrides: list[str], error: type[Exception], words: list[str]
) -> None:
    path = mine(tmp_path, n)
    with refused(error, f"{path}: ", *words):
        plan(path, *overrides)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "Why?"}, {"prompt": 3}], ["line 2", "number"]),
        ([{"prompt": "Why?"}, {"prompt": ""}], ["line 2", "empty"]),
        ([{"question": "Why?"}], ["column prompt", "prompts.column=question"]),
        ([{"prompt": "Why is that?"}] * 50, ["1 usable", "49 duplicate"]),
        ([{"prompt": "?"}] * 50, ["0 usable", "50 near_empty"]),
    ],
)
def test_rows_are_looked_at_when_planning(
    tmp_path: Path, rows: list[dict[str, object]], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [f"paths.store={tmp_path / 'store'}", f"paths.runs={tmp_path / 'runs'}"]
    for command in ("plan", "run"):
        assert main([command, "hardware=cpu", "prompts=file", f"prompts.path={path}", *paths]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and str(path) in message and all(word in message for word in words)
    assert not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()


class Tokenizing(Files):
    """With a policy whose tokenizer is here."""

    def policy(self, config: PolicyConfig) -> Input:
        return replace(super().policy(config), root=tokenizer_folder())


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["word " * 400] * 3 + [f"{i} " * 400 for i in range(9)], ["10 prompts", "prompts.max_tokens"]),
        (["word " * 400, "Why is that?"], ["1 usable", "1 too_long"]),
        (["word " * 400, "Why is that?", "Who says so?"], []),
        (["wonderful " * 200, "wonderful " * 201], []),
    ],
    ids=["all", "too few left", "enough", "long in letters alone"],
)
def test_prompts_that_are_too_long_are_found_when_planning(tmp_path: Path, texts: list[str], words: list[str]) -> None:
    path = jsonl(tmp_path / "p.jsonl", texts)
    given = ["hardware=cpu", "prompts=file", f"prompts.path={path}", "prompts.heldout=1", "prompts.per_iteration=64"]
    configs = {"": config.load([*given, "prompts.max_tokens=384"])}
    if not words:
        assert build(configs, Tokenizing()).train_prompts
        return
    with refused(DataError, f"{path}: ", *words):
        build(configs, Tokenizing())


def test_a_file_is_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mine(tmp_path, 40)
    made = plan(path)
    monkeypatch.setattr(prompts, "count", lambda *_: pytest.fail("read again"))
    (tmp_path / "elsewhere").mkdir()
    assert labels(plan(path)) == labels(made) == labels(plan(mine(tmp_path / "elsewhere", 40)))
    monkeypatch.undo()
    monkeypatch.setenv("SPARRING_CACHE", str(cache))
    (kept,) = (cache / "prompts").iterdir()
    kept.write_text("{")
    assert labels(plan(path)) == labels(made), "what is damaged is counted again"


def test_a_folder_is_named_by_its_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        mine(tmp_path / name, 30, "1.jsonl")
        jsonl(tmp_path / name / "2.jsonl", [f"And {i} more?" for i in range(10)])
    (tmp_path / "b" / "README.md").write_text("other")
    one, two = plan(tmp_path / "a"), plan(tmp_path / "b")
    assert labels(one) == labels(two) and one.train_prompts == {"": 32}


@pytest.mark.parametrize(
    ("overrides", "train", "words"),
    [
        (["iterations=3"], 120, None),
        (["iterations=4"], 120, "4 iterations of 40 prompts take 160, there are 120: from iteration 4 on"),
        (["iterations=3"], 70, "there are 70: from iteration 2 on"),
        (["iterations=1"], 32, "1 iteration of 40 prompts takes 40, there are 32: from iteration 1 on"),
        (["iterations=9"], None, None),
        (["iterations=4", "prompts.per_iteration=null", "prompts.slices=3"], None, "from 4 on they are dealt again"),
        (["iterations=3", "prompts.per_iteration=null", "prompts.slices=3"], None, None),
    ],
)
def test_prompts_that_are_dealt_again(overrides: list[str], train: int | None, words: str | None) -> None:
    said = dealt_again(config.load(["hardware=cpu", *overrides]), train)
    assert said is None if words is None else said is not None and words in said


def test_a_plan_says_that_prompts_are_dealt_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, paths = mine(tmp_path, 20), [f"paths.store={tmp_path / 'store'}", f"paths.runs={tmp_path / 'runs'}"]
    assert main(["plan", "hardware=cpu", "prompts=file", f"prompts.path={path}", *paths]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 iteration of 32 prompts takes 32, there are 16: from iteration 1 on prompts are dealt again" in out


def test_files_that_are_not_here_are_not_counted() -> None:
    assert with_prompt_counts(config.load(["hardware=cpu"]), Fixed())[1] is None
    assert plan_of().train_prompts == {"": None}
