"""Tokens of an issuer: real key pairs, every way in which a token can be wrong, and keys that change while it runs."""

import base64
import hashlib
import hmac
import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from support import NOW_S, FixedClock, Shop, post, serve_here

from raysys.access import SCOPES, KeyFile, make_key
from raysys.config import JwtSettings, RateLimit, ServeSettings, parse
from raysys.errors import ConfigError, Forbidden, RateLimited, Unauthenticated, Unavailable
from raysys.serving import tokens as module
from raysys.serving.configs import check_closed
from raysys.serving.guard import NEEDED, Guard, open_tokens
from raysys.serving.jwks import FETCH_EVERY_S, LOOK_EVERY_S, RETRY_S, FetchedKeys, read_keys
from raysys.serving.tokens import LEEWAY_S, TOKEN, Tokens

ISSUER, AUDIENCE = "https://id.example", "raysys"
RSA, SHORT = rsa.generate_private_key(65_537, 2_048), rsa.generate_private_key(65_537, 1_024)
EC, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ED = ed25519.Ed25519PrivateKey.generate()
ALL = " ".join(SCOPES)


def jwk(key: Any, **more: str) -> dict[str, Any]:
    reader = RSAAlgorithm if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey) else ECAlgorithm
    reader = OKPAlgorithm if isinstance(key, ed25519.Ed25519PublicKey) else reader
    return {**reader.to_jwk(key, as_dict=True), **more}


KEYS = [jwk(RSA.public_key(), kid="r"), jwk(EC.public_key(), kid="e"), jwk(ED.public_key(), kid="d", alg="EdDSA")]


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a token that counts; None = not given."""
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": NOW_S + 60, "scope": "openid read write"}
    return {name: value for name, value in (usual | changes).items() if value is not None}


def signed(key: Any = EC, kid: str | None = "e", algorithm: str = "ES256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers=None if kid is None else {"kid": kid})


def write(path: Path, keys: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps({"keys": keys}))
    path.chmod(0o644)
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "jwks.json", KEYS)
    return tmp_path / "jwks.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    """For what leaves no trace in it."""
    folder = tmp_path_factory.mktemp("jwks")
    write(folder / "jwks.json", KEYS)
    return of(folder / "jwks.json")


def of(path: Path, clock: FixedClock | None = None, tenant: str | None = None, **settings: Any) -> Tokens:
    given = {"issuer": ISSUER, "audience": AUDIENCE, "keys": str(path), **settings}
    return Tokens(JwtSettings.model_validate(given), FixedClock() if clock is None else clock, tenant)


def why(tokens: Tokens, text: str | bytes) -> str:
    with pytest.raises(Unauthenticated) as caught:
        tokens.check(text if isinstance(text, bytes) else text.encode())
    assert caught.value.was_given
    return str(caught.value)


@pytest.mark.parametrize(("key", "kid", "algorithm"), [(RSA, "r", "RS256"), (EC, "e", "ES256"), (ED, "d", "EdDSA")])
def test_a_token_of_the_issuer_says_who_it_is_and_what_it_may(path: Path, key: Any, kid: str, algorithm: str) -> None:
    token = of(path).check(signed(key, kid, algorithm).encode())
    assert (token.name, token.id, token.scopes, token.until_s) == ("ann", "jwt", {"read", "write"}, NOW_S + 60)


@pytest.mark.parametrize(
    ("settings", "claim", "scopes"),
    [
        ({}, {"scope": ALL}, set(SCOPES)),
        ({}, {"scope": ["read", "metrics", 7]}, {"read", "metrics"}),
        ({}, {"scope": "READ reads read:all"}, set()),
        ({}, {"scope": None}, set()),
        ({}, {"scope": {"read": True}}, set()),
        ({"scope_claim": "roles"}, {"roles": ["admin"], "scope": "read"}, {"admin"}),
        ({"scope_prefix": "raysys:"}, {"scope": "raysys:read write"}, {"read"}),
    ],
)
def test_scopes_are_words_of_a_claim(path: Path, settings: Any, claim: Any, scopes: set[str]) -> None:
    assert of(path, **settings).check(signed(**claim).encode()).scopes == scopes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"iss": "https://evil.example"},
            "the issuer of the token is 'https://evil.example', wanted 'https://id.example'",
        ),
        ({"iss": None}, "the issuer of the token is not given"),
        ({"aud": "shop"}, "the audience of the token is 'shop', wanted 'raysys'"),
        ({"aud": ["shop", "till"]}, r"the audience of the token is \['shop', 'till'\], wanted 'raysys'"),
        ({"aud": None}, "the audience of the token is not given"),
        ({"aud": "raysys2"}, "wanted 'raysys'"),
        ({"exp": NOW_S - LEEWAY_S - 1}, "the token expired at 20..-..-..T..:..:.."),
        ({"exp": None}, "never expires"),
        ({"exp": "soon"}, "'exp' of the token is no time"),
        ({"exp": True}, "'exp' of the token is no time"),
        ({"exp": float("inf")}, "'exp' of the token is no time"),
        ({"exp": float("nan")}, "'exp' of the token is no time"),
        ({"exp": 10**400}, "'exp' of the token is no time"),
        ({"nbf": NOW_S + LEEWAY_S + 1}, "the token is good from 20"),
        ({"nbf": []}, "'nbf' of the token is no time"),
        ({"sub": 7}, "no string"),
        ({"tenant": "shop"}, "'tenant' of the token is 'shop', wanted not given"),
    ],
)
def test_a_claim_that_is_wrong_is_named_with_what_was_wanted(path: Path, changes: Any, told: str) -> None:
    with pytest.raises(Unauthenticated, match=told):
        of(path).check(signed_anyhow(**changes))


def signed_anyhow(**changes: Any) -> bytes:
    """Also what PyJWT does not put into a token."""
    return jwt.PyJWS().encode(json.dumps(claims(**changes)).encode(), EC, "ES256", headers={"kid": "e"}).encode()


def test_clocks_may_differ_a_little(path: Path) -> None:
    tokens = of(path)
    assert tokens.check(signed(exp=NOW_S - LEEWAY_S, nbf=NOW_S - 60).encode())
    assert tokens.check(signed(nbf=NOW_S + LEEWAY_S).encode())


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_what_is_not_signed_by_a_key_of_the_issuer_counts_for_nothing(path: Path) -> None:
    tokens, (head, body, signature) = of(path), signed().split(".")
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    by_pem = f"{part({'alg': 'HS256', 'kid': 'r'})}.{body}"
    mac = base64.urlsafe_b64encode(hmac.digest(pem, by_pem.encode(), "sha256")).rstrip(b"=").decode()
    wrong = {
        "none": f"{part({'alg': 'none'})}.{body}.{signature}",
        "None": f"{part({'alg': 'NONE', 'kid': 'e'})}.{body}.{signature}",
        "the public key as a secret": f"{by_pem}.{mac}",
        "another key": signed(OTHER),
        "another kid": signed(EC, "unknown"),
        "the kid of another kind": signed(EC, "r"),
        "an algorithm that is not listed": signed(RSA, "r", "PS256"),
        "no algorithm": f"{part({'kid': 'e'})}.{body}.{signature}",
        "algorithms": f"{part({'kid': 'e', 'alg': ['ES256']})}.{body}.{signature}",
        "no kid of two": signed(EC, None),
        "its own key": f"{part({'alg': 'ES256', 'jwk': jwk(OTHER.public_key())})}.{body}.{signature}",
        "another body": f"{head}.{part(claims(scope=ALL))}.{signature}",
        "critical": jwt.encode(claims(), EC, "ES256", headers={"kid": "e", "crit": ["exp"], "exp": 1}),
        "padding": signed() + "=",
        "no signature": f"{head}.{body}.",
        "four parts": f"{head}.{body}.{signature}.{signature}",
    }
    write(path, [*KEYS, jwk(OTHER.public_key(), kid="o")])
    two = of(path)
    for name, text in wrong.items():
        told = why(two if name == "no kid of two" else tokens, text)
        assert not [secret for secret in text.split(".") if len(secret) > 8 and secret in told], name


@given(st.binary(max_size=200) | st.text("ey.JhbGciOiJub25lIn0_-=", max_size=200).map(str.encode))
def test_garbage_is_refused(good: Tokens, garbage: bytes) -> None:
    assert why(good, garbage)


@given(
    st.lists(
        st.sampled_from(["e30", "eyJhbGciOiJFUzI1NiJ9", part([]), part("x"), part([[]] * 9), "AA"]),
        min_size=3,
        max_size=3,
    )
)
def test_parts_that_are_no_token_are_refused(good: Tokens, parts: list[str]) -> None:
    assert why(good, ".".join(parts))


@pytest.mark.parametrize("payload", [b"[]", b"7", b"\xff", b"{", b"[" * 5_000, b'{"exp":' + b"9" * 5_000 + b"}"])
def test_a_signed_body_that_holds_no_claims_is_refused(path: Path, payload: bytes) -> None:
    assert why(of(path), jwt.PyJWS().encode(payload, EC, "ES256", headers={"kid": "e"}))


@given(st.data())
def test_a_token_of_which_one_letter_is_another_never_passes(good: Tokens, data: st.DataObject) -> None:
    text = signed(scope=ALL)
    assert good.check(text.encode())
    at = data.draw(st.integers(0, len(text) - 1))
    mutated = text[:at] + data.draw(st.characters(codec="latin-1")) + text[at + data.draw(st.integers(0, 1)) :]
    if mutated != text:
        assert why(good, mutated.encode("latin-1"))


# How long it is known


def test_a_token_is_verified_once_and_known_until_it_expires(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, verified = FixedClock(), 0
    tokens, text, claims_of = of(path, clock), signed().encode(), module._claims

    def counted(*args: Any) -> Any:
        nonlocal verified
        verified += 1
        return claims_of(*args)

    monkeypatch.setattr(module, "_claims", counted)
    first = tokens.check(text)
    clock.at_s += 60 + LEEWAY_S
    assert tokens.check(text) is first
    assert verified == 1
    clock.at_s += 0.1
    assert "expired" in why(tokens, text)
    assert "expired" in why(tokens, text)
    assert not tokens._known


def test_so_many_tokens_are_kept_and_none_of_them_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED", 3)
    tokens, texts = of(path), [signed(sub=f"s{number}").encode() for number in range(5)]
    for text in texts:
        tokens.check(text)
    assert list(tokens._known) == [hashlib.blake2b(text, digest_size=32).digest() for text in texts[2:]]


def test_a_known_token_costs_microseconds(good: Tokens) -> None:
    """A signature takes some 80 µs: far from it, whatever else the machine does."""

    def seconds(call: Callable[[], object], n: int) -> float:
        start_s = time.perf_counter()
        for _ in range(n):
            call()
        return (time.perf_counter() - start_s) / n

    text = signed().encode()
    good.check(text)
    ratios = []
    for _ in range(5):
        known = seconds(lambda: good.check(text), 200)
        ratios.append(seconds(lambda: module._claims(text, good.keys.now(), ("ES256",)), 20) / known)
    assert statistics.median(ratios) > 5


# The keys of the issuer


def test_keys_of_the_issuer_change_while_it_runs(path: Path) -> None:
    clock = FixedClock()
    tokens, old, new = of(path, clock), signed(), signed(OTHER, "o")
    assert tokens.check(old.encode())
    assert why(tokens, new)
    write(path, [jwk(OTHER.public_key(), kid="o")])
    assert tokens.check(old.encode())  # it is looked at once a second
    clock.at_s += LOOK_EVERY_S
    assert tokens.check(new.encode())
    assert why(tokens, old)  # whatever was known by the old key is forgotten


@pytest.mark.parametrize("broken", ["{", "[]", '{"keys": []}', '{"keys": [7]}', '{"keys": {}}'])
def test_a_broken_file_leaves_the_old_keys_and_says_so_once(
    path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FixedClock()
    tokens = of(path, clock, tenant="shop")
    text = signed(tenant="shop").encode()
    path.write_text(broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.at_s += LOOK_EVERY_S
            assert tokens.check(text)
    (line,) = [json.loads(record.getMessage()) for record in caplog.records]
    assert line["tenant"] == "shop"
    assert line["refused"] == tokens.status()["refused"]
    assert str(path) in line["refused"]
    write(path, KEYS)
    clock.at_s += LOOK_EVERY_S
    assert tokens.check(text)
    assert tokens.status() == {"in_use": 3, "refused": None}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([{"kty": "oct", "k": "c2VjcmV0"}], "no public key for signatures"),
        ([{**KEYS[0], "use": "enc"}], "no public key for signatures"),
        ([jwk(EC)], "private key"),
        ([jwk(SHORT.public_key())], "1024 bits is too short"),
        ([{"kty": "RSA", "n": "AQ"}], "no JWKS that can be read"),
        ([{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}], "no JWKS that can be read"),
    ],
)
def test_keys_that_nothing_is_checked_with(path: Path, keys: list[dict[str, Any]], told: str) -> None:
    write(path, keys)
    with pytest.raises(ConfigError, match=told):
        of(path)


def test_a_file_that_others_may_write_is_refused(path: Path) -> None:
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod go-w"):
        of(path)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot read the JWKS"):
        of(path)


def test_a_key_without_a_kid_serves_tokens_that_name_none() -> None:
    (key,) = read_keys(json.dumps({"keys": [jwk(EC.public_key()), {"kty": "oct"}]}).encode(), "here")
    assert key.kid is None
    assert module._claims(signed(EC, None).encode(), (key,), ("ES256",))["sub"] == "ann"


class Issuer:
    """A real server that gives ``answer``: a status and a body."""

    def __init__(self) -> None:
        self.answer, self.asked = (200, json.dumps({"keys": KEYS}).encode()), 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                self.send_response(issuer.answer[0])
                self.send_header("location", "/elsewhere")
                self.end_headers()
                self.wfile.write(issuer.answer[1])

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    thread = threading.Thread(target=issuer.server.serve_forever, args=(0.01,))
    thread.start()
    yield issuer
    issuer.server.shutdown()
    thread.join()
    issuer.server.server_close()


def fetched(tokens: Tokens) -> None:
    assert isinstance(tokens.keys, FetchedKeys)
    tokens.keys.wait(10)


def test_keys_are_fetched_and_stay_while_the_issuer_is_away(issuer: Issuer) -> None:
    clock = FixedClock()
    tokens, text = of(issuer.url, clock), signed(exp=NOW_S + 1e6).encode()
    fetched(tokens)
    assert tokens.check(text)
    clock.at_s += FETCH_EVERY_S - 1
    assert tokens.check(text)
    for answer in ((500, b""), (302, b""), (200, b"{"), (200, b"x" * (1 << 21))):
        issuer.answer, asked = answer, issuer.asked
        clock.at_s += FETCH_EVERY_S
        assert tokens.check(text)  # begins to fetch, and waits for nothing
        fetched(tokens)
        assert tokens.check(text)
        assert issuer.asked == asked + 1
        assert issuer.url in str(tokens.status()["refused"])
    issuer.answer = (200, json.dumps({"keys": [jwk(OTHER.public_key(), kid="o")]}).encode())
    clock.at_s += RETRY_S
    tokens.check(text)
    fetched(tokens)
    assert why(tokens, text)
    assert tokens.check(signed(OTHER, "o", exp=NOW_S + 1e6).encode())


def test_before_there_are_keys_one_is_asked_to_come_back(issuer: Issuer) -> None:
    clock = FixedClock()
    issuer.answer = (503, b"")
    tokens = of(issuer.url, clock)
    fetched(tokens)
    with pytest.raises(Unavailable, match="cannot fetch the JWKS"):
        tokens.check(signed().encode())
    guard = Guard(None, clock, tokens=tokens)
    assert tokens.status()["in_use"] == 0
    guard.check(request(signed(), "/readyz"))  # whether one is ready has nothing to do with it
    issuer.answer = (200, json.dumps({"keys": KEYS}).encode())
    clock.at_s += RETRY_S
    with pytest.raises(Unavailable):
        tokens.check(signed().encode())
    fetched(tokens)
    assert tokens.check(signed().encode())


@pytest.mark.parametrize("url", ["http://id.example/jwks", "ftp://id.example", "http://127.0.0.2:1/x"])
def test_what_others_could_change_on_the_way_is_no_place_for_keys(url: str) -> None:
    with pytest.raises(ConfigError, match=r"jwt\.keys: .*https://"):
        parse(ServeSettings, {"jwt": {"issuer": ISSUER, "audience": AUDIENCE, "keys": url}}, "settings")


@pytest.mark.parametrize("algorithm", ["HS256", "none", "ES256K"])
def test_other_algorithms_are_no_setting(algorithm: str) -> None:
    given = {"issuer": ISSUER, "audience": AUDIENCE, "keys": "jwks.json", "algorithms": [algorithm]}
    with pytest.raises(ConfigError, match=r"jwt\.algorithms"):
        parse(ServeSettings, {"jwt": given}, "settings")


# At the edge


def request(text: str, path: str = "/v1/search") -> dict[str, Any]:
    return {"path": path, "headers": [(b"authorization", f"Bearer {text}".encode())]}


def test_keys_and_tokens_count_side_by_side(path: Path) -> None:
    file = KeyFile(path.with_name("keys.json"))
    key, text = make_key("till", {"read"})
    file.add(key)
    both, tokens_only = Guard(str(file.path), FixedClock(), tokens=of(path)), Guard(None, FixedClock(), tokens=of(path))
    for guard, shown, name in ((both, text, "till"), (both, signed(), "ann"), (tokens_only, signed(), "ann")):
        asked = request(shown)
        guard.check(asked)
        assert asked["raysys.key"].name == name
    with pytest.raises(Unauthenticated, match="neither a key nor a token"):
        both.check(request("rubbish"))
    with pytest.raises(Unauthenticated, match="not known here"):
        tokens_only.check(request(text))
    with pytest.raises(Unauthenticated, match="a key is needed"):
        tokens_only.check({"path": "/v1/search", "headers": []})


def test_the_scopes_of_a_token_are_those_of_each_route(path: Path) -> None:
    guard = Guard(None, FixedClock(), tokens=of(path))
    for scope in (*SCOPES, "nothing"):
        for route, needed in NEEDED.items():
            asked = request(signed(scope=scope), route)
            if scope in needed:
                guard.check(asked)
                continue
            with pytest.raises(Forbidden, match=f"the key 'ann' has {scope if scope in SCOPES else 'none'}"):
                guard.check(asked)


def test_a_limit_is_that_of_each_subject(path: Path) -> None:
    guard = Guard(None, FixedClock(), RateLimit(requests_per_s=1, burst=2), of(path))
    for subject in ("ann", "bob"):
        for number in range(2):
            guard.check(request(signed(sub=subject, jti=str(number))))
        with pytest.raises(RateLimited):
            guard.check(request(signed(sub=subject, jti="2")))


def test_tokens_close_a_gateway_as_keys_do(path: Path) -> None:
    settings = ServeSettings.model_validate({"jwt": {"issuer": ISSUER, "audience": AUDIENCE, "keys": str(path)}})
    check_closed(settings, "0.0.0.0")
    assert open_tokens(settings.jwt, FixedClock(), None) is not None
    assert open_tokens(None, FixedClock(), None) is None


async def test_over_http(shop: Shop, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    token = {"issuer": ISSUER, "audience": AUDIENCE, "keys": str(path)}
    served = await serve_here(shop.store(1), tmp_path / "state.sqlite3", jwt=token)
    odd = signed(scope=ALL, sub="\ud800 \U0001f388").encode()
    texts = [signed(scope="read"), odd.decode(), signed(exp=NOW_S - 99), signed(OTHER)]
    async with served.client() as client:
        told = []
        for text, status in zip(texts, (403, 200, 401, 401), strict=True):
            headers = {"authorization": f"Bearer {text}"}
            answer = await client.post("/v1/users:export", headers=headers, json={"user_id": "ann"})
            assert answer.status_code == status, answer.text
            told.append(answer.text + repr(answer.headers))
        assert 'error="invalid_token"' in told[-1]
        client.headers["authorization"] = f"Bearer {odd.decode()}"
        assert (await post(client, "/v1/search", query="tea"))["items"]
        assert (await client.get("/readyz")).json()["jwt"] == {"in_use": 3, "refused": None}
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "raysys.audit"]
    assert [(line["key"], line["key_id"]) for line in lines[:2]] == [("ann", "jwt"), ("\\ud800 \U0001f388", "jwt")]
    for part in (part for text in texts for part in text.split(".")[1:]):
        assert part not in "".join(told) + caplog.text
    await served.stop()


def test_what_looks_like_a_token() -> None:
    assert TOKEN.fullmatch(signed().encode())
    assert not TOKEN.fullmatch(make_key("a", {"read"})[1].encode())
