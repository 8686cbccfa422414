"""Signed snapshots: whose are taken, and that one which is not changes nothing but what is said of it."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshot_shelf import A, B, C, copy_of, put, swap
from support import Shop
from typer.testing import CliRunner

from raysys.cli import app
from raysys.config import BuildSettings, ServeSettings, parse
from raysys.errors import ConfigError, SnapshotDamaged, SnapshotError, SnapshotUntrusted
from raysys.index.catalogue import open_verified
from raysys.index.manifest import MANIFEST, read_manifest
from raysys.index.signing import SIGNATURE, Signers, make_signing_key, read_public_key, read_signing_key
from raysys.index.store import HISTORY, POINTER, SnapshotStore
from raysys.publishing.activate import activate
from raysys.publishing.verify import checks, look_through
from raysys.serving.alone import Alone
from raysys.training.local import build_here

Spoil = Callable[[SnapshotStore, Path], object]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "signing"
    make_signing_key(path)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("others") / "signing"
    make_signing_key(path)
    return path


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


@pytest.fixture
def store(key: Path, tmp_path: Path) -> SnapshotStore:
    """A and B, both signed, and A published."""
    store = SnapshotStore(tmp_path / "index", [public(key)])
    for snapshot_id in (A, B):
        put(store, snapshot_id)
        store.sign(snapshot_id, key)
    store.publish(A)
    return store


def published(store: SnapshotStore) -> tuple[bytes, bytes]:
    return (store.root / POINTER).read_bytes(), (store.root / HISTORY).read_bytes()


def flip(path: Path, bit: int) -> None:
    """One bit of the file, counted round its length."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[bit // 8 % len(content)] ^= 1 << bit % 8
        return bytes(changed)

    swap(path, change)


def test_a_key_is_private_and_its_public_half_knows_what_it_signs(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    read_public_key(public(key)).verify(read_signing_key(key).sign(b"x"), b"x")


def test_a_signed_snapshot_is_published_and_opened(store: SnapshotStore, key: Path) -> None:
    store.publish(B)
    assert store.rollback() == (B, A)
    assert store.manifest(A) == read_manifest(store.folder(A))
    found = list(checks(store.folder(A), False, store.signers))
    assert [check.found for check in found if check.what == "signature"] == ["by a key that is trusted here"]
    assert not [check for check in found if check.file == SIGNATURE]


def test_openssl_agrees_about_the_signature(store: SnapshotStore, key: Path) -> None:
    folder = store.folder(A)
    given = ["-pubin", "-inkey", public(key), "-sigfile", folder / SIGNATURE, "-in", folder / MANIFEST]
    said = subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-rawin", *given], capture_output=True, text=True, check=True
    )
    assert "Verified Successfully" in said.stdout


def test_any_of_several_keys_will_do_while_one_takes_over_from_another(
    store: SnapshotStore, key: Path, other: Path
) -> None:
    both = SnapshotStore(store.root, [public(other), public(key)])
    assert both.manifest(B).snapshot_id == B
    both.sign(B, other)
    assert both.manifest(B).snapshot_id == B
    with pytest.raises(SnapshotUntrusted):
        store.manifest(B)


def test_another_key_in_the_file_counts_at_once(key: Path, other: Path, tmp_path: Path) -> None:
    """Also for a store that is open, as servers have one; what cannot be read leaves the key that was there."""
    trusted = tmp_path / "trusted.pub"
    shutil.copy(public(key), trusted)
    store = SnapshotStore(tmp_path / "index", [trusted])
    for snapshot_id, signing in ((A, key), (B, other)):
        put(store, snapshot_id)
        store.sign(snapshot_id, signing)
    assert store.manifest(A).snapshot_id == A
    with pytest.raises(SnapshotUntrusted):
        store.manifest(B)
    shutil.copy(public(other), trusted)
    assert store.manifest(B).snapshot_id == B
    with pytest.raises(SnapshotUntrusted):
        store.manifest(A)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"half"), lambda path: path.chmod(0o666)])
def test_a_key_that_cannot_be_read_again_still_counts_and_is_said_once(
    store: SnapshotStore, key: Path, tmp_path: Path, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    trusted = tmp_path / "trusted.pub"
    shutil.copy(public(key), trusted)
    served = SnapshotStore(store.root, [trusted])
    spoil(trusted)
    assert [served.manifest(A).snapshot_id for _ in range(3)] == [A, A, A]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "raysys.index.signing"]
    assert str(trusted) in line
    with pytest.raises(ConfigError):
        SnapshotStore(store.root, [trusted])  # who starts now has no key from before


@given(bit=st.integers(0, 1 << 20), name=st.sampled_from([MANIFEST, SIGNATURE]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_one_bit_of_manifest_or_signature_and_it_is_not_taken(store: SnapshotStore, bit: int, name: str) -> None:
    path = store.folder(B) / name
    before = path.read_bytes()
    try:
        flip(path, bit)
        with pytest.raises(SnapshotUntrusted):
            store.manifest(B)
    finally:
        path.write_bytes(before)


@given(signature=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_no_other_bytes_are_a_signature(store: SnapshotStore, signature: bytes) -> None:
    path = store.folder(B) / SIGNATURE
    before = path.read_bytes()
    try:
        path.write_bytes(signature)
        with pytest.raises(SnapshotUntrusted):
            store.manifest(B)
    finally:
        path.write_bytes(before)


def unsigned(store: SnapshotStore, other: Path) -> None:
    (store.folder(B) / SIGNATURE).unlink()


def by_another(store: SnapshotStore, other: Path) -> None:
    SnapshotStore(store.root).sign(B, other)


def with_that_of_another(store: SnapshotStore, other: Path) -> None:
    shutil.copy(store.folder(A) / SIGNATURE, store.folder(B) / SIGNATURE)


def with_all_of_another(store: SnapshotStore, other: Path) -> None:
    """An older signed snapshot in the place of a newer one."""
    shutil.rmtree(store.folder(B))
    shutil.copytree(store.folder(A), store.folder(B))


def with_a_changed_manifest(store: SnapshotStore, other: Path) -> None:
    swap(store.folder(B) / MANIFEST, lambda content: content.replace(b'"n_items": ', b'"n_items": 1'))


WRONG: dict[str, tuple[Spoil, str]] = {
    "unsigned": (unsigned, "is not signed"),
    "by another": (by_another, "not by the key that is trusted here"),
    "that of another snapshot": (with_that_of_another, "not by the key that is trusted here"),
    "another snapshot": (with_all_of_another, f"signed as that of {A}, not of {B}"),
    "changed since": (with_a_changed_manifest, "or the manifest was changed since"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused_moves_nothing_whatever_is_forced(case: str, store: SnapshotStore, other: Path) -> None:
    spoil, message = WRONG[case]
    spoil(store, other)
    before = published(store)
    for act in (lambda: activate(store, B, force=True), lambda: store.publish(B), lambda: store.move(B, "activate")):
        with pytest.raises(SnapshotUntrusted, match=message):
            act()
    assert published(store) == before
    refusal = store.refusal(B)
    assert refusal is not None
    assert message in refusal.reasons[0]
    (check,) = look_through(store, B, False)
    assert (check.level, check.what, check.file) == ("fail", "signature", SIGNATURE)
    with pytest.raises(SnapshotUntrusted, match=message):
        open_verified(store.folder(B), store.signers)


def test_nobody_goes_back_to_one_that_is_not_trusted(store: SnapshotStore, other: Path) -> None:
    store.publish(B)
    SnapshotStore(store.root).sign(A, other)
    before = published(store)
    with pytest.raises(SnapshotDamaged, match="not by the key that is trusted here"):
        store.rollback()
    assert published(store) == before


def test_a_file_that_does_not_fit_is_found_under_a_good_signature(store: SnapshotStore, key: Path) -> None:
    flip(store.folder(B) / "shard-00000/items.arrow", 3)
    with pytest.raises(SnapshotDamaged):
        store.publish(B)
    with pytest.raises(SnapshotDamaged):
        store.sign(B, key)


async def test_a_gateway_serves_on_and_says_why(shop: Shop, key: Path, other: Path, tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "index")
    for snapshot_id in (A, B, C):
        store.sign(copy_of(shop.snapshot(1), store, snapshot_id).name, key)
    store.publish(A)
    serving = ServeSettings(
        index_root=str(store.root),
        state=str(tmp_path / "state"),
        impressions={"folder": None},
        snapshot_public_keys=[str(public(key))],
    )
    alone = Alone(serving, store.manifest(A).encoder)
    await alone.follow("current")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(alone.app()), base_url="http://test") as http:

        async def told_of(snapshot_id: str) -> tuple[str, str | None]:
            (store.root / POINTER).write_text(snapshot_id)  # by whoever can write there
            await alone.follow("current")  # as a poll does
            ready = (await http.get("/readyz")).json()
            listed = await http.post("/v1/recommendations", json={"limit": 3})
            assert len(listed.json()["items"]) == 3
            assert listed.json()["snapshot_id"] == ready["snapshot_id"]
            return ready["snapshot_id"], ready["refused"]

        store.sign(B, other)
        serves, refused = await told_of(B)
        assert serves == A
        assert refused is not None
        assert refused.startswith("SnapshotUntrusted: the signature of ")
        metrics = (await http.get("/metrics")).text
        assert "raysys_snapshot_refusals_total 1.0" in metrics
        answer = await http.post("/v1/admin/snapshots:activate", json={"snapshot_id": B, "force": True})
        assert (answer.status_code, answer.json()["code"]) == (409, "snapshot_untrusted")
        assert await told_of(C) == (C, None)
    await alone.close()


def test_a_server_does_not_start_over_one_that_is_not_signed(shop: Shop, key: Path, tmp_path: Path) -> None:
    store = SnapshotStore(shop.store(1).root, [public(key)])
    with pytest.raises(SnapshotUntrusted, match="is not signed"):
        store.manifest(store.current_id())


def test_a_build_signs_what_it_publishes(key: Path, shop: Shop, tmp_path: Path) -> None:
    raw = shop.settings(1, tmp_path / "index").model_dump()
    build_here(parse(BuildSettings, raw | {"index": raw["index"] | {"signing_key": str(key)}}, "test"))
    store = SnapshotStore(tmp_path / "index", [public(key)])
    assert store.verify(store.current_id()).snapshot_id == store.current_id()


@pytest.mark.parametrize("wrong", ["gone", "no key", "readable", "another kind", "the public half"])
def test_a_key_that_cannot_sign_is_told(wrong: str, key: Path, tmp_path: Path) -> None:
    path = tmp_path / "key"
    if wrong != "gone":
        path.touch(mode=0o600)
        path.write_bytes(key.read_bytes() if wrong == "readable" else b"-----BEGIN something")
    if wrong == "readable":
        path.chmod(0o644)
    if wrong == "another kind":
        form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        path.write_bytes(generate_private_key(SECP256R1()).private_bytes(*form))
    if wrong == "the public half":
        path.write_bytes(public(key).read_bytes())
    message = {"gone": "cannot read the key", "readable": "chmod 600"}.get(wrong, "holds no private Ed25519 key")
    with pytest.raises(ConfigError, match=message) as told:
        read_signing_key(path)
    assert "something" not in str(told.value)


def test_a_public_key_that_others_may_write_is_none(key: Path, tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    shutil.copy(public(key), path)
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="others may write"):
        Signers([path])
    path.chmod(0o644)
    path.write_bytes(key.read_bytes())
    with pytest.raises(ConfigError, match="holds no public Ed25519 key"):
        Signers([path])


def test_a_key_is_never_written_over(key: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        make_signing_key(key)
    assert key.read_bytes() == before


def test_the_commands(tmp_path: Path) -> None:
    def run(*words: object) -> tuple[int, str]:
        ended = CliRunner().invoke(app, [str(word) for word in words])
        if isinstance(ended.exception, SnapshotError):
            return 1, str(ended.exception)
        return ended.exit_code, ended.stdout

    key, root, store = tmp_path / "signing", tmp_path / "index", SnapshotStore(tmp_path / "index")
    put(store, A)
    assert run("keys", "signing", key)[0] == 0
    trusting = ("--root", root, "--public-key", f"{key}.pub")
    assert "is not signed" in run("snapshots", "activate", A, *trusting)[1]
    assert not (root / POINTER).exists()
    assert run("snapshots", "sign", A, "--key", key, "--root", root) == (0, f"signed {A}\n")
    assert run("snapshots", "activate", A, *trusting)[0] == 0
    assert "signature: by a key that is trusted here" in run("snapshots", "verify", A, "--no-encoder", *trusting)[1]
