"""The text of an item that the encoder reads, from a template such as ``{title}. {categories}. {text}``."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from raysys.data.values import as_text
from raysys.errors import ConfigError

_CLOSING = re.compile(r"""[)\]}>»”"']*""")
_ENDS_SENTENCE = (".", "!", "?", "…", ":", ";", "。", "！", "？")


@dataclass(frozen=True, slots=True)
class Part:
    """A field with what stands before it and the brackets that close behind it; all three go when it is empty."""

    before: str
    field: str
    closing: str


@dataclass(frozen=True, slots=True)
class Template:
    """A template in parts, and what stands behind the last of them."""

    parts: tuple[Part, ...]
    after: str


def parse_template(template: str, fields: Collection[str]) -> Template:
    """Raises ConfigError for braces that do not match, a field that is not among ``fields``, or none at all."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"template {template!r}: {error}. Write fields as {{title}}, braces as {{{{ and }}}}."
        ) from error
    parts: list[Part] = []
    literal = ""
    for before, field, spec, conversion in pieces:
        literal += before
        if field is None:
            continue
        if field not in fields or spec or conversion:
            raise ConfigError(f"template {template!r}: {{{field}}} is none of its fields: {', '.join(sorted(fields))}.")
        literal = _close_previous(parts, literal)
        parts.append(Part(literal, field, ""))
        literal = ""
    if not parts:
        raise ConfigError(f"template {template!r}: there is no field in it. An example: '{{title}}. {{text}}'.")
    after = _close_previous(parts, literal)
    return Template(tuple(parts), after)


def _close_previous(parts: list[Part], literal: str) -> str:
    """Hand brackets that open a literal to the part before it; the rest of the literal."""
    if not parts:
        return literal
    closing = _CLOSING.match(literal)
    end = closing.end() if closing else 0
    parts[-1] = Part(parts[-1].before, parts[-1].field, literal[:end])
    return literal[end:]


def render(template: Template, values: Mapping[str, Any]) -> str:
    """The text; empty when all fields are. Empty fields leave no punctuation, and no sentence ends twice."""
    text = ""
    for part in template.parts:
        value = _words(values.get(part.field))
        if value:
            before = part.before if text or part is template.parts[0] else _without_separator(part.before)
            text = _join(text, before) + value + part.closing
    return _join(text, template.after).strip() if text else ""


def _words(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(value) if isinstance(value, list) else as_text(value)


def _without_separator(before: str) -> str:
    """What stands before the first field that is there: ``". By "`` becomes ``"By "``."""
    return before.lstrip(" .,;:-–—|/\n\t")


def _join(text: str, more: str) -> str:
    return text + (more[1:] if more.startswith(".") and text.endswith(_ENDS_SENTENCE) else more)
