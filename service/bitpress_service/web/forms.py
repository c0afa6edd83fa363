"""Forms out of JSON schemas: fields with their descriptions, limits and defaults; and back, to a spec.

A field is named by its path, `method.bits`. What is posted is turned into the type its schema names where that
can be done, and left as it is where not, so that the spec's own check says what is wrong.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bitpress.jobs import JobSpec
from bitpress.methods import METHODS

Kind = Literal["text", "integer", "number", "choice", "flag", "choices", "lines", "pairs"]
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One input. `value` is what it shows: text, for `choices` a sequence, for `flag` a truth value."""

    path: str
    label: str
    kind: Kind
    value: Any
    description: str
    hint: str
    required: bool
    nullable: bool
    options: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class Section:
    """A group of fields, itself optional when `enabled` is not None: then it can be left out as a whole."""

    path: str
    title: str
    description: str
    fields: tuple["Field | Section", ...]
    enabled: bool | None
    error: str


def job_form(values: Mapping[str, Any], errors: Mapping[str, str], kind: str) -> list[Section]:
    """The whole form for a job with method `kind`: one section for each part of a spec, loose and optional ones last.

    values: a spec as JSON, possibly incomplete or wrong. errors: messages by JSON pointer.
    """
    schema = JobSpec.model_json_schema()
    reader = _Reader(schema["$defs"], errors)
    method_schema = METHODS[kind].model_json_schema()
    sections: list[Section] = []
    loose: list[Field | Section] = []
    for name, part in schema["properties"].items():
        required = name in schema["required"]
        if name == "method":
            method_reader = _Reader(method_schema.get("$defs", {}), errors)
            sections.append(method_reader.section(name, method_schema, values.get(name, {}), None))
        elif "properties" in (found := reader.resolve(part)):
            if _is_nullable(part):
                value = values.get(name)
                loose.append(reader.section(name, found, value, value is not None))
            else:
                sections.append(reader.section(name, found, values.get(name, {}), None))
        else:
            loose.append(reader.field(name, name, part, values.get(name, _default(part)), required))
    return [*sections, Section("", "Result", "", tuple(loose), None, "")]


class _Reader:
    def __init__(self, definitions: Schema, errors: Mapping[str, str]) -> None:
        self._definitions = definitions
        self._errors = errors

    def resolve(self, schema: Schema) -> dict[str, Any]:
        """The schema without references and without null; what the outer one says goes first."""
        found = dict(schema)
        for part in schema.get("anyOf", ()):
            if part.get("type") != "null":
                found = self.resolve(part) | {k: v for k, v in schema.items() if k != "anyOf"}
        if "$ref" in found:
            found = dict(self._definitions[found["$ref"].rpartition("/")[2]]) | {
                key: value for key, value in found.items() if key != "$ref"
            }
        return found

    def section(self, path: str, schema: Schema, values: Any, enabled: bool | None) -> Section:
        values = values if isinstance(values, Mapping) else {}
        fields: list[Field | Section] = []
        for name, part in schema["properties"].items():
            if "const" in part:
                continue
            inner, value = f"{path}.{name}", values.get(name, _default(part))
            found = self.resolve(part)
            if "properties" in found:
                fields.append(self.section(inner, found, value, value is not None))
            else:
                fields.append(self.field(inner, name, part, value, name in schema.get("required", ())))
        title = path.rpartition(".")[2].capitalize()
        return Section(path, title, _description(schema), tuple(fields), enabled, self._error(path))

    def field(self, path: str, name: str, part: Schema, value: Any, required: bool) -> Field:
        found = self.resolve(part)
        kind = _kind(found)
        return Field(
            path=path,
            label=name.replace("_", " "),
            kind=kind,
            value=_shown(kind, value),
            description=_description(found),
            hint=_hint(found, nullable=_is_nullable(part), default=_default(part)),
            required=required,
            nullable=_is_nullable(part),
            options=tuple(found.get("enum", found.get("items", {}).get("enum", ()))),
            error=self._error(path),
        )

    def _error(self, path: str) -> str:
        pointer = "/" + path.replace(".", "/")
        # What is wrong with a member of a list is said at the list.
        said = [text for where, text in self._errors.items() if where == pointer or _is_item(where, pointer)]
        return "; ".join(said)


def _description(schema: Schema) -> str:
    """A description as a reader of a form understands it: what is null in JSON is empty here."""
    text: str = schema.get("description", "")
    return text.replace("null:", "empty:").replace("`", "")


def _is_item(where: str, pointer: str) -> bool:
    return where.startswith(pointer + "/") and where.removeprefix(pointer + "/").isdigit()


def _kind(schema: Schema) -> Kind:
    if "enum" in schema:
        return "choice"
    match schema.get("type"):
        case "integer":
            return "integer"
        case "number":
            return "number"
        case "boolean":
            return "flag"
        case "array":
            return "choices" if "enum" in schema["items"] else "lines"
        case "object":
            return "pairs"
        case _:
            return "text"


def _is_nullable(schema: Schema) -> bool:
    return any(part.get("type") == "null" for part in schema.get("anyOf", ()))


def _default(schema: Schema) -> Any:
    return schema.get("default")


def _hint(schema: Schema, *, nullable: bool, default: Any) -> str:
    """Limits and default in words; what an empty field means is in the description."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    words = []
    if low is not None and high is not None:
        words.append(f"{_limit(low)} to {_limit(high)}")
    else:
        words += [f"from {_limit(low)}"] if low is not None else [f"above {_limit(above)}"] if above is not None else []
        words += [f"to {_limit(high)}"] if high is not None else [f"below {_limit(below)}"] if below is not None else []
    if isinstance(default, int | float | str) and not isinstance(default, bool):
        words.append(f"default {default}")
    if nullable:
        words.append("may be empty")
    return ", ".join(words)


def _limit(value: float) -> str:
    return f"{value:,}"


def _shown(kind: Kind, value: Any) -> Any:
    if kind == "flag":
        return bool(value)
    if kind in ("choices", "lines"):
        items = [str(item) for item in value or ()]
        return items if kind == "choices" else "\n".join(items)
    if kind == "pairs":
        return "\n".join(f"{name}={text}" for name, text in (value or {}).items())
    return "" if value is None else str(value)


def read_job(posted: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A spec as JSON out of a posted form; a method that is not known is left out."""
    kind = dict(posted).get("method.kind", "")
    spec: dict[str, Any] = {}
    for section in job_form({}, {}, kind if kind in METHODS else "rtn"):
        _read_section(section, posted, spec)
    if kind in METHODS:
        spec["method"]["kind"] = kind
    return spec


def _read_section(section: Section, posted: Sequence[tuple[str, str]], spec: dict[str, Any]) -> None:
    into = spec
    if section.path:
        name = section.path.rpartition(".")[2]
        if section.enabled is not None and (section.path, "on") not in posted:
            spec[name] = None
            return
        into = spec.setdefault(name, {})
    for field in section.fields:
        if isinstance(field, Section):
            _read_section(field, posted, into)
        else:
            texts = [text for path, text in posted if path == field.path]
            value = _read(field, texts)
            if value is not None or _means_null(field, texts):
                into[field.path.rpartition(".")[2]] = value


def _means_null(field: Field, texts: Sequence[str]) -> bool:
    return field.nullable and texts == [""]


def _read(field: Field, texts: Sequence[str]) -> Any:
    """None stands for an empty field."""
    if field.kind == "flag":
        return "on" in texts
    if field.kind == "choices":
        return list(texts)
    text = texts[0].strip() if texts else ""
    if field.kind == "lines":
        return [line.strip() for line in text.splitlines() if line.strip()]
    if field.kind == "pairs":
        return _pairs(text.splitlines())
    if field.kind in ("integer", "number"):
        return _number(text)
    return text or None


def _pairs(lines: Iterable[str]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines if line.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _number(text: str) -> Any:
    """A number of JSON; any other text as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text or None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text
