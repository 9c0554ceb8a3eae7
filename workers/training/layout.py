"""From examples to rows of token ids that a transformer reads in one pass.

Completions of one prompt share it: a *group* is laid out as `[prompt | completion 1 | … | completion K]`, each
completion at the positions that follow the prompt, and an attention mask lets a token see the prompt and what stands
before it in its own completion. Every hidden state is the one that a row of its own would give; the prompt is paid for
once. Rows may also hold several groups that do not see each other (packing). Rows of one example need no mask:
padding is on the right and attention is causal.

What is where is carried as indices into the flattened (B·L) states. Nothing ever asks whether an id is the padding id.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training.tokens import Example

Group = Sequence[Example]  # completions of one prompt
Row = Sequence[Group]


@dataclass(frozen=True)
class Batch:
    """Rows of ids, and where in their states (B·L, d) the N trained tokens of the C completions are to be found.

    ids, positions: (B, L) long. attention: (B, 1, L, L) bool, true where a query may look, or None for plain causal.
    `mask`: (C, R) bool, true at the trained tokens of each completion, R the longest. `before`, `at`: (N,) the state
    that predicts each trained token, and that token's own; `targets`: (N,) the tokens, `owners`: (N,) their
    completions, in the order in which `mask` is read row by row. `last`: (C,) the last token of each completion.
    """

    ids: Tensor
    positions: Tensor
    attention: Tensor | None
    mask: Tensor
    before: Tensor
    at: Tensor
    targets: Tensor
    owners: Tensor
    last: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """(N,) values of completion tokens to (C, R), zero elsewhere; differentiable."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """One example per row."""
    return lay_out([[[example]] for example in examples], device)


def lay_out(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Rows of groups as one batch; all indices are worked out on the host, so that no device sync is needed."""
    width = max(length(row) for row in rows)
    plain = all(len(row) == 1 and len(row[0]) == 1 for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.arange(width).repeat(len(rows), 1)
    document = torch.full((len(rows), width), -1)  # padding sees padding, so that no row of the mask is empty
    branch = torch.zeros(len(rows), width, dtype=torch.long)
    flags: list[list[bool]] = []
    before: list[int] = []
    at: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    last: list[int] = []
    for r, row in enumerate(rows):
        free = 0
        for d, group in enumerate(row):
            prompt = group[0].prompt
            end = free + len(prompt)
            ids[r, free:end] = torch.tensor(prompt, dtype=torch.long)
            if not plain:
                positions[r, free:end] = torch.arange(len(prompt))
                document[r, free:end] = d
            ask, free = r * width + end - 1, end
            for b, example in enumerate(group, start=1):
                size, start = len(example.completion), r * width + free
                ids[r, free : free + size] = torch.tensor(example.completion, dtype=torch.long)
                if not plain:
                    positions[r, free : free + size] = torch.arange(len(prompt), len(prompt) + size)
                    document[r, free : free + size] = d
                    branch[r, free : free + size] = b
                kept = [i for i in range(size) if example.trained is None or example.trained[i]]
                before += [start + i - 1 if i else ask for i in kept]
                at += [start + i for i in kept]
                targets += [example.completion[i] for i in kept]
                owners += [len(last)] * len(kept)
                flags.append([example.trained is None or example.trained[i] for i in range(size)])
                last.append(start + size - 1 if size else ask)
                free += size
    mask = torch.zeros(len(flags), max(1, *map(len, flags)), dtype=torch.bool)
    for c, flag in enumerate(flags):
        mask[c, : len(flag)] = torch.tensor(flag)
    indices = (torch.tensor(values, dtype=torch.long) for values in (before, at, targets, owners, last))
    attention = None if plain else _attention(document.to(device), branch.to(device))
    moved = (tensor.to(device) for tensor in (mask, *indices))
    return Batch(ids.to(device), positions.to(device), attention, *moved)


def idle(device: torch.device | str = "cpu") -> Batch:
    """A pass over one token for no completion: what a process reads whose partners have more passes to make."""
    none, one = torch.zeros(0, dtype=torch.long, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
    return Batch(one, one, None, torch.zeros(0, 1, dtype=torch.bool, device=device), none, none, none, none, none)


def _attention(document: Tensor, branch: Tensor) -> Tensor:
    """Causal, within the document, and there to the prompt (branch 0) or the own branch: (B, 1, L, L)."""
    width = document.shape[1]
    sees = torch.ones(width, width, dtype=torch.bool, device=document.device).tril()
    sees = sees & (document[:, :, None] == document[:, None, :])
    return (sees & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])))[:, None]


def length(row: Row) -> int:
    """Tokens of a row of groups, each prompt counted once."""
    return sum(len(group[0].prompt) + sum(len(example.completion) for example in group) for group in row)


def grouped(examples: Sequence[Example], width: int, window: int | None = None) -> list[list[int]]:
    """Neighbours with the same prompt as groups of indices, where one row for all is cheaper than one for each.

    A layer of width d costs 24 d² FLOP a token for its matrices and 4 d for each pair of tokens that attention looks
    at. Plain causal attention leaves out half of the pairs; the mask of a shared row saves none. Beyond an attention
    `window` a mask of ours would show too much, so longer examples stay alone.
    """
    groups: list[list[int]] = []
    for index, example in enumerate(examples):
        alike = groups and examples[groups[-1][0]].prompt == example.prompt
        groups[-1].append(index) if alike else groups.append([index])

    def cheaper(group: list[int]) -> bool:
        alone = [len(examples[i]) for i in group]
        shared = length([[examples[i] for i in group]])
        fits = window is None or max(alone) <= window
        return fits and 6 * width * shared + shared**2 <= sum(6 * width * n + n**2 / 2 for n in alone)

    return [part for group in groups for part in ([group] if cheaper(group) else [[i] for i in group])]


def micro_batches(lengths: Sequence[int], tokens: int, enough: int | None = None) -> list[list[int]]:
    """Indices of the items in groups of similar length, each of at most `tokens` padded tokens (at least one item).

    A group that has `enough` tokens to keep the machine busy ends where the next item would be a quarter padding.
    Only for the parts of one optimiser step: their order does not matter, because the step normalises over all.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest, size = (lengths[groups[-1][0]], len(groups[-1])) if groups else (0, 0)
        busy = enough is not None and size * longest >= enough and lengths[index] < 0.75 * longest
        if size and (size + 1) * longest <= tokens and not busy:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def passes(
    groups: Sequence[Sequence[int]], examples: Sequence[Example], tokens: int, enough: int, *, pack: bool = False
) -> Iterator[tuple[list[int], list[Row]]]:
    """Groups of indices as passes over rows of similar length, at most `tokens` padded tokens each, with their places.

    With `pack`, rows are as long as the longest group, and shorter groups share one.
    """
    lengths = [length([[examples[i] for i in group]]) for group in groups]
    rows = _packed(lengths) if pack else [[g] for g in range(len(groups))]
    for part in micro_batches([sum(lengths[g] for g in row) for row in rows], tokens, enough):
        chosen = [[groups[g] for g in rows[r]] for r in part]
        places = [i for row in chosen for group in row for i in group]
        yield places, [[[examples[i] for i in group] for group in row] for row in chosen]


def _packed(lengths: Sequence[int]) -> list[list[int]]:
    """Best fit: items, longest first, into rows as long as the longest, each where it leaves the least room."""
    capacity = max(lengths, default=0)
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[item]]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            rows[best].append(item)
            room[best] -= lengths[item]
        else:
            rows.append([item])
            room.append(capacity - lengths[item])
    return rows
