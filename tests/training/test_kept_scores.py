"""A pass that the critic needs before the update serves the update too, and changes no bit of it."""

import pytest
import torch

import upslope
from upslope.policies.causal import CausalPolicy
from upslope.training import policy_gradient

SETTINGS = {
    "model": "tiny-llama",
    "algorithm": "ppo",
    "epochs": 1,
    "minibatches": 1,
    "kl_coef": 0.1,
    "entropy_coef": 0.01,
    "group_size": 2,
    "prompts_per_step": 3,
    "max_new_tokens": 6,
    "steps": 3,
    "lr": 1e-3,
    "isolation": "none",
    "trackers": [],
}


def _run(folder, passes, **settings):
    """Final weights, metrics, and how often the policy scored (with its gradient's graph, without) in each run."""
    passes.clear()
    task = upslope.Task(prompts=["say sea", "say sky", "say fog"], reward=lambda completion: completion.count("a"))
    run = upslope.train(task=task, run=folder, **{**SETTINGS, **settings})
    weights = run.load_model().state_dict()
    return weights, run.metrics, passes.count(True), passes.count(False)


@pytest.fixture
def passes(monkeypatch):
    """Whether autograd recorded, for each time that the policy scored."""
    seen, score = [], CausalPolicy.score

    def counted(self, *arguments, **settings):
        seen.append(torch.is_grad_enabled())
        return score(self, *arguments, **settings)

    monkeypatch.setattr(CausalPolicy, "score", counted)
    return seen


def test_a_kept_pass_is_bitwise_a_second_pass(tmp_path, passes, monkeypatch):
    """Three steps of PPO with the pass kept, and with the same pass thrown away and run again."""
    kept, metrics, recorded, plain = _run(tmp_path / "kept", passes)
    assert (recorded, plain) == (3, 3)  # one a step, and the reference's
    rescore = policy_gradient.rescore
    monkeypatch.setattr(policy_gradient, "rescore", lambda *arguments: (rescore(*arguments)[0], None))
    again, metrics_again, recorded, _ = _run(tmp_path / "again", passes)
    assert recorded == 6
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    for name in ("loss_policy", "loss_value", "entropy", "grad_norm", "policy_kl", "clip_fraction"):
        assert metrics[name] == metrics_again[name], name
    assert kept.keys() == again.keys()


@pytest.mark.parametrize(
    ("settings", "recorded", "plain"),
    [
        ({"micro_batch_tokens": 20}, 3 * 3, 2 * 3 * 3),  # three pieces: the graph of one at a time
        ({"epochs": 2}, 2 * 3, 2 * 3),  # weights move between the two updates
    ],
)
def test_memory_stays_bounded_and_later_epochs_score_anew(tmp_path, passes, settings, recorded, plain):
    counts = _run(tmp_path / "run", passes, **settings)[2:]
    assert counts == (recorded, plain)
