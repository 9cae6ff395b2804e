"""`sparring judge lm_eval`: what the package is asked, by a stand-in for it, and one message for what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.store.manifest import Artifact
from sparring.pipeline.suites import results
from sparring.pipeline.suites.lm_eval import TASKS, by_shots
from tests.pipeline.suites import runs
from tests.refusals import named


class Model:
    """What `get_model` returns; notes how it was loaded."""

    loaded: ClassVar[list[tuple[dict[str, Any], dict[str, Any]]]] = []

    @classmethod
    def create_from_arg_obj(cls, settings: dict[str, Any], more: dict[str, Any]) -> Model:
        cls.loaded.append((settings, more))
        return cls()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of the package."""
    calls: list[dict[str, Any]] = []

    def simple_evaluate(**given: Any) -> dict[str, Any]:
        calls.append(given)
        figures = {
            "acc,none": 0.25,
            "acc_norm,none": 0.5,
            "acc_norm_stderr,none": 0.01,
            "exact_match,strict-match": 0.125,
            "exact_match_stderr,strict-match": "N/A",
        }
        return {"results": dict.fromkeys(given["tasks"], figures)}

    package, api, registry = (ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.registry"))
    package.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    registry.get_model = {"hf": Model, "vllm": Model}.get  # type: ignore[attr-defined]
    for module in (package, api, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Model, "loaded", [])
    return calls


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose iteration 1 has trained."""
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    runs.begin(tmp_path, policy)
    runs.train(tmp_path, 1, policy)
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return ["judge", "lm_eval", "default", "--runs", str(folder / "runs"), *more]


def test_the_leaderboards_shots(run: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(run, "--json", str(run / "figures.json"))) == 0
    assert {name: call["num_fewshot"] for call in asked for name in call["tasks"]} == {
        "arc_challenge": 25,
        "truthfulqa_mc2": 0,
        "winogrande": 5,
        "gsm8k": 5,
        "hellaswag": 10,
        "mmlu": 5,
    }
    assert all(call["limit"] is None and isinstance(call["model"], Model) for call in asked)
    ((settings, _),) = Model.loaded
    assert settings == {
        "pretrained": str(run / "store/train-11111111/model.test"),
        "dtype": "auto",
    }
    figures = json.loads((run / "figures.json").read_text())
    values = {name: one["value"] for name, one in figures["tasks"].items()}
    assert values["arc_challenge"] == values["hellaswag"] == 50.0
    assert values["truthfulqa_mc2"] == values["winogrande"] == values["mmlu"] == 25.0 and values["gsm8k"] == 12.5
    assert figures["average"] == pytest.approx((2 * 50 + 3 * 25 + 12.5) / 6)
    (kept,) = results.read(run / "runs/default/answers").results
    assert (kept.suite, kept.judge, kept.model) == ("Open LLM Leaderboard tasks", "lm-eval hf", "default-iter-1")
    assert kept.scores["arc_challenge (25 shots, acc_norm), %"].text == "50.00 ± 1.00"
    assert kept.scores["average of the six, %"].value == figures["average"] and len(kept.scores) == 7
    train = Artifact(run / "store", "train", "1" * 64).manifest()
    assert kept.about and train and (kept.about.iteration, kept.about.policy) == (1, train.content)
    said = capsys.readouterr().out
    assert "arc_challenge    25 shots  acc_norm     50.00 ± 1.00" in said and "average of the six 31.25" in said


def test_some_tasks_in_part(run: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(run, "--tasks", "gsm8k,mmlu", "--limit", "3", "--model", "vllm", "--iter", "1")) == 0
    assert [(call["tasks"], call["limit"]) for call in asked] == [(["gsm8k", "mmlu"], 3)]
    assert Model.loaded[0][0]["tensor_parallel_size"] == 1
    said = capsys.readouterr().out
    assert "the first 3 rows of each task alone" in said and "average" not in said
    (kept,) = results.read(run / "runs/default/answers").results
    assert len(kept.scores) == 2 and kept.notes == ["the first 3 rows of each task alone: not the published figures"]
    assert main(words(run)) == 0 and len(results.read(run / "runs/default/answers").results) == 2


def test_tasks_of_a_count_are_one_call() -> None:
    assert by_shots(list(TASKS)) == {
        25: ["arc_challenge"],
        0: ["truthfulqa_mc2"],
        5: ["winogrande", "gsm8k", "mmlu"],
        10: ["hellaswag"],
    }


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--tasks", "gsm8k,ghost"], ("--tasks ghost: ", "arc_challenge,")),
        (["--limit", "0"], ("--limit 0: ",)),
        (["--model", "gguf"], ("--model gguf: ", "hf", "vllm")),
        (["--iter", "7"], ("--iter 7: ",)),
        (["--base-url", "http://x"], ("--base-url: ", "lm_eval")),
    ],
)
def test_one_message_for_what_is_wrong(
    run: Path,
    asked: list[dict[str, Any]],
    given: list[str],
    names: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words(run, *given)) == 2
    named(capsys.readouterr().err, names)
    assert not asked


def test_without_the_package(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(words(run)) == 2
    named(capsys.readouterr().err, "error: ", "pip install lm-eval", "sparring[lm-eval]")
