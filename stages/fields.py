"""The types of the configuration's fields: what a setting may be, when it is read and whether it is hashed.

A group's settings are one model beside the stage that owns them: a frozen dataclass, or a union of them where a group
has several kinds, each with the fields that it reads. A field's annotation has its type and range, when it is read
(`OnlyIf`, `ByReference`) and, where a fingerprint leaves it out, why (`RUNTIME`, `LOCATION`, `ELSEWHERE`).
"""

from __future__ import annotations

import importlib
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from inspect import isabstract
from pkgutil import iter_modules
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter
from pydantic.fields import FieldInfo

Model = TypeVar("Model")


@dataclass(frozen=True)
class OnlyIf:
    """Marks a field that only some configurations read."""

    holds: Callable[[Any, Any], bool]
    """(the group that has the field, the whole configuration) -> whether the field is read."""
    where: str
    """Completes `is read only ...`."""


@dataclass(frozen=True)
class ByReference:
    """Marks a field that only other keys read, by an interpolation such as ${policy.dtype}."""

    where: str
    """Completes `is read only ...`."""


@dataclass(frozen=True)
class Options:
    """Marks a field `dict[str, Any]` whose keys are the fields of a dataclass."""

    of: Callable[[Any], Any]
    """The group that has the field -> the instance of the dataclass."""
    kinds: Callable[[], list[type[Any]]]
    """All dataclasses that it can be."""


@dataclass(frozen=True)
class Hashed:
    """Marks a field whose value is not in the fingerprint as it is."""

    how: str
    """Shown in docs/configuration.md."""
    part: Callable[[Any], Any] | None = None
    """The model that has the field -> what is hashed; None, or where it returns None: nothing is."""


RUNTIME = Hashed("no")
"""Marks a field that changes at most rounding: processes, folders, addresses, loggers."""
LOCATION = Hashed("by its bytes")
"""Marks a field that says where files are: the files are inputs of the steps, known by their digests."""
ELSEWHERE = Hashed("through what it decides")
"""Marks a field that decides which steps there are, or whose value is in a step's own settings."""


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError  # `described` says what the field must be
    return value


NO_BOOL = BeforeValidator(_no_bool)
"""Must stand after the range of a number, which it would hide."""
Number = Annotated[float, Field(allow_inf_nan=False), NO_BOOL]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOL]
Scale = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False), NO_BOOL]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NO_BOOL]
Seconds = Annotated[float, Field(ge=1, allow_inf_nan=False), NO_BOOL]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOL]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_BOOL]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NO_BOOL]
Integer = Annotated[int, NO_BOOL]
Count = Annotated[int, Field(ge=1), NO_BOOL]
Size = Annotated[int, Field(ge=0), NO_BOOL]
Text = Annotated[str, Field(min_length=1)]


MOST_RESPONSES = 64
"""Of one prompt: each response is compared with each."""
LONGEST_NAME = 255
"""Bytes of a file's name: the limit of common file systems."""


def place(text: str) -> str:
    """Return the path of a file or a folder, ~ expanded; ValueError where it can be none."""
    place = os.path.expanduser(text)
    if re.match(r"[A-Za-z][\w+.-]*://", place):
        raise ValueError("an address is no place here; name a file or a folder")
    if place.startswith("~"):
        raise ValueError("there is no such home; write the path out, or ./~name")
    if any(char < " " for char in place):
        raise ValueError("a path with control characters; name another")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in place.split("/")):
        raise ValueError(f"a name in it is longer than {LONGEST_NAME} bytes")
    return place


Place = Annotated[Text, AfterValidator(place)]
"""A file or a folder."""


def identity(settings: Any) -> dict[str, Any]:
    """Return what a fingerprint is made of: a step's settings as plain data, without what is Hashed otherwise."""
    return dict(_hashed(settings))


def _hashed(value: Any) -> Any:
    if is_dataclass(value):
        kept = {}
        for name, annotation in hints(value.__class__).items():
            rule = metadata(annotation, Hashed)
            if rule is None:
                kept[name] = _hashed(getattr(value, name))
            elif rule.part and (part := rule.part(value)) is not None:
                kept[name] = part
        return kept
    if isinstance(value, Mapping):
        return {name: _hashed(one) for name, one in value.items()}
    return [_hashed(one) for one in value] if isinstance(value, (list, tuple)) else value


def dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by their dotted keys: {"sampler": {"k": 2}} is {"sampler.k": 2}; {} is a value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{name}": one for name, one in dotted(value).items()}
        else:
            flat[str(key)] = value
    return flat


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, its value in one, its value in the other) of the settings that differ between two identities.

    None stands for a setting that is not there. Where one is of an earlier version, both are read as that has recorded
    them: `k`, not `sampler.k`.
    """
    flat = [dotted(_as_recorded_by(other, one)), dotted(_as_recorded_by(one, other))]
    ours, theirs = ({key: value for key, value in settings.items() if value != {}} for settings in flat)
    keys = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    return [(key, ours.get(key), theirs.get(key)) for key in keys]


def _as_recorded_by(other: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity, without the groups around settings that another identity records outside any group."""
    in_groups = {name for group in other.values() if isinstance(group, Mapping) for name in group}
    recorded: dict[str, Any] = {}
    for name, value in identity.items():
        is_group = name in in_groups or isinstance(other.get(name, 0), Mapping | None)
        if isinstance(value, Mapping) and not is_group:
            recorded |= {name if key == "by" and name in other else key: one for key, one in value.items()}
        else:
            recorded[name] = value
    return recorded


def setting(identity: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return a setting that an artifact recorded, such as `sampler.k`.

    Earlier versions recorded it as `k`, and `selection.by` as `selection`.
    """
    group, _, name = key.partition(".")
    recorded = identity.get(group, default)
    if not name:
        return recorded
    if isinstance(recorded, Mapping):
        return recorded.get(name, identity.get(name, default))
    return identity.get(name, default if group not in identity or recorded is None else recorded)


def part(settings: Any, model: type[Model]) -> Model:
    """Return a model made of the fields of the same names in `settings`."""
    return model(**{name: getattr(settings, name) for name in hints(cast(Any, model))})


@cache
def validator(model: Any) -> TypeAdapter[Any]:
    """Return what reads a model from plain data."""
    return TypeAdapter(model)


def is_model(kind: Any) -> bool:
    """Whether a kind of value is a dataclass."""
    return isinstance(kind, type) and is_dataclass(kind)


@cache
def hints(model: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields, with their metadata."""
    annotations = get_type_hints(model, include_extras=True)
    return {field.name: annotations[field.name] for field in fields(model)}


def metadata(annotation: Any, kind: type[Any]) -> Any:
    """Return the metadata of one kind that an annotation has, None without."""
    return next((one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, kind)), None)


def at(model: Any, key: str) -> list[Any]:
    """Return the annotations of a dotted key, one for each kind of its group that has it."""
    annotations = [model]
    for part in key.split("."):
        annotations = [below for one in annotations for below in _below(one, part)]
    return annotations


def unhashed(model: Any, key: str) -> Hashed | None:
    """Return the Hashed of a dotted key's field, or of a group around it; None where its value is hashed."""
    annotations = [model]
    for part in key.split("."):
        annotations = [below for one in annotations for below in _below(one, part)]
        rules = [rule for one in annotations if (rule := metadata(one, Hashed))]
        if rules:
            return rules[0]
    return None


def _below(annotation: Any, part: str) -> Iterator[Any]:
    options = metadata(annotation, Options)
    if options:
        yield from (hints(kind)[part] for kind in options.kinds() if part in hints(kind))
        return
    for one in members(annotation):
        if is_model(one):
            if part in hints(one):
                yield hints(one)[part]
        elif get_origin(one) is dict:
            yield get_args(one)[1]
        elif get_origin(one) is tuple and part.isdigit():
            yield get_args(one)[0]


def members(annotation: Any) -> list[Any]:
    """Return what an annotation is a union of, without metadata."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [one for part in get_args(annotation) for one in members(part)]
    return [annotation]


def of_error(model: Any, loc: Sequence[int | str]) -> tuple[str, Any]:
    """Return the dotted key and the annotation of a pydantic error's `loc`, which names kinds of unions too."""
    annotations, parts = [model], []
    for part in map(str, loc):
        below = [one for annotation in annotations for one in _below(annotation, part)]
        parts += [part] * bool(below)
        kinds = [one for annotation in annotations for one in members(annotation) if _has_tag(one, part)]
        annotations = below or kinds or annotations
    return ".".join(parts), annotations[0]


def _has_tag(model: Any, tag: str) -> bool:
    """Whether a model is the kind of a union that `tag` names, such as vllm."""
    return is_model(model) and any(tag in get_args(kind) for hint in hints(model).values() for kind in members(hint))


def is_text(annotation: Any) -> bool:
    """Whether a value is text, or a list of texts; null may be allowed beside it."""
    kinds = [one for one in members(annotation) if one is not type(None)]
    for kind in kinds:
        if get_origin(kind) is tuple:
            text = is_text(get_args(kind)[0])
        elif get_origin(kind) is Literal:
            text = all(isinstance(one, str) for one in get_args(kind))
        else:
            text = kind is str
        if not text:
            return False
    return bool(kinds)


def allows_null(annotation: Any) -> bool:
    """Whether a value may be null."""
    return type(None) in members(annotation)


def described(annotation: Any) -> str:
    """Return what a value may be: `must be a finite number ≥ 0, or null`, `choose one of drop, keep_end`."""
    kinds = [one for one in members(annotation) if one is not type(None)]
    shape = TypeAdapter(annotation).json_schema()
    shapes = [one for one in shape.get("anyOf", [shape]) if one.get("type") != "null"]
    if any(is_dataclass(kind) for kind in kinds):
        return "must be an option of its group"
    parts = [_described(kind, one) for kind, one in zip(kinds, shapes, strict=False)]
    reason = f" ({shape['description']})" if "description" in shape else ""
    verb = "choose" if parts[0].startswith("one of ") else "must be"
    return f"{verb} {' or '.join(parts)}{', or null' if allows_null(annotation) else ''}{reason}"


def _described(kind: Any, shape: Mapping[str, Any]) -> str:
    choices = shape.get("enum") or ([shape["const"]] if "const" in shape else [])
    if choices:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else str(choices[0])
    name = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}.get(kind)
    if name is None:
        if get_origin(kind) is tuple:
            return "a list, such as [a,b]"
        return "a mapping, such as {a:1}"
    low, high = shape.get("minimum"), shape.get("maximum")
    if kind is str:
        return "text that is not empty" if shape.get("minLength") else name
    if low is not None and high is not None:
        return f"{name} from {low:g} to {high}" if kind is int else f"{name} from {low:g} to {high:g}"
    limits = {
        "≥": low, ">": shape.get("exclusiveMinimum"), "≤": high, "<": shape.get("exclusiveMaximum"),
    }  # fmt: skip
    bounds = " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None)
    return f"{name} {bounds}".strip()


def unread(group: Any, config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, where it would be read) of all fields of a group that this configuration does not read."""
    for name, annotation in hints(group.__class__).items():
        key, value = f"{prefix}{name}", getattr(group, name)
        rule, options = metadata(annotation, OnlyIf), metadata(annotation, Options)
        if rule and not rule.holds(group, config):
            yield key, rule.where
        elif options:
            yield from unread(options.of(group), config, f"{key}.")
        elif is_dataclass(value):
            yield from unread(value, config, f"{key}.")
        elif isinstance(value, dict):
            for one, below in value.items():
                if is_dataclass(below):
                    yield from unread(below, config, f"{key}.{one}.")


def by_reference(model: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, who reads it) of the fields of a model that only other keys read."""
    for one in members(model):
        if not is_model(one):
            continue
        for name, annotation in hints(one).items():
            rule = metadata(annotation, ByReference)
            if rule:
                yield f"{prefix}{name}", rule.where
            yield from by_reference(annotation, f"{prefix}{name}.")


def is_list(annotation: Any) -> bool:
    """Whether a value is a list."""
    return any(get_origin(one) is tuple for one in members(annotation))


def has_default(owner: Any, name: str) -> bool:
    """Whether a field of a dataclass may be left out."""
    return any(
        one.name == name and (one.default is not MISSING or one.default_factory is not MISSING) for one in fields(owner)
    )


def tags(annotation: Any, name: str) -> list[str]:
    """Return what the field that tells the kinds of a union apart may be."""
    return [tag for one in members(annotation) for kind in members(hints(one)[name]) for tag in get_args(kind)]


def discriminators(annotations: list[Any]) -> list[str]:
    """Return the fields that tell the kinds of unions apart."""
    infos = (metadata(one, FieldInfo) for one in annotations)
    return [str(info.discriminator) for info in infos if info is not None and info.discriminator]


def classes_in(package: str, base: type[Model]) -> list[type[Model]]:
    """Return the subclasses of `base` that the modules of a package have, without the abstract ones."""
    path = importlib.import_module(package).__path__
    modules = [vars(importlib.import_module(f"{package}.{file.name}")) for file in iter_modules(path)]
    named = {name: one for module in modules for name, one in module.items() if isinstance(one, type)}
    return [one for one in named.values() if issubclass(one, base) and not isabstract(one)]
