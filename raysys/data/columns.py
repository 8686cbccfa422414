"""Which of a file's columns holds which of our fields. A misspelt name is an error with a suggestion."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from raysys.errors import ConfigError

_LISTED, _COMPARED, _NAME_CHARS = 100, 10_000, 200  # what is no table may have a million of columns


def resolve(
    mapped: Mapping[str, str], fields: Sequence[str], required: Sequence[str], available: Sequence[str]
) -> dict[str, str]:
    """Our field -> the column that holds it, for every field that has one.

    mapped: what the settings say; a field that they leave out is looked for under its own name.
    Raises ConfigError for a field that is not ours, a column that is not there, and a required field without one.
    """
    for name in mapped:
        if name not in fields:
            raise ConfigError(f"columns: {name!r} is not a field.{_close(name, fields)} Fields: {listed(fields)}.")
    check_present("columns", mapped, available)
    missing = [name for name in required if name not in mapped and name not in available]
    if missing:
        name = missing[0]
        raise ConfigError(
            f"columns: no column for {name!r}, which is required.{_close(name, available)}"
            f" Found: {listed(available)}. Say which holds it: `columns: {{{name}: <your column>}}`."
        )
    return {name: mapped.get(name, name) for name in fields if name in mapped or name in available}


def check_present(setting: str, mapped: Mapping[str, str], available: Sequence[str]) -> None:
    """Raises ConfigError naming the first mapped column that is not there."""
    for name, column in mapped.items():
        if column not in available:
            raise ConfigError(
                f"{setting}: {name!r} is to come from column {column!r}, which is not there."
                f"{_close(column, available)} Found: {listed(available)}."
            )


def _close(name: str, names: Sequence[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in names[:_COMPARED]}
    close = [by_lower[lower] for lower in get_close_matches(name.lower(), by_lower, n=3)]
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def listed(names: Sequence[str]) -> str:
    """The names for a message; of very many, the first."""
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return (", ".join(repr(name[:_NAME_CHARS]) for name in names[:_LISTED]) or "no columns") + more
