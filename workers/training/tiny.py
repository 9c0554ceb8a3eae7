"""A small demo policy from scratch: tokenizer, chat template and weights out of one file of dialogues.

    python -m workers.training tiny --data dialogues.jsonl --out OUT

A byte-level BPE and a Llama of about a million parameters are trained on completions (nothing is learned from prompts
but how to read them), in one process, in about a minute on two cores (85 CPU-seconds measured). What is saved in
`OUT/checkpoint` is an ordinary transformers directory; every other stage treats it as any other language model.

Two things make a minute enough. The first part of the steps sees only the shorter half of the dialogues: in a short
text the answer stands near its question, and attention finds it sooner. And the gain of the last normalisation starts
at `FINAL_GAIN` instead of 1: a tied output layer otherwise spends most of the training on growing its logits, and until
they have grown, a thousand impossible tokens share a few percent of every draw.

Deliberately left out: resuming (a minute is sooner repeated than resumed) and evaluation.
"""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from workers.training.checkpoints import digest, fingerprint, publish
from workers.training.errors import Interrupted, TooFewError
from workers.training.layout import collate
from workers.training.optimisation import to_floats
from workers.training.recipes import TinyRecipe
from workers.training.records import Demonstration, Text, read_demonstrations
from workers.training.report import Reporter
from workers.training.tokens import Example, truncate

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "developer", "user", "assistant", "tool")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FINAL_GAIN = 4.0
SHORT_SHARE = 0.25
"""Share of the steps that see the shorter half of the dialogues only."""


def train(recipe: TinyRecipe, data: Path, out: Path, report: Reporter) -> dict[str, float]:
    """Build tokenizer and model from demonstrations into `out/checkpoint`; returns the summary metrics."""
    rows = list(read_demonstrations(data))
    if len(rows) < 2:
        raise TooFewError("There is next to nothing to learn from: give at least a few dialogues.")
    tokenizer = build_tokenizer([text for row in rows for text in _contents(row)], recipe.vocab_size)
    examples = _encode(tokenizer, rows, recipe.max_length)
    if not examples:
        raise TooFewError("No prompt is short enough to leave room for its completion: raise max_length.")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build_model(recipe, tokenizer)
    report.log(f"{len(examples)} dialogues, {sum(p.numel() for p in model.parameters()):,} parameters")
    metrics = _learn(model, examples, recipe, report)

    def fill(directory: Path) -> None:
        model.eval().save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    run = digest(["tiny", recipe.model_dump(), fingerprint(data)])
    publish(out / "checkpoint", fill, {"stage": "tiny", "step": recipe.steps, "run": run, "metrics": metrics})
    return metrics


def _learn(model: Any, examples: Sequence[Example], recipe: TinyRecipe, report: Reporter) -> dict[str, float]:
    """The training loop; returns the last step's metrics."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))
    # Every batch counts by its tokens, as if all were of one step: else those of short dialogues would push hardest.
    usual_tokens = recipe.batch_size * sum(len(example.completion) for example in examples) / len(examples)
    metrics: dict[str, float] = {}
    report.begin()
    for step, batch in enumerate(_batches(examples, recipe)):
        for group in adam.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe.steps)
        part = collate(batch)
        hidden = model.model(input_ids=part.ids, use_cache=False).last_hidden_state.flatten(0, 1)[part.before]
        loss = cross_entropy(model.lm_head(hidden), part.targets)
        (loss * len(part.targets) / usual_tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        report.count(len(batch), sum(len(example) for example in batch))
        if (step + 1) % 10 == 0 or step + 1 == recipe.steps:
            metrics = to_floats({"loss": loss, "grad_norm": norm})
            report.step(step + 1, recipe.steps, metrics)
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {recipe.steps}; run it again from the start.")
    return metrics


def build_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A byte-level BPE that can spell any text, with role marks, an end token, and padding that is not that end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: TinyRecipe, tokenizer: Any) -> Any:
    """An untrained Llama of the recipe's size, drawn from torch's current random state."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=8 * math.ceil(recipe.hidden_size / 3),
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.06,  # for so small a width; the usual 0.02 leaves the first steps without a signal
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.constant_(model.model.norm.weight, FINAL_GAIN)
    return model


def _contents(row: Demonstration) -> list[str]:
    return [text for side in (row.prompt, row.completion) for text in _texts(side)]


def _texts(side: Text) -> list[str]:
    return [side] if isinstance(side, str) else [message["content"] for message in side]


def _encode(tokenizer: Any, rows: Sequence[Demonstration], max_length: int) -> list[Example]:
    """Examples exactly as the chat template renders them; written out because the template engine is slow."""
    prompts = [_render(row.prompt, "user") + "<|assistant|>" for row in rows]
    completions = ["".join(_texts(row.completion)) + END for row in rows]
    asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    said = tokenizer(completions, add_special_tokens=False)["input_ids"]
    examples = [truncate([Example(a, b)], max_length) for a, b in zip(asked, said, strict=True)]
    return [kept[0] for kept in examples if kept]


def _render(side: Text, role: str) -> str:
    messages = [{"role": role, "content": side}] if isinstance(side, str) else side
    return "".join(f"<|{message['role']}|>{message['content']}{END}" for message in messages)


def _batches(examples: Sequence[Example], recipe: TinyRecipe) -> Iterator[list[Example]]:
    """One batch of similar lengths per step, the shorter half of the dialogues first."""
    rng = random.Random(recipe.seed)
    by_length = sorted(examples, key=len)
    short = round(recipe.steps * SHORT_SHARE)
    left: list[list[Example]] = []
    for step in range(recipe.steps):
        if step == short:
            left = []
        if not left:
            pool = by_length[: max(1, len(by_length) // 2)] if step < short else by_length
            window = sorted(rng.sample(pool, min(len(pool), 16 * recipe.batch_size)), key=len)
            left = [window[i : i + recipe.batch_size] for i in range(0, len(window), recipe.batch_size)]
            rng.shuffle(left)
        yield left.pop()


def _schedule(step: int, total: int) -> float:
    """Share of the peak learning rate: a short warm-up, then a cosine down to 0."""
    return min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / total))
