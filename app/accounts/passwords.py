"""Passwords: argon2id with explicit parameters, at most two hashes at a time, and what everyone guesses refused."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import BoundedSemaphore

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from app.accounts.guessable import COMMON
from app.core.errors import Invalid, TooMany

MIN_LENGTH = 8
MAX_LENGTH = 512
"""Only so that nobody hashes a novel; the longest passphrase a person types is far below."""

HASH_SLOTS = 2
SLOT_WAIT_SECONDS = 5

# OWASP's minimum for argon2id: 19 MiB, two passes, one lane. The library's own default takes 64 MiB and four lanes,
# which turns a sign-in form into a way to stop a small machine.
_hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1, hash_len=32, salt_len=16, type=Type.ID)
_slots = BoundedSemaphore(HASH_SLOTS)


def hash_password(password: str) -> str:
    """The argon2id hash to store. Takes about 20 ms; raises `TooMany` when the queue for hashing is long."""
    with _slot():
        return _hasher.hash(_normal(password))


def verify(stored: str | None, password: str) -> bool:
    """Whether `password` is the one behind `stored`.

    `None` (an unknown user, or one without a password) costs the same time as a wrong password and is always False, so
    that the answer's speed tells nobody who has an account.
    """
    with _slot():
        try:
            right = _hasher.verify(stored or _nobody(), _normal(password))
        except (VerificationError, InvalidHashError):
            return False
    return right and stored is not None


def needs_rehash(stored: str) -> bool:
    """True for a hash made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def check_acceptable(password: str, *context: str, field: str = "password") -> None:
    """Raise `Invalid` with what to do instead, unless the password will do.

    `context` holds words that an attacker would try for this person: their e-mail address, their name.
    """
    password = _normal(password)
    if len(password) < MIN_LENGTH:
        raise Invalid(f"Use at least {MIN_LENGTH} characters. Three or four unrelated words work well.", field)
    if len(password) > MAX_LENGTH:
        raise Invalid(f"Use at most {MAX_LENGTH} characters.", field)
    if _guessable(password):
        raise Invalid("This is one of the first passwords that an attacker tries. Use a few unrelated words.", field)
    core = _core(password)
    for word in _words(context):
        if core == _core(word) or (len(core) - len(word) < 4 and word in core):
            raise Invalid("This is too close to your name, your e-mail address or the product's name.", field)


def _normal(password: str) -> str:
    """One spelling for what looks the same, whichever keyboard it was typed on."""
    return unicodedata.normalize("NFKC", password)


def _guessable(password: str) -> bool:
    lowered = password.lower()
    if len(set(lowered)) <= 2 or lowered in COMMON or _core(lowered) in COMMON:
        return True
    steps = {ord(b) - ord(a) for a, b in zip(lowered, lowered[1:], strict=False)}
    return len(steps) == 1 or any(lowered in row or lowered[::-1] in row for row in _KEYBOARD)


_KEYBOARD = (
    "1234567890" * 2,
    "qwertyuiop" * 2,
    "asdfghjkl" * 2,
    "zxcvbnm" * 2,
    "1q2w3e4r5t6y7u8i9o0p",
    "qazwsxedcrfvtgb",
)
_LEET = str.maketrans("013457@$!", "oieastasi")


def _core(password: str) -> str:
    """The word inside `P4ssword2026!`: without the digits and signs at its ends, and without look-alikes."""
    return re.sub(r"^[\W\d_]+|[\W\d_]+$", "", password.lower()).translate(_LEET)


def _words(context: tuple[str, ...]) -> Iterator[str]:
    yield "tiebreak"
    for text in context:
        for word in (text.split("@")[0], *re.split(r"[\W_]+", text)):
            if len(word) >= 4:
                yield word.lower()


@contextmanager
def _slot() -> Iterator[None]:
    if not _slots.acquire(timeout=SLOT_WAIT_SECONDS):
        raise TooMany("Too many people are signing in at this moment. Try again in a few seconds.", retry_after=5)
    try:
        yield
    finally:
        _slots.release()


@cache
def _nobody() -> str:
    return _hasher.hash("nobody has this password")
