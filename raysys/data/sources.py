"""Where rows come from: the files behind a path or URL, cut into pieces that workers can read side by side."""

import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysys.errors import ConfigError

Format = Literal["parquet", "csv", "jsonl"]
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
# What the libraries that open files raise where one is not what it says it is.
UNREADABLE = (pa.ArrowException, OSError, UnicodeError)
# Row groups smaller than this are read together: a piece should be worth a task.
MIN_SPLIT_ROWS = 1_024


@dataclass(frozen=True, slots=True)
class Split:
    """A piece of a catalogue or an event file; small, and opened by whoever reads it.

    root: the path or URL that was asked for; it says which file system. path: the file in that file system.
    number: the place of this piece in the whole, from 0. row_groups: of a Parquet file; empty for text files,
    which are one piece each. first_row: rows of the file before this piece.
    """

    root: str
    path: str
    format: Format
    number: int
    row_groups: tuple[int, ...] = ()
    first_row: int = 0


def discover(path: str, format: Literal["auto", "parquet", "csv", "jsonl"] = "auto") -> list[Split]:
    """The pieces of one file, or of all files under a folder (sorted by path; hidden and ``_`` files are skipped).

    Parquet files without rows are left out; when all are, one piece without rows stands for them.
    Raises ConfigError when nothing is there, when the format cannot be told, or when formats are mixed.
    """
    file_system, base = open_root(path)
    files = _files(file_system, base, path)
    kind = _format_of([file.path for file in files], path) if format == "auto" else format
    filled = [file for file in files if file.size != 0]
    if not filled:
        raise ConfigError(f"{path}: every file is empty ({len(files)} found). Point to files that hold rows.")
    splits: list[Split] = []
    for file in filled:
        pieces = _row_group_pieces(file_system, file.path) if kind == "parquet" else [((), 0)]
        splits += [Split(path, file.path, kind, len(splits) + i, *piece) for i, piece in enumerate(pieces)]
    return splits or [Split(path, filled[0].path, kind, 0)]


def bytes_of(splits: Sequence[Split]) -> int:
    """The size of the files that these are pieces of."""
    paths_of: dict[str, set[str]] = defaultdict(set)
    for split in splits:
        paths_of[split.root].add(split.path)
    infos = (open_root(root)[0].get_file_info(sorted(paths)) for root, paths in paths_of.items())
    return sum(info.size for found in infos for info in found)


def open_root(root: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URL, and the path in it. Raises ConfigError when neither library knows it."""
    if "://" not in root:
        return pafs.LocalFileSystem(), str(Path(root).expanduser().absolute())
    try:
        file_system, path = pafs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _open_with_fsspec(root)
    return file_system, path


def _open_with_fsspec(root: str) -> tuple[pafs.FileSystem, str]:
    try:
        import fsspec

        file_system, path = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{root}: no installed library opens this address ({error}). Check its beginning, or install the fsspec"
            " package for it, such as s3fs or gcsfs."
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(file_system)), path


def _files(file_system: pafs.FileSystem, base: str, path: str) -> list[pafs.FileInfo]:
    try:
        info = file_system.get_file_info(base)
        found = file_system.get_file_info(pafs.FileSelector(base, recursive=True)) if _is_folder(info) else [info]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be opened: {error}") from error
    if info.type == pafs.FileType.NotFound:
        raise ConfigError(f"{path}: there is no such file or folder. Check the path, and that this machine can see it.")
    if not _is_folder(info):
        return [info]
    files = [file for file in found if file.type == pafs.FileType.File and not _hidden(file.path, base)]
    if not files:
        raise ConfigError(f"{path}: the folder holds no files (hidden ones and those named _* are not read).")
    return sorted(files, key=lambda file: file.path)


def _is_folder(info: pafs.FileInfo) -> bool:
    return bool(info.type == pafs.FileType.Directory)


def _hidden(path: str, base: str) -> bool:
    return any(part.startswith((".", "_")) for part in posixpath.relpath(path, base).split("/"))


def _format_of(paths: Sequence[str], asked: str) -> Format:
    by_format: dict[Format | None, list[str]] = defaultdict(list)
    for path in paths:
        by_format[_suffix_format(path)].append(path)
    if None in by_format:
        raise ConfigError(
            f"{asked}: cannot tell the format of {by_format[None][0]!r} from its name (known: {', '.join(SUFFIXES)})."
            " Set `format`, or keep other files elsewhere."
        )
    if len(by_format) > 1:
        examples = ", ".join(f"{name}: {files[0]!r}" for name, files in by_format.items())
        raise ConfigError(f"{asked}: files of several formats are mixed ({examples}). Keep one format a folder.")
    return next(name for name in by_format if name is not None)


def _suffix_format(path: str) -> Format | None:
    stem, suffix = posixpath.splitext(path.lower())
    return SUFFIXES.get(posixpath.splitext(stem)[1] if suffix in COMPRESSIONS else suffix)


def _row_group_pieces(file_system: pafs.FileSystem, path: str) -> list[tuple[tuple[int, ...], int]]:
    """(row groups, rows of the file before them) of each piece; none for a file without rows."""
    try:
        with file_system.open_input_file(path) as stream:
            footer = pq.read_metadata(stream)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: this is not a readable Parquet file: {error}") from error
    pieces: list[tuple[tuple[int, ...], int]] = []
    groups: tuple[int, ...] = ()
    first_row = next_row = 0
    for group in range(footer.num_row_groups):
        groups += (group,)
        next_row += footer.row_group(group).num_rows
        is_last = group == footer.num_row_groups - 1
        if next_row - first_row >= MIN_SPLIT_ROWS or (is_last and next_row > first_row):
            pieces.append((groups, first_row))
            groups, first_row = (), next_row
    return pieces
