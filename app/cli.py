"""The command line: `tiebreak --help`. Thin: each command calls what the web process calls."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from app import tables
from app.core.children import SupervisorError
from app.core.embedded import EmbeddedError, provided
from app.core.errors import Invalid, TiebreakError
from app.core.settings import settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tiebreak: collect preferences, train on them.",
)
user_app = typer.Typer(no_args_is_help=True, help="Accounts.")
model_app = typer.Typer(no_args_is_help=True, help="Base models that campaigns may start from.")
app.add_typer(user_app, name="user")
app.add_typer(model_app, name="model")

Port = Annotated[int, typer.Option(help="Where the web server listens; 0 takes a free port.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to other machines.")]


def use_data(path: Path | None) -> Path | None:
    if path is not None:
        os.environ["TIEBREAK_DATA"] = str(path)
        settings.cache_clear()
    return path


Data = Annotated[
    Path | None,
    typer.Option("--data", help="Data directory (default: TIEBREAK_DATA, else ./.tiebreak).", callback=use_data),
]


@app.command()
def up(
    port: Port = 8000,
    host: Host = "127.0.0.1",
    data: Data = None,
    no_workers: Annotated[bool, typer.Option(help="The web process alone.")] = False,
) -> None:
    """Run the whole platform; embedded PostgreSQL and Redis where no URL is set. Ctrl-C stops everything."""
    from app import supervisor
    from app.demo import policies

    def prepare() -> None:
        """`MODEL` becomes a base model that campaigns may start from."""
        from app.core.db import transaction

        if settings().model:
            with transaction() as session:
                policies.first_policy(session)

    supervisor.up(port=port, host=host, workers=not no_workers, prepare=prepare, on_ready=_announce)


def _announce(url: str) -> None:
    typer.echo(f"\n  Tiebreak is ready at {url}\n  First account: tiebreak user create you@example.org --role admin\n")


@app.command()
def demo(port: Port = 8000, host: Host = "127.0.0.1", data: Data = None) -> None:
    """Run the platform with a demo policy and a demo campaign, and print sign-in links for it."""
    from app import supervisor
    from app.core.db import transaction
    from app.demo import policies, seed

    def prepare() -> None:
        policies.build()
        with transaction() as session:
            seed.plant(session)

    def links(url: str) -> None:
        with transaction() as session:
            lines = [f"  {who:<10} {link}" for who, link in seed.sign_in_links(session, url)]
        typer.echo("\n".join(["", f"  Tiebreak is ready at {url}", "", "  Sign in (each link works once):", *lines]))
        typer.echo("\n  The first batch is being sampled and appears by itself. Ctrl-C stops everything.\n")

    supervisor.up(port=port, host=host, prepare=prepare, on_ready=links)


@app.command()
def simulate(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to play.")] = 3,
    method: Annotated[str, typer.Option(help="dpo or ppo.")] = "dpo",
    comparisons: Annotated[int, typer.Option(min=15, help="Comparisons answered per round.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the prompts and the annotators.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
    data: Data = None,
) -> None:
    """Play the whole loop with scripted annotators who have a hidden taste, on a running or a self-started platform."""
    from app import supervisor
    from app.core.db import transaction
    from app.demo import policies
    from app.demo import simulate as simulation

    if method not in ("dpo", "ppo"):
        raise Invalid("--method must be dpo or ppo.")
    played: list[simulation.RoundFigures] = []

    def told(number: int, figures: simulation.RoundFigures) -> None:
        played.append(figures)
        if number == 1:
            typer.echo("round answers rm acc    win     KL length dist-2      s")
        cells = [figures.reward_accuracy, figures.win_rate, figures.kl, figures.mean_length, figures.distinct_2]
        shown = " ".join("     –" if cell is None else f"{cell:6.3g}" for cell in cells)
        typer.echo(f"{number:5} {figures.comparisons:7} {shown} {figures.seconds:6.1f}  {figures.outcome}")

    def play(url: str) -> None:
        simulation.run(url, rounds=rounds, method=method, comparisons=comparisons, seed=seed, on_round=told)

    def prepare() -> None:
        policies.build()
        with transaction() as session:
            policies.first_policy(session)

    running = supervisor.running()
    if running:
        with provided():
            prepare()
            play(running)
    else:
        supervisor.up(port=0, prepare=prepare, on_ready=play, once=True)
    if as_json:
        typer.echo(json.dumps(simulation.as_json(method, played)))


@user_app.command("create")
def create_user(
    email: str,
    role: Annotated[str, typer.Option(help="admin, lead or annotator.")],
    campaign: Annotated[str | None, typer.Option(help="Also make them a member of this campaign.")] = None,
    name: Annotated[str, typer.Option(help="How they are called on screen.")] = "",
    print_token: Annotated[bool, typer.Option(help="Print an API token, alone on the last line.")] = False,
    data: Data = None,
) -> None:
    """Make an account (or find it), and print a one-time link with which its owner sets a password."""
    from app.accounts import links, people, tokens
    from app.accounts.models import Role, Scope
    from app.core.db import transaction

    chosen = _one_of(Role, role, "--role")
    with _database(), transaction() as session:
        user = people.find_user(session, email)
        made = user is None
        if user is None:
            user = people.create_user(session, email, chosen, name=name)
        elif user.role is not chosen:
            people.change_role(session, user, chosen, actor_id=None)
        if campaign:
            _join(session, user, campaign)
        typer.echo(f"{user.email} is {'now' if made else 'already'} here, as {chosen.value}.")
        if print_token:
            typer.echo(tokens.create_token(session, user, "command line", list(Scope))[1])
        else:
            typer.echo(f"{settings().public_url}/link/{links.sign_in_link(session, user)}")


@user_app.command("invite")
def invite_user(
    email: str,
    role: Annotated[str, typer.Option(help="admin, lead or annotator.")],
    campaign: Annotated[str | None, typer.Option(help="Also invite them into this campaign.")] = None,
    data: Data = None,
) -> None:
    """Print an invite link: single use, seven days; whoever opens it chooses a name and a password."""
    from app.accounts import links, people
    from app.accounts.models import CampaignRole, LinkPurpose, Role
    from app.campaigns.models import Campaign
    from app.core.db import require, transaction

    chosen = _one_of(Role, role, "--role")
    with _database(), transaction() as session:
        into = require(session, Campaign, campaign) if campaign else None
        inside = (CampaignRole.annotator if chosen is Role.annotator else CampaignRole.lead) if into else None
        _, secret = links.create_link(
            session,
            LinkPurpose.invite,
            people.clean_email(email),
            chosen,
            campaign_id=into.id if into else None,
            campaign_role=inside,
        )
        typer.echo(f"{settings().public_url}/invite/{secret}")


def _join(session: Any, user: Any, campaign: str) -> None:
    from app.accounts import people
    from app.accounts.models import CampaignRole, Role
    from app.campaigns.models import Campaign
    from app.core.db import require

    found = require(session, Campaign, campaign)
    role = CampaignRole.annotator if user.role is Role.annotator else CampaignRole.lead
    people.add_member(session, user, found.id, role, actor_id=None)


def _one_of(kind: Any, value: str, option: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise Invalid(f"{option} must be one of {', '.join(kind)}, not {value!r}.") from None


@model_app.command("add")
def add_model(
    model: Annotated[str, typer.Argument(help="A transformers directory, or a hub id: Qwen/Qwen2.5-0.5B-Instruct.")],
    name: Annotated[str, typer.Option(help="How campaigns call it.")] = "",
    data: Data = None,
) -> None:
    """Register a base model."""
    from app.checkpoints import lineage
    from app.core.db import transaction

    with _database(), transaction() as session:
        typer.echo(str(lineage.register_base(session, model, name).id))


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSONL: prompt and completions, or chosen and rejected.")],
    campaign: Annotated[str, typer.Option(help="Id of the campaign.")],
    data: Data = None,
) -> None:
    """Import comparisons, with or without labels. Bad lines are named and left out; the rest is stored."""
    from app.campaigns.models import Campaign
    from app.core.db import require, transaction
    from app.preferences import importing

    if not file.is_file():
        raise Invalid(f"{file} is not a file.")
    with _database(), transaction() as session, file.open("rb") as stream:
        found = require(session, Campaign, campaign, lock=True)
        report = importing.import_comparisons(session, found, importing.lines(stream))
    for bad in report.rejected:
        typer.echo(f"{file}, line {bad['line']}: {bad['error']}", err=True)
    known, bad_lines = report.duplicates, report.rejected_count
    typer.echo(f"{report.created} comparisons imported, {known} known already, {bad_lines} bad lines.")
    if report.rejected_count and not report.created:
        raise typer.Exit(1)


@app.command()
def export(
    campaign: Annotated[str, typer.Option(help="Id of the campaign.")],
    out: Annotated[Path | None, typer.Option(help="File to write; standard output without it.")] = None,
    data: Data = None,
) -> None:
    """Export the campaign's preference pairs as JSONL with TRL's columns; Parquet if --out ends in .parquet."""
    from app.campaigns.models import Campaign
    from app.core.db import require, transaction
    from app.preferences import export as exporting

    with _database(), transaction() as session:
        found = require(session, Campaign, campaign)
        if out and out.suffix == ".parquet":
            out.write_bytes(exporting.parquet(session, found))
        elif out:
            with out.open("w", encoding="utf-8") as file:
                file.writelines(exporting.jsonl(session, found))
        else:
            sys.stdout.writelines(exporting.jsonl(session, found))


@app.command()
def migrate(data: Data = None) -> None:
    """Bring the database schema up to date."""
    from app.core import db

    with provided():
        db.migrate()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(context: typer.Context) -> None:
    """Run one training stage by itself: tiebreak train STAGE --data FILE --model DIR --out DIR (see --help)."""
    # In place of this process: signals, streams and the exit code are then the stage's own.
    os.execv(sys.executable, [sys.executable, "-m", "workers.training", *context.args])


@contextmanager
def _database() -> Iterator[None]:
    """The database of the data directory, beside a running `up` or started for this command alone; migrated."""
    from app.core import db

    with provided():
        db.migrate()
        yield


def main() -> None:
    """The entry point: an error of ours is one sentence and exit status 1."""
    tables.load()
    try:
        app(standalone_mode=True)
    except (TiebreakError, EmbeddedError, SupervisorError) as error:
        typer.echo(f"tiebreak: {error}", err=True)
        raise SystemExit(1) from None
