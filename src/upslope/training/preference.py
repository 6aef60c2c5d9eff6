"""Preference learning without a reward model: DPO and its kin on judged pairs, on the policy's own, or on self-play."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import torch
from torch import Tensor

from upslope import losses
from upslope.engines.choice import engine_for
from upslope.engines.engine import Engine
from upslope.engines.local import Writer
from upslope.errors import DataError
from upslope.estimators import row_ids, row_sum
from upslope.evaluation.judgements import right
from upslope.evaluation.metrics import Measurement
from upslope.policies.sampling import Sampling
from upslope.records import Batch, Rollout, collate
from upslope.settings import PreferenceSettings
from upslope.stopwatch import span
from upslope.training.judged import Judged, read_judged
from upslope.training.seeds import data_order
from upslope.training.session import Session
from upslope.training.stepping import finish, take_step
from upslope.training.supervised import demonstration
from upslope.training.timing import timed
from upslope.training.update import Terms, pieces

Kept = dict[int, list[Tensor]]
"""The reference's log-probabilities of an item's rows, by the item's place in the data; 4 bytes an action, on the CPU
whatever the policy is on."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The judged items of one step, their places in the data where they stand in it, what was dropped, by reason, and
    the mean reward of what was sampled and judged."""

    items: list[Judged]
    places: list[int] | None
    dropped: Counter[str]
    reward: float | None = None


def train(session: Session) -> None:
    """Train on pairs until the session is over: of the data, or sampled at each step."""
    settings, training = session.recipe.preference, session.recipe.training
    own: list[Judged] = []
    if settings.pairs == "data":
        own = _usable(session, read_judged(session, session.task.prompts, part="training"))
    kept: Kept = {}
    opponent = opponent_engine(session) if settings.pairs == "self_play" else session.engine
    while session.settle():
        step, count = session.state.step + 1, training.prompts_per_step
        size = len(own) or len(session.task.prompts)
        with timed() as seconds:
            order = data_order(training.seed, position=session.state.position, count=count, size=size)
            with session.interrupts.allowed():
                drawn = (
                    Drawn([own[i] for i in order], order, Counter())
                    if own
                    else draw(session, opponent, order, step=step)
                )
            session.rest_engine()
            metrics, tokens = learn(session, drawn, kept, step=step)
            if settings.pairs == "online":
                session.load_engine(step)
        finish(session, metrics, seconds, prompts=count, tokens=tokens)


def _usable(session: Session, items: list[Judged]) -> list[Judged]:
    """Pairs, or for KTO also rated rows that are clearly good or bad; how many are neither stands in the log.

    Raises: DataError where there are others, or nothing is left.
    """
    loss = session.recipe.preference.loss
    if loss != "kto" and any(len(item.rows) != 2 for item in items):
        raise DataError(f"preference.loss is {loss!r}, which needs pairs; the data has ratings or rankings")
    if any(len(item.rows) > 2 for item in items):
        raise DataError("preference.loss is 'kto', which needs pairs or ratings; the data has rankings")
    found = [item for item in items if len(item.rows) == 2 or "desirable" in item.prompt.columns]
    if not found:
        raise DataError("no rating of the data lies off the middle of its scale, so none says good or bad")
    if len(found) < len(items) and session.state.step == 0:
        session.run.log("judged", step=0, part="training", items=len(found), neutral=len(items) - len(found))
    return found


def opponent_engine(session: Session) -> Engine:
    """An engine that samples from the model training began with, for as long as the run goes on."""
    engine = engine_for(session.policy, session.recipe.engine.model_dump())
    with session.policy.reference() as frozen:
        engine.load(frozen, version=0)
    return engine


def draw(session: Session, engine: Engine, order: Sequence[int], *, step: int) -> Drawn:
    """Pairs of the prompts at these places: two samples that the reward judges, or a demonstration and a sample."""
    prompts = [session.task.prompts[index] for index in order]
    encoded = session.encode(prompts)
    sampling, seed = session.sampling, session.seed("rollout", step)
    if session.recipe.preference.pairs == "online":
        rollouts = engine.sample(encoded, group_size=2, sampling=sampling, seed=seed)
        assert session.scorer is not None
        with span("reward"):
            return _ordered(session.scorer.score(rollouts))
    with session.policy.reference():  # with adapters the opponent is the policy without them
        rollouts = engine.sample(encoded, group_size=1, sampling=sampling, seed=seed)
    items, dropped = [], Counter[str]()
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        chosen = demonstration(session.policy, prompt, column=session.recipe.preference.preferred, group=0)
        chosen = chosen.replace(version=-1)  # no weights wrote it
        if rollout.actions and rollout.actions != chosen.actions:
            items.append(Judged(prompt, (chosen, rollout)))
        else:
            dropped["equal sides" if rollout.actions else "empty"] += 1
    return Drawn(items, None, dropped)


def _ordered(rollouts: Sequence[Rollout]) -> Drawn:
    """Pairs of scored rollouts, the better first; what failed or scored the same is dropped and counted."""
    items: list[Judged] = []
    dropped = Counter(rollout.failure for rollout in rollouts if rollout.failure)
    for one, other in zip(rollouts[::2], rollouts[1::2], strict=True):
        if one.failure or other.failure:
            if not (one.failure and other.failure):
                dropped["partner failed"] += 1
            continue
        if one.score == other.score:
            dropped["equal scores"] += 2
            continue
        items.append(Judged(one.prompt, (one, other) if one.score > other.score else (other, one)))
    scores = [rollout.score for rollout in rollouts if not rollout.failure]
    return Drawn(items, None, dropped, fmean(scores) if scores else None)


def learn(session: Session, drawn: Drawn, kept: Kept, *, step: int) -> tuple[dict[str, float | str], int]:
    """One optimiser step on the items: (metrics, tokens trained on)."""
    metrics: dict[str, float | str] = {f"dropped/{reason}": count for reason, count in drawn.dropped.items()}
    metrics |= {"dropped": drawn.dropped.total()} if drawn.places is None else {}
    metrics |= {} if drawn.reward is None else {"reward": drawn.reward}
    if not drawn.items:
        failed = any(reason not in ("equal scores", "equal sides") for reason in drawn.dropped)
        return metrics | {"samples": 0, "skipped": int(failed), "problem": f"no pair: {dict(drawn.dropped)}"}, 0
    rows = [row for group, item in enumerate(drawn.items) for row in item.grouped(group)]
    if drawn.places is None:
        session.log_samples(step, rows, {})
    batch = collate(rows)[0].to(session.policy.device)
    settings = session.recipe.preference
    if settings.loss != "orpo":
        with span("reference"), torch.no_grad():
            batch = batch.replace(ref_logprobs=_references(session, batch, drawn, kept))
    anchor = 0.0
    if settings.loss == "kto":
        with span("reference"), torch.no_grad():
            anchor = reference_kl(session, drawn.items)
        metrics["kl_reference"] = anchor
    terms_of = objective(session, batch, drawn.items, anchor=anchor)
    metrics |= take_step(session, batch, step=step, terms_of=terms_of, whole=True)
    return metrics, len(batch.tokens)


def _references(session: Session, batch: Batch, drawn: Drawn, kept: Kept) -> Tensor:
    """The reference's log-probabilities [M]. Those of the data's items are computed once, each item by itself, so that
    a resumed run finds the same bits."""
    with session.policy.reference() as frozen:
        if drawn.places is None:
            return _logprobs(frozen, batch, session.recipe.training.micro_batch_tokens)
        for group, place in enumerate(drawn.places):
            if place not in kept:
                alone = batch.select((batch.group == group).nonzero()[:, 0])
                packed = _logprobs(frozen, alone, session.recipe.training.micro_batch_tokens)
                kept[place] = alone.split_rows(packed.cpu())
    return torch.cat([row for place in drawn.places for row in kept[place]]).to(batch.actions.device)


def _logprobs(policy: object, batch: Batch, max_tokens: int) -> Tensor:
    """Log-probabilities [M] of the batch's actions under the model's own distribution."""
    writer = cast(Writer, policy)
    found = torch.zeros(len(batch.actions), device=batch.actions.device)
    for _, index, piece in pieces(writer, batch, max_tokens=max_tokens):
        found[index] = writer.score(piece, sampling=_PLAIN).logprobs.float()
    return found


_PLAIN = Sampling(temperature=1.0, top_k=None, top_p=None, max_new_tokens=1, stop=())


def reference_kl(session: Session, items: Sequence[Judged]) -> float:
    """KTO's zero: the mean log-ratio of each row's completion after the next item's prompt, at least 0 [nats]."""
    policy = cast(Writer, session.policy)
    mismatched = []
    for item, other in zip(items, [*items[1:], *items[:1]], strict=True):
        prompt = item.rows[0].prompt
        for row in other.rows:
            room = policy.room(prompt)
            if other is not item and (room is None or len(row.actions) <= room):
                logprobs = (0.0,) * len(row.actions)
                mismatched.append(policy.row(prompt, row.actions, logprobs, text=row.text, stop_reason=row.stop_reason))
    if not mismatched:
        return 0.0
    batch = collate(mismatched)[0].to(policy.device)
    budget = session.recipe.training.micro_batch_tokens
    with session.policy.reference() as frozen:
        reference = _logprobs(frozen, batch, budget)
    ratios = row_sum(_logprobs(policy, batch, budget) - reference, batch.num_actions)
    return float(losses.kto_reference_kl(ratios))


def objective(
    session: Session, batch: Batch, items: Sequence[Judged], *, anchor: float
) -> Callable[[Batch, Tensor], Terms]:
    """The loss of one micro-batch of whole items, as `preference.loss` names it."""
    settings, policy = session.recipe.preference, session.policy
    if settings.loss == "kto":
        good = [is_good for item in items for is_good in _desirable(item)]
        desirable = torch.tensor(good, device=batch.actions.device)
        row_of = row_ids(batch.num_actions)

    def terms_of(piece: Batch, index: Tensor) -> Terms:
        logprobs = policy.score(piece, sampling=_PLAIN).logprobs
        if settings.loss == "kto":
            rows = row_of[index.to(row_of.device)].unique_consecutive()
            ratios = _row_scores(settings, logprobs, piece)
            return _kto_terms(settings, ratios, desirable[rows], anchor=anchor, num_rows=batch.num_rows)
        chosen, rejected = _row_scores(settings, logprobs, piece).view(-1, 2).unbind(1)
        loss = _pair_loss(settings, chosen, rejected, denominator=float(len(items)))
        gap = (settings.beta * (chosen - rejected)).detach()
        likely = row_sum(logprobs.detach(), piece.num_actions).view(-1, 2).sum(0) / len(items)
        parts = {
            "loss": float(loss.detach()),
            "accuracy": float((0.5 * gap.sign() + 0.5).sum()) / len(items),
            "score_gap": float(gap.sum()) / len(items),
            "logprob_chosen": float(likely[0]),
            "logprob_rejected": float(likely[1]),
        }
        return Terms(loss, parts)

    return terms_of


def _desirable(item: Judged) -> Iterator[bool]:
    """Whether each row of an item is wanted: of a pair the first, of a rated one what its rating says."""
    yield from (True, False) if len(item.rows) == 2 else (bool(item.prompt.columns["desirable"]),)


def _row_scores(settings: PreferenceSettings, logprobs: Tensor, piece: Batch) -> Tensor:
    """What a loss compares [B]: log-ratios to the reference, of IPO their mean; of ORPO the mean log-probability."""
    if settings.loss == "orpo":
        return row_sum(logprobs, piece.num_actions) / piece.num_actions
    assert piece.ref_logprobs is not None
    ratios = row_sum(logprobs - piece.ref_logprobs, piece.num_actions)
    return ratios / piece.num_actions if settings.loss == "ipo" else ratios


def _pair_loss(settings: PreferenceSettings, chosen: Tensor, rejected: Tensor, *, denominator: float) -> Tensor:
    weights, beta, flips = torch.ones_like(chosen), settings.beta, settings.flip_rate
    if settings.loss == "ipo":
        return losses.ipo(chosen, rejected, beta=beta, weights=weights, denominator=denominator)
    if settings.loss == "orpo":
        return losses.orpo(chosen, rejected, beta=beta, weights=weights, denominator=denominator)
    if settings.loss == "robust_dpo":
        return losses.robust_dpo(chosen, rejected, beta=beta, flip_rate=flips, weights=weights, denominator=denominator)
    return losses.dpo(chosen, rejected, beta=beta, label_smoothing=flips, weights=weights, denominator=denominator)


def _kto_terms(
    settings: PreferenceSettings, ratios: Tensor, desirable: Tensor, *, anchor: float, num_rows: int
) -> Terms:
    loss = losses.kto(
        ratios,
        desirable,
        reference_kl=anchor,
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
        weights=torch.ones_like(ratios),
        denominator=float(num_rows),
    )
    above = torch.where(desirable, ratios.detach() > anchor, ratios.detach() < anchor)
    return Terms(loss, {"loss": float(loss.detach()), "accuracy": float(above.sum()) / num_rows})


@torch.no_grad()
def measure(session: Session) -> Measurement:
    """The share of held-out pairs whose chosen side the policy has made likelier, beside the reference, by prompt."""
    settings, budget = session.recipe.preference, session.recipe.training.micro_batch_tokens
    held_out = session.task.eval_prompts[: session.recipe.evaluation.num_prompts]
    items = [item for item in read_judged(session, held_out, part="held_out") if len(item.rows) == 2]
    if not items:
        raise DataError("no held-out prompt has a pair, and the task has no reward to measure samples by")
    batch, _ = collate([row for group, item in enumerate(items) for row in item.grouped(group)])
    batch = batch.to(session.policy.device)
    logprobs = _logprobs(session.policy, batch, budget)
    if settings.loss != "orpo":
        with session.policy.reference() as frozen:
            batch = batch.replace(ref_logprobs=_logprobs(frozen, batch, budget))
    gaps = _row_scores(settings, logprobs, batch).view(-1, 2) @ torch.tensor([1.0, -1.0], device=batch.actions.device)
    values = {item.prompt.id: right(gap) for item, gap in zip(items, gaps.tolist(), strict=True)}
    return Measurement(values, {}, ())
