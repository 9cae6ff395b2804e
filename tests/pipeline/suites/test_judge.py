"""`sparring judge alpaca_eval`: the leaderboard's figures, a judge on a server, and one message for what is wrong.

The package alpaca_eval is no dependency: where it is not installed, what needs it is skipped.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.suites import results
from sparring.pipeline.suites.alpaca_eval import in_order, read, served
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.evaluate.suites import alpaca_eval
from tests.pipeline.suites.served import Row, Server, serving
from tests.refusals import named, refused
from tests.stages.evaluate.suites.alpaca import ANNOTATED, GAMED, annotated, data


def needs_the_package() -> None:
    pytest.importorskip("alpaca_eval", exc_type=ImportError)


def dump(path: Path, rows: list[Row]) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def test_without_the_package_it_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "alpaca_eval", None)
    assert main(["judge", "alpaca_eval", str(tmp_path / "outputs.json")]) == 2
    named(capsys.readouterr().err, "error: ", "pip install alpaca_eval", "sparring[alpaca-eval]")


@pytest.mark.parametrize("model", ANNOTATED)
def test_the_leaderboards_rates(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_the_package()
    raw, published = ANNOTATED[model]
    rows = annotated(model)
    random.Random(0).shuffle(rows)  # the outputs' order counts, not theirs
    given = ["--annotations", dump(tmp_path / "annotations.json", rows), "--gamed", str(data() / GAMED)]
    to = tmp_path / "figures.json"
    (tmp_path / "kept").mkdir()
    results.write_about(tmp_path / "kept" / "model_outputs.json", results.About(iteration=3, policy="ab"))
    outputs = shutil.copy(data() / model / "model_outputs.json", tmp_path / "kept")
    assert main(["judge", "alpaca_eval", str(outputs), *given, "--json", str(to)]) == 0
    figures = json.loads(to.read_text())
    assert figures["win_rate"] == pytest.approx(raw, abs=1e-9)
    assert figures["length_controlled_winrate"] == pytest.approx(published, abs=0.02)
    assert (figures["generator"], figures["n_total"], figures["not_annotated"]) == (model, 805, 0)
    (kept,) = results.read(tmp_path / "kept").results
    assert (kept.suite, kept.judge, kept.model) == ("AlpacaEval 2.0", "annotations of annotations.json", model)
    assert kept.scores["win rate, %"].value == figures["win_rate"]
    assert kept.scores["LC win rate, %"].error == figures["lc_standard_error"]
    said = capsys.readouterr().out
    assert f"AlpacaEval 2.0: {model} against gpt4_1106_preview, 805 of 805 rows annotated" in said
    assert f"win rate {raw:.2f} ± " in said and "length-controlled win rate " in said


def test_rows_without_a_preference_keep_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_the_package()
    rows = annotated("gemma-2b-it")
    rows[0]["preference"] = None
    outputs = str(data() / "gemma-2b-it" / "model_outputs.json")
    given = ["--annotations", dump(tmp_path / "annotations.json", rows), "--gamed", str(data() / GAMED)]
    assert main(["judge", "alpaca_eval", outputs, *given]) == 0
    said = capsys.readouterr().out
    assert "804 of 805 rows annotated" in said and "WARNING: 1 rows have no preference" in said
    assert "length-controlled win rate 5.4" in said


def test_a_table_that_is_not_the_suites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The raw rate is printed, then what is wrong."""
    needs_the_package()
    (tmp_path / "other.csv").write_text("preference,index\n0.5,0\n")
    folder = data() / "gemma-2b-it"
    given = ["--annotations", str(folder / "annotations.json"), "--gamed", str(tmp_path / "other.csv")]
    assert main(["judge", "alpaca_eval", str(folder / "model_outputs.json"), *given]) == 2
    out, err = capsys.readouterr()
    assert "win rate 3.40" in out
    named(err, "other.csv", "std_delta_len, instruction_difficulty, not_gamed_baseline, model")


# A judge on a server


def preferring(server: Server, asked: Row) -> Row:
    """Like what says "good", in either place."""
    assert asked["model"] == "local-judge" and asked["logprobs"] is True
    text = asked["messages"][-1]["content"]
    first, second = text.index('"model_identifier": "m"'), text.index('"model_identifier": "M"')
    likes = "m" if first < text.index("good") < second else "M"
    top = [{"token": name, "logprob": -0.1 if name == likes else -2.4, "bytes": None} for name in "mM"]
    if server.no_answer_to(asked):
        top = [{"token": "hm", "logprob": -0.1, "bytes": None}]
    content = [{"token": likes, "logprob": -0.1, "bytes": None, "top_logprobs": top}]
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": likes}}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    choices = [{**choice, "logprobs": {"content": content}}]
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving("local-judge", preferring) as found:
        yield found


def side(name: str, *outputs: str) -> list[Row]:
    return [{"instruction": f"Do {i}.", "output": text, "generator": name} for i, text in enumerate(outputs)]


def test_a_local_judge_behind_a_base_url(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_the_package()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    ours = side("ours\x1b[31m", "good", "bad", "good", "the same")
    theirs = side("theirs", "bad", "good", "bad", "the same")
    outputs = tmp_path / "outputs.json"
    dump(outputs, ours[::-1])  # in another order than the reference
    command = ["judge", "alpaca_eval", str(outputs), "--reference", dump(tmp_path / "reference.json", theirs)]
    assert main([*command, "--base-url", url, "--json", str(tmp_path / "figures.json")]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 rows annotated" in out and "won 2, lost 1, drawn 1" in out and "\x1b" not in out
    assert "length-controlled: only of all 805 instructions, in their order; these are 4" in out
    kept = read(tmp_path / "outputs.annotations.json", ("instruction", "output_1", "output_2", "preference"))
    assert [row["instruction"] for row in kept] == [row["instruction"] for row in theirs]
    assert [row["preference"] for row in kept] == pytest.approx([1.91, 1.09, 1.91, 1.5], abs=0.01)
    assert [row["output_2"] for row in kept] == ["good", "bad", "good", "the same"]
    assert len(server.asked) == 3
    assert main([*command, "--base-url", url]) == 0
    assert len(server.asked) == 3, "what was answered is kept"
    given = [*command, "--annotations", str(tmp_path / "outputs.annotations.json")]
    assert main(given) == 0
    with refused(ConfigError, url, "local-judge"):
        served(url, "other")


def test_a_judge_that_mumbles_is_asked_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_the_package()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    outputs, reference = (dump(tmp_path / f"{name}.json", side(name, name)) for name in ("good", "bad"))
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    command = ["judge", "alpaca_eval", outputs, "--reference", reference, "--base-url", url]
    server.mumbles = ""
    assert main(command) == 2
    named(capsys.readouterr().err, "error: ", "1 rows", "preference")
    server.mumbles = None
    assert main(command) == 0
    assert "won 1, lost 0" in capsys.readouterr().out and len(server.asked) == 2


def test_no_server() -> None:
    with refused(DataError, "http://127.0.0.1:9/v1"):
        served("http://127.0.0.1:9/v1", None)


def test_an_annotator_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_the_package()
    rows = dump(tmp_path / "outputs.json", side("ours", "good"))
    assert main(["judge", "alpaca_eval", rows, "--reference", rows, "--annotator", "ghost"]) == 2
    named(capsys.readouterr().err, "--annotator ghost", "configs.yaml")


def test_an_annotator_of_ones_own(tmp_path: Path) -> None:
    """Its template may be the package's, a file beside it, or the text itself."""
    needs_the_package()
    own = tmp_path / "own.yaml"
    for template, found in (
        ("alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt", "alpaca_eval_clf.txt"),
        ("own.txt", "own.txt"),
        ("{instruction} {output_1} {output_2}", "{output_2}"),
    ):
        (tmp_path / "own.txt").write_text("{instruction}")
        own.write_text(json.dumps({"mine": {"prompt_template": template}}))
        annotator = alpaca_eval.Annotator(config=str(own), base_url=None, model="a")
        settings = alpaca_eval.resolved(annotator)
        assert settings["mine"]["prompt_template"].endswith(found)
        assert settings["mine"]["completions_kwargs"] == {"model_name": "a"}
    own.write_text(json.dumps({"mine": {"prompt_template": "ghost.txt"}}))
    with refused(ConfigError, "prompt_template ghost.txt"):
        alpaca_eval.resolved(annotator)


# What is wrong with a file


GOOD = {"instruction": "a", "output_2": "b", "preference": 1.5}


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([GOOD, {**GOOD, "instruction": None}], ("row 2", "instruction", "null")),
        ([{**GOOD, "preference": 3}], ("row 1", "preference is 3")),
        ([{**GOOD, "preference": "m"}], ("row 1", "preference is 'm'")),
        ([GOOD, GOOD], ("'a'", "2 rows")),
        ([], ("no rows",)),
    ],
)
def test_a_file_of_annotations_that_is_wrong(rows: list[Row], names: tuple[str, ...], tmp_path: Path) -> None:
    dump(tmp_path / "rows.json", rows)
    with refused(DataError, "rows.json", names):
        read(tmp_path / "rows.json", ("instruction", "output_2", "preference"))


def test_files_of_other_suites() -> None:
    ours, theirs = side("ours", "x", "y"), side("theirs", "x", "y")
    given: Callable[[list[Row], list[Row]], list[Row]] = lambda rows, of: in_order(rows, of, Path("a"), Path("b"))  # noqa: E731
    assert given(ours[::-1], theirs) == ours
    with refused(DataError, "row 2", "'Do 1.'"):
        given(ours[:1], theirs)
    with refused(DataError, "a: ", "'Do 1.'"):
        given(ours, theirs[:1])


def test_a_suite_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "ghost", "outputs.json"]) == 2
    named(capsys.readouterr().err, "ghost", "alpaca_eval, lm_eval, mt_bench")
