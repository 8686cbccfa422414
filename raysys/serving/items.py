"""Items on sale by the second: what the item routes do, without HTTP. Durable, and seen here, when each returns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysys.clock import Clock
from raysys.errors import InvalidInput, Unavailable
from raysys.serving import schemas
from raysys.serving.current import Current, InUse
from raysys.state.protocol import StateStore
from raysys.types import ItemChange, ItemDraft

RETRIES = 5  # of an edit that another gateway came in between


class Items:
    """Reads and writes of single items."""

    def __init__(self, in_use: InUse, state: StateStore, clock: Clock) -> None:
        self._in_use, self._state, self._clock = in_use, state, clock

    async def get(self, body: schemas.ItemIdsBody) -> dict[str, Any]:
        """Items by id, hidden ones included."""
        current = self._in_use.now()
        wanted = tuple(dict.fromkeys(body.item_ids))
        found = await current.lookup.items(wanted)
        return {
            "snapshot_id": current.catalogue.snapshot_id,
            "items": [{"item_id": item_id, **fields} for item_id, fields in found.items()],
            "unknown_items": [item_id for item_id in wanted if item_id not in found],
        }

    async def upsert(self, body: schemas.ItemsBody) -> dict[str, Any]:
        """New items, and new states of old ones: what is not given is no longer there."""
        current = self._in_use.now()
        drafts: list[ItemDraft] = []
        rejected: list[dict[str, Any]] = []
        for index, raw in enumerate(body.items):
            try:
                drafts.append(current.entry.draft(raw))
            except InvalidInput as error:
                rejected.append(_rejection(index, error))
        await self._write(drafts)
        return {"accepted": [draft.item_id for draft in drafts], "rejected": rejected}

    async def patch(self, body: schemas.ItemsBody) -> dict[str, Any]:
        """Some fields of items that are there; null takes a field away."""
        current = self._in_use.now()
        accepted: list[str] = []
        rejected: list[dict[str, Any]] = []
        for index, raw in enumerate(body.items):
            try:
                await self._edit(current, _id_of(raw), raw)
                accepted.append(raw["item_id"])
            except InvalidInput as error:
                rejected.append(_rejection(index, error))
        return {"accepted": accepted, "rejected": rejected}

    async def hide(self, body: schemas.ItemIdsBody) -> dict[str, Any]:
        """Take items out of every list until ``unhide``; they stay known."""
        return await self._edit_all(body, {"hidden": True})

    async def unhide(self, body: schemas.ItemIdsBody) -> dict[str, Any]:
        return await self._edit_all(body, {"hidden": None})

    async def delete(self, body: schemas.ItemIdsBody) -> dict[str, Any]:
        """Remove items for good: they also stay away when a later build reads them in its file."""
        wanted = tuple(dict.fromkeys(body.item_ids))
        unknown: Sequence[str] = wanted
        for one in self._in_use.all():
            await one.live.catch_up()  # what another gateway has just written must not pass for unknown
            unknown = one.lookup.unknown(unknown)
        await self._write([ItemDraft(i, None) for i in wanted if i not in unknown])
        return {"accepted": [i for i in wanted if i not in unknown], "rejected": [], "unknown_items": [*unknown]}

    async def _edit_all(self, body: schemas.ItemIdsBody, fields: Mapping[str, Any]) -> dict[str, Any]:
        patch = schemas.ItemsBody(items=tuple({"item_id": i, **fields} for i in dict.fromkeys(body.item_ids)))
        return await self.patch(patch)

    async def _edit(self, current: Current, item_id: str, patch: Mapping[str, Any]) -> None:
        """Read, change and write one item; again where another gateway wrote in between. Raises InvalidInput."""
        for _ in range(RETRIES):
            latest = await current.live.change(item_id)
            fields = latest.fields if latest is not None else self._fields(item_id)
            if fields is None:
                raise InvalidInput("item_id", f"the catalogue holds no item {item_id!r}")
            draft = current.entry.draft(patch, fields)
            expected = 0 if latest is None else latest.sequence
            if await self._write([replace(draft, expected=expected)]):
                return
        raise Unavailable(f"item {item_id!r} is being changed by others; try again")

    def _fields(self, item_id: str) -> Mapping[str, Any] | None:
        """Of an item that has not changed, in the first snapshot in use that holds it."""
        found = (current.catalogue.fields(item_id) for current in self._in_use.all())
        return next((fields for fields in found if fields is not None), None)

    async def _write(self, drafts: Sequence[ItemDraft]) -> list[ItemChange]:
        """Write, have new texts encoded, and let this gateway know before anybody hears of it."""
        changes = await self._state.change_items(drafts, self._clock.now_s()) if drafts else []
        written = [change for change in changes if change is not None]
        for current in self._in_use.all():
            for change in written:
                if not change.deleted and not current.live.is_encoded(change.item_id, change.text):
                    current.texts.submit(change.text, "item", change.item_id)
            await current.live.catch_up()
        return written


def _id_of(raw: Mapping[str, Any]) -> str:
    item_id = raw.get("item_id")
    if not isinstance(item_id, str) or not item_id:
        raise InvalidInput("item_id", "must be given, as a string")
    return item_id


def _rejection(index: int, error: InvalidInput) -> dict[str, Any]:
    return {"index": index, "code": "invalid", "field": error.field, "message": error.message}
