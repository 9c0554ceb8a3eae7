"""Is this the person who has that password?"""

from sqlalchemy.orm import Session

from app.accounts import passwords, people, throttle
from app.accounts.models import User
from app.core import audit

REFUSED = "This e-mail address and password do not belong together. Check both, or ask for a sign-in link."


def authenticate(session: Session, email: str, password: str, *, address: str) -> User | None:
    """The user, or None: an unknown address, a wrong password and a closed account look alike and take as long.

    `address` is where the try comes from. Raises `TooMany` before anything is looked up or hashed.
    """
    email = email.strip().lower()
    throttle.admit_sign_in(email, address)
    user = people.find_user(session, email)
    right = passwords.verify(user.password_hash if user else None, password)
    if user is None or not right or not user.is_active:
        # The typed address is not written down: people type their password into the wrong field.
        audit.record(session, user.id if user else None, "session.sign_in_failed", user)
        return None
    throttle.signed_in(email, address)
    if user.password_hash and passwords.needs_rehash(user.password_hash):
        people.store_hash(session, user, passwords.hash_password(password))
    return user
