"""Sampling beside transformers' own `generate`, one CPU thread, a Llama shape of a million parameters.

    OMP_NUM_THREADS=1 python -m benchmarks.sampling

Both draw n completions of each prompt at temperature 1; one token in 45 ends a completion. Medians of alternating
runs, in tokens per CPU-second, after one run of each that does not count.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.workers.training.nets_in_memory import byte_tokenizer
from workers.training import sampling
from workers.training.nets import Policy
from workers.training.tokens import Codec

ENDS, BATCH, LONGEST, REPEATS = 30, 64, 96, 5


def main() -> None:
    torch.set_num_threads(1)
    policy = _policy()
    for prompts, n, shortest, longest in ((256, 1, 10, 40), (64, 4, 10, 40), (32, 8, 60, 120)):
        chance = random.Random(0)
        asked = [
            [chance.randrange(300, 1344) for _ in range(chance.randrange(shortest, longest))] for _ in range(prompts)
        ]
        ours, theirs = _alternate(lambda: _ours(policy, asked, n), lambda: _theirs(policy, asked, n))  # noqa: B023
        print(
            f"{prompts} prompts of {shortest} to {longest} tokens, {n} each: "
            f"ours {ours:.0f} tokens/s, transformers {theirs:.0f}, {ours / theirs:.2f} times"
        )


def _policy() -> Policy:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1344, hidden_size=144, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    return Policy(LlamaForCausalLM(config), Codec(byte_tokenizer(), end_ids=range(1, 1 + ENDS)))


def _ours(policy: Policy, prompts: list[list[int]], n: int) -> int:
    asked = [prompt for prompt in prompts for _ in range(n)]
    drawn = sampling.generate(policy, asked, range(len(asked)), max_new_tokens=LONGEST, batch_size=BATCH)
    return sum(len(c.tokens) for c in drawn)


def _theirs(policy: Policy, prompts: list[list[int]], n: int) -> int:
    tokens = 0
    ends = torch.tensor(sorted(policy.codec.end_ids))
    ordered = sorted(prompts, key=len)
    for start in range(0, len(ordered), BATCH // n):
        group = ordered[start : start + BATCH // n]
        width = max(map(len, group))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in group])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in group])
        drawn: Any = policy.model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=LONGEST, num_return_sequences=n,
            eos_token_id=ends.tolist(), pad_token_id=0,
        )  # fmt: skip
        over = torch.isin(drawn[:, width:], ends).int().cumsum(1)
        tokens += int((over == 0).sum() + (over.amax(1) > 0).sum())
    return tokens


def _alternate(*runs: Callable[[], int]) -> list[float]:
    """Median tokens a second of each."""
    found: list[list[float]] = [[] for _ in runs]
    for repeat in range(REPEATS + 1):
        for place, run in enumerate(runs):
            start = time.process_time()
            tokens = run()
            if repeat:
                found[place].append(tokens / (time.process_time() - start))
    return [statistics.median(values) for values in found]


if __name__ == "__main__":
    sys.exit(main())
