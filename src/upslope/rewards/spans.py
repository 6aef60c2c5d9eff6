"""Rewards of taggers, whose completion is the predicted tags one blank apart: span F1, and what each word did for it.

A span is what seqeval finds with its default settings: it begins at B-X, or at an I-X that continues nothing, and goes
on while I-X follow. Anything but B-X and I-X lies outside of spans. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from upslope.errors import RewardError
from upslope.rewards.columns import RowReward, needing, value_of

Span: TypeAlias = tuple[str, int, int]
ActionRewards = Callable[..., list[float]]


def find_spans(tags: Sequence[str]) -> list[Span]:
    """(type, first word, last word + 1) of every span, in order."""
    found: list[Span] = []
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        head, _, name = tag.partition("-")
        name = name if head in ("B", "I") else ""
        if kind and (head != "I" or name != kind):
            found.append((kind, start, place))
            kind = ""
        if name and not kind:
            kind, start = name, place
    return found


def span_f1(column: str = "tags") -> RowReward:
    """2 right / (predicted + true) over the row's spans; 1 where there is none and none is predicted.

    The column holds the true tags, a list or a text of tags one blank apart. Spans predicted beyond them are wrong.
    Source: seqeval's `f1_score(..., zero_division=1)`; Ramshaw & Marcus 1995.
    """

    def span_f1(completion: str, **columns: Any) -> float:
        found, wanted = set(find_spans(completion.split())), set(find_spans(_true_tags(columns, column)))
        return _row_f1(len(found & wanted), len(found), len(wanted))

    return needing(column, span_f1)


def span_credit(column: str = "tags") -> ActionRewards:
    """F1 of the row's spans minus F1 without the span that the word is in (all of it O instead); 0 outside of spans.

    One number a word. A span is one decision whose log-probability is the sum of its words', so each of its words gets
    all of its credit: the numbers sum to the sum over predicted spans of length * change, which is not the row's F1.
    What the other spans decided largely cancels. With spans of one word the expected gradient is that of the row's F1;
    with longer ones it is near it, for then a word has a part in what its span is compared with. Use it with gamma = 0
    and no baseline of row scores. An O earns 0 even where it misses a span: add `span_f1`, or start from a supervised
    model.
    Raises (a row): RewardError when there are not as many predicted tags as true ones.
    Source: the difference rewards of Wolpert & Tumer 2001.
    """

    def span_credit(completion: str, **columns: Any) -> list[float]:
        tags, true = _both(completion, columns, column)
        found, wanted = find_spans(tags), set(find_spans(true))
        right = len(wanted.intersection(found))
        whole = _row_f1(right, len(found), len(wanted))
        credit = [0.0] * len(tags)
        for span in found:
            change = whole - _row_f1(right - (span in wanted), len(found) - 1, len(wanted))
            credit[span[1] : span[2]] = [change] * (span[2] - span[1])
        return credit

    return needing(column, span_credit)


def tag_accuracy(column: str = "tags") -> ActionRewards:
    """1 / (words of the row) for each word with the right tag, else 0: one number a word, which sum to the accuracy.

    Raises (a row): RewardError when there are not as many predicted tags as true ones.
    """

    def tag_accuracy(completion: str, **columns: Any) -> list[float]:
        tags, true = _both(completion, columns, column)
        return [float(ours == theirs) / len(true) for ours, theirs in zip(tags, true, strict=True)]

    return needing(column, tag_accuracy)


def _row_f1(right: int, predicted: int, true: int) -> float:
    """2 right / (predicted + true), and 1 for a row that rightly has nothing: the only perfect answer to it."""
    return 2 * right / (predicted + true) if predicted + true else 1.0


def _both(completion: str, columns: Mapping[str, Any], column: str) -> tuple[list[str], list[str]]:
    tags, true = completion.split(), _true_tags(columns, column)
    if len(tags) != len(true):
        raise RewardError(f"the row has {len(tags)} predicted tags, but its column {column!r} holds {len(true)}")
    return tags, true


def _true_tags(columns: Mapping[str, Any], column: str) -> list[str]:
    value = value_of(columns, column)
    return _bio(value.split() if isinstance(value, str) else value, f"in the column {column!r}")


def _bio(tags: Sequence[Any], where: str) -> list[str]:
    """The tags, each O, B-X or I-X: another scheme's would silently lie outside of every span."""
    for tag in tags:
        if tag != "O" and not (str(tag)[:2] in ("B-", "I-") and len(tag) > 2):
            raise RewardError(f"there is the tag {tag!r} {where}; tags are O, B-X and I-X (BIO)")
    return [str(tag) for tag in tags]
