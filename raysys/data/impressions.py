"""The folder of impressions: what was shown to whom, one row an item shown, in Parquet files by day.

<folder>/day=2026-11-25/<time>-<writer>-<number>.parquet   finished files, whole from the moment they have this name
<folder>/.erased/<digest of a user key>                    when this person was erased; see ``ImpressionFolder.erase``
<folder>/.lock                                             locked by processes that write (shared) or erase (alone)

Names that begin with a dot are passed over by Ray Data and Arrow. Any number of processes may write to one folder;
over a network it must be a file system with ``flock``, as NFS 4 is.
"""

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from raysys.data.arrow_values import TIME
from raysys.disk import sync
from raysys.errors import Unavailable

SOURCE_SCORES = pa.list_(pa.struct([("name", pa.string()), ("score", pa.float64())]))
EXPERIMENTS = pa.list_(pa.struct([("experiment", pa.string()), ("arm", pa.string())]))
IMPRESSION_SCHEMA = pa.schema(
    [
        pa.field("recommendation_id", pa.string(), nullable=False),
        pa.field("timestamp", TIME, nullable=False),
        pa.field("route", pa.string(), nullable=False),
        pa.field("user", pa.string()),  # ``types.user_key``; null where nobody was named
        pa.field("snapshot_id", pa.string(), nullable=False),
        pa.field("profile_version", pa.int64(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # from 1
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("sources", SOURCE_SCORES, nullable=False),
        pa.field("propensity", pa.float64()),  # the chance that this item was put here; null = no exploration
        pa.field("degraded", pa.list_(pa.string()), nullable=False),
        pa.field("experiments", EXPERIMENTS),  # that the person is in; null in files from before there were any
        pa.field("team", pa.string()),  # "first" or "second", who picked it; null = neither, or no interleaved list
    ]
)
DAY = pads.partitioning(pa.schema([("day", pa.string())]), flavor="hive")
# An erasure counts for rows up to this much later: clocks differ, and requests that were on their way come after it.
ERASED_MARGIN_S = 10.0
ERASED_KEPT_S = 86_400.0  # no row waits to be written for so long


def read_impressions(folder: str | Path) -> pads.Dataset:
    """All finished files as one dataset of ``IMPRESSION_SCHEMA`` and ``day``, a string as in "2026-11-25".

    Nothing is read before ``to_table(columns=..., filter=...)``. A folder that is not there gives no rows.
    """
    schema = IMPRESSION_SCHEMA.append(pa.field("day", pa.string()))
    files = [str(file) for file in _files(Path(folder))]
    return pads.dataset(files, schema=schema, format="parquet", partitioning=DAY, partition_base_dir=str(folder))


class ImpressionFolder:
    """Writes, finds and removes impressions. Blocking; any number of processes and threads at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, rows: pa.Table, day: date, name: str) -> int:
        """Add a file of these rows, on the disk when this returns. Rows of people erased meanwhile are left out.

        ``name``: of the file without suffix, never used before. Returns the rows written. Raises OSError.
        """
        with self._locked(fcntl.LOCK_SH):
            rows = self._without_erased(rows)
            if len(rows):
                _write_atomically(rows, self.folder / f"day={day}" / f"{name}.parquet")
        return len(rows)

    def rows_of(self, *users: str) -> pa.Table:
        """Every row of these user keys, oldest first. Raises Unavailable when a file cannot be read now."""
        try:
            rows = read_impressions(self.folder).to_table(IMPRESSION_SCHEMA.names, pads.field("user").isin(users))
        except (OSError, pa.ArrowException) as error:  # FileNotFoundError: removed since it was listed
            raise Unavailable(f"could not read the impressions: {error}") from error
        return rows.sort_by([("timestamp", "ascending"), ("position", "ascending")])

    def erase(self, users: Sequence[str], now_s: float) -> int:
        """Remove every row of these user keys. Returns how many there were.

        What other processes still hold of them is left out when they write it. So is what they are shown in the next
        ``ERASED_MARGIN_S``. Raises Unavailable when a file cannot be read or rewritten: every other one is done, and
        it is safe to call again.
        """
        n_erased, failures = 0, []
        try:
            self._mark_erased(users, now_s)
        except OSError as error:
            raise Unavailable(f"nothing was erased from the impressions: {error}") from error
        for file in _files(self.folder):
            try:
                n_erased += self._erase_from(file, users)
            except (OSError, pa.ArrowException) as error:
                failures.append(f"{file}: {error}")
        if failures:
            raise Unavailable(f"{len(failures)} files of impressions were not searched, the first: {failures[0]}")
        return n_erased

    def remove_before(self, oldest: date, now_s: float) -> None:
        """Remove the days before this one, and what dead processes and past erasures left. Raises OSError."""
        if not self.folder.is_dir():
            return
        with self._locked(fcntl.LOCK_EX):
            for folder in self.folder.glob("day=????-??-??"):
                if folder.name < f"day={oldest}":
                    shutil.rmtree(folder)
            self._remove_unfinished()
            for mark in self._marks():
                if float(mark.read_text()) < now_s - ERASED_KEPT_S:
                    mark.unlink()

    def _mark_erased(self, users: Sequence[str], now_s: float) -> None:
        """From here on no process writes a row of theirs from before now. Those that do it now are waited for."""
        with self._locked(fcntl.LOCK_EX):
            self._remove_unfinished()
            folder = self.folder / ".erased"
            folder.mkdir(exist_ok=True)
            for user in users:
                temporary = folder / ".mark.tmp"
                temporary.write_text(repr(now_s))
                sync(temporary)
                temporary.replace(folder / _digest(user))
            sync(folder)

    def _erase_from(self, file: Path, users: Sequence[str]) -> int:
        try:
            if not _holds(file, users):
                return 0
            with self._locked(fcntl.LOCK_EX):  # or two erasures at once would each bring back what the other removed
                rows = _read(file)
                kept = rows.filter(pc.invert(_are(rows, users)))
                if len(kept):
                    _write_atomically(kept, file)
                else:
                    file.unlink()
                return len(rows) - len(kept)
        except FileNotFoundError:  # removed since it was listed
            return 0

    def _without_erased(self, rows: pa.Table) -> pa.Table:
        marks = {mark.name: float(mark.read_text()) for mark in self._marks()}
        if not marks:
            return rows
        for user in rows["user"].unique().drop_null().to_pylist():
            erased_s = marks.get(_digest(user))
            if erased_s is not None:
                until = datetime.fromtimestamp(erased_s + ERASED_MARGIN_S, UTC)
                gone = pc.and_(_are(rows, [user]), pc.less_equal(rows["timestamp"], pa.scalar(until, TIME)))
                rows = rows.filter(pc.invert(gone))
        return rows

    def _marks(self) -> list[Path]:
        return list((self.folder / ".erased").glob("[!.]*"))

    def _remove_unfinished(self) -> None:
        """Whoever holds the lock alone knows that nobody is writing: temporary files belong to dead processes."""
        for file in self.folder.glob("day=*/.*.tmp"):
            file.unlink()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as file:  # closing lets go, and so does the end of the process
            fcntl.flock(file, how)
            yield


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("day=*/[!.]*.parquet"))


def _read(file: Path) -> pa.Table:
    with pq.ParquetFile(file) as opened:
        return opened.read()


def _holds(file: Path, users: Sequence[str]) -> bool:
    with pq.ParquetFile(file) as opened:
        return bool(pc.any(_are(opened.read(["user"]), users)).as_py())


def _are(rows: pa.Table, users: Sequence[str]) -> pa.ChunkedArray:
    """[n] bool: whether each row is about one of these people; false where nobody is named."""
    return pc.is_in(rows["user"], value_set=pa.array(users, pa.string()))


def _digest(user: str) -> str:
    return hashlib.blake2b(user.encode(), digest_size=16).hexdigest()


def _write_atomically(rows: pa.Table, file: Path) -> None:
    """Write to a hidden name, flush to the disk, rename. Where it raises, nothing is left."""
    temporary = file.with_name(f".{file.name}.tmp")
    file.parent.mkdir(exist_ok=True)
    try:
        pq.write_table(rows, temporary, compression="zstd")
        sync(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    sync(file.parent)
