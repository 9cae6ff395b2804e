"""The oracle `llm`: a language model is asked which of two responses is better, and answers A or B.

    logit = log P(A) - log P(B) of the first token of its answer

P(X) sums the probability of every first token that reads X without the white space around it ("A", " A"). Nothing is
drawn and no text is parsed. The letter that stands first draws many models, small ones most: the caller asks in both
orders and takes half the difference, and `position_disagreement` counts how often the order decided.

One user message holds all of the question, see question.py. The model is a chat model's folder, run by vLLM in this
process (judge_engine.py), or runs at servers that speak OpenAI's protocol (judge_server.py). A model that thinks aloud
before it answers is asked in vain: its first token is no letter.
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
"""Tokens in which a question can be asked at all."""


@dataclass(frozen=True, kw_only=True)
class Options(OracleOptions):
    """Of the model and its question."""

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
