"""Passwords: how they are stored, and which are refused."""

import threading

import pytest
from argon2 import PasswordHasher

from app.accounts import passwords
from app.accounts.passwords import check_acceptable, hash_password, needs_rehash, verify
from app.core.errors import Invalid, TooMany

GOOD = "violet tram seven"


def test_the_hash_says_argon2id_with_the_parameters_we_chose() -> None:
    assert hash_password(GOOD).startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_the_same_password_never_hashes_alike() -> None:
    assert hash_password(GOOD) != hash_password(GOOD)


def test_only_the_right_password_verifies() -> None:
    stored = hash_password(GOOD)
    assert verify(stored, GOOD)
    assert not verify(stored, GOOD + " ")
    assert not verify(None, GOOD)
    assert not verify("not a hash", GOOD)


def test_nobody_can_sign_in_with_what_stands_in_for_unknown_users() -> None:
    assert not verify(None, "nobody has this password")


def test_a_letter_typed_in_two_ways_is_one_letter() -> None:
    assert verify(hash_password("caf\u00e9 am fluss"), "cafe\u0301 am fluss")


def test_a_hash_of_other_parameters_is_made_anew() -> None:
    assert needs_rehash(PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(GOOD))
    assert not needs_rehash(hash_password(GOOD))


@pytest.mark.parametrize(
    "password",
    [
        "short",
        "1234567",
        "12345678",
        "87654321",
        "abcdefgh",
        "aaaaaaaa",
        "abababab",
        "qwertyuiop",
        "poiuytrewq",
        "password",
        "Password1!",
        "P4ssw0rd2026",
        "letmein123",
        "iloveyou",
        "tiebreak1",
        "TieBreak2026!",
        "ada.lovelace",
        "lovelace99",
        "x" * 600,
    ],
)
def test_a_password_that_an_attacker_tries_first_is_refused_with_what_to_do(password: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_acceptable(password, "ada.lovelace@example.org", "Ada Lovelace")
    assert refusal.value.field == "password"
    assert refusal.value.message.endswith((".", "name."))


@pytest.mark.parametrize(
    "password",
    [
        GOOD,
        "correct bicycle staple",
        "xK9#mQ2$vL7!",
        "äöüß schöne grüße",
        "x1y2z3a4b5",
        "lovelace wrote the first program",
        "🐎🔋📎🧵🐎🔋🌵🪐",
    ],
)
def test_any_other_password_will_do(password: str) -> None:
    check_acceptable(password, "ada.lovelace@example.org", "Ada Lovelace")
    if len(password) < 128:
        assert verify(hash_password(password), password)


def test_at_most_two_hashes_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, busy, most = threading.Lock(), 0, 0
    pause = threading.Event()

    class Slow:
        def hash(self, _: str) -> str:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            pause.wait(0.02)
            with lock:
                busy -= 1
            return "x"

    monkeypatch.setattr(passwords, "_hasher", Slow())
    threads = [threading.Thread(target=hash_password, args=(GOOD,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == passwords.HASH_SLOTS


def test_a_long_queue_for_hashing_is_refused_instead_of_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "SLOT_WAIT_SECONDS", 0.01)
    with passwords._slot(), passwords._slot(), pytest.raises(TooMany):
        hash_password(GOOD)
