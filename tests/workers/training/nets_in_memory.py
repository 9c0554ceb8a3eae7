"""Two-layer random models and a byte tokenizer made in memory: no downloads, a tenth of a second each."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from workers.training.nets import Policy, Scorer, new_reward_model
from workers.training.report import Reporter
from workers.training.tokens import Codec, Example

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '</s>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


FAMILIES: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}


def byte_tokenizer(template: str | None = TEMPLATE, merges: list[tuple[str, str]] | None = None) -> Any:
    """One token per byte (plus `merges`); the padding token *is* the end token, the case that breaks naive masks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = SPECIAL + alphabet + ["".join(pair) for pair in merges or []]
    inner = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges or []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    tokenizer.chat_template = template
    return tokenizer


def language_model(kind: str, seed: int = 0) -> Any:
    """A random causal language model with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    vocabulary = len(byte_tokenizer())
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_positions=160, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
            )
        )
    else:
        config, family = FAMILIES[kind]
        model = family(
            config(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=160,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
                **(
                    {"head_dim": 16, "sliding_window": 128}
                    if kind == "gemma3"
                    else {"head_dim": 16}
                    if kind == "qwen3"
                    else {}
                ),
            )
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model.eval()


def policy(kind: str = "llama", seed: int = 0) -> Policy:
    return Policy(language_model(kind, seed), Codec(byte_tokenizer()))


def save_model(directory: Path, kind: str = "llama", seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """An ordinary transformers directory with such a model."""
    model = language_model(kind, seed)
    model.save_pretrained(directory)
    byte_tokenizer(template).save_pretrained(directory)
    return directory


def save_reward_model(directory: Path, policy_directory: Path, seed: int = 0) -> Path:
    scorer: Scorer = new_reward_model(str(policy_directory), seed)
    scorer.normalise(0.1, 0.5)
    scorer.save(directory)
    return directory


def example(prompt: str, completion: str) -> Example:
    """Byte ids of both; the completion ends with the end token."""
    encode = byte_tokenizer()
    ids = [encode(text, add_special_tokens=False)["input_ids"] for text in (prompt, completion)]
    return Example(ids[0], [*ids[1], 1])


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def toy_pairs(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Preferences with a rule that two layers can learn: an answer of a's beats one of b's."""
    return [
        {
            "prompt": [{"role": "user", "content": f"say {i + offset}"}],
            "chosen": [{"role": "assistant", "content": "a" * (2 + i % 3)}],
            "rejected": [{"role": "assistant", "content": "b" * (2 + (i + 1) % 3)}],
        }
        for i in range(count)
    ]


def toy_prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": [{"role": "user", "content": f"say {i}"}], "id": f"p{i}"} for i in range(count)]


class Recorder(Reporter):
    """A reporter that writes into memory; `steps_seen` holds what each step reported."""

    def __init__(self, stage: str = "test", stop_after: int | None = None) -> None:
        super().__init__(stage, stdout=io.StringIO(), stderr=io.StringIO())
        self.stop_after = stop_after
        self.steps_seen: list[dict[str, float]] = []

    def step(self, step: int, total_steps: int, metrics: Any) -> None:
        super().step(step, total_steps, metrics)
        self.steps_seen.append(dict(metrics))
        self.stopping = self.stop_after is not None and len(self.steps_seen) >= self.stop_after
