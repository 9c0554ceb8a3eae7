"""Request and response models of the API. Unknown keys in a request are errors, so that no typo is ignored."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.campaigns.models import CampaignKind


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewCampaign(Request):
    name: str
    kind: CampaignKind = CampaignKind.pairwise
    overlap: int = 1
    scale: int = 7
    guidelines: str = ""
    policy: str | None = Field(None, description="Id or name of the checkpoint to sample from and to train.")
    recipe: dict[str, Any] = Field(default_factory=dict, description="What differs from the default round recipe.")
    activate: bool = Field(False, description="Serve annotators at once; comparisons may follow.")


class CampaignOut(BaseModel):
    id: str
    name: str
    kind: str
    status: str
    overlap: int
    scale: int
    policy: str | None
    open: int
    resolved: int
    answers: int


class Created(BaseModel):
    id: str
    status: str


class Rejected(BaseModel):
    line: int
    error: str


class ImportReport(BaseModel):
    created: int
    duplicates: int
    rejected: list[Rejected] = Field(description="The first hundred lines that could not be stored, and why.")
    rejected_count: int


class Message(BaseModel):
    role: str
    content: str


class CompletionOut(BaseModel):
    id: str
    text: str


class AssignmentOut(BaseModel):
    """A lease. `completions` stand in the shown order, first on the left; nothing says where they came from."""

    id: str
    comparison_id: str
    prompt: list[Message]
    completions: list[CompletionOut]
    expires_at: datetime


class Lease(Request):
    holding: list[str] = Field(
        default_factory=list,
        max_length=20,
        description="Assignments that the caller has at hand and does not want again. Without it, an unanswered "
        "assignment of yours comes back before a new one is leased.",
    )


class NewAnnotation(Request):
    ranking: list[list[str]] = Field(description="Groups of completion ids, best group first; a group of two is a tie.")
    strength: int | None = Field(None, description="1 is slightly better; how far it goes is the campaign's scale.")
    flags: list[str] = Field(default_factory=list, max_length=10)
    reasons: list[Annotated[str, Field(max_length=100)]] = Field(default_factory=list, max_length=50)
    comment: str = ""
    elapsed_ms: int | None = None


class AnnotationOut(BaseModel):
    id: str
    assignment_id: str
    comparison_id: str
    ranking: list[list[str]]
    strength: int | None
    flags: list[str]
    reasons: list[str]
    comment: str
    version: int
    surplus: bool = Field(description="Kept, but not counted: the lease had run out and the slot was taken.")
    created_at: datetime
    next: AssignmentOut | None = Field(None, description="With ?next=true: the next one, null when none is left.")


class Skip(Request):
    reason: str = "other"
    comment: str = ""


class RunOut(BaseModel):
    id: str
    stage: str
    status: str
    attempt: int
    error: str
    started_at: datetime | None
    finished_at: datetime | None
    seconds: float | None
    steps: int | None
    total_steps: int | None
    metrics: dict[str, Any] = Field(description="Of the run's summary once it has ended, of its newest step before.")


class GateOut(BaseModel):
    metric: str
    value: float | None
    low: float | None
    high: float | None
    at_least: float | None
    at_most: float | None
    passed: bool


class RoundOut(BaseModel):
    id: str
    campaign_id: str
    number: int
    status: Literal["collecting", "training", "evaluating", "promoted", "rejected", "failed", "cancelled"]
    trigger: str
    method: str
    started_at: datetime | None
    finished_at: datetime | None
    seconds: float | None
    error: str
    decision_reason: str
    train_pairs: int | None
    held_out_pairs: int | None
    runs: list[RunOut]
    metrics: dict[str, Any]
    gates: list[GateOut]
    candidate_checkpoint: str | None
    promoted_checkpoint: str | None


class CheckpointOut(BaseModel):
    id: str
    name: str
    kind: str
    campaign_id: str | None
    parent_id: str | None
    metrics: dict[str, Any]
    created_at: datetime


class Reason(Request):
    reason: str


class Figure(BaseModel):
    value: float | None
    low: float | None
    high: float | None
    count: int
    note: str = Field("", description="Says so where there is not enough data for a figure.")
