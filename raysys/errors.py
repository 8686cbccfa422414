"""The one exception tree.

RaysysError
├── InvalidInput          a caller's value is wrong                     -> 422
│   ├── UnknownItem       an item id that the snapshot does not hold    -> 404
│   ├── UnknownField      a filter names a field that is not there      -> 422
│   └── Conflict          it contradicts what is settled already        -> 409
├── Unauthenticated       no key, or none that is known                  -> 401
├── Forbidden             the key lacks the scope that is needed         -> 403
├── RateLimited           the key has used up what it may ask for        -> 429
├── ConfigError           a setting, a column mapping, a missing file: fails before work starts
├── CatalogError          the catalogue holds nothing that can be indexed
├── SnapshotError         a snapshot cannot be used; nothing is published  -> 503
│   ├── UnknownSnapshot   there is none of this id                      -> 404
│   ├── SnapshotDamaged   a file of it is missing or not as it was      -> 409
│   ├── SnapshotMismatch  encoder and snapshot do not belong together
│   ├── SnapshotTooNew    it was written by something newer             -> 409
│   ├── SnapshotConflict  what is published now is not what was expected -> 409
│   └── SnapshotRefused   it is whole, but too much unlike the published one -> 409
├── OverBudget            a job would cost more than was allowed, and was stopped
├── EncoderError          a model cannot be loaded, or gave vectors that cannot be used
└── Unavailable           a part cannot answer now; try again           -> 503
    ├── Overloaded        a bounded queue is full                       -> 429
    └── SnapshotNotLoaded a shard does not hold the wanted snapshot (yet)

Every class takes positional arguments only, so that instances survive pickling between processes.
The HTTP status of each is decided in ``serving/problems.py`` and nowhere else.
"""

from collections.abc import Collection


class RaysysError(Exception):
    """Base of all errors that Raysys raises on purpose."""


class InvalidInput(RaysysError):
    """A value from outside is wrong. ``field`` is the path of the value, as in ``filter.must[0].range``."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class UnknownItem(InvalidInput):
    """An item id that the snapshot does not hold."""


class UnknownField(InvalidInput):
    """A filter names a field that the catalogue does not have."""


class Conflict(InvalidInput):
    """What is asked contradicts what was settled before."""


class Unauthenticated(RaysysError):
    """A key is needed. ``was_given``: there was one, but it does not count."""

    def __init__(self, message: str, was_given: bool) -> None:
        super().__init__(message, was_given)
        self.message, self.was_given = message, was_given

    def __str__(self) -> str:
        return self.message


class Forbidden(RaysysError):
    """The key is known and has none of the scopes that are ``needed``."""

    def __init__(self, message: str, needed: Collection[str]) -> None:
        super().__init__(message, needed)
        self.message, self.needed = message, needed

    def __str__(self) -> str:
        return self.message


class RateLimited(RaysysError):
    """The key has used up what it may ask for now. ``retry_after_s`` says when it may ask again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s

    def __str__(self) -> str:
        return self.message


class ConfigError(RaysysError):
    """The settings ask for something that cannot be done."""


class CatalogError(RaysysError):
    """The catalogue holds nothing that can be indexed."""


class SnapshotError(RaysysError):
    """A snapshot is missing, damaged, or of a format this version does not read."""


class UnknownSnapshot(SnapshotError):
    """There is no snapshot of this id."""


class SnapshotDamaged(SnapshotError):
    """A file of the snapshot is missing, or not what the manifest says; or it has no manifest."""


class SnapshotUntrusted(SnapshotError):
    """The snapshot has no signature of a key that is trusted here."""


class SnapshotConflict(SnapshotError):
    """Another snapshot is published than was expected, or none to go back to."""


class SnapshotMismatch(SnapshotError):
    """The encoder is not the one that made the snapshot's vectors."""


class OverBudget(RaysysError):
    """A job would cost more than was allowed, or does already, and was stopped. What it has done is kept."""


class SnapshotTooNew(SnapshotError):
    """The format of the snapshot is newer than this version reads."""


class SnapshotRefused(SnapshotError):
    """The snapshot differs from the published one by more than is allowed. ``reasons``: in what, with figures."""

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message, reasons)
        self.message = message
        self.reasons = reasons

    def __str__(self) -> str:
        return self.message


class EncoderError(RaysysError):
    """A model cannot be loaded, or it gave vectors that cannot be used."""


class Unavailable(RaysysError):
    """A part cannot answer now. ``retry_after_s`` says when to come back."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class Overloaded(Unavailable):
    """A bounded queue is full."""


class SnapshotNotLoaded(Unavailable):
    """A shard does not hold the wanted snapshot (yet)."""


def of_worker(error: Exception) -> Exception:
    """What a worker of a cluster raised, where Ray has put it into an error whose message is the whole traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
