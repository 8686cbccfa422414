"""JSON Web Tokens (RFC 7519) in place of keys. Imported only where ``jwt`` stands in the settings.

PyJWT checks the signature, before anything in a token is believed; what the token claims is checked here, by our clock.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from jwt import PyJWS
from jwt.exceptions import PyJWTError

from raysys.access import SCOPES, Scope
from raysys.clock import Clock
from raysys.config import JwtSettings
from raysys.errors import Unauthenticated, Unavailable
from raysys.serving.audit import record_refusal
from raysys.serving.jwks import FetchedKeys, FileKeys, IssuerKeys, PublicKey

TOKEN = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # in base64url one way of writing it, so no "="
MAX_BYTES = 8_192
MAX_CACHED = 10_000
LEEWAY_S = 10.0  # by so much the clocks of the issuer and of this machine may differ
LATEST_S = 253_402_300_799  # the last second of the year 9999
MAX_SHOWN_CHARS = 100

_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # which keys an algorithm takes
_JWS = PyJWS()


@dataclass(frozen=True, slots=True)
class Token:
    """A token that counts. name: its subject. id: the same of all tokens; those of keys are hexadecimal numbers."""

    name: str
    scopes: frozenset[Scope]
    from_s: float
    until_s: float
    id: str = "jwt"


class Tokens:
    """Tokens of one issuer. For one event loop."""

    def __init__(self, settings: JwtSettings, clock: Clock, tenant: str | None = None) -> None:
        """tenant: whose tokens count; None = those that name no tenant. Raises ConfigError for a file of keys."""
        self._settings, self._clock, self._tenant = settings, clock, tenant
        kind = FetchedKeys if "://" in settings.keys else FileKeys
        self.keys: IssuerKeys = kind(settings.keys, clock, partial(record_refusal, tenant=tenant))
        self._known: dict[bytes, Token] = {}  # by a hash: a token must not lie in memory for longer than its request
        self._known_by: tuple[PublicKey, ...] = ()

    def check(self, text: bytes) -> Token:
        """Whose token it is. Raises Unauthenticated that says why not, and Unavailable without keys of the issuer."""
        if len(text) > MAX_BYTES or not TOKEN.fullmatch(text):
            raise _refused("this is neither a key nor a token (JWT)")
        keys = self.keys.now()
        if keys is not self._known_by:  # one of them may have been taken back
            self._known, self._known_by = {}, keys
        digest = hashlib.blake2b(text, digest_size=32).digest()
        token = self._known.get(digest)
        if token is None:
            token = self._read(_claims(text, keys, self._settings.algorithms))
            self._check_time(token)
            self._remember(digest, token)
        elif self._clock.now_s() > token.until_s + LEEWAY_S:
            del self._known[digest]
            self._check_time(token)
        return token

    def status(self) -> dict[str, object]:
        """How many keys of the issuer are in use, and why newer ones are not."""
        try:
            n_keys = len(self.keys.now())
        except Unavailable:
            n_keys = 0
        return {"in_use": n_keys, "refused": self.keys.problem}

    def _remember(self, digest: bytes, token: Token) -> None:
        if len(self._known) >= MAX_CACHED:
            del self._known[next(iter(self._known))]  # the oldest
        self._known[digest] = token

    def _read(self, claims: Mapping[str, Any]) -> Token:
        """What a token says, whose signature is right. Raises Unauthenticated."""
        wanted = self._settings
        if claims.get("iss") != wanted.issuer:
            raise _refused(f"the issuer of the token is {_shown(claims.get('iss'))}, wanted {wanted.issuer!r}")
        audience = claims.get("aud")
        if wanted.audience not in (audience if isinstance(audience, list) else [audience]):
            raise _refused(f"the audience of the token is {_shown(audience)}, wanted {wanted.audience!r}")
        tenant = claims.get(wanted.tenant_claim)
        if tenant != self._tenant:
            raise _refused(f"{wanted.tenant_claim!r} of the token is {_shown(tenant)}, wanted {_shown(self._tenant)}")
        scopes = _scopes(claims.get(wanted.scope_claim), wanted.scope_prefix)
        subject = claims.get("sub", "")
        if not isinstance(subject, str):
            raise _refused("the subject (sub) of the token is no string")
        until_s = _time(claims, "exp")
        if until_s is None:
            raise _refused("the token never expires; one with `exp` is needed")
        return Token(_plain(subject), scopes, _time(claims, "nbf") or 0.0, until_s)

    def _check_time(self, token: Token) -> None:
        now_s = self._clock.now_s()
        if now_s > token.until_s + LEEWAY_S:
            raise _refused(f"the token expired at {_at(token.until_s)}; here it is {_at(now_s)}")
        if now_s < token.from_s - LEEWAY_S:
            raise _refused(f"the token is good from {_at(token.from_s)} on; here it is {_at(now_s)}")


def _claims(text: bytes, keys: tuple[PublicKey, ...], algorithms: tuple[str, ...]) -> dict[str, Any]:
    """What a token says, once its signature is known to be right. Raises Unauthenticated."""
    try:
        header = _JWS.get_unverified_header(text)
        algorithm = header.get("alg")
        if algorithm not in algorithms:
            raise _refused(f"the token is not signed by one of {', '.join(algorithms)}")
        if "crit" in header:  # RFC 7515: what must be understood, and is not, makes a token void
            raise _refused("the token has a header that must be understood (crit), and is not")
        key = _chosen(keys, header.get("kid"), algorithm)
        claims = json.loads(_JWS.decode(text, key.key, [algorithm]))
    except (PyJWTError, ValueError, TypeError, RecursionError):
        raise _refused("the token cannot be read, or its signature is wrong") from None
    if not isinstance(claims, dict):
        raise _refused("the token holds no claims")
    return claims


def _chosen(keys: tuple[PublicKey, ...], kid: str | None, algorithm: str) -> PublicKey:
    """The key that the token names; where it names none, the only one that it can be. Raises Unauthenticated."""
    fit = [
        key
        for key in keys
        if key.kind == _KINDS[algorithm[:2]] and key.algorithm in (None, algorithm) and (kid is None or key.kid == kid)
    ]
    if len(fit) != 1:
        raise _refused("the token names no key (kid) that its issuer has for this algorithm")
    return fit[0]


def _scopes(claim: object, prefix: str) -> frozenset[Scope]:
    """Words, as RFC 9068 has them, or a list of them. Those that are no scopes of ours are for others."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(scope for scope in SCOPES if prefix + scope in words)


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """UTC epoch seconds, None where it is not given. Raises Unauthenticated for what is no time."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LATEST_S:
        raise _refused(f"{name!r} of the token is no time in seconds")
    return float(value)


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _shown(value: object) -> str:
    """A claim for people: not endless, and nothing that cannot be written."""
    return "not given" if value is None else _plain(repr(value))[:MAX_SHOWN_CHARS]


def _plain(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(why, True)
