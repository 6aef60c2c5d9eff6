"""Policy gradient over all answers: what a classifier's exact expected gradient is, and what it saves."""

from __future__ import annotations

import math
from contextlib import ExitStack

import pytest
import torch
from bandit import bandit_session
from transformers import AutoModelForSequenceClassification

from upslope.engines.single_pass import SinglePassEngine
from upslope.errors import RecipeError
from upslope.estimators import RunningMean
from upslope.policies.classifier import ClassifierPolicy
from upslope.policies.tiny import tiny_model
from upslope.presets import PRESETS
from upslope.recipe import Recipe
from upslope.records import Prompt, collate
from upslope.training import policy_gradient
from upslope.training.credit import assign_credit
from upslope.training.gather import gather
from upslope.training.update import update

LABELS = ("bad", "good", "none")
WORTH = {"bad": 0.2, "good": 1.0, "none": 0.5}
TEXTS = ("a", "bc", "d e f", "ghij")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2}


def classifier(*, critic=None, keep_reference=False):
    """A very small classifier that prefers some labels to others."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(LABELS))}
    made = tiny_model("tiny-bert", auto=AutoModelForSequenceClassification, **SMALL, **labels)
    policy = ClassifierPolicy(*made, critic=critic, keep_reference=keep_reference)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return policy


def worth(prompt, label):
    """What an answer earns: another for each prompt."""
    return WORTH[label] * (1 + prompt.id)


def gradient(policy, rollouts, settings, sampling):
    """The gradient [P] of one update with these rollouts, in float64."""
    scored = [r.replace(rewards=(worth(r.prompt, r.text),)) for r in rollouts]
    batch, _ = collate(scored)
    wide = {
        name: torch.tensor([getattr(r, name)[0] for r in scored], dtype=torch.float64)
        for name in ("rewards", "engine_logprobs")
    }
    batch = batch.replace(**wide)
    credit = assign_credit(batch, settings, RunningMean())
    before = [p.detach().clone() for p in policy.module.parameters()]
    update(
        policy,
        torch.optim.SGD(policy.module.parameters(), lr=1.0),
        batch.replace(advantages=credit.advantages, returns=credit.returns),
        settings,
        sampling=sampling(),
        kl_coef=0.0,
        micro_batch_tokens=8,
        max_grad_norm=1e9,
    )
    found = [b - p.detach() for b, p in zip(before, policy.module.parameters(), strict=True)]
    with torch.no_grad():
        for b, p in zip(before, policy.module.parameters(), strict=True):
            p.copy_(b)
    return torch.cat([g.flatten() for g in found])


def settings_of(**algorithm):
    return Recipe.resolve({"algorithm": {"preset": "reinforce", **algorithm}}).algorithm


def encoded(policy):
    return [policy.encode(Prompt(i, text)) for i, text in enumerate(TEXTS)]


def enumerated(policy, prompts):
    """-grad of mean over prompts of sum_a pi(a) r(a), by autograd through the plain model, one row at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for prompt in prompts:
        probabilities = policy.model(torch.tensor([prompt.tokens])).logits[0].softmax(0)
        total = total + sum(p * worth(prompt, label) for p, label in zip(probabilities, LABELS, strict=True))
    loss = -total / len(prompts)
    parameters = list(policy.module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(found, parameters, strict=True)]
    )


@pytest.mark.parametrize(
    "algorithm", [{}, {"baseline": "batch_mean"}, {"surrogate": "clip", "clip_low": 0.2, "clip_high": 0.2}]
)
def test_expected_gradient_is_the_enumeration(algorithm, sampling):
    """Sum over all answers, whatever the baseline and however it is cut into micro-batches, to 1e-9 in float64."""
    policy = classifier()
    policy.module.double()
    engine = SinglePassEngine()
    engine.load(policy, version=0)
    prompts = encoded(policy)
    rollouts = engine.every_answer(prompts, sampling=sampling())
    found = gradient(policy, rollouts, settings_of(expected=True, **algorithm), sampling)
    expected = enumerated(policy, prompts)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_sampled_gradients_have_the_expected_one_as_their_mean(sampling, record_property):
    """Within 5 standard errors in the direction of the expected gradient and of 20 random ones; and the variance saved,
    over random batches of two of the four prompts, is reported."""
    policy = classifier()
    policy.module.double()
    engine = SinglePassEngine()
    engine.load(policy, version=0)
    prompts = encoded(policy)
    generator = torch.Generator().manual_seed(0)
    sampled, exact = [], []
    for seed in range(150):
        some = [prompts[i] for i in torch.randperm(4, generator=generator)[:2].tolist()]
        rows = engine.sample(some, group_size=1, sampling=sampling(), seed=seed)
        sampled.append(gradient(policy, rows, settings_of(), sampling))
        exact.append(
            gradient(policy, engine.every_answer(some, sampling=sampling()), settings_of(expected=True), sampling)
        )
    one, other, expected = torch.stack(sampled), torch.stack(exact), enumerated(policy, prompts)
    directions = torch.cat([expected[None], torch.randn(20, len(expected), generator=generator, dtype=torch.float64)])
    for found in (one, other):
        along = found @ directions.T
        error = along.std(0) / math.sqrt(len(found))
        assert ((along.mean(0) - directions @ expected).abs() <= 5 * error).all()
    saved = float(one.var(0).sum() / other.var(0).sum())
    record_property("variance_of_sampled_over_expected", saved)
    print(f"variance of the sampled gradient over that of the expected one: {saved:.1f}")
    assert saved > 2


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def earned(completion):
    return WORTH[completion]


def session_of(tmp_path, stack, settings, *, needs=None):
    recipe = Recipe.resolve({}, settings)
    algorithm = recipe.algorithm
    policy = classifier(critic="head" if algorithm.needs_critic else None, keep_reference=algorithm.needs_reference)
    given = {"optimizer.lr": 0.02, "optimizer.critic_lr": 0.02, "training.prompts_per_step": 4, **settings}
    return bandit_session(
        tmp_path / "run", given, reward=earned, stack=stack, policy=policy, engine=SinglePassEngine(), prompts=TEXTS
    )


def best_share(policy):
    """Probability of the best label, over the texts, by the plain model."""
    with torch.no_grad():
        rows = [policy.model(torch.tensor([prompt.tokens])).logits[0].softmax(0) for prompt in encoded(policy)]
    return float(torch.stack(rows)[:, LABELS.index("good")].mean())


EXPECTED = [f"{preset}-expected" for preset in ("reinforce", "reinforce_pp")]


@pytest.mark.parametrize("name", [*PRESETS, *EXPECTED])
def test_preset_solves_a_classifier_bandit(name, tmp_path, stack):
    """One decision a text: every preset, and the expected gradient, come to the best label."""
    preset = name.removesuffix("-expected")
    grouped = preset in ("rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo")
    settings = {"algorithm.preset": preset, "algorithm.overlong": "end", "training.steps": 60}
    settings |= {"algorithm.group_size": 6} if grouped else {}
    settings |= {"algorithm.kl_coef": 0.001} if PRESETS[preset].get("kl") else {}
    settings |= {"algorithm.expected": True} if name in EXPECTED else {}
    session = session_of(tmp_path, stack, settings)
    before = best_share(session.policy)
    policy_gradient.train(session)
    assert before < 0.6
    assert best_share(session.policy) >= 0.95


def test_what_is_logged_is_expected_too(tmp_path, stack):
    """Reward, its spread and the KL are sums over all answers by their probability, as enumerated."""
    quiet = {"algorithm.preset": "reinforce_pp", "algorithm.expected": True, "algorithm.kl_coef": 0.1}
    session = session_of(tmp_path, stack, quiet)
    with torch.no_grad():
        for parameter in session.policy.model.parameters():
            parameter.mul_(1.3)  # away from the reference
    prompts = encoded(session.policy)
    with torch.no_grad():
        rows = torch.tensor([p.tokens for p in prompts if len(p.tokens) == 1])
        assert len(rows) == 1
        logprobs = torch.cat([session.policy.model(torch.tensor([p.tokens])).logits for p in prompts]).log_softmax(1)
        frozen = session.policy._reference
        theirs = torch.cat([frozen(torch.tensor([p.tokens])).logits for p in prompts]).log_softmax(1)
    worths = torch.tensor([WORTH[label] for label in LABELS])
    experience = gather(session, step=1)
    metrics = policy_gradient.describe(experience, expected=True, metric="reward")
    mean = float((logprobs.exp() @ worths).mean())
    assert metrics["reward"] == pytest.approx(mean, abs=1e-5)
    spread = float(((logprobs.exp() * (worths - mean) ** 2).sum(1)).mean().sqrt())
    assert metrics["reward_std"] == pytest.approx(spread, abs=1e-5)
    assert metrics["samples"] == 12
    _, learned = policy_gradient.learn(session, experience, session.state)
    kl = float((logprobs.exp() * (logprobs - theirs)).sum(1).mean())
    assert kl > 0.01
    assert learned["kl"] == pytest.approx(kl, abs=1e-5)
    assert learned["kl_row"] == pytest.approx(kl, abs=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({"preset": "ppo"}, "no variance for a critic to lower"),
        ({"preset": "grpo"}, "neither baseline 'group_mean'"),
        ({"preset": "cispo", "group_size": 4}, "needs surrogate 'log_prob' or 'clip'"),
    ],
)
def test_methods_that_compare_samples_have_no_expected_gradient(algorithm, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.resolve({"algorithm": {**algorithm, "expected": True}})
