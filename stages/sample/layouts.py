"""The entries of a file of prompts, of responses or of pairs, row by row. No model.

The columns decide the layout. A prompt or a response is a text or a conversation (messages.py); a conversation that
ends with the response may begin with its prompt.

    prompt          prompt, or the column that is named; messages or conversations, without a last answer; instruction,
                    with input, system and history where they are there; else what chosen and rejected begin with
    responses       responses (a list), prompt
    generated       generate_0 .. generate_{K-1}, prompt
    sppo_generated  as generated, probability (K x K), rm_scores (K): generated/*/train.parquet of the official scripts
    pairs           chosen, rejected, prompt; chosen_probs, chosen_probs_win and chosen_probs_lose where they are known;
                    or output_1, output_2, label (1 or 2: the better one) and input, as LLMBar has them
    sppo_pairs      pairs with all three: synthetic_data_*_score/train.parquet of the official scripts

The last three have the chosen response, the rejected one, and P: (K, K) float64, P[i, j] = probability that i beats
j; win rates of pairs may be against more responses than the file has. sppo_generated: chosen = argmax, rejected =
argmin of rm_scores. Pairs: P[chosen, rejected] is chosen_probs; without it 1/2 + the difference of the win rates,
within [0, 1], as two responses alone would have; without those it is 1.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparring.stages.errors import DataError
from sparring.stages.sample.config import PAIRED
from sparring.stages.sample.messages import (
    Empty,
    Message,
    as_message,
    is_message,
    kind,
    messages,
    notation,
    without_answer,
)
from sparring.stages.sample.source import header, rows

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that hold a conversation: the turns before the prompt, the prompt, and maybe its answer."""
BESIDE = {"instruction": ("input", "system", "history"), "conversations": ("system",), "conversation": ("system",)}
"""Column of the prompt -> other columns that are part of the prompt, where the file has them."""
LABELLED = ("output_1", "output_2", "label")
LIKELY = ("instruction", "question", "query", "turns", "input", "text", "problem")
"""Columns that an error proposes as the prompt's; none of them is read without being named."""
WIN_RATES = ("chosen_probs_win", "chosen_probs_lose")
SLACK = 1e-6
"""P + P^T = 1 holds up to this: the official scripts may compute it in float32."""

T = TypeVar("T")


class Layout(NamedTuple):
    """How a file holds what is imported."""

    name: str
    prompt: str | None
    """Column of the prompt; None where the responses are message lists that begin with it."""
    columns: tuple[str, ...]
    """All that are read."""


class Preference(NamedTuple):
    """The preference of a row among its responses."""

    P: list[float]
    """Row by row."""
    win_rates: list[float] | None
    """As published; None where they are those of P."""
    chosen: int
    rejected: int


class Entry(NamedTuple):
    """A row of the file."""

    prompt: list[Message]
    texts: list[str]
    preference: Preference | None


class EmptyResponse(ValueError):
    """A response without text."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt and its place in the file (`line 17`, `row 17`)."""

    where: str
    messages: list[Message]


def read(path: Path, column: str, *, drop_empty: bool = False) -> Iterator[PromptRow]:
    """Yield the prompts of a file: of the named column, else as a layout without that column has them.

    DataError when a row is wrong. A last answer is left out.

    `drop_empty`: a prompt without text is yielded without messages instead, for the caller to count.
    """
    names = header(path)
    layout = Layout("prompts", column, (column, *BESIDE.get(column, ())))
    if names and column not in names:
        other = _prompt_column(names, None) if column == "prompt" else None
        if other is not None:
            layout = Layout("prompts", other, (other, *BESIDE.get(other, ())))
        elif column == "prompt" and {"chosen", "rejected"} <= {*names}:
            layout = Layout("pairs", None, ("chosen", "rejected"))
        else:
            raise DataError(f"{path}: {_no_column(column, names)}")
    for where, values in rows(path, layout.columns):
        place = f"{path}: {where}"
        try:
            if layout.prompt is None:
                yield PromptRow(where, _prompt_and_texts(values, layout)[0])
            elif layout.prompt in values:
                yield PromptRow(where, _under_name(layout.prompt, _prompt_of, values, layout))
            else:
                raise DataError(f"{place}: {_no_column(layout.prompt, list(values))}")
        except Empty as error:
            if not drop_empty:
                raise DataError(f"{place}: {error}; mend or remove the row.") from None
            yield PromptRow(where, [])
        except ValueError as error:
            raise DataError(f"{place}: {error}; mend or remove the row.") from None


def _no_column(column: str, columns: Sequence[str]) -> str:
    near = difflib.get_close_matches(column, columns, n=1, cutoff=0.6) or [name for name in LIKELY if name in columns]
    hint = f"set prompts.column={near[0]}" if near else "set prompts.column to one of them"
    return f"no column {column}; there are: {', '.join(columns) or 'none'}; {hint}."


def _prompt_column(columns: Sequence[str], given: str | None) -> str | None:
    """Return the column of the prompt: the given one, else the one that a known layout has, None without one."""
    labelled = {"input", *LABELLED} <= {*columns}
    alpaca = {"instruction"} < {*columns} & {"instruction", "input", "output", "chosen", "responses", "generate_0"}
    names = ("prompt", *CONVERSATIONS, *(["instruction"] if alpaca else []), *(["input"] if labelled else []))
    return given or next((name for name in names if name in columns), None)


def recognise(paths: Sequence[Path], what: str, prompt: str | None) -> Layout:
    """Return the layout of files of `what` (responses or pairs); DataError names the column that is missing."""
    path = paths[0]
    columns = next((names for names in map(header, paths) if names), [])
    if not columns:
        raise DataError(f"{path}: holds no rows; give a file with at least one.")
    if prompt is not None and prompt not in columns:
        raise _missing(path, prompt, columns, "name the prompt's column with --prompt-column.")
    named = _prompt_column(columns, prompt)
    if what == "pairs":
        name, needed = _pairs(path, columns)
    elif "responses" in columns:
        name, needed = "responses", ["responses"]
    elif generated := _generated(columns):
        name, needed = "generated", generated
    else:
        takes = "`sparring import pairs` takes this file."
        hint = takes if "chosen" in columns else "rename the column that holds them."
        raise _missing(path, "responses (or generate_0, generate_1 ..)", columns, hint)
    beside = [one for one in BESIDE.get(named or "", ()) if one in columns]
    return Layout(name, named, tuple(dict.fromkeys([*needed, *([named] if named else []), *beside])))


def _pairs(path: Path, columns: Sequence[str]) -> tuple[str, list[str]]:
    generated = _generated(columns)
    if generated and "chosen" not in columns:
        for name in ("probability", "rm_scores"):
            if name not in columns:
                raise _missing(path, name, columns, "`sparring import responses` takes responses that nobody judged.")
        return "sppo_generated", [*generated, "probability", "rm_scores"]
    if {*LABELLED} <= {*columns} and "chosen" not in columns:
        return "pairs", [*LABELLED]
    if {"completion", "label"} <= {*columns} and "chosen" not in columns:
        raise _missing(
            path, "chosen", columns, "a label of single responses (KTO) makes no pairs; give chosen, rejected."
        )
    rates = [name for name in WIN_RATES if name in columns]
    for name in ("chosen", "rejected", *(WIN_RATES if rates else ())):
        if name not in columns:
            raise _missing(path, name, columns, "rename the column that holds it.")
    probabilities = [name for name in ("chosen_probs", *rates) if name in columns]
    return "sppo_pairs" if len(probabilities) == 3 else "pairs", ["chosen", "rejected", *probabilities]


def _generated(columns: Iterable[str]) -> list[str]:
    generated = [name for name in columns if re.fullmatch(r"generate_\d+", name)]
    return sorted(generated, key=lambda name: int(name.rpartition("_")[2]))


def _missing(path: Path, column: str, columns: Sequence[str], hint: str) -> DataError:
    return DataError(f"{path}: no column {column}; there are: {', '.join(columns)}; {hint}")


def parse(values: Mapping[str, Any], layout: Layout) -> Entry:
    """Return the entry of a row; Empty or EmptyResponse without text, else ValueError with what is wrong, not where."""
    beside = BESIDE.get(layout.prompt or "", ())
    absent = [name for name in layout.columns if name not in values and name not in beside]
    if absent:
        raise ValueError(f"has no {absent[0]}")
    prompt, texts = _prompt_and_texts(values, layout)
    for name, text in texts.items():
        if not text.strip():
            raise EmptyResponse(f"{name} is empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} holds half a surrogate pair ({text[error.start]!a}), which is no text") from None
    return Entry(prompt, list(texts.values()), _preference(values, layout, len(texts)))


def _prompt_and_texts(values: Mapping[str, Any], layout: Layout) -> tuple[list[Message], dict[str, str]]:
    """Return the prompt, and the responses by the name of their place; all must agree on the prompt."""
    named = _under_name("prompt", _prompt_of, values, layout) if layout.prompt else None
    prompt, source, texts = named, layout.prompt, {}
    for name, cell in _response_cells(values, layout).items():
        begin, texts[name] = _under_name(name, _prompt_and_response, cell)
        if begin is None:
            continue
        if prompt is None or (prompt is named and named in (begin, begin[-1:])):  # the list has more: a system message
            prompt, source = begin, name
        elif begin != prompt:
            raise ValueError(f"{source} and {name} have different prompts")
    if prompt is None:
        raise ValueError(f"no prompt in {', '.join(texts)}, and no column of that name: give one with --prompt-column")
    return prompt, texts


def _prompt_of(values: Mapping[str, Any], layout: Layout) -> list[Message]:
    """Return the prompt that its column holds, together with the columns that are part of it (BESIDE)."""
    column = layout.prompt or ""
    value = values[column]
    beside = {name: values.get(name) for name in BESIDE.get(column, ()) if values.get(name)}
    more, before, system = beside.get("input"), beside.get("history") or [], beside.get("system")
    if isinstance(value, str) and isinstance(more, str) and more.strip():
        value = f"{value}\n\n{more}"
    turns = without_answer(value) if layout.name == "prompts" or column in CONVERSATIONS else notation(value)
    if isinstance(turns, str) and (before or system):
        turns = [{"role": "user", "content": turns}]
    if before:
        try:
            pairs = [(str(question), str(answer)) for question, answer in _in_text(before)]
        except (TypeError, ValueError):
            raise ValueError("has a history that is not a list of [question, answer]") from None
        turns_before = []
        for question, answer in pairs:
            turns_before += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns = [*turns_before, *turns]
    if isinstance(system, str) and isinstance(turns, list) and turns and turns[0].get("role") != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return messages(turns)


def _response_cells(values: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    if "label" in layout.columns:
        label = _in_text(values["label"])
        if isinstance(label, bool) or label not in (1, 2):
            raise ValueError(f"label is {values['label']!r}, not 1 or 2")
        return {f"output_{i}": values[f"output_{i}"] for i in (int(label), 3 - int(label))}
    if "chosen" in layout.columns:
        return {name: values[name] for name in ("chosen", "rejected")}
    if layout.name != "responses":
        own, first = _generated(values), _generated(layout.columns)
        if own != first:
            raise ValueError(f"has {len(own)} responses, the first row has {len(first)}")
        return {name: values[name] for name in first}
    given = _in_text(values["responses"])
    if not isinstance(given, list):
        raise ValueError(f"responses is {kind(given)}, not a list")
    return {f"responses[{i}]": cell for i, cell in enumerate(given)}


def _in_text(value: Any) -> Any:
    """Return the list or the number that a text spells, as CSV files hold them; anything else unchanged."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _under_name(name: str, read: Callable[..., T], *values: Any) -> T:
    """Return read(*values); its ValueError gets the name of the column in front."""
    try:
        return read(*values)
    except ValueError as error:
        raise type(error)(f"{name} {error}") from None


def _prompt_and_response(cell: Any) -> tuple[list[Message] | None, str]:
    """Return the prompt that a cell begins with, None where it has none, and its response."""
    turns = notation(cell)
    if isinstance(cell, str):  # it spells a conversation where it ends with the response, else it is the response
        spelled = _in_text(cell) if cell.lstrip().startswith("{") else None
        if isinstance(spelled, dict) and is_message(spelled):
            turns = [as_message(spelled)]
        if isinstance(turns, str) or not isinstance(turns[-1], dict) or turns[-1].get("role") != "assistant":
            return None, cell
    elif is_message(cell):
        turns = [as_message(cell)]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"is {kind(cell) if cell != [] else 'an empty list'}, not a text or a list of messages")
    *before, last = turns
    if not isinstance(last, dict) or last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise ValueError("does not end with the response as {role: assistant, content: text}")
    return (messages(before) if before else None), last["content"]


def _preference(values: Mapping[str, Any], layout: Layout, k: int) -> Preference | None:
    if layout.name not in PAIRED:
        return None
    if layout.name == "sppo_generated":
        scores = _numbers("rm_scores", values["rm_scores"], (k,))
        p = _numbers("probability", values["probability"], (k, k))
        for i, j in np.argwhere((p < 0) | (p > 1))[:1]:
            raise ValueError(f"probability[{i}][{j}] is {p[i, j]:g}, not within [0, 1]")
        for i, j in np.argwhere(np.abs(p + p.T - 1) > SLACK)[:1]:  # so P is 1/2 on the diagonal
            raise ValueError(f"probability[{i}][{j}] = {p[i, j]:g} and [{j}][{i}] = {p[j, i]:g} do not add up to 1")
        return Preference(p.ravel().tolist(), None, int(scores.argmax()), int(scores.argmin()))
    published: dict[str, float] = {}
    for name in (one for one in layout.columns if one.startswith("chosen_probs")):
        value = _in_text(values[name])
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} is {kind(value)}, not a number")
        if not 0 <= value <= 1:  # NaN neither
            raise ValueError(f"{name} is {value}, not within [0, 1]")
        published[name] = float(value)
    rates = [published[name] for name in WIN_RATES] if WIN_RATES[0] in published else None
    alone = min(1.0, max(0.0, 0.5 + rates[0] - rates[1])) if rates else 1.0
    p_wl = published.get("chosen_probs", alone)
    return Preference([0.5, p_wl, 1.0 - p_wl, 0.5], rates, 0, 1)


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        numbers = np.array(_in_text(value), dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != shape:
        raise ValueError(f"{name} is not {' x '.join(map(str, shape))} numbers, one for each response")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds {numbers[~np.isfinite(numbers)][0]}, not a finite number")
    return numbers
