"""The networks: a policy (causal language model) and a scorer (reward or value model), loaded, run and saved.

Every forward for scoring takes explicit position ids and right-padded ids. Weights are safetensors only, no code of a
model repository is ever run, and what is saved is an ordinary transformers directory, adapters merged.
"""

import copy
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workers.training import layout, losses, memory, parallel
from workers.training.checkpoints import check_model_directory
from workers.training.errors import ModelError
from workers.training.layout import Batch, collate, grouped, lay_out
from workers.training.recipes import Lora, Recipe
from workers.training.report import Reporter
from workers.training.tokens import Codec, Example

ADAPTER = "adapter_config.json"
ADAPTED_HEAD = "base_model.model.score.weight"


def device() -> torch.device:
    """The accelerator when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Net:
    """A transformers model with its tokenizer rules and arithmetic; the base of `Policy` and `Scorer`."""

    def __init__(
        self, model: Any, codec: Codec, precision: str = "fp32", lora: Lora | None = None, seed: int = 0
    ) -> None:
        self.codec, self.precision, self.lora, self.peft = codec, precision, lora, None
        if not getattr(model, "is_quantized", False):  # quantised weights were put where they belong as they were read
            model.to(device())
        self.model = model.eval()  # eval: dropout would make old and new log-probabilities differ
        self.estimate: memory.Estimate | None = None
        self.device = next(model.parameters()).device
        # How many tokens make a pass worth its overhead; below that, padding is cheaper than another pass.
        self.enough = 512 if self.device.type == "cpu" else 8192
        self.takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        if lora is not None:
            self.peft = attach(self.model, lora, seed)
        if parallel.sharded():
            embeddings = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
            whole = [p for module in embeddings if module is not None for p in module.parameters()]
            parallel.shard(self.model.base_model, _blocks(self.model), whole)

    def prepare(self, recipe: Recipe, report: Reporter) -> None:
        """Before training: recompute activations if asked to, and say so if memory will not suffice by far."""
        if recipe.gradient_checkpointing:
            for block in _blocks(self.model):
                block.forward = partial(_recomputed, block.forward)
        self.estimate = memory.estimate(
            self.model,
            recipe.micro_batch_tokens,
            precision=self.precision,
            checkpointing=recipe.gradient_checkpointing,
            head=isinstance(self, Policy),
        )
        if said := memory.warning(self.estimate, memory.free()):
            report.log(said)

    @property
    def context_length(self) -> int:
        """Most tokens the model has positions for."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Name and parameter of all that is trained, in a fixed order."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def passes(
        self, examples: Sequence[Example], tokens: int, *, pack: bool = False
    ) -> Iterator[tuple[list[int], Batch]]:
        """Examples in batches of similar length and at most `tokens` padded tokens, with their places in `examples`.

        Neighbours with the same prompt share it where that is cheaper; `pack` puts short examples into one row.
        """
        if not self.reads_shared_rows:
            groups, pack = [[index] for index in range(len(examples))], False
        else:
            groups = grouped(examples, self.model.config.get_text_config().hidden_size, self.window)
        parts = list(layout.passes(groups, examples, tokens, self.enough, pack=pack))
        # Blocks are gathered by all processes together: they agree first on how many passes all of them make.
        idle = parallel.most(len(parts)) - len(parts) if parallel.sharded() else 0
        for places, rows in parts:
            yield places, lay_out(rows, self.device)
        yield from (([], layout.idle(self.device)) for _ in range(idle))

    def _per_example(self, examples: Sequence[Example], value: Callable[[Batch], Tensor]) -> Tensor:
        """`value` (C,) of all examples in their order, with gradients, computed in passes that waste little padding."""
        places: list[int] = []
        parts: list[Tensor] = []
        for group, batch in self.passes(examples, sum(len(example) for example in examples)):
            places += group
            parts.append(value(batch))
        order = sorted(range(len(places)), key=places.__getitem__)
        return torch.cat(parts)[order]

    @property
    def window(self) -> int | None:
        """How far attention looks back, in tokens, where that is limited."""
        config = self.model.config.get_text_config()
        limited = getattr(config, "use_sliding_window", True)
        return getattr(config, "sliding_window", None) if limited else None

    @cached_property
    def reads_shared_rows(self) -> bool:
        """Whether this model reads completions that share a row exactly as it reads each alone; tried, not guessed.

        It cannot where it takes no positions or no mask of ours: state-space models, linear attention.
        """
        if not self.takes_positions:
            return False
        ids = sorted(self.codec.end_ids)[:1] * 3
        pair = [Example(ids, [7, 8, 9]), Example(ids, [9, 7])]
        with torch.no_grad():
            try:
                shared, alone = self.states(lay_out([[pair]], self.device)), collate(pair, self.device)
            except (TypeError, ValueError, RuntimeError):
                return False
            places = lay_out([[pair]], self.device).at
            difference = (shared[places] - self.states(alone)[alone.at]).abs().max()
            return bool(difference < (1e-3 if self.precision == "fp32" else 0.1) * shared.abs().max())

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The autocast region of this precision."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def states(self, batch: Batch) -> Tensor:
        """Last hidden states of all tokens (B·L, d)."""
        options: dict[str, Tensor] = {"position_ids": batch.positions} if self.takes_positions else {}
        if batch.attention is not None:
            options["attention_mask"] = batch.attention
        with self.arithmetic():
            states: Tensor = self.model.base_model(input_ids=batch.ids, use_cache=False, **options)[0]
        return states.flatten(0, 1)

    def reading(self) -> AbstractContextManager[Any]:
        """Around a forward pass with its backward pass: the net that shares its weights with others has its turn."""
        return nullcontext()

    def freeze(self) -> None:
        """No gradients for any weight."""
        self.model.requires_grad_(False)

    def save(self, directory: Path) -> None:
        """Write config, safetensors and tokenizer with its chat template.

        LoRA is merged, which ends training, or with `save_adapter` written by itself, naming its base model.
        """
        if parallel.sharded():
            gathered = {name: parallel.full(tensor).cpu() for name, tensor in self.model.state_dict().items()}
            fresh = type(self.model)(self.model.config)
            self.peft = attach(fresh, self.lora, 0) if self.lora else None
            fresh.load_state_dict(gathered, assign=True)
            fresh.tie_weights()
            if isinstance(self, Policy):
                fresh.generation_config = self.model.generation_config
            self.model = fresh
        if not parallel.first():
            return
        if self.peft is not None and self.lora is not None and self.lora.save_adapter:
            base = self.model.name_or_path
            self.peft.peft_config["default"].base_model_name_or_path = (
                str(Path(base).resolve()) if Path(base).is_dir() else base
            )
            self.peft.save_pretrained(directory, selected_adapters=["default"])  # others on its trunk are not its own
            (directory / "README.md").unlink(missing_ok=True)  # a form for a model card
        else:
            if self.peft is not None:
                self.model, self.peft = self.peft.merge_and_unload(), None
            self.model.save_pretrained(directory)
        self.codec.tokenizer.save_pretrained(directory)


class Policy(Net):
    """A causal language model: log-probabilities of completions."""

    def __init__(
        self, model: Any, codec: Codec, precision: str = "fp32", lora: Lora | None = None, seed: int = 0
    ) -> None:
        super().__init__(model, codec, precision, lora, seed)
        self.project = _projection(self.model.config, self.model.get_output_embeddings())

    def log_probs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """log π(y_t | x, y_<t) of each completion token at the given temperature: (C, R), 0 off the mask."""
        hidden = self.states(batch)[batch.before]
        with self.arithmetic():
            values = losses.projected_log_probs(self.project, hidden, batch.targets, temperature)
        return batch.spread(values)

    def log_probs_and_entropy(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`log_probs`, and the entropy of the distribution that each token was drawn from, without gradient."""
        hidden = self.states(batch)[batch.before]
        with self.arithmetic():
            values = losses.projected_log_probs_and_entropy(self.project, hidden, batch.targets, temperature)
        return batch.spread(values[0]), batch.spread(values[1])

    def log_probs_and_hits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the N trained tokens: log π(y_t | x, y_<t), and 1 where y_t was the likeliest token, else 0."""
        hidden = self.states(batch)[batch.before]
        with self.arithmetic():
            return losses.projected_log_probs_and_hits(self.project, hidden, batch.targets)

    def completion_log_probs(self, examples: Sequence[Example], temperature: float = 1.0) -> Tensor:
        """log π(y | x), summed over the completion: (B,), with gradients."""
        return self._per_example(examples, lambda batch: self.log_probs(batch, temperature).sum(1))

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """With LoRA: the starting policy, adapters switched off, without gradients."""
        if self.peft is None:
            raise RuntimeError("only a policy with adapters holds its own reference")
        with torch.no_grad(), self.peft.disable_adapter():
            yield


class Scorer(Net):
    """A transformer with a scalar head: a reward model at the last token, a value model at every token.

    `mean` and `std` are the raw score's over the reward model's data; normalised scores are (score - mean) / std.
    A model made by `probe.py` has `likelihood` (M, 2) and reads `features` instead of the last token.

    An ensemble is M > 1 heads on one backbone. Only differences of rewards are learnt, so each head is first centred
    on its mean over the training completions (`centres`, M); the raw score is then their mean less κ times their
    deviation (`conservative`; Coste et al. 2023 write the variance), where the heads agree the mean itself.
    """

    def __init__(
        self, model: Any, codec: Codec, precision: str = "fp32", lora: Lora | None = None, seed: int = 0
    ) -> None:
        super().__init__(model, codec, precision, lora, seed)
        self.heads = int(model.score.weight.shape[0])
        self.recall(model.config)
        if lora is not None:  # the head is new: it must be trained whole, and is saved with the rest
            self.model.score.float().requires_grad_(True)

    def recall(self, config: Any) -> None:
        """Take what `settle` and `read_features` wrote into a model's config."""
        self.mean = float(getattr(config, "reward_mean", 0.0))
        self.std = float(getattr(config, "reward_std", 1.0))
        self.likelihood: list[Any] | None = getattr(config, "reward_likelihood", None)
        kept = getattr(config, "reward_centres", None) if self.heads > 1 else None
        self.centres: list[float] = kept or [0.0] * self.heads
        self.conservative = float(getattr(config, "reward_conservative", 0.0))
        self.usual_disagreement = float(getattr(config, "reward_disagreement", 0.0))  # on the training data

    def scores(self, batch: Batch) -> Tensor:
        """Raw score of each example: (B,) fp32."""
        return self.combine(self.head_scores(batch))

    def head_scores(self, batch: Batch) -> Tensor:
        """What each head says of each example, read at its last real token (or from `features`): (B, M) fp32."""
        if self.likelihood is not None:
            features = self.features(batch)
            weights = torch.tensor(self.likelihood, device=self.device).reshape(self.heads, 2)
            return self._head(features[:, :-2]) + features[:, -2:] @ weights.T
        return self._head(self.states(batch)[batch.last])

    def combine(self, heads: Tensor) -> Tensor:
        """The raw score (B,) from what the heads say (B, M)."""
        if self.heads == 1:
            return heads[:, 0]
        centred = heads - torch.tensor(self.centres, device=heads.device)
        return centred.mean(1) - self.conservative * centred.std(1, correction=0)

    def completion_head_scores(self, examples: Sequence[Example]) -> Tensor:
        """`head_scores` of whole examples: (B, M), with gradients."""
        return self._per_example(examples, self.head_scores)

    def completion_scores(self, examples: Sequence[Example]) -> Tensor:
        """Raw scores of whole examples: (B,), with gradients."""
        return self.combine(self.completion_head_scores(examples))

    def values(self, batch: Batch) -> Tensor:
        """Normalised prediction *before* each completion token: (B, R), 0 off the mask."""
        raw = self.combine(self._head(self.states(batch)[batch.before]))
        return batch.spread((raw - self.mean) / self.std)

    def features(self, batch: Batch) -> Tensor:
        """Mean hidden state of the completion's tokens, the sum and the least of their log π: (B, d + 2) fp32.

        π is the language model that the backbone came from; the last two are 0 where its output layer is not tied to
        its embeddings, because a scorer has no output layer of its own.
        """
        states = self.states(batch)
        lengths = batch.mask.sum(1, keepdim=True)
        tokens = states[batch.at].float()
        mean = tokens.new_zeros(len(lengths), tokens.shape[1]).index_add(0, batch.owners, tokens) / lengths
        if not self.model.config.tie_word_embeddings:
            return torch.cat([mean, mean.new_zeros(len(lengths), 2)], dim=1)
        project = _projection(self.model.config, self.model.get_input_embeddings())
        with self.arithmetic():
            values = losses.projected_log_probs(project, states[batch.before], batch.targets)
        log_probs = batch.spread(values)
        return torch.cat([mean, log_probs.sum(1, keepdim=True), log_probs.amin(1, keepdim=True)], dim=1)

    def read_features(self, weights: Tensor) -> None:
        """From here on score by `weights` (M, d + 2) on `features`; saved with the model."""
        with torch.no_grad():
            self.model.score.weight.copy_(weights[:, :-2])
        self.likelihood = self.model.config.reward_likelihood = weights[:, -2:].tolist()

    def as_critic(self, precision: str, lora: Lora | None, seed: int) -> "Scorer":
        """A trainable copy as value model, which starts from `value_head`."""
        model = copy.deepcopy(self.model).requires_grad_(True)
        weight, mean, std = self.value_head()
        model.score = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device)
        with torch.no_grad():
            model.score.weight.copy_(weight)
        critic = Scorer(model, self.codec, precision, lora, seed)
        critic.likelihood, critic.mean, critic.std = None, mean, std
        return critic

    def value_head(self) -> tuple[Tensor, float, float]:
        """Weight (1, d), mean and deviation of a value model that starts as this reward model.

        A head on `features` does not read single tokens: then it starts at nothing. Of an ensemble it takes the mean
        head, which predicts the score but for the heads' disagreement.
        """
        weight = self.model.score.weight.detach().float()
        if self.likelihood is not None:
            return torch.zeros_like(weight[:1]), 0.0, 1.0
        return weight.mean(0, keepdim=True), self.mean if self.heads == 1 else sum(self.centres) / self.heads, self.std

    @torch.no_grad()
    def rate(self, examples: Sequence[Example], tokens: int) -> list[float]:
        """Normalised scores of whole completions, in micro-batches of at most `tokens` tokens."""
        return ((self.combine(self.rate_heads(examples, tokens)) - self.mean) / self.std).tolist()

    @torch.no_grad()
    def disagreement(self, examples: Sequence[Example], tokens: int) -> list[float]:
        """Deviation of an ensemble's heads on each example, in units of the normalised score; 0 for a single head."""
        return self._spread(self.rate_heads(examples, tokens)).tolist()

    @torch.no_grad()
    def rate_heads(self, examples: Sequence[Example], tokens: int) -> Tensor:
        """`head_scores` (B, M) of whole completions without gradients, in micro-batches of at most `tokens` tokens."""
        rated = torch.zeros(len(examples), self.heads, device=self.device)
        for group, batch in self.passes(examples, tokens):
            rated[torch.tensor(group, device=self.device)] = self.head_scores(batch)
        return rated

    def _spread(self, heads: Tensor) -> Tensor:
        return (heads - torch.tensor(self.centres, device=heads.device)).std(1, correction=0) / self.std

    def settle(self, heads: Tensor, conservative: float) -> Tensor:
        """Take centres, κ and normalisation from `heads` (N, M), those of the training completions, and keep them.

        Returns the raw scores (N,).
        """
        config = self.model.config
        if self.heads > 1:
            self.centres, self.conservative = heads.mean(0).tolist(), conservative
            config.reward_centres, config.reward_conservative = self.centres, self.conservative
        scores = self.combine(heads)
        self.normalise(float(scores.mean()), float(scores.std()))
        self.usual_disagreement = config.reward_disagreement = float(self._spread(heads).mean())
        return scores

    def normalise(self, mean: float, std: float) -> None:
        """Remember what makes scores centred and of unit variance; saved in the model's config."""
        self.mean, self.std = mean, max(std, 1e-6)
        self.model.config.reward_mean, self.model.config.reward_std = self.mean, self.std

    def save(self, directory: Path) -> None:
        """As any net; adapters by themselves go with config and head, which is where peft looks for trained modules."""
        from safetensors.torch import load_file, save_file

        super().save(directory)
        if self.peft is None or not (directory / ADAPTER).is_file():
            return
        weights = directory / "adapter_model.safetensors"
        save_file(load_file(weights) | {ADAPTED_HEAD: self.model.score.weight.detach().cpu().clone()}, weights)
        adapter = json.loads((directory / ADAPTER).read_text())
        adapter |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
        (directory / ADAPTER).write_text(json.dumps(adapter, indent=1))
        self.model.config.architectures = [type(self.model).__name__]
        self.model.config.save_pretrained(directory)

    def _head(self, hidden: Tensor) -> Tensor:
        """(N, d) → (N, M) in fp32."""
        return hidden.float() @ self.model.score.weight.float().T


def load_policy(source: str, precision: str = "fp32", lora: Lora | None = None, seed: int = 0) -> Policy:
    """A causal language model from a directory (adapter directories are merged into their base) or the hub.

    `seed` draws the adapters of `lora`.
    """
    from transformers import AutoModelForCausalLM

    if lora is not None and lora.save_adapter and (Path(source) / ADAPTER).is_file():
        raise ModelError(f"{Path(source).name} is an adapter itself: a new one needs a whole model as its base.")
    model = _load(AutoModelForCausalLM, source, _dtype(precision, lora), **_quantization(lora))
    return Policy(model, _codec(source, model), precision, lora, seed)


def load_reward_model(source: str, precision: str = "fp32") -> Scorer:
    """A trained reward model from a directory."""
    from transformers import AutoModelForSequenceClassification

    if Path(source).is_dir() and not _architecture(source).endswith("ForSequenceClassification"):
        raise ModelError(f"{Path(source).name} is not a reward model: train one with the reward stage first.")
    model = _load(AutoModelForSequenceClassification, source, torch.float32)
    return Scorer(model, _codec(source, model), precision)


def new_reward_model(
    source: str, seed: int, precision: str = "fp32", lora: Lora | None = None, heads: int = 1
) -> Scorer:
    """A reward model on the backbone of a policy, its heads drawn from N(0, 1/√(d+1)) (Stiennon et al., their code)."""
    from transformers import AutoModelForSequenceClassification

    model = _load(AutoModelForSequenceClassification, source, _dtype(precision, lora), num_labels=heads)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != heads:
        raise ModelError(f"{type(model).__name__} has no scalar head 'score': this model family cannot score yet.")
    draw = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(draw / (head.in_features + 1) ** 0.5)
    model.config.reward_mean, model.config.reward_std = 0.0, 1.0
    return Scorer(model, _codec(source, model), precision, lora, seed)


def same_tokens(one: Net, other: Net) -> None:
    """Two models must read the same ids, because completions are never decoded and encoded again."""
    if one.codec.tokenizer.get_vocab() != other.codec.tokenizer.get_vocab():
        second = "reward model" if isinstance(other, Scorer) else "reference model"
        raise ModelError(f"Policy and {second} have different tokenizers: take a {second} made from this policy.")


def _projection(config: Any, head: nn.Module) -> losses.Projection:
    """The language-model head with what the model's family does to its logits."""
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return losses.Projection(head, getattr(config, "final_logit_softcapping", None), scale)


def _load(auto: Any, source: str, dtype: torch.dtype, **options: Any) -> Any:
    local = Path(source).is_dir()
    if not local and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise ModelError(f"{source}: there is no such model directory.")
    if local:
        check_model_directory(Path(source))
        if (Path(source) / ADAPTER).is_file():
            return _merged_adapter(auto, source, dtype, **options)
    try:
        return auto.from_pretrained(source, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # transformers, safetensors and the hub client each raise families of their own
        if "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
            raise
        shown = Path(source).name if local else source
        raise ModelError(f"{shown} cannot be loaded as a model: {_first_line(error)}") from error


def _merged_adapter(auto: Any, source: str, dtype: torch.dtype, **options: Any) -> Any:
    """LoRA adapters merged into the base model that their configuration names."""
    from peft import PeftModel
    from transformers import AutoConfig

    base = json.loads((Path(source) / ADAPTER).read_text()).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{Path(source).name}/{ADAPTER} does not name its base model.")
    if (Path(source) / "config.json").is_file():  # a reward model's: its number of heads, and its scale
        options = {"config": AutoConfig.from_pretrained(source, trust_remote_code=False)}
    model = _load(auto, base, dtype, **options)
    return PeftModel.from_pretrained(model, source, use_safetensors=True).merge_and_unload()


def attach(model: Any, lora: Lora, seed: int) -> Any:
    """Adapters on every linear layer of the backbone, never on the head; drawn from `seed` alone."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    backbone = {id(module) for module in model.base_model.modules()}
    targets = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and id(m) in backbone]
    transposed = any(isinstance(m, Conv1D) for m in model.base_model.modules())
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, fan_in_fan_out=transposed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _quantization(lora: Lora | None) -> dict[str, Any]:
    """How to load a base model in 4 bits (Dettmers et al. 2023): NF4, double quantisation, arithmetic in bf16."""
    if lora is None or lora.quantization == "none":
        return {}
    if not torch.cuda.is_available():
        raise ModelError("lora.quantization=nf4 needs a CUDA GPU, and there is none here: set it to none.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("lora.quantization=nf4 needs a package that is missing: pip install bitsandbytes")
    if parallel.sharded():
        raise ModelError("lora.quantization=nf4 cannot be sharded: launch without FSDP.")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A block's forward whose inside is not kept for the backward pass; there is no randomness in it to repeat."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _blocks(model: Any) -> list[nn.Module]:
    """The transformer blocks of a model, first to last."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _codec(source: str, model: Any) -> Codec:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"{Path(source).name} has no usable tokenizer: {_first_line(error)}") from error
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return Codec(tokenizer, ends if isinstance(ends, list) else [] if ends is None else [ends])


def _dtype(precision: str, lora: Lora | None) -> torch.dtype:
    """Trained weights stay in fp32; under LoRA the frozen ones need not."""
    return torch.bfloat16 if precision == "bf16" and lora is not None else torch.float32


def _architecture(source: str) -> str:
    try:
        return str((json.loads((Path(source) / "config.json").read_text()).get("architectures") or [""])[0])
    except (OSError, ValueError) as error:
        raise ModelError(f"{Path(source).name} has no readable config.json: it is not a model directory.") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
