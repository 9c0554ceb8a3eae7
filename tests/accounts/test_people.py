"""Accounts: making, changing and ending them."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.accounts import invitations, links, people, sessions, tokens
from app.accounts.links import LinkSpent
from app.accounts.models import ApiToken, CampaignRole, Link, LinkPurpose, Membership, Role, Scope, User, WebSession
from app.core.audit import AuditEntry
from app.core.db import transaction
from app.core.errors import Conflict, Forbidden, Invalid, NotFound
from tests.factories import make_campaign, make_user

PASSWORD = "violet tram seven"


def admin(session: Session, email: str = "admin@example.org") -> User:
    return people.create_user(session, email, Role.admin)


@pytest.mark.parametrize(
    "email", ["", " ", "ada", "ada@", "@example.org", "a b@example.org", "a@b@c", "a@b..c", "a" * 260]
)
def test_an_address_that_is_none_is_refused_beside_its_field(session: Session, email: str) -> None:
    with pytest.raises(Invalid) as refusal:
        people.create_user(session, email, Role.annotator)
    assert refusal.value.field == "email"


def test_one_address_has_one_account_whatever_its_case(session: Session) -> None:
    people.create_user(session, "Ada@Example.org ", Role.annotator)
    with pytest.raises(Conflict):
        people.create_user(session, "ada@example.ORG", Role.admin)


def test_every_act_leaves_an_entry_and_no_secret(session: Session) -> None:
    boss = admin(session)
    user = people.create_user(session, "ada@example.org", Role.annotator, password=PASSWORD, actor_id=boss.id)
    people.change_role(session, user, Role.lead, actor_id=boss.id)
    people.set_password(session, user, "nine quiet lamps")
    _, secret = tokens.create_token(session, user, "export", [Scope.read])
    link = links.sign_in_link(session, user, actor_id=boss.id)
    people.deactivate(session, user, actor_id=boss.id)
    people.activate(session, user, actor_id=boss.id)
    session.flush()
    entries = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [entry.action for entry in entries] == [
        "user.create",
        "user.create",
        "user.role",
        "user.password",
        "token.create",
        "link.create",
        "user.deactivate",
        "user.activate",
    ]
    said = " ".join(f"{entry.action} {entry.detail}" for entry in entries)
    for hidden in (PASSWORD, "nine quiet lamps", secret, link, "ada@example.org"):
        assert hidden not in said


def test_a_new_password_ends_other_sessions_and_unused_links_but_not_this_session(session: Session) -> None:
    user = people.create_user(session, "ada@example.org", Role.annotator, password=PASSWORD)
    kept, ended = sessions.start(session, user), sessions.start(session, user)
    link = links.sign_in_link(session, user)
    here = sessions.find(session, kept)
    assert here is not None
    people.set_password(session, user, "nine quiet lamps", keep=here.web_session)
    assert sessions.find(session, kept) is not None
    assert sessions.find(session, ended) is None
    with pytest.raises(LinkSpent):
        links.look(session, LinkPurpose.sign_in, link)


def test_closing_an_account_ends_its_sessions_tokens_links_and_the_invitations_it_sent(session: Session) -> None:
    admin(session)
    boss = admin(session, "second@example.org")
    cookie = sessions.start(session, boss)
    _, secret = tokens.create_token(session, boss, "all", list(Scope))
    link = links.sign_in_link(session, boss)
    invited = invitations.invite(session, boss, "new@example.org", Role.admin)
    people.deactivate(session, boss, actor_id=None)
    people.activate(session, boss, actor_id=None)
    assert sessions.find(session, cookie) is None
    assert tokens.find_token(session, secret) is None
    for purpose, held in ((LinkPurpose.sign_in, link), (LinkPurpose.invite, invited.secret or "")):
        with pytest.raises(LinkSpent):
            links.look(session, purpose, held)


def test_the_last_administrator_can_be_neither_closed_nor_demoted(session: Session) -> None:
    only = admin(session)
    with pytest.raises(Conflict, match="only administrator"):
        people.deactivate(session, only, actor_id=only.id)
    with pytest.raises(Conflict, match="only administrator"):
        people.change_role(session, only, Role.lead, actor_id=only.id)
    admin(session, "second@example.org")
    people.change_role(session, only, Role.lead, actor_id=only.id)


def test_two_administrators_who_close_each_other_at_once_leave_one(committing: Engine) -> None:
    with transaction() as session:
        ids = [admin(session, f"{n}@example.org").id for n in range(2)]
    start, refused = threading.Barrier(2), []

    def close(mine: int) -> None:
        try:
            with transaction() as session:
                other = people.require_user(session, ids[1 - mine])
                start.wait()
                people.deactivate(session, other, actor_id=ids[mine])
        except Conflict as error:
            refused.append(error)

    threads = [threading.Thread(target=close, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with transaction() as session:
        assert session.scalar(select(func.count()).where(User.is_active, User.role == Role.admin)) == 1
    assert len(refused) == 1


def test_members_are_added_changed_and_removed(session: Session) -> None:
    campaign, user = make_campaign(session), make_user(session)
    people.add_member(session, user, campaign.id, CampaignRole.annotator, actor_id=None)
    people.add_member(session, user, campaign.id, CampaignRole.lead, actor_id=None)
    assert people.campaign_role(session, user, campaign.id) is CampaignRole.lead
    people.remove_member(session, user, campaign.id, actor_id=None)
    assert people.campaign_role(session, user, campaign.id) is None
    with pytest.raises(NotFound):
        people.remove_member(session, user, campaign.id, actor_id=None)


def test_a_lead_cannot_invite_beyond_their_own_campaign(session: Session) -> None:
    lead = make_user(session, Role.lead)
    mine, other = make_campaign(session), make_campaign(session)
    people.add_member(session, lead, mine.id, CampaignRole.lead, actor_id=None)
    into = {"campaign_role": CampaignRole.annotator}
    assert invitations.invite(session, lead, "a@example.org", Role.annotator, campaign_id=mine.id, **into).secret
    for role, where in ((Role.annotator, other.id), (Role.lead, mine.id), (Role.admin, mine.id)):
        with pytest.raises(Forbidden):
            invitations.invite(session, lead, "b@example.org", role, campaign_id=where, **into)
    with pytest.raises(Forbidden):
        invitations.invite(session, lead, "b@example.org", Role.annotator)


def test_a_new_invitation_replaces_the_one_before(session: Session) -> None:
    boss = admin(session)
    first = invitations.invite(session, boss, "new@example.org", Role.annotator)
    second = invitations.invite(session, boss, "new@example.org", Role.lead)
    with pytest.raises(LinkSpent):
        links.look(session, LinkPurpose.invite, first.secret or "")
    assert links.look(session, LinkPurpose.invite, second.secret or "").role is Role.lead


def test_of_two_who_use_a_link_at_once_one_gets_in(committing: Engine) -> None:
    with transaction() as session:
        _, secret = links.create_link(session, LinkPurpose.invite, "new@example.org", Role.annotator)
    start, outcomes = threading.Barrier(6), []

    def accept(n: int) -> None:
        start.wait()
        try:
            with transaction() as session:
                invitations.accept(session, secret, f"Person {n}", PASSWORD)
            outcomes.append("in")
        except (LinkSpent, Conflict):
            outcomes.append("refused")

    threads = [threading.Thread(target=accept, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] + ["refused"] * 5
    with transaction() as session:
        assert session.scalar(select(func.count()).select_from(User)) == 1


def test_a_link_lives_for_seven_days_at_most_and_holds_no_secret(session: Session) -> None:
    with pytest.raises(Invalid):
        links.create_link(session, LinkPurpose.invite, "a@example.org", Role.annotator, age=timedelta(days=8))
    link, secret = links.create_link(session, LinkPurpose.invite, "a@example.org", Role.annotator)
    assert len(secret) >= 43  # 256 bits
    assert secret not in str(vars(link))


def test_a_token_opens_what_it_should_until_it_is_revoked_or_expires(session: Session) -> None:
    user = make_user(session)
    token, secret = tokens.create_token(session, user, " nightly ", [Scope.read, Scope.read])
    assert secret.startswith("tb_")
    assert secret.startswith(token.prefix)
    assert token.name == "nightly"
    assert token.scopes == ["read"]
    found = tokens.find_token(session, secret)
    assert found is not None
    session.refresh(token)
    assert token.last_used_at is not None
    assert (token.expires_at - session.scalars(select(func.now())).one()).days in (89, 90)
    assert tokens.find_token(session, secret[:-1]) is None
    assert tokens.find_token(session, token.token_hash) is None
    session.execute(update(ApiToken).values(expires_at=func.now()))
    assert tokens.find_token(session, secret) is None
    _, another = tokens.create_token(session, user, "x", [Scope.read])
    tokens.revoke_token(session, user, tokens.live_tokens(session, user)[0].id)
    assert tokens.find_token(session, another) is None


def test_a_token_of_somebody_else_cannot_be_revoked(session: Session) -> None:
    token, _ = tokens.create_token(session, make_user(session), "x", [Scope.read])
    with pytest.raises(NotFound):
        tokens.revoke_token(session, make_user(session), token.id)


@pytest.mark.parametrize(
    ("name", "scopes", "days", "field"),
    [("", [Scope.read], 90, "name"), ("x" * 81, [Scope.read], 90, "name"), ("x", [], 90, "scopes")]
    + [("x", [Scope.read], days, "days") for days in (0, -1, 400)],
)
def test_a_token_that_makes_no_sense_is_refused_beside_its_field(
    session: Session, name: str, scopes: list[Scope], days: int, field: str
) -> None:
    with pytest.raises(Invalid) as refusal:
        tokens.create_token(session, make_user(session), name, scopes, days=days)
    assert refusal.value.field == field


def test_the_database_holds_no_secret_that_opens_anything(session: Session) -> None:
    user = people.create_user(session, "ada@example.org", Role.annotator, password=PASSWORD)
    secrets = [sessions.start(session, user), tokens.create_token(session, user, "x", [Scope.read])[1]]
    secrets.append(links.sign_in_link(session, user))
    rows = [row for model in (User, WebSession, ApiToken, Link, Membership) for row in session.scalars(select(model))]
    stored = " ".join(str(vars(row)) for row in rows)
    for secret in [*secrets, PASSWORD]:
        assert secret not in stored
