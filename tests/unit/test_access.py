"""The file of the keys, the commands that write it, the client that shows one, and when they are asked for."""

import json
import os
import re
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Shop, server_of
from typer.testing import CliRunner, Result

from raysys.access import KEY, SCOPES, Key, KeyFile, make_key
from raysys.cli import app
from raysys.client import ApiError, Client
from raysys.config import ServeSettings, parse
from raysys.doctor import examine
from raysys.errors import ConfigError
from raysys.serving.configs import check_closed

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def secret_of(text: str) -> bytes:
    parts = KEY.fullmatch(text.encode())
    assert parts is not None
    return parts[2]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["keys", *map(str, words)])


def test_a_key_is_known_by_its_secret_and_nothing_else() -> None:
    key, text = make_key("shop", {"read"})
    secret = secret_of(text)
    assert text == f"rs_{key.id}_{secret.decode()}"
    assert key.has(secret)
    for wrong in (b"", secret[:-1], secret + b"A", secret.swapcase(), secret_of(make_key("shop", {"read"})[1])):
        assert not key.has(wrong)


@given(st.binary(max_size=64))
def test_no_other_bytes_are_the_secret(guess: bytes) -> None:
    key, text = make_key("shop", {"read"})
    assert key.has(guess) == (guess == secret_of(text))


def test_the_hash_is_compared_in_constant_time() -> None:
    assert Key.has.__code__.co_names[:2] == ("hmac", "compare_digest")


def test_one_secret_in_two_files_has_two_hashes() -> None:
    keys = [make_key("shop", {"read"})[0] for _ in range(3)]
    assert len({key.salt for key in keys}) == len({key.hash for key in keys}) == 3


def test_a_key_is_good_until_the_moment_it_expires() -> None:
    key, _ = make_key("shop", {"read"}, NOW + timedelta(days=1), NOW)
    end_s = (NOW + timedelta(days=1)).timestamp()
    assert [key.is_expired(s) for s in (NOW.timestamp(), end_s - 0.001, end_s, end_s + 1)] == [False, False, True, True]
    assert not make_key("shop", {"read"})[0].is_expired(1e12)


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a\nb", "ü", "a" * 65])
def test_what_cannot_name_a_key(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a key"):
        make_key(name, {"read"})


@pytest.mark.parametrize("scopes", [set(), {"all"}, {"read", "root"}])
def test_scopes_that_are_none(scopes: set[str]) -> None:
    with pytest.raises(ConfigError, match="read, write, admin, metrics"):
        make_key("shop", scopes)


def test_what_is_written_is_read_again_and_holds_no_secret(path: Path) -> None:
    made = [make_key("a", {"read", "write"}), make_key("b", set(SCOPES), NOW, NOW)]
    for key, _ in made:
        KeyFile(path).add(key)
    assert KeyFile(path).read() == tuple(key for key, _ in made)
    assert not [text for _, text in made if secret_of(text) in path.read_bytes()]
    assert [key["scopes"] for key in json.loads(path.read_bytes())["keys"]] == [["read", "write"], list(SCOPES)]


def test_nobody_else_may_read_the_file_or_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    before = os.umask(0)
    try:
        KeyFile(path).add(make_key("a", {"read"})[0])
    finally:
        os.umask(before)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path)] == [0o700, 0o600]
    assert {each.name for each in path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_use_is_refused_with_the_way_out(path: Path, mode: int) -> None:
    KeyFile(path).add(make_key("a", {"read"})[0])
    path.chmod(mode)
    file, other = KeyFile(path), make_key("b", {"read"})[0]
    for act in (file.read, lambda: file.revoke("a"), lambda: file.add(other)):
        with pytest.raises(ConfigError, match=f"mode 0{mode:o}.*chmod 600 {re.escape(str(path))}"):
            act()


def test_a_missing_file_says_what_makes_one(path: Path) -> None:
    for act in (KeyFile(path).read, KeyFile(path).stamp):
        with pytest.raises(ConfigError, match="raysys keys create"):
            act()


@pytest.mark.parametrize("change", [{"hash": None}, {"salt": None}, {"scopes": None}, {"scopes": []}, {"name": "a b"}])
def test_a_file_that_is_no_list_of_keys_is_refused_without_showing_it(path: Path, change: dict[str, object]) -> None:
    key, text = make_key("a", {"read"})
    KeyFile(path).add(key)
    content = json.loads(path.read_bytes())
    content["keys"][0] |= {name: text if value is None else value for name, value in change.items()}
    for wrong in (json.dumps(content), json.dumps([text]), text, json.dumps({"keys": [], text: 1})):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="holds no keys") as caught:
            KeyFile(path).read()
        assert caught.value.__cause__ is None
        assert text not in str(caught.value)


def test_the_stamp_changes_with_content_and_permissions(path: Path) -> None:
    file = KeyFile(path)
    file.add(make_key("a", {"read"})[0])
    stamps = [file.stamp()]
    assert file.stamp() == stamps[0]
    file.add(make_key("b", {"read"})[0])
    stamps.append(file.stamp())
    path.chmod(0o644)
    stamps.append(file.stamp())
    assert len(set(stamps)) == 3


def test_keys_made_at_once_are_all_there(path: Path) -> None:
    keys = [make_key(f"k{number}", {"read"})[0] for number in range(12)]
    threads = [threading.Thread(target=KeyFile(path).add, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(KeyFile(path).read()) == set(keys)


def test_where_nothing_can_be_written_the_commands_say_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in (("create", "--name", "a", "--scope", "read"), ("revoke", "a")):
        failed = run(*command, "--file", tmp_path / "file" / "keys.json")
        assert isinstance(failed.exception, ConfigError)
        assert "cannot write" in str(failed.exception)
        assert failed.stdout == ""


def test_create_list_revoke(path: Path) -> None:
    made = run("create", "--name", "shop", "--scope", "read", "--scope", "write", "--days", "90", "--file", path)
    assert made.exit_code == 0, made.output
    text = made.stdout.strip()
    (key,) = KeyFile(path).read()
    assert key.has(secret_of(text))
    assert (key.name, key.scopes) == ("shop", {"read", "write"})
    assert key.expires_at is not None
    assert key.expires_at - key.created_at == timedelta(days=90)
    listed = run("list", "--file", path).output
    assert all(word in listed for word in (key.id, "shop", "read write", f"{key.expires_at:%Y-%m-%d}"))
    assert secret_of(text).decode() not in listed + made.stderr
    assert key.hash.hex() not in listed
    assert key.id in run("revoke", "shop", "--file", path).output
    assert KeyFile(path).read() == ()


def test_a_name_that_two_keys_have_is_revoked_by_id(path: Path) -> None:
    old, new = (make_key("shop", {"read"})[0] for _ in range(2))
    for key in (old, new):
        KeyFile(path).add(key)
    with pytest.raises(ConfigError, match=f"{old.id}, {new.id}"):
        KeyFile(path).revoke("shop")
    assert KeyFile(path).revoke(old.id) == old
    assert KeyFile(path).read() == (new,)
    with pytest.raises(ConfigError, match="no key 'nobody'"):
        KeyFile(path).revoke("nobody")


def test_an_expired_key_is_listed_as_such(path: Path) -> None:
    KeyFile(path).add(make_key("old", {"read"}, NOW - timedelta(days=1), NOW - timedelta(days=2))[0])
    assert "(expired)" in run("list", "--file", path).output


def test_the_doctor_tells_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key, text = make_key("shop", {"read"})
    KeyFile(tmp_path / "keys.json").add(key)
    monkeypatch.setenv("RAYSYS_API_KEY", text)
    told = repr(list(examine(str(tmp_path))))
    assert secret_of(text).decode() not in told
    assert key.hash.hex() not in told


# The client


def test_the_client_shows_its_key(shop: Shop, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {}
    for scope in ("read", "write"):
        key, texts[scope] = make_key(scope, {scope})
        KeyFile(path).add(key)
    with server_of(shop.store(2), path.with_name("state.sqlite3"), api_keys=str(path)) as url:
        with Client(url) as nobody, pytest.raises(ApiError, match="401 unauthenticated: a key is needed"):
            nobody.search("tea")
        with Client(url, api_key=texts["read"]) as reader:
            assert reader.search("tea")["items"]
        monkeypatch.setenv("RAYSYS_API_KEY", texts["write"] + "\n")
        with Client(url) as writer:
            assert writer.delete(["nothing"])["unknown_items"] == ["nothing"]
            with pytest.raises(ApiError, match="403 forbidden: this route needs the scope read"):
                writer.search("tea")
        monkeypatch.setenv("RAYSYS_API_KEY", texts["read"])
        asked = CliRunner().invoke(app, ["recommend", "--url", url, "-n", "1"], catch_exceptions=False)
        assert asked.exit_code == 0
        assert "ms in the server" in asked.output


@pytest.mark.parametrize("odd", ["two words", "a\nb", "ключ"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(odd: str) -> None:
    with pytest.raises(ConfigError, match="RAYSYS_API_KEY") as caught:
        Client("http://127.0.0.1:1", api_key=odd)
    assert odd not in str(caught.value)


# The settings


def test_a_url_is_no_file_of_keys() -> None:
    with pytest.raises(ConfigError, match=r"api_keys: .*must be a file"):
        parse(ServeSettings, {"api_keys": "s3://bucket/keys.json"}, "settings")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org", "", "127.1"])
def test_beyond_this_machine_it_is_closed_unless_somebody_says_otherwise(host: str) -> None:
    with pytest.raises(ConfigError, match=r"raysys keys create.*open: true"):
        check_closed(ServeSettings(), host)
    check_closed(ServeSettings(open=True), host)
    check_closed(ServeSettings(api_keys="keys.json"), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_on_this_machine_it_is_open(host: str) -> None:
    check_closed(ServeSettings(), host)


def test_serve_says_what_is_wrong_before_it_starts_anything(path: Path) -> None:
    def why(*words: str) -> str:
        return str(CliRunner().invoke(app, ["serve", *words]).exception)

    assert "say `open: true` (--open)" in why("--host", "0.0.0.0")
    assert "raysys keys create" in why("--host", "0.0.0.0", "--api-keys", str(path))
    KeyFile(path).add(make_key("a", {"read"})[0])
    path.chmod(0o644)
    assert "chmod 600" in why("--api-keys", str(path))
