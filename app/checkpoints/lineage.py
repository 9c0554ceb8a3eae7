"""Where a checkpoint came from, and registering new ones."""

import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint, CheckpointKind
from app.core.errors import Invalid

HUB = "hub:"


def register_base(session: Session, model: str, name: str = "") -> Checkpoint:
    """The checkpoint row of a base model: a transformers directory, or a hub id such as `Qwen/Qwen2.5-0.5B-Instruct`.

    Idempotent by place. Raises `Invalid` when a directory is not a model; a hub id is tried when a worker loads it.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        _check_directory(path)
        uri = path.resolve().as_uri()
    elif model.startswith(("/", ".", "~")) or model.count("/") != 1 or " " in model:
        raise Invalid(f"{model} is neither a directory nor a hub id like Qwen/Qwen2.5-0.5B-Instruct.", "model")
    else:
        uri = HUB + model
    known = session.scalar(select(Checkpoint).where(Checkpoint.uri == uri, Checkpoint.campaign_id.is_(None)))
    if known:
        return known
    made = Checkpoint(campaign_id=None, name=name or path.name, kind=CheckpointKind.policy, uri=uri)
    session.add(made)
    session.flush()
    return made


def _check_directory(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise Invalid(f"{path} has no config.json: it is not a transformers model directory.", "model")
    templates = ("chat_template.jinja", "chat_template.json")
    inside = path / "tokenizer_config.json"
    if not any((path / t).is_file() for t in templates) and not (
        inside.is_file() and '"chat_template"' in inside.read_text(encoding="utf-8", errors="replace")
    ):
        raise Invalid(
            f"{path} has no chat template: add one as chat_template.jinja or in tokenizer_config.json, "
            "so that prompts can be put to the model the way it was trained.",
            "model",
        )


def usable_policies(session: Session, campaign_id: uuid.UUID | None) -> list[Checkpoint]:
    """The policies that a campaign may start from or sample from: base models, and its own."""
    return list(
        session.scalars(
            select(Checkpoint)
            .where(
                Checkpoint.kind == CheckpointKind.policy,
                or_(Checkpoint.campaign_id.is_(None), Checkpoint.campaign_id == campaign_id),
            )
            .order_by(Checkpoint.created_at)
        )
    )


def ancestors(session: Session, checkpoint: Checkpoint) -> list[Checkpoint]:
    """The chain of parents, nearest first."""
    chain: list[Checkpoint] = []
    while checkpoint.parent_id:
        parent = session.get_one(Checkpoint, checkpoint.parent_id)
        chain.append(parent)
        checkpoint = parent
    return chain


def record_output(
    session: Session,
    *,
    campaign_id: uuid.UUID,
    run_id: uuid.UUID,
    name: str,
    kind: CheckpointKind,
    uri: str,
    manifest_sha256: str,
    parent_id: uuid.UUID | None,
    metrics: dict[str, Any],
) -> Checkpoint:
    """The row of what a run stored; called only once the manifest is in the store."""
    made = Checkpoint(
        campaign_id=campaign_id,
        run_id=run_id,
        name=name,
        kind=kind,
        uri=uri,
        manifest_sha256=manifest_sha256,
        parent_id=parent_id,
        metrics=metrics,
    )
    session.add(made)
    session.flush()
    return made
