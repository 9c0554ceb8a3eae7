"""What the reference policy thinks of the completions: computed once, and kept for the next run on the same data.

The key is everything that the numbers depend on: the model, the ids of every prompt and completion (hence data,
template, tokenizer and truncation), arithmetic, device and library versions. A resumed run therefore subtracts the
very bytes that the run before it did, and runs that differ in β or loss alone share them.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from workers.training import nets, parallel
from workers.training.checkpoints import MANIFEST, digest, publish, verify
from workers.training.errors import DiskFullError, ModelError
from workers.training.evaluation import log_prob_sums
from workers.training.nets import Policy
from workers.training.report import Reporter
from workers.training.tokens import Example


def log_probs(
    policy: Policy,
    source: str,
    examples: Sequence[Example],
    tokens: int,
    out: Path,
    report: Reporter,
    *,
    instead: str | None = None,
) -> Tensor:
    """log π_ref(y | x) (sum over tokens) of each example: (C,) fp32 on the host.

    The reference is `policy` as it was loaded, with fresh adapters at most, or the model `instead`; `source` is its
    fingerprint, `tokens` bounds a micro-batch. The cache is `$TIEBREAK_CACHE/reference` where that is set, else
    `out/reference`; what is damaged there is done again.
    """
    import transformers

    if instead is not None:
        policy = _load_instead(policy, instead)
    weight = next(policy.model.parameters())
    revision = getattr(policy.model.config, "_commit_hash", None)  # a hub id alone does not say which weights
    versions = [torch.__version__, transformers.__version__]
    key = digest(
        [source, revision, str(weight.dtype), policy.precision, policy.device.type, tokens, versions] + [_ids(examples)]
    )
    target = Path(os.environ.get("TIEBREAK_CACHE") or out) / "reference" / key[:32]
    known = _read(target, report)
    missing = parallel.most(int(known is None))  # what one process lacks, all compute: they do it together
    if known is not None and not missing:
        return known
    values = _shared(policy, examples, tokens)
    _keep(target, values, report)
    return values


def _shared(policy: Policy, examples: Sequence[Example], tokens: int) -> Tensor:
    """The sums of all examples, each worked out by one of the processes."""
    places = torch.tensor(parallel.share(range(len(examples))), dtype=torch.long, device=policy.device)
    sums = log_prob_sums(policy, parallel.share(examples), tokens)
    found = parallel.joined(torch.tensor(sums, dtype=torch.float32, device=policy.device))
    return found[parallel.joined(places).argsort()].cpu()


def _load_instead(policy: Policy, source: str) -> Policy:
    other = nets.load_policy(source, policy.precision)
    nets.same_tokens(policy, other)
    return other


def _ids(examples: Iterable[Example]) -> str:
    """sha256 of all ids and masks; lengths go in as well, so that nothing can move from one part to the next."""
    seen = hashlib.sha256()
    for example in examples:
        trained = example.trained or ()
        lengths = len(example.prompt), len(example.completion), len(trained)
        seen.update(array("q", [*lengths, *example.prompt, *example.completion, *trained]).tobytes())
    return seen.hexdigest()


def _read(target: Path, report: Reporter) -> Tensor | None:
    from safetensors.torch import load_file

    if not (target / MANIFEST).is_file():
        return None
    try:
        verify(target)
    except ModelError as error:
        report.log(f"{error} The reference log-probabilities are computed again.")
        return None
    return load_file(target / "log_probs.safetensors")["log_probs"]


def _keep(target: Path, values: Tensor, report: Reporter) -> None:
    """A cache that cannot be written costs time and nothing else."""
    from safetensors.torch import save_file

    if not parallel.first():
        return

    def fill(directory: Path) -> None:
        save_file({"log_probs": values}, directory / "log_probs.safetensors")

    try:
        publish(target, fill, {"examples": len(values)})
    except (OSError, DiskFullError) as error:
        report.log(f"The reference log-probabilities could not be kept ({error}); the next run computes them again.")
