"""IQ-Learn on demonstrations of a format: the loss from plain logits, what its rewards tell apart, and RL on them."""

from __future__ import annotations

import types

import pytest
import torch
from torch.testing import assert_close

import upslope
from upslope.errors import DataError, ModelError, RecipeError
from upslope.recipe import Recipe
from upslope.records import collate
from upslope.rewards import RewardTerm, Scorer, implicit, inverse_q, reward_model
from upslope.tasks import Task
from upslope.training import adversarial, inverse
from upslope.training.launch import policy_of
from upslope.training.supervised import demonstration
from upslope.training.update import accumulate

QUICK = {"trackers": [], "isolation": "none", "checkpoint_every_steps": "none"}
WORDS = ("sea", "sky", "fog", "oak", "ice", "elk", "owl", "yew", "ash", "bee", "cat", "dew")


def demonstrated(words):
    """The format: the word in brackets."""
    return [{"prompt": f"say {word}", "completion": f"[{word}]"} for word in words]


def plain_logits(model, row):
    return model(torch.tensor([row.tokens])).logits[0][list(row.positions)].double()


def test_the_loss_is_its_formula_from_plain_logits_at_any_micro_batch():
    """CHECKS 24, 29: V - Q + c (Q - gamma V')^2, mean over actions, with V after the end 0."""
    recipe = Recipe.resolve({"method": "inverse"}, {"model.name": "tiny-llama", "discount": 0.9, "reward_price": 0.2})
    policy = policy_of(recipe)
    task = Task(prompts=demonstrated(WORDS[:5]))
    rows = [demonstration(policy, p, column="completion", group=i) for i, p in enumerate(task.prompts)]
    terms = []
    for row in rows:
        logits = plain_logits(policy.model, row)
        q, v = logits[range(len(row.actions)), list(row.actions)], logits.logsumexp(1)
        following = [*v[1:], 0.0]
        terms += [b - a + 0.2 * (a - 0.9 * c) ** 2 for a, b, c in zip(q, v, following, strict=True)]
    expected = sum(terms) / len(terms)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in policy.module.named_parameters() if p.grad is not None}
    batch, _ = collate(rows)

    class Given:
        pass

    session = Given()
    session.recipe, session.policy = recipe, policy
    for budget in (1, 10_000):
        policy.module.zero_grad()
        kept = {}

        def keep(_, __, *, step, terms_of, kept=kept):
            kept["terms_of"] = terms_of

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inverse, "take_step", keep)
            inverse.fit(session, batch, step=1)
        parts = accumulate(policy, batch, max_tokens=budget, terms_of=kept["terms_of"])
        assert parts["loss"] == pytest.approx(expected.item(), rel=1e-5)
        for name, parameter in policy.module.named_parameters():
            assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run on demonstrations of the format, and the supervised run beside it; both from the same tiny model."""
    folder = tmp_path_factory.mktemp("inverse")
    task = Task(prompts=demonstrated(WORDS), eval_prompts=demonstrated(["fen", "hay", "ivy", "jay", "kit", "lea"]))
    settings = {"steps": 60, "prompts_per_step": 12, "lr": 3e-3, "max_new_tokens": 8, **QUICK}
    run = upslope.train(model="tiny-llama", task=task, run=folder / "iq", method="inverse", every_steps=60, **settings)
    start = policy_of(Recipe.resolve({}, {"model.name": "tiny-llama"}))
    start.save(folder / "start")
    return run, folder / "start"


def test_held_out_demonstrations_are_told_from_the_models_own_samples(learned):
    """AUC >= .9 by the implicit reward; nothing is known before training."""
    run, _ = learned
    before, after = run.events("reward_report")
    assert after["auc_implicit"] >= 0.9
    assert before["auc_implicit"] == pytest.approx(0.5)
    assert run.metrics["evaluate/metric"][60] >= 0.9
    assert run.metrics["nll"][60] < 0.5 * run.metrics["nll"][1]


def test_a_price_on_rewards_keeps_the_recovered_ones_small(learned):
    run, _ = learned
    square = run.metrics["recovered_reward_square"]
    assert square[60] < square[1]


def test_the_rewards_are_functions_of_the_ordinary_signature(learned):
    """Row sums and per-action values, against plain forwards; in a reward worker by the run's name."""
    run, start = learned
    policy = policy_of(Recipe.resolve({}, {"model.name": str(run.model_path)}))
    task = Task(prompts=["say sea"])
    rows = [policy.demonstration(task.prompts[0], text) for text in ("[sea]", "qq")]
    terms = [RewardTerm(inverse_q(str(run.folder))), RewardTerm(implicit(str(run.folder), str(start), scale=0.5))]
    with Scorer(terms, timeout_s=60.0) as scorer:
        scored = scorer.score(rows)
    reference = policy_of(Recipe.resolve({}, {"model.name": "tiny-llama"}))
    for row in scored:
        given = policy.demonstration(task.prompts[0], row.text)
        with torch.no_grad():
            logits, old = plain_logits(policy.model, given), plain_logits(reference.model, given)
        taken = range(len(given.actions)), list(given.actions)
        logprob = logits.log_softmax(1)[taken].sum()
        assert row.metrics["inverse_q"] == pytest.approx(float(logprob + logits[0].logsumexp(0)), abs=1e-3)
        ratio = logprob - old.log_softmax(1)[taken].sum()
        assert row.metrics["implicit"] == pytest.approx(0.5 * float(ratio), abs=1e-3)
    assert scored[0].score > scored[1].score
    per_action = inverse_q(str(run.folder), per_action=True)
    ids = [list(policy.demonstration(task.prompts[0], row.text).actions) for row in rows]
    values = per_action(prompts=["say sea"] * 2, completions=[row.text for row in rows], completion_ids=ids)
    assert [len(row) for row in values] == [len(row) for row in ids]
    assert [sum(row) for row in values] == pytest.approx([row.metrics["inverse_q"] for row in scored], abs=1e-3)


def test_a_cut_row_is_paid_as_far_as_it_goes(learned):
    """Q - V' of the last action needs the value of what would follow: 0 is that of an end."""
    run, start = learned
    policy = policy_of(Recipe.resolve({}, {"model.name": str(run.model_path)}))
    whole = list(policy.demonstration(Task(prompts=["say sea"]).prompts[0], "[sea]").actions)
    for reward in (inverse_q(str(run.folder), per_action=True), implicit(str(run.folder), str(start), per_action=True)):
        every = reward(prompts=["say sea"], completions=["[sea]"], completion_ids=[whole])[0]
        for count in range(1, len(whole)):
            (cut,) = reward(prompts=["say sea"], completions=["x"], completion_ids=[whole[:count]])
            assert cut == pytest.approx(every[:count], abs=1e-4)


def test_the_report_reads_a_cut_sample_as_the_reward_does(learned):
    """With an end, which it is charged for."""
    run, start = learned
    recipe = Recipe.load(run.recipe_path)
    session = types.SimpleNamespace(recipe=recipe, policy=policy_of(recipe))
    prompt = session.policy.encode(Task(prompts=["say sea"]).prompts[0])
    text = "[se"
    ids = session.policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = session.policy.row(prompt, ids, (0.0,) * len(ids), text=text, stop_reason="length")
    recovered, ratio = inverse.row_rewards(session, [inverse._ended(session, cut)])
    first = str(start)
    assert recovered == pytest.approx(inverse_q(first)(["say sea"], [text], [ids]), abs=1e-4)
    assert ratio == pytest.approx(implicit(first, first)(["say sea"], [text], [ids]), abs=1e-4)


def test_policy_gradient_on_the_recovered_reward_raises_it(learned, tmp_path):
    run, start = learned
    reward = {"function": "implicit", "model": str(run.folder), "reference": str(start)}
    recipe = Recipe.resolve({"reward": {"functions": [reward]}})
    settings = {"algorithm": "grpo", "group_size": 4, "steps": 20, "prompts_per_step": 4, "max_new_tokens": 6}
    rl = upslope.train(
        model="tiny-llama",
        task=Task(prompts=demonstrated(WORDS)),
        recipe=recipe,
        run=tmp_path / "rl",
        lr=3e-3,
        **settings,
        **QUICK,
    )
    rewards = list(rl.metrics["reward"].values())
    assert sum(rewards[-5:]) > sum(rewards[:5])


def against_a_discriminator(folder, learner, level, **settings):
    """A run against a discriminator on the demonstrations of the format."""
    task = Task(prompts=demonstrated(WORDS), eval_prompts=demonstrated(["fen", "hay", "ivy", "jay"]))
    given = {"algorithm": "rloo", "kl": "off", "group_size": 4, "steps": 12, "prompts_per_step": 6, "lr": 1e-3}
    given |= {"max_new_tokens": 8, "discriminator_lr": 3e-3, "every_steps": 12, "warmup_steps": 1, **QUICK}
    given |= {"learner": learner, "level": level, **settings}
    return upslope.train(model="tiny-llama", task=task, run=folder, method="inverse", **given)


@pytest.mark.parametrize("level", ["row", "token"])
@pytest.mark.parametrize("learner", ["airl", "gail"])
def test_a_discriminator_begins_without_knowledge_learns_and_is_a_reward_model(learner, level, tmp_path):
    """What it judges is first paid 0 on average by AIRL's offset, log 2 by GAIL; held-out demonstrations are then told
    apart, and by what is saved as well."""
    run = against_a_discriminator(tmp_path / "run", learner, level)
    judged = run.metrics["length"][1] if level == "token" else 1.0
    loss = run.metrics["loss_discriminator"]
    assert run.metrics["reward"][1] / judged == pytest.approx(0.0 if learner == "airl" else 0.69, abs=0.5)
    assert loss[12] < loss[1]
    *_, report = run.events("reward_report")
    assert report["auc_discriminator"] >= 0.9
    scores = reward_model(f"{run.model_path}/discriminator")(["say sea"] * 2, ["[sea]", "qqqqqqqq"])
    assert scores[0] > scores[1]
    assert run.metrics["grad_norm"][12] > 0


@pytest.mark.parametrize("learner", ["airl", "gail"])
def test_every_action_is_paid_what_its_own_discrimination_gives(learner, tmp_path, monkeypatch):
    """Token level, from plain forwards: logit D = head(state at the token) + offset - log pi by AIRL, the head alone
    by GAIL, with the end of a row among its actions; the discriminator's loss is that of these logits."""
    seen = []
    original = adversarial.discriminate

    def spy(session, rollouts, *, step):
        seen.append(expected_of(session, rollouts))
        return original(session, rollouts, step=step)

    def expected_of(session, rollouts):
        judge, terms = session.discriminator, {True: [], False: []}
        prompts = {row.prompt.id: row.prompt for row in rollouts}.values()
        shown = [demonstration(session.policy, prompt, column="completion", group=0) for prompt in prompts]
        for row in (*rollouts, *shown):
            first = len(row.tokens) - len(row.actions)
            with torch.no_grad():
                logits = session.policy.model(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
                states = judge.model.base_model(torch.tensor([row.tokens])).last_hidden_state[0]
                heads = judge.model.score(states)[first:, 0]
                logprobs = logits[range(first - 1, len(row.tokens) - 1), list(row.actions)]
                found = heads + judge.offset - logprobs if learner == "airl" else heads
            if row.rewards:
                paid = found if learner == "airl" else (1 + found.exp()).log()
                assert_close(torch.tensor(row.rewards), paid, rtol=0, atol=1e-4)
            kind = not row.rewards
            terms[kind] += [1 / (1 + (-value if kind else value).exp()) for value in found]
        return -sum(torch.stack(both).log().mean() for both in terms.values()).item() / 2

    monkeypatch.setattr(adversarial, "discriminate", spy)
    run = against_a_discriminator(tmp_path / "run", learner, "token", steps=2, every_steps="none", temperature=1.0)
    assert list(run.metrics["loss_discriminator"].values()) == pytest.approx(seen, abs=1e-4)


def test_a_discriminator_of_tokens_needs_the_policys(tmp_path, data_folder):
    with pytest.raises(ModelError, match="is no decoder, so it cannot judge token by token"):
        against_a_discriminator(tmp_path / "a", "airl", "token", discriminator="tiny-bert")
    with pytest.raises(RecipeError, match="has other tokens than the policy"):
        against_a_discriminator(tmp_path / "b", "airl", "token", discriminator=str(data_folder / "models/stories260k"))


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(DataError, match="prompt 0 has no column 'completion'"):
        upslope.train(model="tiny-llama", task=Task(prompts=["x"]), method="inverse", run=tmp_path / "run", **QUICK)
    with pytest.raises(RecipeError, match="rewards are recovered from a 'causal' one"):
        Recipe.resolve({"method": "inverse", "model": {"kind": "seq2seq"}})
