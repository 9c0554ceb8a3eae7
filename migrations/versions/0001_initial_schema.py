"""initial schema

Revision: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object_type", sa.String(), server_default="", nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=True),
        sa.Column("campaign_id", sa.Uuid(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_actor_id"), "audit_log", ["actor_id"], unique=False)
    op.create_index(op.f("ix_audit_log_at"), "audit_log", ["at"], unique=False)
    op.create_index(op.f("ix_audit_log_campaign_id"), "audit_log", ["campaign_id"], unique=False)
    op.create_table(
        "state_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("thing", sa.String(), nullable=False),
        sa.Column("thing_id", sa.Uuid(), nullable=False),
        sa.Column("old", sa.String(), nullable=False),
        sa.Column("new", sa.String(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.String(), server_default="", nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_state_changes")),
    )
    op.create_index(op.f("ix_state_changes_at"), "state_changes", ["at"], unique=False)
    op.create_index(op.f("ix_state_changes_thing_id"), "state_changes", ["thing_id"], unique=False)
    op.create_table(
        "users",
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("name", sa.String(), server_default="", nullable=False),
        sa.Column("password_hash", sa.String(), nullable=True),
        sa.Column(
            "role", sa.Enum("admin", "lead", "annotator", name="role", native_enum=False, length=20), nullable=False
        ),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "api_tokens",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.String()), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_api_tokens_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_api_tokens_token_hash")),
    )
    op.create_index("ix_api_tokens_user_id", "api_tokens", ["user_id"], unique=False)
    op.create_table(
        "campaigns",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.Enum("pairwise", name="campaignkind", native_enum=False, length=20), nullable=False),
        sa.Column(
            "state",
            sa.Enum("draft", "active", "paused", "closed", name="campaignstate", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("scale", sa.Integer(), nullable=False),
        sa.Column("policy_id", sa.Uuid(), nullable=True),
        sa.Column("initial_policy_id", sa.Uuid(), nullable=True),
        sa.Column("recipe", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("overlap between 1 and 50", name=op.f("ck_campaigns_overlap")),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name=op.f("fk_campaigns_created_by_users"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["initial_policy_id"],
            ["checkpoints.id"],
            name=op.f("fk_campaigns_initial_policy_id_checkpoints"),
            use_alter=True,
        ),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["checkpoints.id"], name=op.f("fk_campaigns_policy_id_checkpoints"), use_alter=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaigns")),
    )
    op.create_table(
        "sessions",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("csrf_token", sa.String(), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("user_agent", sa.String(), server_default="", nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_sessions_token_hash")),
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False)
    op.create_table(
        "annotators",
        sa.Column("kind", sa.Enum("human", "ai", name="annotatorkind", native_enum=False, length=20), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("label", sa.String(), server_default="", nullable=False),
        sa.Column("campaign_id", sa.Uuid(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_annotators_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_annotators_user_id_users"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotators")),
        sa.UniqueConstraint("user_id", name=op.f("uq_annotators_user_id")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("campaign_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column(
            "kind", sa.Enum("policy", "reward", name="checkpointkind", native_enum=False, length=20), nullable=False
        ),
        sa.Column("uri", sa.String(), nullable=False),
        sa.Column("manifest_sha256", sa.String(), server_default="", nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_checkpoints_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["parent_id"], ["checkpoints.id"], name=op.f("fk_checkpoints_parent_id_checkpoints")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_checkpoints_run_id_runs"), use_alter=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("run_id", name=op.f("uq_checkpoints_run_id")),
    )
    op.create_index(op.f("ix_checkpoints_campaign_id"), "checkpoints", ["campaign_id"], unique=False)
    op.create_table(
        "guidelines",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_guidelines_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name=op.f("fk_guidelines_created_by_users"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_guidelines")),
        sa.UniqueConstraint("campaign_id", "version", name=op.f("uq_guidelines_campaign_id_version")),
    )
    op.create_table(
        "links",
        sa.Column(
            "purpose", sa.Enum("invite", "sign_in", name="linkpurpose", native_enum=False, length=20), nullable=False
        ),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column(
            "role", sa.Enum("admin", "lead", "annotator", name="role", native_enum=False, length=20), nullable=False
        ),
        sa.Column("campaign_id", sa.Uuid(), nullable=True),
        sa.Column(
            "campaign_role",
            sa.Enum("lead", "annotator", name="campaignrole", native_enum=False, length=20),
            nullable=True,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_links_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name=op.f("fk_links_created_by_users"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_links")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_links_token_hash")),
    )
    op.create_table(
        "memberships",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column(
            "role", sa.Enum("lead", "annotator", name="campaignrole", native_enum=False, length=20), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_memberships_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_memberships_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("campaign_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_index(op.f("ix_memberships_user_id"), "memberships", ["user_id"], unique=False)
    op.create_table(
        "preference_datasets",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("train_uri", sa.String(), nullable=False),
        sa.Column("held_out_uri", sa.String(), nullable=False),
        sa.Column("train_pairs", sa.Integer(), nullable=False),
        sa.Column("held_out_pairs", sa.Integer(), nullable=False),
        sa.Column("ties", sa.Integer(), nullable=False),
        sa.Column("annotations", sa.Integer(), nullable=False),
        sa.Column("filters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"],
            ["campaigns.id"],
            name=op.f("fk_preference_datasets_campaign_id_campaigns"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_preference_datasets")),
    )
    op.create_index(op.f("ix_preference_datasets_campaign_id"), "preference_datasets", ["campaign_id"], unique=False)
    op.create_table(
        "prompts",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("messages", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("split", sa.Enum("train", "held_out", name="split", native_enum=False, length=20), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_prompts_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompts")),
        sa.UniqueConstraint("campaign_id", "fingerprint", name=op.f("uq_prompts_campaign_id_fingerprint")),
        sa.UniqueConstraint("campaign_id", "id", name=op.f("uq_prompts_campaign_id_id")),
    )
    op.create_index("ix_prompts_campaign_id_samples", "prompts", ["campaign_id", "samples"], unique=False)
    op.create_table(
        "batches",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column(
            "source", sa.Enum("checkpoint", "imported", name="source", native_enum=False, length=20), nullable=False
        ),
        sa.Column("checkpoint_id", sa.Uuid(), nullable=True),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_batches_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_batches_checkpoint_id_checkpoints")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_batches_run_id_runs"), use_alter=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
        sa.UniqueConstraint("run_id", name=op.f("uq_batches_run_id")),
    )
    op.create_index(op.f("ix_batches_campaign_id"), "batches", ["campaign_id"], unique=False)
    op.create_table(
        "completions",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column(
            "source", sa.Enum("checkpoint", "imported", name="source", native_enum=False, length=20), nullable=False
        ),
        sa.Column("source_name", sa.String(), server_default="", nullable=False),
        sa.Column("checkpoint_id", sa.Uuid(), nullable=True),
        sa.Column("meta", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id", "prompt_id"],
            ["prompts.campaign_id", "prompts.id"],
            name=op.f("fk_completions_campaign_id_prompt_id_prompts"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_completions_checkpoint_id_checkpoints")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_completions")),
        sa.UniqueConstraint("campaign_id", "id", name=op.f("uq_completions_campaign_id_id")),
    )
    op.create_index(op.f("ix_completions_checkpoint_id"), "completions", ["checkpoint_id"], unique=False)
    op.create_index("ix_completions_prompt_id", "completions", ["prompt_id"], unique=False)
    op.create_table(
        "rounds",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "collecting",
                "training",
                "evaluating",
                "promoted",
                "rejected",
                "failed",
                "cancelled",
                name="roundstate",
                native_enum=False,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("trigger", sa.String(), server_default="", nullable=False),
        sa.Column("recipe", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=True),
        sa.Column("policy_before_id", sa.Uuid(), nullable=True),
        sa.Column("reward_model_id", sa.Uuid(), nullable=True),
        sa.Column("candidate_id", sa.Uuid(), nullable=True),
        sa.Column("gates", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("decision_reason", sa.String(), server_default="", nullable=False),
        sa.Column("error", sa.String(), server_default="", nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_rounds_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["candidate_id"], ["checkpoints.id"], name=op.f("fk_rounds_candidate_id_checkpoints")),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["preference_datasets.id"], name=op.f("fk_rounds_dataset_id_preference_datasets")
        ),
        sa.ForeignKeyConstraint(
            ["policy_before_id"], ["checkpoints.id"], name=op.f("fk_rounds_policy_before_id_checkpoints")
        ),
        sa.ForeignKeyConstraint(
            ["reward_model_id"], ["checkpoints.id"], name=op.f("fk_rounds_reward_model_id_checkpoints")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint("campaign_id", "number", name=op.f("uq_rounds_campaign_id_number")),
    )
    op.create_index(
        "uq_rounds_live",
        "rounds",
        ["campaign_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('collecting', 'training', 'evaluating')"),
    )
    op.create_table(
        "comparisons",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column(
            "state",
            sa.Enum("open", "resolved", "discarded", name="comparisonstate", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("open_slots", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Double(), nullable=False),
        sa.Column("position", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("gold", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("meta", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("open_slots >= 0 and open_slots <= overlap", name=op.f("ck_comparisons_open_slots")),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_comparisons_batch_id_batches"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["campaign_id", "prompt_id"],
            ["prompts.campaign_id", "prompts.id"],
            name=op.f("fk_comparisons_campaign_id_prompt_id_prompts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
        sa.UniqueConstraint("campaign_id", "fingerprint", name=op.f("uq_comparisons_campaign_id_fingerprint")),
        sa.UniqueConstraint("campaign_id", "id", name=op.f("uq_comparisons_campaign_id_id")),
    )
    op.create_index("ix_comparisons_batch_id", "comparisons", ["batch_id"], unique=False)
    op.create_index("ix_comparisons_prompt_id", "comparisons", ["prompt_id"], unique=False)
    op.create_index(
        "ix_comparisons_queue",
        "comparisons",
        ["campaign_id", sa.literal_column("priority DESC"), "position"],
        unique=False,
        postgresql_where=sa.text("state = 'open' AND open_slots > 0"),
    )
    op.create_table(
        "runs",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("round_id", sa.Uuid(), nullable=True),
        sa.Column(
            "stage",
            sa.Enum("reward", "dpo", "ppo", "evaluate", "sample", name="stage", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column(
            "state",
            sa.Enum(
                "queued", "running", "succeeded", "failed", "cancelled", name="runstate", native_enum=False, length=20
            ),
            nullable=False,
        ),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("parents", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("recipe", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), server_default="", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rung_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("total_steps", sa.Integer(), nullable=True),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("outputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("error", sa.String(), server_default="", nullable=False),
        sa.Column("error_kind", sa.String(), server_default="", nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state <> 'running' OR lease_until IS NOT NULL", name=op.f("ck_runs_lease")),
        sa.CheckConstraint("attempt <= 3", name=op.f("ck_runs_attempt")),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_runs_campaign_id_campaigns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_runs_round_id_rounds"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index("ix_runs_campaign_id_created_at", "runs", ["campaign_id", "created_at"], unique=False)
    op.create_index(
        "ix_runs_live", "runs", ["state"], unique=False, postgresql_where=sa.text("state IN ('queued', 'running')")
    )
    op.create_index(op.f("ix_runs_round_id"), "runs", ["round_id"], unique=False)
    op.create_index(
        "uq_runs_round_stage",
        "runs",
        ["round_id", "stage"],
        unique=True,
        postgresql_where=sa.text("round_id IS NOT NULL AND state <> 'failed' AND state <> 'cancelled'"),
    )
    op.create_table(
        "assignments",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("comparison_id", sa.Uuid(), nullable=False),
        sa.Column("annotator_id", sa.Uuid(), nullable=False),
        sa.Column(
            "state",
            sa.Enum("leased", "submitted", "skipped", "released", name="assignmentstate", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("shown", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("leased_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("skip_reason", sa.String(), server_default="", nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name=op.f("fk_assignments_annotator_id_annotators"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["campaign_id", "comparison_id"],
            ["comparisons.campaign_id", "comparisons.id"],
            name=op.f("fk_assignments_campaign_id_comparison_id_comparisons"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignments")),
        sa.UniqueConstraint("campaign_id", "id", name=op.f("uq_assignments_campaign_id_id")),
        sa.UniqueConstraint("comparison_id", "annotator_id", name=op.f("uq_assignments_comparison_id_annotator_id")),
    )
    op.create_index(
        "ix_assignments_campaign_id_annotator_id", "assignments", ["campaign_id", "annotator_id"], unique=False
    )
    op.create_index(
        "ix_assignments_expiry",
        "assignments",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("state = 'leased'"),
    )
    op.create_index(
        "ix_assignments_live",
        "assignments",
        ["annotator_id", "campaign_id", "leased_at"],
        unique=False,
        postgresql_where=sa.text("state = 'leased'"),
    )
    op.create_table(
        "comparison_completions",
        sa.Column("comparison_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("completion_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"],
            ["comparisons.id"],
            name=op.f("fk_comparison_completions_comparison_id_comparisons"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["completion_id"],
            ["completions.id"],
            name=op.f("fk_comparison_completions_completion_id_completions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("comparison_id", "place", name=op.f("pk_comparison_completions")),
    )
    op.create_index(
        op.f("ix_comparison_completions_completion_id"), "comparison_completions", ["completion_id"], unique=False
    )
    op.create_table(
        "run_log_lines",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("line", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_log_lines_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_log_lines")),
    )
    op.create_index("ix_run_log_lines_run_id_id", "run_log_lines", ["run_id", "id"], unique=False)
    op.create_table(
        "run_metrics",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_metrics_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "step", name=op.f("pk_run_metrics")),
    )
    op.create_table(
        "annotations",
        sa.Column("campaign_id", sa.Uuid(), nullable=False),
        sa.Column("comparison_id", sa.Uuid(), nullable=False),
        sa.Column("assignment_id", sa.Uuid(), nullable=False),
        sa.Column("annotator_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("ranking", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("strength", sa.Integer(), nullable=True),
        sa.Column("flags", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("reasons", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("comment", sa.String(), server_default="", nullable=False),
        sa.Column("elapsed_ms", sa.Integer(), nullable=True),
        sa.Column("surplus", sa.Boolean(), nullable=False),
        sa.Column("imported", sa.Boolean(), nullable=False),
        sa.Column("guidelines_id", sa.Uuid(), nullable=True),
        sa.Column("idempotency_key", sa.String(), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name=op.f("fk_annotations_annotator_id_annotators"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["campaign_id", "assignment_id"],
            ["assignments.campaign_id", "assignments.id"],
            name=op.f("fk_annotations_campaign_id_assignment_id_assignments"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["campaign_id", "comparison_id"],
            ["comparisons.campaign_id", "comparisons.id"],
            name=op.f("fk_annotations_campaign_id_comparison_id_comparisons"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["guidelines_id"], ["guidelines.id"], name=op.f("fk_annotations_guidelines_id_guidelines")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotations")),
        sa.UniqueConstraint(
            "assignment_id", "idempotency_key", name=op.f("uq_annotations_assignment_id_idempotency_key")
        ),
        sa.UniqueConstraint("assignment_id", "version", name=op.f("uq_annotations_assignment_id_version")),
    )
    op.create_index(
        "ix_annotations_annotator_id_created_at", "annotations", ["annotator_id", "created_at"], unique=False
    )
    op.create_index(
        "ix_annotations_campaign_current",
        "annotations",
        ["campaign_id", "created_at"],
        unique=False,
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_index("ix_annotations_comparison_id", "annotations", ["comparison_id"], unique=False)
    op.create_index(
        "uq_annotations_current",
        "annotations",
        ["assignment_id"],
        unique=True,
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_table(
        "dataset_annotations",
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("annotation_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotation_id"],
            ["annotations.id"],
            name=op.f("fk_dataset_annotations_annotation_id_annotations"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["preference_datasets.id"],
            name=op.f("fk_dataset_annotations_dataset_id_preference_datasets"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "annotation_id", name=op.f("pk_dataset_annotations")),
    )
    op.create_index(
        op.f("ix_dataset_annotations_annotation_id"), "dataset_annotations", ["annotation_id"], unique=False
    )
    op.create_foreign_key(op.f("fk_batches_run_id_runs"), "batches", "runs", ["run_id"], ["id"])
    op.create_foreign_key(op.f("fk_campaigns_policy_id_checkpoints"), "campaigns", "checkpoints", ["policy_id"], ["id"])
    op.create_foreign_key(
        op.f("fk_campaigns_initial_policy_id_checkpoints"), "campaigns", "checkpoints", ["initial_policy_id"], ["id"]
    )
    op.create_foreign_key(op.f("fk_checkpoints_run_id_runs"), "checkpoints", "runs", ["run_id"], ["id"])


def downgrade() -> None:
    op.drop_constraint(op.f("fk_batches_run_id_runs"), "batches", type_="foreignkey")
    op.drop_constraint(op.f("fk_campaigns_policy_id_checkpoints"), "campaigns", type_="foreignkey")
    op.drop_constraint(op.f("fk_campaigns_initial_policy_id_checkpoints"), "campaigns", type_="foreignkey")
    op.drop_constraint(op.f("fk_checkpoints_run_id_runs"), "checkpoints", type_="foreignkey")
    op.drop_index(op.f("ix_dataset_annotations_annotation_id"), table_name="dataset_annotations")
    op.drop_table("dataset_annotations")
    op.drop_index("uq_annotations_current", table_name="annotations", postgresql_where=sa.text("superseded_at IS NULL"))
    op.drop_index("ix_annotations_comparison_id", table_name="annotations")
    op.drop_index(
        "ix_annotations_campaign_current", table_name="annotations", postgresql_where=sa.text("superseded_at IS NULL")
    )
    op.drop_index("ix_annotations_annotator_id_created_at", table_name="annotations")
    op.drop_table("annotations")
    op.drop_table("run_metrics")
    op.drop_index("ix_run_log_lines_run_id_id", table_name="run_log_lines")
    op.drop_table("run_log_lines")
    op.drop_index(op.f("ix_comparison_completions_completion_id"), table_name="comparison_completions")
    op.drop_table("comparison_completions")
    op.drop_index("ix_assignments_live", table_name="assignments", postgresql_where=sa.text("state = 'leased'"))
    op.drop_index("ix_assignments_expiry", table_name="assignments", postgresql_where=sa.text("state = 'leased'"))
    op.drop_index("ix_assignments_campaign_id_annotator_id", table_name="assignments")
    op.drop_table("assignments")
    op.drop_index(
        "uq_runs_round_stage",
        table_name="runs",
        postgresql_where=sa.text("round_id IS NOT NULL AND state <> 'failed' AND state <> 'cancelled'"),
    )
    op.drop_index(op.f("ix_runs_round_id"), table_name="runs")
    op.drop_index("ix_runs_live", table_name="runs", postgresql_where=sa.text("state IN ('queued', 'running')"))
    op.drop_index("ix_runs_campaign_id_created_at", table_name="runs")
    op.drop_table("runs")
    op.drop_index(
        "ix_comparisons_queue", table_name="comparisons", postgresql_where=sa.text("state = 'open' AND open_slots > 0")
    )
    op.drop_index("ix_comparisons_prompt_id", table_name="comparisons")
    op.drop_index("ix_comparisons_batch_id", table_name="comparisons")
    op.drop_table("comparisons")
    op.drop_index(
        "uq_rounds_live",
        table_name="rounds",
        postgresql_where=sa.text("state IN ('collecting', 'training', 'evaluating')"),
    )
    op.drop_table("rounds")
    op.drop_index("ix_completions_prompt_id", table_name="completions")
    op.drop_index(op.f("ix_completions_checkpoint_id"), table_name="completions")
    op.drop_table("completions")
    op.drop_index(op.f("ix_batches_campaign_id"), table_name="batches")
    op.drop_table("batches")
    op.drop_index("ix_prompts_campaign_id_samples", table_name="prompts")
    op.drop_table("prompts")
    op.drop_index(op.f("ix_preference_datasets_campaign_id"), table_name="preference_datasets")
    op.drop_table("preference_datasets")
    op.drop_index(op.f("ix_memberships_user_id"), table_name="memberships")
    op.drop_table("memberships")
    op.drop_table("links")
    op.drop_table("guidelines")
    op.drop_index(op.f("ix_checkpoints_campaign_id"), table_name="checkpoints")
    op.drop_table("checkpoints")
    op.drop_table("annotators")
    op.drop_index(op.f("ix_sessions_user_id"), table_name="sessions")
    op.drop_table("sessions")
    op.drop_table("campaigns")
    op.drop_index("ix_api_tokens_user_id", table_name="api_tokens")
    op.drop_table("api_tokens")
    op.drop_table("users")
    op.drop_index(op.f("ix_state_changes_thing_id"), table_name="state_changes")
    op.drop_index(op.f("ix_state_changes_at"), table_name="state_changes")
    op.drop_table("state_changes")
    op.drop_index(op.f("ix_audit_log_campaign_id"), table_name="audit_log")
    op.drop_index(op.f("ix_audit_log_at"), table_name="audit_log")
    op.drop_index(op.f("ix_audit_log_actor_id"), table_name="audit_log")
    op.drop_table("audit_log")
