"""What a list goes without while more is asked than can be answered in time, by level, each with those before it.

1: no item is drawn for a place, and none comes with its reasons. 2: the student encodes the query instead of the
encoder, where the snapshot has one. 3: fewer sources look for candidates. Who decides on the level is
``serving.brown_out``; at level 0, the rule, nothing here runs. Nothing that is left out makes a list fail, and what is
to be removed from it stays removed.
"""

from collections.abc import Sequence
from dataclasses import replace

from raysys.types import RecallQuery, Request

NO_EXPLORE, NO_EXPLAIN, NO_ENCODER, NO_SOURCES = LEFT_OUT = tuple(  # what ``degraded`` says
    f"pressure: {what}" for what in ("explore", "explain", "encoder", "sources")
)
WITHOUT_EXTRAS, WITH_STUDENT, WITH_FEWER_SOURCES = 1, 2, 3


def without_extras(request: Request, explores: bool) -> tuple[Request, Sequence[str]]:
    """The request as it can be answered at its level, and what of it is left out.

    explores: whether places of its list would go to new items.
    """
    asked = ((NO_EXPLORE, explores), (NO_EXPLAIN, bool(request.explain)))
    left_out = [what for what, is_asked in asked if is_asked]
    return replace(request, explore=False, explain=False) if left_out else request, left_out


def with_fewer_sources(query: RecallQuery, has_behaviour: bool) -> RecallQuery:
    """The query without its costly sources: the same object where it has none, or only ranks items that were given.

    Words, friends and interests are left out, but where nothing else would speak for the person, the first interest
    stays. What is asked for in words stays: the query, and what the person wrote. has_behaviour: whether the catalogue
    knows what people did, so that a history finds items without its texts.
    """
    if query.only is not None:
        return query
    first = None if has_behaviour or query.profile is None else query.profile[:1]
    fewer = replace(
        query,
        profile=first,
        words=None,
        friends=None,
        query_words=query.query_words if query.query is None else None,
    )
    return query if _n_sources(fewer) == _n_sources(query) else fewer


def _n_sources(query: RecallQuery) -> int:
    n_interests = 0 if query.profile is None else len(query.profile)
    return n_interests + sum(part is not None for part in (query.words, query.friends, query.query_words))
