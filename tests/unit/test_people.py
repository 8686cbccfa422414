"""What people may know and say of their profile, over HTTP: seen, corrected, merged, exported, erased."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import NOW_S, FixedClock, Served, Shop, post, serve_here

from raysys.config import ProfileSettings
from raysys.errors import Unavailable
from raysys.profile.reader import Profiles
from raysys.serving import schemas
from raysys.serving.current import InUse
from raysys.serving.people import People
from raysys.state.sqlite import SqliteState
from raysys.types import Event

DEADLINE_S = 5.0
NOW_MS = round(NOW_S * 1_000)
HOUR_MS = 3_600_000
ANN: dict[str, Any] = {"user_id": "ann"}
STRANGER = {
    "user_id": "ann",
    "session_id": None,
    "profile_version": 0,
    "person": None,
    "interests": [],
    "dislikes": [],
    "seen": 0,
    "counts": {},
}


async def refused(client: httpx.AsyncClient, path: str, **body: Any) -> tuple[int, str, list[str]]:
    """Status, code and wrong fields of a problem."""
    response = await client.post(path, json=body)
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    return response.status_code, problem["code"], [error["field"] for error in problem["errors"]]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not await holds():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.01)


async def get(client: httpx.AsyncClient, **who: Any) -> dict[str, Any]:
    return await post(client, "/v1/users:get", **(who or ANN))


async def edit(client: httpx.AsyncClient, action: str, **what: Any) -> dict[str, Any]:
    return await post(client, "/v1/users:edit", **ANN, action=action, **what)


async def list_of(client: httpx.AsyncClient, **body: Any) -> list[str]:
    answer = await post(client, "/v1/recommendations", **(body or ANN), limit=20)
    return [item["item_id"] for item in answer["items"]]


def event(event_id: str, kind: str = "view", hours_ago: float = 0, **more: Any) -> dict[str, Any]:
    who = {} if "session_id" in more else ANN
    return {"event_id": event_id, "type": kind, "timestamp": NOW_MS - round(hours_ago * HOUR_MS), **who, **more}


async def report(client: httpx.AsyncClient, *events: dict[str, Any]) -> None:
    assert (await post(client, "/v1/events", events=list(events)))["accepted"] == len(events)


def of_topic(shop: Shop, topic: int, n: int) -> list[str]:
    """Items of this topic that also say so."""
    rows = zip(shop.world.items.to_pylist(), shop.world.item_topics.tolist(), strict=True)
    return [row["item_id"] for row, own in rows if own == topic and row["categories"] == [f"topic-{topic}"]][:n]


async def like_two_topics(client: httpx.AsyncClient, shop: Shop) -> None:
    """Four items of topic 0 and three of topic 1 in turn, a day between two of them."""
    items = [*of_topic(shop, 0, 4), *of_topic(shop, 1, 3)]
    days_ago = [7, 5, 3, 1, 6, 4, 2]
    await report(
        client, *(event(f"e{i}", "like", 24 * days_ago[i], item_id=item_id) for i, item_id in enumerate(items))
    )


def topic_of(answer: dict[str, Any], topic: int) -> dict[str, Any]:
    (interest,) = [interest for interest in answer["interests"] if interest["words"] == f"topic-{topic}"]
    return interest


# Who they are


async def test_people_are_written_and_read(client: httpx.AsyncClient) -> None:
    ann = {
        "user_id": "ann",
        "description": "a gardener",
        "language": "fr",
        "attributes": {"age": 41},
        "follows": ["item-1", "owner-2"],
    }
    answer = await post(client, "/v1/users", users=[ann, {"user_id": "bob"}])
    assert (answer["accepted"], answer["rejected"]) == (["ann", "bob"], [])
    found = await get(client)
    assert found["profile_version"] == answer["profile_versions"]["ann"] > 0
    assert found["person"] == {
        **{name: value for name, value in ann.items() if name != "user_id"},
        "pinned": [],
        "muted": [],
        "updated_at": "2023-12-14T22:13:20+00:00",
    }
    (interest,) = found["interests"]
    assert (interest["kind"], interest["words"], interest["share"]) == ("description", "a gardener", 1.0)
    assert interest["evidence"][0]["evidence"] == "description"


async def test_what_is_not_given_goes_but_for_what_was_pinned_and_muted(client: httpx.AsyncClient) -> None:
    await report(client, event("e1", item_id="item-1"), event("e2", item_id="item-2"))
    await edit(client, "pin", evidence=["item-1"])
    await edit(client, "mute", evidence=["item-2"])
    await post(client, "/v1/users", users=[{"user_id": "ann", "description": "a gardener", "language": "fr"}])
    await post(client, "/v1/users", users=[{"user_id": "ann", "language": "de"}])
    person = (await get(client))["person"]
    assert (person["description"], person["language"]) == (None, "de")
    assert (person["pinned"], person["muted"]) == (["item-1"], ["item-2"])


async def test_a_description_is_encoded_at_once(client: httpx.AsyncClient, served: Served) -> None:
    await post(client, "/v1/users", users=[{"user_id": "ann", "description": " quasar zeppelin "}])
    texts = served.front.in_use.now().texts
    key = texts.key("quasar zeppelin", "query")

    async def is_kept() -> bool:
        return key in await served.front.state.vectors([key])

    await until(is_kept)


async def test_each_of_a_batch_is_checked_on_its_own(client: httpx.AsyncClient) -> None:
    wrong = [
        {"user_id": "u0", "descripton": "a typo"},
        {"description": "nobody"},
        {"user_id": "u2", "description": "  "},
        {"user_id": "u3", "follows": [7]},
        {"user_id": "u4", "attributes": {"big": 2**70}},
    ]
    answer = await post(client, "/v1/users", users=[*wrong, {"user_id": "good"}])
    assert answer["accepted"] == list(answer["profile_versions"]) == ["good"]
    assert [(r["index"], r["field"]) for r in answer["rejected"]] == [
        (0, "descripton"),
        (1, "user_id"),
        (2, "description"),
        (3, "follows[0]"),
        (4, "user"),
    ]
    assert "did you mean 'description'?" in answer["rejected"][0]["message"]


async def test_a_batch_of_more_than_a_thousand_is_too_large(client: httpx.AsyncClient) -> None:
    assert await refused(client, "/v1/users", users=[{"user_id": f"u{i}"} for i in range(1_001)]) == (
        413,
        "batch_too_large",
        ["users"],
    )


# What is believed of them


async def test_nothing_is_believed_of_a_stranger(client: httpx.AsyncClient) -> None:
    assert await get(client) == STRANGER
    assert await get(client, session_id="ann") == {**STRANGER, "user_id": None, "session_id": "ann"}


@pytest.mark.parametrize("path", ["get", "export", "delete"])
@pytest.mark.parametrize("who", [{}, {"user_id": "ann", "session_id": "s"}])
async def test_one_person_is_named(client: httpx.AsyncClient, path: str, who: dict[str, str]) -> None:
    assert await refused(client, f"/v1/users:{path}", **who) == (422, "invalid_input", ["body"])


async def test_interests_come_with_their_evidence(client: httpx.AsyncClient, shop: Shop) -> None:
    await like_two_topics(client, shop)
    (disliked,) = of_topic(shop, 2, 1)
    await report(
        client,
        event("s1", "search", 30, text="quasar zeppelin"),
        event("d1", "dislike", 40, item_id=disliked),
        event("v1", "view", 50, item_id="unheard of"),
    )
    found = await get(client)
    first, second = topic_of(found, 0), topic_of(found, 1)
    assert {each["item_id"] for each in first["evidence"]} == set(of_topic(shop, 0, 4))
    assert {each["item_id"] for each in second["evidence"]} == set(of_topic(shop, 1, 3))
    assert first["share"] + second["share"] == pytest.approx(1, abs=1e-3)
    newest = first["evidence"][0]
    assert newest["at"] == "2023-12-13T22:13:20+00:00"
    assert (newest["source"], newest["pinned"], newest["muted"]) == ("like", False, False)
    assert newest["title"] == (await post(client, "/v1/items:get", item_ids=[newest["item_id"]]))["items"][0]["title"]
    text = next(each for each in found["interests"] if each["kind"] == "text")
    assert text["evidence"][0]["sentence"] == text["words"] == "quasar zeppelin"
    assert "item_id" not in text["evidence"][0]
    assert [each["evidence"] for each in found["dislikes"]] == [disliked]
    assert (found["seen"], found["counts"]) == (9, {"like": 7, "search": 1, "dislike": 1, "view": 1})


async def test_muting_an_interest_changes_the_next_list_and_unmuting_brings_it_back(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    await like_two_topics(client, shop)
    before = await list_of(client)
    believed = await get(client)
    interest = topic_of(believed, 0)
    muted = await edit(client, "mute", interest_id=interest["interest_id"])
    assert muted["profile_version"] > believed["profile_version"]
    assert muted == await get(client)
    assert topic_of(muted, 0)["interest_id"] == interest["interest_id"]
    assert (topic_of(muted, 0)["muted"], topic_of(muted, 0)["share"], topic_of(muted, 1)["share"]) == (True, 0.0, 1.0)
    after = await list_of(client)
    ours = set(of_topic(shop, 0, 1_000))
    assert len(ours & set(after)) < len(ours & set(before))
    assert not set(after) & {each["item_id"] for each in interest["evidence"]}  # muted, and seen all the same
    unmuted = await edit(client, "unmute", interest_id=interest["interest_id"])
    assert unmuted["interests"] == believed["interests"]
    assert await list_of(client) == before


async def test_a_description_can_be_muted(client: httpx.AsyncClient) -> None:
    await post(client, "/v1/users", users=[{"user_id": "ann", "description": "a gardener"}])
    (interest,) = (await get(client))["interests"]
    await edit(client, "mute", interest_id=interest["interest_id"])
    assert (await get(client))["person"]["muted"] == ["description"]
    ((muted),) = (await get(client))["interests"]
    assert (muted["words"], muted["muted"]) == ("a gardener", True)


async def test_pinning_unmutes_and_muting_unpins(client: httpx.AsyncClient) -> None:
    await report(client, event("e1", item_id="item-1"), event("e2", item_id="item-2"))

    async def wishes(action: str, *names: str) -> tuple[list[str], list[str]]:
        person = (await edit(client, action, evidence=list(names)))["person"]
        return person["pinned"], person["muted"]

    assert await wishes("pin", "item-1", "item-2") == (["item-1", "item-2"], [])
    assert await wishes("mute", "item-1") == (["item-2"], ["item-1"])
    assert await wishes("pin", "item-1") == (["item-1", "item-2"], [])
    assert await wishes("unmute", "item-1") == (["item-1", "item-2"], [])
    assert await wishes("unpin", "item-1") == (["item-2"], [])


async def test_what_is_pinned_does_not_fade(client: httpx.AsyncClient, shop: Shop) -> None:
    await like_two_topics(client, shop)
    interest = topic_of(await get(client), 1)
    pinned = topic_of(await edit(client, "pin", interest_id=interest["interest_id"]), 1)
    assert pinned["pinned"]
    assert pinned["share"] > interest["share"]


async def test_an_edit_that_changes_nothing_writes_nothing(client: httpx.AsyncClient) -> None:
    await report(client, event("e1", item_id="item-1"))
    before = await get(client)
    assert await edit(client, "unmute", evidence=["item-1"]) == before


async def test_what_is_deleted_is_gone_for_good(client: httpx.AsyncClient, served: Served, shop: Shop) -> None:
    await like_two_topics(client, shop)
    interest = topic_of(await get(client), 0)
    items = {each["item_id"] for each in interest["evidence"]}
    await edit(client, "pin", interest_id=interest["interest_id"])
    answer = await edit(client, "delete", interest_id=interest["interest_id"])
    assert [each["words"] for each in answer["interests"]] == ["topic-1"]
    assert (answer["seen"], answer["person"]["pinned"]) == (3, [])
    left = (await post(client, "/v1/users:export", **ANN))["events"]
    assert not items & {each["item_id"] for each in left}
    assert not items & {found.item_id for _, found in await served.front.state.events_after(0, 1_000)}


async def test_a_deleted_text_takes_every_wording_of_it_along(client: httpx.AsyncClient, served: Served) -> None:
    said = [("s1", "Quasar Zeppelin"), ("s2", "a rose"), ("s3", " quasar zeppelin ")]
    await report(client, *(event(name, "search", 3 - i, text=text) for i, (name, text) in enumerate(said)))
    texts = served.front.in_use.now().texts
    keys = [texts.key(form, "query") for _, text in said for form in {text, text.strip()}]

    async def are_encoded() -> bool:
        return len(await served.front.state.vectors(keys)) >= len(said)

    await until(are_encoded)
    answer = await edit(client, "delete", evidence=["text:s3"])
    assert [each["words"] for each in answer["interests"]] == ["a rose"]
    assert [each["event_id"] for each in (await post(client, "/v1/users:export", **ANN))["events"]] == ["s2"]
    assert set(await served.front.state.vectors(keys)) == {texts.key("a rose", "query")}


async def test_a_deleted_description_is_gone(client: httpx.AsyncClient) -> None:
    await post(client, "/v1/users", users=[{"user_id": "ann", "description": "a gardener", "language": "fr"}])
    answer = await edit(client, "delete", evidence=["description"])
    assert answer["interests"] == []
    assert (answer["person"]["description"], answer["person"]["language"]) == (None, "fr")


async def test_only_what_is_theirs_can_be_edited(client: httpx.AsyncClient) -> None:
    await report(client, event("e1", item_id="item-1"))
    edits = [
        ({"interest_id": "i_0"}, "interest_id"),
        ({"evidence": ["item-1", "item-2"]}, "evidence[1]"),
        ({"evidence": ["description"]}, "evidence[0]"),
        ({"evidence": ["item-1"], "interest_id": "i_0"}, "body"),
        ({}, "body"),
    ]
    for what, field in edits:
        problem = await refused(client, "/v1/users:edit", **ANN, action="mute", **what)
        assert problem == (422, "invalid_input", [field])
    wrong = await refused(client, "/v1/users:edit", **ANN, action="like", evidence=["item-1"])
    assert wrong == (422, "invalid_input", ["action"])
    assert (await get(client))["person"] is None


async def test_edits_at_once_all_count(client: httpx.AsyncClient) -> None:
    names = [f"item-{i}" for i in range(8)]
    await report(client, *(event(f"e{i}", item_id=name) for i, name in enumerate(names)))
    await asyncio.gather(*(edit(client, "mute", evidence=[name]) for name in names))
    assert (await get(client))["person"]["muted"] == names


# Sessions


async def test_a_session_becomes_a_users(client: httpx.AsyncClient) -> None:
    await report(client, event("e1", item_id="item-1", session_id="s"), event("e2", item_id="item-2"))
    link = {"session_id": "s", "user_id": "ann"}
    answer = await post(client, "/v1/users:merge", **link)
    assert answer["outcome"] == "merged"
    assert answer["profile_version"] == (await get(client))["profile_version"]
    assert (await get(client))["seen"] == 2
    assert await get(client, session_id="s") == await get(client)
    assert await post(client, "/v1/users:merge", **link) == {**answer, "outcome": "already"}
    conflict = await refused(client, "/v1/users:merge", session_id="s", user_id="bob")
    assert conflict == (409, "conflict", ["session_id"])


async def test_what_was_said_before_they_were_known_still_holds(client: httpx.AsyncClient) -> None:
    items = ["item-1", "item-2", "item-3"]
    await report(client, *(event(f"s{item}", item_id=item, session_id="s") for item in items))
    await report(client, *(event(f"u{item}", item_id=item) for item in items))
    await edit(client, "pin", evidence=["item-1", "item-2"])
    session = {"session_id": "s", "action": "mute"}
    await post(client, "/v1/users:edit", **session, evidence=["item-2", "item-3"])
    answer = await post(client, "/v1/users:merge", session_id="s", user_id="ann")
    found = await get(client)
    assert (found["person"]["pinned"], found["person"]["muted"]) == (["item-1"], ["item-2", "item-3"])
    assert found["profile_version"] == answer["profile_version"]


# Export and erasure


async def test_an_export_holds_everything(client: httpx.AsyncClient) -> None:
    told = event("e1", "review", 2, item_id="item-1", value=4.0, text="very good", properties={"shop": "a"})
    await report(client, told, event("e2", item_id="item-2", hours_ago=1, session_id="s"))
    await post(client, "/v1/users", users=[{"user_id": "ann", "description": "a gardener"}])
    as_session = await list_of(client, session_id="s")
    await post(client, "/v1/users:merge", session_id="s", user_id="ann")
    as_user = await list_of(client)
    export = await post(client, "/v1/users:export", **ANN)
    assert {name: export[name] for name in STRANGER} == await get(client)
    assert export["sessions"] == ["s"]
    assert export["events"] == [
        {"event_id": "e2", "type": "view", "timestamp": "2023-12-14T21:13:20+00:00", "item_id": "item-2"},
        {
            **{name: value for name, value in told.items() if name != "user_id"},
            "timestamp": "2023-12-14T20:13:20+00:00",
        },
    ]
    shown = {who: [row["item_id"] for row in export["impressions"] if row["user"] == who] for who in ("u:ann", "s:s")}
    assert shown == {"u:ann": as_user, "s:s": as_session}
    assert export["impressions"][0]["timestamp"] == export["at"] == "2023-12-14T22:13:20+00:00"


async def test_an_export_goes_beyond_one_page(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysys.serving.people.FIRST_PAGE", 3)
    await served.front.state.append([Event(f"e{i:03}", "view", "u:ann", "item-1", NOW_S - i) for i in range(300)])
    events = (await post(client, "/v1/users:export", **ANN))["events"]
    assert [each["event_id"] for each in events] == [f"e{i:03}" for i in range(300)]


async def live_a_life(client: httpx.AsyncClient) -> None:
    await report(
        client,
        event("e1", "like", item_id="item-1"),
        event("e2", "search", text="quasar zeppelin"),
        event("e3", item_id="item-2", session_id="s-7f3a"),
        {**event("e4", item_id="item-1"), "user_id": "bob"},
    )
    await post(client, "/v1/users", users=[{"user_id": "ann", "description": "a gardener of 41"}])
    await list_of(client, session_id="s-7f3a")
    await post(client, "/v1/users:merge", session_id="s-7f3a", user_id="ann")
    await list_of(client)
    await list_of(client, user_id="bob")


@pytest.mark.parametrize("who", [ANN, {"session_id": "s-7f3a"}])
async def test_an_erased_person_is_a_stranger_and_the_receipt_says_what_went(
    client: httpx.AsyncClient, served: Served, who: dict[str, str]
) -> None:
    await live_a_life(client)
    texts = served.front.in_use.now().texts
    keys = [texts.key(text, "query") for text in ("quasar zeppelin", "a gardener of 41")]

    async def are_encoded() -> bool:
        return len(await served.front.state.vectors(keys)) == 2

    await until(are_encoded)
    receipt = await post(client, "/v1/users:delete", **who)
    places = {place["place"]: (place["removed"], place["state"]) for place in receipt["places"]}
    assert places == {
        "impressions": (40, "gone"),
        "vectors in memory": (2, "gone"),
        "events": (3, "gone"),
        "person": (1, "gone"),
        "links": (1, "gone"),
        "vectors": (2, "gone"),
        "counts of the snapshot": (0, "pending"),
    }
    assert (receipt["user"], receipt["verified"]) == ("u:ann", True)
    assert "next build" in receipt["places"][-1]["note"]
    assert await get(client) == STRANGER
    assert (await get(client, session_id="s-7f3a"))["profile_version"] == 0
    export = await post(client, "/v1/users:export", **ANN)
    assert (export["events"], export["impressions"], export["sessions"]) == ([], [], [])
    assert await served.front.state.vectors(keys) == {}
    assert (await get(client, user_id="bob"))["seen"] == 1
    assert len((await post(client, "/v1/users:export", user_id="bob"))["impressions"]) == 20


async def test_no_byte_of_what_they_wrote_is_left_in_the_file(client: httpx.AsyncClient, tmp_path: Path) -> None:
    await live_a_life(client)
    assert b"a gardener of 41" in b"".join(file.read_bytes() for file in tmp_path.glob("state.sqlite3*"))
    await post(client, "/v1/users:delete", **ANN)
    left = b"".join(file.read_bytes() for file in tmp_path.glob("state.sqlite3*"))
    assert b"gardener" not in left
    assert b"quasar" not in left


async def test_a_text_on_its_way_to_the_encoder_does_not_come_back(client: httpx.AsyncClient, served: Served) -> None:
    await report(client, event("e1", "search", text="quasar zeppelin"))
    receipt = await post(client, "/v1/users:delete", **ANN)
    assert receipt["verified"]
    await report(client, {**event("e2", "search", text="a rose"), "user_id": "bob"})
    texts = served.front.in_use.now().texts
    later, erased = texts.key("a rose", "query"), texts.key("quasar zeppelin", "query")

    async def is_encoded() -> bool:
        return later in await served.front.state.vectors([later])

    await until(is_encoded)
    assert await served.front.state.vectors([erased]) == {}
    assert texts.forget([erased]) == 0


async def test_erasing_a_stranger_is_no_mistake(client: httpx.AsyncClient) -> None:
    receipt = await post(client, "/v1/users:delete", **ANN)
    assert receipt["verified"]
    assert {place["removed"] for place in receipt["places"]} == {0}
    assert {place["state"] for place in receipt["places"]} == {"gone"}


async def test_other_gateways_are_named_in_the_receipt(shop: Shop, tmp_path: Path) -> None:
    settings = {"gateway": {"max_replicas": 2}, "impressions": {"folder": None}}
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", **settings)
    receipt = await post(served.client(), "/v1/users:delete", **ANN)
    await served.stop()
    assert [place["place"] for place in receipt["places"]] == [
        "vectors in memory",
        "events",
        "person",
        "links",
        "vectors",
        "other gateways",
    ]
    assert receipt["places"][-1]["state"] == "pending"


async def test_people_are_written_before_there_is_a_snapshot(tmp_path: Path) -> None:
    state = SqliteState(tmp_path / "state.sqlite3")
    settings = ProfileSettings()
    people = People(InUse(), state, Profiles(state, settings, FixedClock()), settings, FixedClock())
    body = schemas.UsersBody(users=({"user_id": "ann", "description": "a gardener"},))
    assert (await people.upsert(body))["accepted"] == ["ann"]
    with pytest.raises(Unavailable):
        await people.get(schemas.UserBody(user_id="ann"))
    await state.close()


async def test_the_routes_are_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    names = {"UsersBody", "UserEntry", "UserBody", "UserEditBody", "UserMergeBody", "UserAnswer", "ErasureAnswer"}
    assert names <= document["components"]["schemas"].keys()
    verbs = ("", ":get", ":edit", ":merge", ":export", ":delete")
    assert {f"/v1/users{verb}" for verb in verbs} <= document["paths"].keys()
    assert "user:<user_id>" in document["components"]["schemas"]["UserEntry"]["properties"]["follows"]["description"]


# The two calls that this needs of the store


async def test_forgotten_events_are_gone_and_those_of_others_stay(tmp_path: Path) -> None:
    state = SqliteState(tmp_path / "state.sqlite3")
    await state.append([Event(f"e{i}", "view", user, "a", i) for i, user in enumerate(["u:ann", "u:ann", "u:bob"])])
    version = (await state.versions(["u:ann"]))["u:ann"]
    assert await state.forget("u:ann", ["e0", "e2", "nothing"]) == 1
    history = await state.history("u:ann", 10)
    assert history is not None
    assert [each.event_id for each in history.events] == ["e1"]
    assert history.version > version
    assert await state.forget("u:ann", ["e0"]) == 0
    assert (await state.versions(["u:ann"]))["u:ann"] == history.version
    assert [each.event_id for _, each in await state.events_after(0, 10)] == ["e1", "e2"]
    assert await state.append([Event("e0", "view", "u:ann", "a", 0.0)]) == ["accepted"]
    await state.close()


async def test_forgotten_bytes_go_with_the_next_round_of_expiry(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    state = SqliteState(path)
    await state.append([Event("e0", "search", "u:ann", None, 0.0, text="quasar zeppelin")])
    assert await state.forget("u:ann", ["e0"]) == 1
    await state.expire(NOW_S)
    assert b"quasar" not in b"".join(file.read_bytes() for file in tmp_path.glob("state.sqlite3*"))
    await state.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
    connection.close()


async def test_the_sessions_of_a_user(tmp_path: Path) -> None:
    state = SqliteState(tmp_path / "state.sqlite3")
    for session, user in (("s:2", "u:ann"), ("s:1", "u:ann"), ("s:3", "u:bob")):
        await state.link(session, user)
    assert await state.sessions("u:ann") == await state.sessions("s:2") == ["s:1", "s:2"]
    assert await state.sessions("u:nobody") == await state.sessions("s:nobody") == []
    await state.close()
