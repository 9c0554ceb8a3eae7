"""The demo campaign: a lead, two annotators, prompts of the demo language, and the first batch on its way."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts import links, people
from app.accounts.models import CampaignRole, Role, User
from app.campaigns import lifecycle, prompts
from app.campaigns.models import Campaign
from app.core.settings import settings
from app.demo import language, policies
from app.demo.recipes import overrides
from app.rounds import lifecycle as rounds

NAME = "Kind answers"
LEAD = ("lead@demo.example", "Lea Lead")
ANNOTATORS = (("anna@demo.example", "Anna"), ("ben@demo.example", "Ben"))
PROMPTS = 400
BATCH = 60


def plant(session: Session) -> Campaign:
    """The demo campaign, made at the first start and left as it is at every later one."""
    policy = policies.first_policy(session)
    lead = person(session, *LEAD, Role.admin)
    annotators = [person(session, email, name, Role.annotator) for email, name in ANNOTATORS]
    campaign = session.scalar(select(Campaign).where(Campaign.name == NAME, Campaign.initial_policy_id == policy.id))
    if campaign:
        return campaign
    campaign = lifecycle.create(
        session,
        lead,
        name=NAME,
        guidelines=language.GUIDELINES,
        policy_id=policy.id,
        recipe={**overrides(settings().model), "batch_prompts": BATCH},
    )
    for annotator in annotators:
        people.add_member(session, annotator, campaign.id, CampaignRole.annotator, actor_id=lead.id)
    prompts.add(session, campaign, enumerate(language.prompts(PROMPTS, seed=1), start=1))
    lifecycle.activate(session, campaign, lead)
    rounds.open_round(session, campaign)
    return campaign


def person(session: Session, email: str, name: str, role: Role) -> User:
    return people.find_user(session, email) or people.create_user(session, email, role, name=name)


def sign_in_links(session: Session, url: str) -> list[tuple[str, str]]:
    """`(who, link)` for the lead and the annotators; each link signs in once."""
    return [
        (name, f"{url}/link/{links.sign_in_link(session, person(session, email, name, role))}")
        for (email, name), role in [(LEAD, Role.admin), *((a, Role.annotator) for a in ANNOTATORS)]
    ]
