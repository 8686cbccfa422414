"""How often a key may ask: a token bucket each, in this process alone."""

import math

from raysys.config import RateLimit

Header = tuple[bytes, bytes]

ROUNDING = 1e-9  # of a token: who waits for as long as was said must not be sent away by the last bit of a sum


class Bucket:
    """Of any ``t`` seconds, no more than ``burst + requests_per_s * t`` requests are let through."""

    def __init__(self, limit: RateLimit, now_s: float) -> None:
        """It is full at first. now_s, here and below: by a clock that does not go back."""
        self.limit = limit
        self._tokens, self._at_s = float(limit.burst), now_s
        self._policy: Header = b"ratelimit-policy", _policy(limit)

    def take(self, now_s: float) -> bool:
        """Whether a request may pass. One that may not costs nothing."""
        filled = self._tokens + (now_s - self._at_s) * self.limit.requests_per_s
        self._tokens, self._at_s = min(filled, float(self.limit.burst)), now_s
        if self._tokens < 1 - ROUNDING:
            return False
        self._tokens -= 1  # by the rounding below zero at times, and so none is gained by it
        return True

    def wait_s(self) -> float:
        """How long after the last ``take`` the next one may pass."""
        return max((1 - self._tokens) / self.limit.requests_per_s, 0.0)

    def headers(self) -> list[Header]:
        """``RateLimit-Policy`` and ``RateLimit`` now, as in draft-ietf-httpapi-ratelimit-headers-10.

        After the last ``take``. r: how many may pass at once. t: in how many seconds the bucket will be full.
        """
        left = max(math.floor(self._tokens + ROUNDING), 0)
        full_s = math.ceil((self.limit.burst - self._tokens) / self.limit.requests_per_s)
        return [self._policy, (b"ratelimit", b'"key";r=%d;t=%d' % (left, full_s))]


def _policy(limit: RateLimit) -> bytes:
    """A quota q a window of w seconds: the shortest in which an empty bucket fills, in whole seconds."""
    window_s = math.ceil(limit.burst / limit.requests_per_s)
    return b'"key";q=%d;w=%d' % (math.floor(limit.requests_per_s * window_s), window_s)
