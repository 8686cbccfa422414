"""Two gateways over one store: a caller that is sent to the other one is never told something else."""

from pathlib import Path

from support import Shop, serve_here


async def test_what_one_gateway_has_just_taken_can_be_deleted_through_another(shop: Shop, tmp_path: Path) -> None:
    one, other = [await serve_here(shop.store(2), tmp_path / "state.sqlite3") for _ in range(2)]
    async with one.client() as left, other.client() as right:
        for number in range(10):
            item = {"item_id": f"new-{number}", "title": f"quokka {number}"}
            written = await left.post("/v1/items", json={"items": [item]})
            assert written.json()["accepted"] == [item["item_id"]]
            gone = await right.post("/v1/items:delete", json={"item_ids": [item["item_id"]]})
            assert gone.json()["accepted"] == [item["item_id"]]
    await one.stop()
    await other.stop()
