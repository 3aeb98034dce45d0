"""Groups in tokens, and batches of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from align.data import Encoded, encode
from align.reference import Row, pad_rows
from counterfoil.records import Answer, Group
from decode.chat import encode_prompt

__all__ = ["Collator", "Example", "count_end", "encode_group", "find_fault"]


class Example(NamedTuple):
    """A group in tokens."""

    group: Group
    rows: list[Row]
    labelled: list[list[int]]
    """Of each token of each answer, the number of its span from 1; 0 outside of spans."""
    reference: list[float] | None = None
    """Log-probabilities of the answers under the reference, where they are known before."""


class Collator:
    """Puts examples into a batch."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return tensors: those of `pad_rows`, and of each answer its group, score, spans and reference.

        Groups whose answers are yet to be drawn come alone.
        """
        if not any(example.rows for example in examples):
            return {"groups": [example.group for example in examples]}
        batch: dict[str, Any] = pad_rows([row for example in examples for row in example.rows], self._pad)
        answers = [(at, answer) for at, example in enumerate(examples) for answer in example.group.answers]
        batch["group_N"] = torch.tensor([at for at, _ in answers])
        batch["score_N"] = torch.tensor([answer.score or 0.0 for _, answer in answers])
        labelled = torch.zeros_like(batch["input_ids"])
        spans = [(row, span) for item in examples for row, span in zip(item.rows, item.labelled, strict=True)]
        for at, (row, numbers) in enumerate(spans):
            labelled[at, row.start : len(row.ids)] = torch.tensor(numbers)
        batch["labelled_NL"] = labelled
        known = [item.reference for item in examples]
        if None not in known:
            batch["reference_N"] = torch.tensor([value for values in known for value in values or ()])
        batch["groups"] = [example.group for example in examples]
        return batch


def encode_group(tokenizer: Any, group: Group) -> Example:
    """Encode each answer after its prompt, and number the tokens that its spans touch."""
    rows: list[Row] = []
    labelled: list[list[int]] = []
    for answer in group.answers:
        asked = group.prompt if answer.prompt is None else answer.prompt
        if answer.token_ids is not None:
            ids = encode_prompt(tokenizer, asked)
            rows.append(Row([*ids, *answer.token_ids], len(ids)))
            labelled.append([0] * len(answer.token_ids))
            continue
        found = encode(tokenizer, asked, answer.text)
        if answer.is_cut:
            kept = len(found.offsets) - count_end(found, answer)
            found = Encoded(found.ids[: found.start + kept], found.start, found.offsets[:kept])
        rows.append(Row(found.ids, found.start))
        labelled.append([_number(answer, first, last) for first, last in found.offsets])
    return Example(group, rows, labelled)


def count_end(found: Encoded, answer: Answer) -> int:
    """Count the tokens that a template, or the end of the sequence, puts after an answer."""
    return sum(first >= len(answer.text.rstrip()) for first, _ in found.offsets)


def find_fault(example: Example) -> str:
    """Say what of a group is lost in tokens; empty where nothing is."""
    for answer, row, numbers in zip(example.group.answers, example.rows, example.labelled, strict=True):
        if len(row.ids) == row.start:
            return "an answer without a token"
        if not set(range(1, len(answer.spans) + 1)) <= set(numbers):
            return "a span without a token of its own"
    rows = {tuple(row.ids) for row in example.rows}
    if len(rows) == 1 < len(example.rows) and not any(answer.token_ids for answer in example.group.answers):
        return "answers alike in tokens"  # a template may strip what they differ in
    return ""


def _number(answer: Answer, first: int, last: int) -> int:
    """Return which of an answer's spans a token touches, from 1; 0 for none."""
    touched = (at for at, span in enumerate(answer.spans, 1) if first < span.stop and last > span.start)
    return next(touched, 0) if first < last else 0
