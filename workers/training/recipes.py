"""Recipes: the hyperparameters of each stage (torch-free).

One pydantic definition serves the web form, the API documentation, the command line and the trainer. Defaults are
for real language models (0.1–10 billion parameters) fine-tuned whole; a caller with a tiny model raises the learning
rate, a caller with little memory sets `lora`. Unknown keys are errors, so that a typo never trains silently.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LearningRate = Annotated[float, Field(gt=0, le=1)]


class Lora(BaseModel):
    """Low-rank adapters on every linear layer of the backbone (Hu et al. 2021)."""

    model_config = ConfigDict(extra="forbid")

    r: int = Field(16, ge=1, le=1024, description="Rank of each adapter.")
    alpha: int = Field(32, ge=1, le=4096, description="Scale: the update is multiplied by alpha / r.")
    save_adapter: bool = Field(
        False, description="Publish the adapters alone, to be loaded onto their base model, instead of a merged one."
    )
    quantization: Literal["none", "nf4"] = Field(
        "none",
        description="nf4 holds the frozen weights in 4 bits (QLoRA): needs a CUDA GPU, bitsandbytes and save_adapter.",
    )

    @model_validator(mode="after")
    def _nothing_is_merged_into_four_bits(self) -> Self:
        if self.quantization != "none" and not self.save_adapter:
            raise ValueError("adapters cannot be merged into quantised weights: set save_adapter as well")
        return self


class Recipe(BaseModel):
    """What every training stage shares."""

    model_config = ConfigDict(extra="forbid")

    epochs: float = Field(1, gt=0, le=1000, description="Passes over the data; a fraction stops within a pass.")
    batch_size: int = Field(32, ge=1, le=65536, description="Examples or pairs per optimiser step.")
    learning_rate: LearningRate = Field(1e-5, description="Peak learning rate of AdamW.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls after the warm-up; linear and cosine end at 0."
    )
    warmup_ratio: float = Field(0.05, ge=0, le=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="Gradients are scaled down to at most this norm.")
    max_length: int = Field(
        1024, ge=8, le=1_048_576, description="Tokens of prompt + completion kept; the end of a completion is cut."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 computes in bfloat16 and keeps trained weights in fp32."
    )
    lora: Lora | None = Field(None, description="Train low-rank adapters; null fine-tunes all weights.")
    micro_batch_tokens: int = Field(
        8192, ge=64, le=16_777_216, description="Most padded tokens in one forward pass; lower it to save memory."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, a third more time."
    )
    save_every: int = Field(
        50, ge=0, le=1_000_000, description="Steps between resumable states; 0 writes one only on SIGTERM."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of shuffling, initialisation and sampling.")


class SFTRecipe(Recipe):
    """Supervised fine-tuning on demonstrations."""

    learning_rate: LearningRate = Field(2e-5, description="Peak learning rate of AdamW.")
    train_on: Literal["all", "last"] = Field(
        "all", description="Which of the assistant's turns in a conversation are imitated: all of them, or the last."
    )
    packing: bool = Field(
        False, description="Put short examples into one row, unseen by each other; exact, pays off with much padding."
    )


class RewardRecipe(Recipe):
    """Reward model from comparisons (Bradley-Terry, Davidson, Plackett-Luce, Crowd-BT)."""

    ranking_loss: Literal["pairs", "plackett_luce"] = Field(
        "pairs",
        description="A ranking of K as all its pairs, weight shared, or as K-1 choices of the best of those left.",
    )
    ties: Literal["half", "davidson"] = Field(
        "half",
        description="A tie as half a win for each, or as an outcome with a probability of its own (Davidson), which "
        "keeps what ties say about how close the rewards are.",
    )
    tie_nu: float | None = Field(
        None, gt=0, le=1000, description="With ties=davidson: how common ties are (ν); null learns it."
    )
    annotators: Literal["equal", "learned"] = Field(
        "equal",
        description="Believe all annotators alike, or learn how often each is right (Crowd-BT); `weight` in the data "
        "is the other way.",
    )
    annotator_learning_rate: LearningRate = Field(
        0.3, description="Learning rate of the annotators' reliabilities and of ν, which are single numbers."
    )
    annotator_prior: float = Field(
        10.0,
        gt=0,
        le=1e6,
        description="With annotators=learned: how many answers, 90 % of them right, each is believed to have given.",
    )
    ensemble: int = Field(
        1, ge=1, le=5, description="Heads on the shared backbone, each with its own start and its own bootstrap."
    )
    conservative: float = Field(
        0.0, ge=0, le=100, description="With an ensemble: the score is the mean less this many deviations of the heads."
    )

    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed share of wrong labels ε: targets become 1 - ε instead of 1."
    )
    centering: float = Field(
        0.01, ge=0, le=10, description="Weight of (r_chosen + r_rejected)², which keeps rewards around 0."
    )
    head_only: bool = Field(
        False,
        description="Freeze the backbone and fit a linear head on the completion's mean hidden state and likelihood: "
        "better below about a thousand pairs, and many times faster.",
    )
    ridge: float = Field(
        30.0, gt=0, le=1e6, description="With head_only: L2 penalty on the head, beside the sum of the pairs' losses."
    )
    min_pairs: int = Field(10, ge=1, le=1_000_000, description="Fewer training pairs than this are refused.")

    @model_validator(mode="after")
    def _ties_are_pairs(self) -> "RewardRecipe":
        if self.ties == "davidson" and self.ranking_loss != "pairs":
            raise ValueError("ties=davidson needs ranking_loss=pairs: Plackett-Luce has no ties of its own")
        return self


class DPORecipe(Recipe):
    """Direct preference optimisation: the policy from preferences, without a reward model."""

    learning_rate: LearningRate = Field(1e-6, description="Peak learning rate of AdamW.")
    loss: Literal["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo", "plackett_luce"] = Field(
        "sigmoid",
        description="sigmoid is DPO; robust corrects for wrong labels; plackett_luce takes rankings whole; "
        "simpo and orpo need no reference.",
    )
    beta: float = Field(
        0.1,
        gt=0,
        le=100,
        description="Strength of the pull towards the reference policy; the τ of IPO, the λ of ORPO. "
        "SimPO wants 2 to 2.5.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Assumed share of wrong labels ε: hedged against (conservative DPO), or corrected for (robust).",
    )
    length_normalised: bool = Field(
        False,
        description="Compare log-probabilities per token instead of whole ones (IPO as TRL has it); "
        "SimPO and ORPO always do.",
    )
    simpo_gamma: float = Field(1.0, ge=0, le=100, description="SimPO: how far the better answer should be ahead.")
    sft_coef: float = Field(
        0.0, ge=0, le=100, description="Weight of imitating the better answer as well (RPO); ORPO adds 1 of its own."
    )
    min_pairs: int = Field(10, ge=1, le=1_000_000, description="Fewer training pairs than this are refused.")

    @model_validator(mode="after")
    def smoothing_has_a_meaning(self) -> Self:
        if self.label_smoothing and self.loss == "plackett_luce":
            raise ValueError("label_smoothing has no meaning for whole rankings: use loss=sigmoid, or leave it at 0")
        return self


class KTORecipe(Recipe):
    """The policy from completions labelled good or bad one by one (KTO)."""

    batch_size: int = Field(32, ge=2, le=65536, description="Examples per optimiser step; also those behind its KL.")
    learning_rate: LearningRate = Field(1e-6, description="Peak learning rate of AdamW.")
    beta: float = Field(0.1, gt=0, le=100, description="Strength of the pull towards the reference policy.")
    desirable_weight: float = Field(1.0, ge=0, le=1000, description="λ_D: how much a good completion counts.")
    undesirable_weight: float = Field(1.0, ge=0, le=1000, description="λ_U: how much a bad completion counts.")
    min_examples: int = Field(10, ge=2, le=1_000_000, description="Fewer labelled completions than this are refused.")


class PPORecipe(Recipe):
    """Proximal policy optimisation against a reward model with a KL penalty to the starting policy."""

    epochs: float = Field(1, gt=0, le=1000, description="Passes over the prompts, when `steps` is null.")
    batch_size: int = Field(64, ge=1, le=65536, description="Prompts, hence episodes, per rollout (one step).")
    learning_rate: LearningRate = Field(1e-6, description="Peak learning rate of the policy.")
    value_learning_rate: LearningRate = Field(1e-5, description="Peak learning rate of the value model.")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="Rollouts; null derives them from `epochs`.")
    inner_epochs: int = Field(4, ge=1, le=100, description="Passes over each rollout batch.")
    minibatches: int = Field(1, ge=1, le=1024, description="Optimiser steps per inner epoch.")
    beta: float = Field(0.05, ge=0, le=100, description="Weight of the per-token KL penalty in the reward.")
    target_kl: float | None = Field(
        None, gt=0, le=1000, description="Adapt beta towards this KL per sequence (nats); null keeps beta fixed."
    )
    kl_horizon: float = Field(10_000, gt=0, le=1e9, description="Episodes over which the adaptive beta moves.")
    max_approx_kl: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Stop the inner epochs when the policy has moved further than this from the one that sampled "
        "(nats per token, estimator k3); 1.5 times the move that is wanted is usual.",
    )
    gamma: float = Field(1.0, ge=0, le=1, description="Discount per token.")
    lam: float = Field(0.95, ge=0, le=1, description="λ of generalised advantage estimation.")
    clip: float = Field(0.2, gt=0, lt=1, description="Clip range of the probability ratio.")
    dual_clip: float | None = Field(
        None, gt=1, le=100, description="Bound the loss of a bad token by this times its advantage; 3 is usual."
    )
    value_clip: float = Field(0.2, gt=0, le=100, description="Clip range of the value update.")
    value_coef: float = Field(0.5, ge=0, le=100, description="Weight of the value loss.")
    value_init: Literal["reward", "zero"] = Field(
        "reward",
        description="The value model starts as the reward model, or as the policy's backbone with a head of zeros.",
    )
    freeze_policy_steps: int = Field(
        0, ge=0, le=1_000_000, description="First steps in which the value model alone is trained."
    )
    ptx_coef: float = Field(
        0.0, ge=0, le=1000, description="Weight of the loss per token on demonstrations (PPO-ptx); 0 leaves it out."
    )
    ptx_batch_size: int = Field(32, ge=1, le=65536, description="Demonstrations per optimiser step, with ptx_coef.")
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature, also in all log-probabilities.")
    max_new_tokens: int = Field(128, ge=1, le=131_072, description="Longest completion, in tokens.")
    missing_eos: Literal["penalty", "replace"] = Field(
        "penalty",
        description="A completion that did not end by itself: take the penalty off its score, or score it minus that.",
    )
    missing_eos_penalty: float = Field(
        1.0, ge=0, le=100, description="The penalty of a completion that did not end by itself."
    )
    score_clip: float = Field(10.0, gt=0, le=1e6, description="Normalised scores are clipped to ± this.")
    sampler_ratio_cap: float | None = Field(
        None,
        ge=1,
        le=100,
        description="bf16: weigh each token by how likely the trainer finds it against the sampler, at most this much.",
    )
    whiten_rewards: bool = Field(False, description="Scale per-token rewards to unit variance, mean kept.")


class GroupRecipe(Recipe):
    """What GRPO and RLOO share: several completions of each prompt, compared with one another."""

    epochs: float = Field(1, gt=0, le=1000, description="Passes over the prompts, when `steps` is null.")
    batch_size: int = Field(16, ge=1, le=65536, description="Prompts, hence groups, per rollout (one step).")
    learning_rate: LearningRate = Field(1e-6, description="Peak learning rate of AdamW.")
    group_size: int = Field(8, ge=2, le=1024, description="Completions of each prompt, G.")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="Rollouts; null derives them from `epochs`.")
    inner_epochs: int = Field(1, ge=1, le=100, description="Passes over each rollout.")
    minibatches: int = Field(1, ge=1, le=1024, description="Optimiser steps per inner epoch.")
    clip: float = Field(0.2, gt=0, lt=1, description="Clip range of the probability ratio.")
    clip_high: float | None = Field(
        None, gt=0, le=100, description="Upper clip range, where it differs (DAPO: 0.28); null: as `clip`."
    )
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature, also in all log-probabilities.")
    max_new_tokens: int = Field(256, ge=1, le=131_072, description="Longest completion, in tokens.")
    mask_truncated: bool = Field(False, description="Leave completions that did not end out of the loss (DAPO).")
    max_draws: int = Field(
        1, ge=1, le=1024, description="Rollouts drawn until `batch_size` groups differ in reward (DAPO); 1 keeps all."
    )


class GRPORecipe(GroupRecipe):
    """Group relative policy optimisation against reward models and verifiers."""

    beta: float = Field(0.0, ge=0, le=100, description="Weight of the KL penalty in the loss; 0 needs no reference.")
    scale: Literal["group", "batch", "none"] = Field(
        "group", description="Whose standard deviation divides the advantages; none is Dr. GRPO."
    )
    normalise: Literal["tokens", "sequences", "constant"] = Field(
        "tokens",
        description="What the loss is averaged over: all tokens (DAPO), each sequence's tokens and then sequences "
        "(the first GRPO), or max_new_tokens times sequences (Dr. GRPO).",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token", description="Probability ratio of each token, or the geometric mean of the sequence's (GSPO)."
    )


class RLOORecipe(GroupRecipe):
    """REINFORCE with the other completions of the prompt as baseline, KL penalty inside the reward."""

    beta: float = Field(0.05, ge=0, le=100, description="Weight of the KL to the starting policy, in the reward.")


class BestOfNRecipe(BaseModel):
    """Draw n completions of each prompt and keep the best, as demonstrations and as pairs."""

    model_config = ConfigDict(extra="forbid")

    n: int = Field(8, ge=2, le=4096, description="Completions per prompt.")
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus: the smallest set with this much probability.")
    max_new_tokens: int = Field(256, ge=1, le=131_072, description="Longest completion, in tokens.")
    max_length: int = Field(1024, ge=8, le=1_048_576, description="Tokens of prompt + completion.")
    min_reward: float | None = Field(
        None, description="Keep only what scores at least this (rejection sampling); null keeps the best whatever."
    )
    ended_only: bool = Field(True, description="A completion that was cut off is never the best.")
    batch_size: int = Field(128, ge=1, le=65536, description="Sequences generated at a time.")
    micro_batch_tokens: int = Field(16384, ge=64, le=16_777_216, description="Most padded tokens in one scoring pass.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the draws.")


class SampleRecipe(BaseModel):
    """Draw completions for prompts."""

    model_config = ConfigDict(extra="forbid")

    n: int = Field(2, ge=1, le=1024, description="Completions per prompt.")
    temperature: float = Field(1.0, ge=0, le=10, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus: the smallest set with this much probability.")
    top_k: int = Field(0, ge=0, le=1_000_000, description="Only so many of the likeliest tokens; 0 keeps all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Only tokens with this share of the likeliest one's probability.")
    repetition_penalty: float = Field(
        1.0, ge=1, le=10, description="Divides the logits of tokens that occurred before; 1 is none."
    )
    stop: str | None = Field(None, min_length=1, max_length=200, description="Text that ends a completion.")
    log_probs: bool = Field(False, description="Write the log-probability of each token as well.")
    max_new_tokens: int = Field(128, ge=1, le=131_072, description="Longest completion, in tokens.")
    max_length: int = Field(1024, ge=8, le=1_048_576, description="Tokens of prompt + completion.")
    batch_size: int = Field(128, ge=1, le=65536, description="Sequences generated at a time.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass.")
    distinct: bool = Field(True, description="Draw again, a few times, when completions of a prompt are equal.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the draws.")


class EvaluateRecipe(BaseModel):
    """Compare a new policy with the one it came from on held-out prompts."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature of both policies.")
    max_new_tokens: int = Field(128, ge=1, le=131_072, description="Longest completion, in tokens.")
    max_length: int = Field(1024, ge=8, le=1_048_576, description="Tokens of prompt + completion.")
    max_prompts: int = Field(512, ge=1, le=1_000_000, description="At most so many prompts are used, the first ones.")
    batch_size: int = Field(128, ge=1, le=65536, description="Sequences generated at a time.")
    micro_batch_tokens: int = Field(16384, ge=64, le=16_777_216, description="Most padded tokens in one pass.")
    target_kl: float | None = Field(
        None, gt=0, le=1000, description="KL per completion that training aimed at; ten times as much is an alarm."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the draws.")


class TinyRecipe(BaseModel):
    """Build a small demo policy from scratch."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(1500, ge=1, le=1_000_000, description="Optimiser steps.")
    batch_size: int = Field(16, ge=1, le=4096, description="Conversations per step.")
    learning_rate: LearningRate = Field(2e-3, description="Peak learning rate of AdamW.")
    hidden_size: int = Field(144, ge=16, le=4096, multiple_of=8, description="Width of the model, four heads wide.")
    layers: int = Field(3, ge=1, le=64, description="Transformer layers.")
    vocab_size: int = Field(1344, ge=280, le=65536, description="Entries of the byte-pair vocabulary.")
    max_length: int = Field(256, ge=16, le=8192, description="Longest sequence, in tokens.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of initialisation and order.")


RECIPES: dict[str, type[BaseModel]] = {
    "sft": SFTRecipe,
    "reward": RewardRecipe,
    "dpo": DPORecipe,
    "kto": KTORecipe,
    "ppo": PPORecipe,
    "grpo": GRPORecipe,
    "rloo": RLOORecipe,
    "best_of_n": BestOfNRecipe,
    "sample": SampleRecipe,
    "evaluate": EvaluateRecipe,
    "tiny": TinyRecipe,
}
