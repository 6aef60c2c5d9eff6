"""Reward models: a scalar score of a completion, learned from pairs, rankings or ratings. The same steps, state and run
folder as RL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from upslope import losses
from upslope.errors import DataError
from upslope.evaluation.judgements import pair_report, reliability_svg, right
from upslope.evaluation.metrics import Measurement
from upslope.policies.reward import RewardPolicy
from upslope.records import Batch, Prompt, collate
from upslope.report.run import write_text
from upslope.rewards.learned import score_rows
from upslope.settings import RewardModelSettings
from upslope.training.judged import Judged, read_judged
from upslope.training.seeds import data_order
from upslope.training.session import Session
from upslope.training.stepping import finish, take_step
from upslope.training.timing import timed
from upslope.training.update import Terms

Objective = Callable[[Sequence[Judged]], Callable[[Batch, Tensor], Terms]]
"""From a step's items to the loss of one of its micro-batches, whose groups are places among the items."""


def train(session: Session) -> None:
    """Train on the judged completions of the task's prompts until the session is over."""
    training = session.recipe.training
    items = read_judged(session, session.task.prompts, part="training")
    objective = objective_of(session.policy, session.recipe.reward_model, items)
    while session.settle():
        with timed() as seconds:
            order = data_order(
                training.seed, position=session.state.position, count=training.prompts_per_step, size=len(items)
            )
            picked = [items[index] for index in order]
            batch, _ = collate([row for group, item in enumerate(picked) for row in item.grouped(group)])
            batch = batch.to(session.policy.device)
            step = session.state.step + 1
            metrics = take_step(session, batch, step=step, terms_of=objective(picked), whole=True)
        finish(session, metrics, seconds, prompts=len(order), tokens=len(batch.tokens))


def objective_of(policy: object, settings: RewardModelSettings, items: Sequence[Judged]) -> Objective:
    """The objective that `reward_model.loss` names. Raises: DataError where the items are of another form."""
    assert isinstance(policy, RewardPolicy)
    rated = [item for item in items if len(item.rows) == 1]
    if settings.loss in ("regression", "ordinal"):
        if len(rated) < len(items):
            raise DataError(f"reward_model.loss is {settings.loss!r}, which needs ratings, not pairs or rankings")
        ratings = [item.prompt.columns["rating"] for item in items]
        return _regression(policy, ratings) if settings.loss == "regression" else _ordinal(policy, ratings)
    if rated:
        raise DataError(f"reward_model.loss is {settings.loss!r}, but the data has ratings; take 'regression'")
    if settings.loss == "plackett_luce":
        return _rankings(policy, settings)
    if any(len(item.rows) != 2 for item in items):
        raise DataError("reward_model.loss is 'bradley_terry', which needs pairs; for rankings take 'plackett_luce'")
    return _pairs(policy, settings)


def _pairs(policy: RewardPolicy, settings: RewardModelSettings) -> Objective:
    def of_items(items: Sequence[Judged]) -> Callable[[Batch, Tensor], Terms]:
        margins = torch.tensor([item.prompt.columns.get("margin", 0.0) for item in items], device=policy.device)

        def terms_of(piece: Batch, _: Tensor) -> Terms:
            chosen, rejected = policy.scores(piece).view(-1, 2).unbind(1)
            scale: dict[str, Any] = {"weights": torch.ones_like(chosen), "denominator": float(len(items))}
            fit = losses.bradley_terry(chosen, rejected, margin=margins[piece.group[::2]], **scale)
            mean = losses.centering(chosen, rejected, **scale)
            gap = (chosen - rejected).detach()
            parts = {
                "loss": float(fit.detach()),
                "accuracy": float((0.5 * gap.sign() + 0.5).sum()) / len(items),
                "score_gap": float(gap.sum()) / len(items),
                "score_mean": float((chosen + rejected).detach().sum()) / (2 * len(items)),
            }
            return Terms(fit + settings.centering_coef * mean, parts)

        return terms_of

    return of_items


def _rankings(policy: RewardPolicy, settings: RewardModelSettings) -> Objective:
    def of_items(items: Sequence[Judged]) -> Callable[[Batch, Tensor], Terms]:
        def terms_of(piece: Batch, _: Tensor) -> Terms:
            scores = policy.scores(piece)
            counts = piece.group.unique_consecutive(return_counts=True)[1]
            ones = torch.ones(len(counts), device=scores.device)
            loss = losses.plackett_luce(scores, counts, top=settings.top, weights=ones, denominator=float(len(items)))
            best = [bool(row[0] >= row.max()) for row in scores.detach().split(counts.tolist())]
            sizes = torch.tensor([len(item.rows) for item in items]).sum()
            parts = {"loss": float(loss.detach()), "accuracy": sum(best) / len(items)}
            centre = scores.square().sum() / float(sizes)
            return Terms(loss + settings.centering_coef * centre, parts)

        return terms_of

    return of_items


def _regression(policy: RewardPolicy, ratings: Sequence[float]) -> Objective:
    """Scores are ratings in standard deviations from the training data's mean."""
    mean, spread = fmean(ratings), pstdev(ratings)
    if spread == 0:
        raise DataError(f"all ratings are {mean:g}, so there is nothing to learn from them")

    def of_items(items: Sequence[Judged]) -> Callable[[Batch, Tensor], Terms]:
        targets = torch.tensor([(item.prompt.columns["rating"] - mean) / spread for item in items])

        def terms_of(piece: Batch, _: Tensor) -> Terms:
            scores = policy.scores(piece)
            wanted = targets.to(scores)[piece.group]
            ones = torch.ones_like(scores)
            loss = losses.rating_regression(scores, wanted, weights=ones, denominator=float(len(items)))
            return Terms(loss, {"loss": float(loss.detach())})

        return terms_of

    return of_items


def _ordinal(policy: RewardPolicy, ratings: Sequence[float]) -> Objective:
    """Levels are the ratings there are; their thresholds those at which a score of 0 gives each level its frequency."""
    levels = sorted(set(ratings))
    if len(levels) < 2:
        raise DataError(f"all ratings are {levels[0]:g}, so there is nothing to learn from them")
    counts = torch.tensor([ratings.count(level) for level in levels], dtype=torch.float64)
    thresholds = torch.logit(counts.cumsum(0)[:-1] / counts.sum()).float()

    def of_items(items: Sequence[Judged]) -> Callable[[Batch, Tensor], Terms]:
        places = torch.tensor([levels.index(item.prompt.columns["rating"]) for item in items])

        def terms_of(piece: Batch, _: Tensor) -> Terms:
            scores = policy.scores(piece)
            wanted = places.to(scores.device)[piece.group]
            scale: dict[str, Any] = {"weights": torch.ones_like(scores), "denominator": float(len(items))}
            loss = losses.ordinal(scores, wanted, thresholds.to(scores), **scale)
            return Terms(loss, {"loss": float(loss.detach())})

        return terms_of

    return of_items


def measure(session: Session) -> Measurement:
    """The share of pairs that the scores order right, by held-out prompt; their calibration goes to the run folder.

    A ranking is all pairs of its items; a rating makes a pair with the next prompt's where the two differ.
    """
    policy = session.policy
    assert isinstance(policy, RewardPolicy)
    held_out = session.task.eval_prompts[: session.recipe.evaluation.num_prompts]
    items = read_judged(session, held_out, part="held_out")
    rows = [row for item in items for row in item.rows]
    scores = iter(score_rows(policy, rows, max_tokens=session.recipe.training.micro_batch_tokens))
    scored = [(item, [next(scores) for _ in item.rows]) for item in items]
    gaps: dict[int, list[float]] = {}
    lengths: list[float] = []
    for prompt, difference, longer in _compared(scored):
        gaps.setdefault(prompt.id, []).append(difference)
        lengths.append(longer)
    report = pair_report([gap for own in gaps.values() for gap in own], lengths)
    session.run.log("calibration", step=session.state.step, **report.as_dict())
    write_text(session.run.folder / "reliability.svg", reliability_svg(report))
    return Measurement({id: fmean(map(right, own)) for id, own in gaps.items()}, {}, ())


def _compared(scored: Sequence[tuple[Judged, list[float]]]) -> list[tuple[Prompt, float, float]]:
    """(prompt, score of the better side - that of the worse, the same of their lengths in characters) of each pair."""
    pairs = []
    for item, scores in scored:
        sides = list(zip(scores, (len(row.text) for row in item.rows), strict=True))
        pairs += [(item.prompt, a[0] - b[0], float(a[1] - b[1])) for a, b in combinations(sides, 2)]
    for (one, mine), (other, theirs) in pairwise(scored):
        if len(mine) == len(theirs) == 1:
            sign = one.prompt.columns["rating"] - other.prompt.columns["rating"]
            longer = len(one.rows[0].text) - len(other.rows[0].text)
            if sign:
                pairs.append((one.prompt, (mine[0] - theirs[0]) * sign / abs(sign), longer * sign / abs(sign)))
    return pairs
