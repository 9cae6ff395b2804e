"""The oracle `llm`: a language model is asked which of two responses is better, and answers A or B.

    logit = log P(A) - log P(B) of the first token of its answer

P(X) sums the probability of every first token that is X but for white space around it ("A", " A"). No text is sampled
or parsed. Many models, small ones most, favour the letter that stands first: the step `score` asks in both orders and
takes half the difference, and `position_disagreement` counts how often the order decided.

One user message contains the whole question (question.py). vLLM runs the model's folder in this process
(judge_engine.py), or servers that speak OpenAI's protocol run it (judge_server.py). A model that thinks aloud before it
answers cannot be used: its first token is no letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sparring.stages.annotate.oracle import Oracle
from sparring.stages.annotate.oracles import OracleContext, OracleOptions
from sparring.stages.annotate.question import check_template
from sparring.stages.errors import ConfigError
from sparring.stages.fields import Integer, OnlyIf

LEAST = 64
"""Fewest tokens for a question with its texts."""


@dataclass(frozen=True, kw_only=True)
class Options(OracleOptions):
    """The model and its question."""

    engine: ClassVar[bool] = True
    needs_transformers_to_check: ClassVar[bool] = True
    servers: ClassVar[bool] = True

    model: str | None
    """The model's name at the servers of `oracle.urls`; null: a folder."""
    template: str
    """The question, with a place for each text: {prompt}, {first}, {second}."""
    max_tokens: Integer
    """Of the question with its texts, as the model reads it."""
    dtype: Annotated[
        Literal["float32", "bfloat16"], OnlyIf(lambda options, _: options.model is None, "of a folder's model")
    ]
    """Of a folder's model; servers have their own."""

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.max_tokens < LEAST:
            raise ConfigError(f"oracle.options.max_tokens={self.max_tokens}: use {LEAST} or more.")
        if self.model == "":
            raise ConfigError("oracle.options.model is empty: give the model's name at the servers, or null.")

    def check_folder(self, folder: Path) -> None:
        from sparring.stages.annotate.judge_engine import check_folder

        check_folder(folder, self.max_tokens)

    def urls_error(self, urls: tuple[str, ...]) -> str | None:
        if urls and self.model is None:
            return "urls: name the model of the servers: options.model=NAME"
        if self.model is not None and not urls:
            return f"options.model={self.model} is a name at servers, and urls is empty; set it to null to use a folder"
        return None


def load(options: Options, context: OracleContext) -> Oracle:
    """Load a folder into vLLM, or check the servers."""
    urls = context.judge.urls if context.judge else ()
    error = options.urls_error(urls)
    if error:
        raise ConfigError(f"oracle.{error}.")
    if urls:
        from sparring.stages.annotate.judge_server import JudgeServer

        return JudgeServer(urls, str(options.model), options.template, options.max_tokens)
    from sparring.stages.annotate.judge_engine import JudgeEngine

    return JudgeEngine(
        context.folders["judge"],
        options.template,
        options.max_tokens,
        dtype=options.dtype,
        cpus=context.cpus,
        gpus=context.gpus,
    )
