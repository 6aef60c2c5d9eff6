"""How values of reward functions become rewards of rollouts."""

import asyncio
import math
import time
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from upslope.errors import RewardError
from upslope.records import collate
from upslope.rewards import RewardTerm, Scorer, count_failures


def score(rollouts, *terms, **settings):
    terms = [term if isinstance(term, RewardTerm) else RewardTerm(term) for term in terms]
    with Scorer(terms, **{"timeout_s": 5.0, "isolation": "none"} | settings) as scorer:
        return scorer.score(rollouts)


def constant(value):
    def constant(completion):
        return value

    return constant


def test_row_score_is_added_once_at_the_last_action(rollout):
    """CHECKS 14: the rewards sum to the score, whatever the number of actions, and stand at the last one."""
    rows = score([rollout("x", num_actions=n) for n in (1, 2, 7)], constant(0.75))
    assert [row.rewards for row in rows] == [(0.75,), (0.0, 0.75), (0.0,) * 6 + (0.75,)]
    assert collate(rows)[0].rewards.sum().item() == 3 * 0.75


def test_weighted_sum_of_row_and_action_values(rollout):
    """2 * (1, 2, 3) + 0.5 * 4 at the end - 1 * 1 at the end; raw values are metrics."""
    terms = [
        RewardTerm(constant([1, 2, 3]), 2.0, "each"),
        RewardTerm(constant(4), 0.5, "last"),
        RewardTerm(constant(True), -1.0, "flag"),
        RewardTerm(constant(9), 0.0, "watched"),
    ]
    (row,) = score([rollout("x")], *terms)
    assert row.rewards == (2.0, 4.0, 7.0)
    assert row.metrics == {"each": 6.0, "last": 4.0, "flag": 1.0, "watched": 9.0, "reward": 13.0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, 2.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (np.array(3), 3.0),
        (torch.tensor(0.25), 0.25),
        (torch.tensor(0.25, requires_grad=True), 0.25),
        (Fraction(1, 4), 0.25),
        (1e30, 1e30),
    ],
)
def test_kinds_of_numbers(value, expected, rollout):
    for isolation in ("none", "process"):
        (row,) = score([rollout("x")], constant(value), isolation=isolation)
        assert row.rewards == (0.0, 0.0, expected)


@pytest.mark.parametrize("value", [[1, 2.5, True], (1, 2.5, 1), np.array([1, 2.5, 1]), torch.tensor([1, 2.5, 1])])
def test_kinds_of_sequences(value, rollout):
    assert score([rollout("x")], constant(value))[0].rewards == (1.0, 2.5, 1.0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1", "returned str"),
        ({"reward": 1}, "returned dict"),
        (1j, "returned complex"),
        ([1, "2", 3], "returned a list with str"),
        ([1, None, 3], "returned a list with NoneType"),
        ([1.0, math.nan, 0.0], "returned nan"),
        (math.inf, "returned inf"),
        (-(10**400), "returned -inf"),
        (-1e39, "returned a number beyond float32"),
        ([], "returned a list of the wrong length"),
        ([1.0], "returned a list of the wrong length"),
        (torch.zeros(2, 2), "returned a list with list"),
    ],
)
def test_values_that_are_no_reward(value, reason, rollout):
    (row,) = score([rollout("x")], RewardTerm(constant(value), name="f"))
    assert row.failure == f"f: {reason}"
    assert row.rewards == ()


def test_weighted_sum_beyond_float32_fails(rollout):
    (row,) = score([rollout("x")], RewardTerm(constant(3e38), 10.0, "f"))
    assert row.failure == "the weighted sum is beyond float32"


def test_none_means_does_not_apply(rollout):
    """With several functions the others count; where none applies the sample fails; weight 0 does not reward."""

    def only_math(completion, kind):
        return 1.0 if kind == "math" else None

    def only_code(completion, kind):
        return 2.0 if kind == "code" else None

    rows = [rollout("x", kind=kind) for kind in ("math", "code", "prose")]
    scored = score(rows, only_math, only_code, RewardTerm(constant(1.0), 0.0, "watched"))
    assert [row.score for row in scored[:2]] == [1.0, 2.0]
    assert "only_code" not in scored[0].metrics
    assert scored[2].failure == "no reward applies"
    assert count_failures(scored) == {"no reward applies": 1}


def test_rows_without_actions_or_already_failed_are_left_alone(rollout):
    seen = []

    def watch(completion):
        seen.append(completion)
        return 1.0

    empty, failed = rollout("a", num_actions=0), rollout("b").replace(failure="engine")
    scored = score([empty, failed, rollout("c")], watch)
    assert seen == ["c"]
    assert [row.failure for row in scored] == ["empty", "engine", None]
    assert scored[1] is failed
    assert score([], watch) == []
    assert score([empty], lambda completions: [1.0] * len(completions))[0].failure == "empty"


def test_row_function_gets_the_names_it_declares(rollout):
    def declared(completion, prompt, answer, num_tokens, terminated, stop_reason, completion_ids, missing="default"):
        given = [completion, prompt, answer, num_tokens, terminated, stop_reason, completion_ids, missing]
        return float(given == ["text", "Question?", 42, 3, False, "length", [10, 11, 12], "default"])

    def everything(completion, **rest):
        names = {"prompt", "answer", "num_tokens", "terminated", "stop_reason", "completion_ids", "other"}
        return float(rest.keys() == names)

    row = rollout("text", stop_reason="length", answer=42, other=1)
    assert score([row], declared, everything)[0].score == 2.0


def test_trl_signature_plain(rollout):
    """A function written for TRL's GRPOTrainer: keyword lists, trainer_state None, log_metric and log_extra."""

    def trl_reward(prompts, completions, completion_ids, answer, trainer_state, log_metric, log_extra, **kwargs):
        assert prompts == ["Question?"] * 2
        assert completion_ids == [[10, 11, 12], [10]]
        assert trainer_state is None
        assert kwargs.keys() == {"num_tokens", "terminated", "stop_reason"}
        right = [float(a == b) for a, b in zip(completions, answer, strict=True)]
        log_metric("accuracy", sum(right) / len(right))
        log_extra("extracted", completions)
        log_extra("length", [len(text) for text in completions])
        return right

    for isolation in ("none", "process"):
        rows = [rollout("4", answer="4"), rollout("five", num_actions=1, answer="5")]
        scored = score(rows, trl_reward, isolation=isolation)
        assert [row.rewards for row in scored] == [(0.0, 0.0, 1.0), (0.0,)]
        assert scored[1].metrics == {"trl_reward": 0.0, "accuracy": 0.5, "length": 4.0, "reward": 0.0}


def test_trl_signature_chat(rollout):
    """Chats reach a batch function as lists of messages, completions as one assistant message each."""
    chat = ({"role": "user", "content": "Hi"},)

    def trl_reward(prompts, completions, **kwargs):
        assert prompts == [[{"role": "user", "content": "Hi"}]]
        assert completions[0][0]["role"] == "assistant"
        return [len(completion[0]["content"]) for completion in completions]

    assert score([rollout("four", content=chat)], trl_reward)[0].score == 4.0


def test_batch_of_several_data_sets_fills_missing_columns_with_none(rollout):
    def by_kind(completions, a, b):
        return [x if x is not None else y for x, y in zip(a, b, strict=True)]

    assert [row.score for row in score([rollout("x", a=1), rollout("y", b=2)], by_kind)] == [1.0, 2.0]


def test_batch_values_may_be_per_action_and_none(rollout):
    rows = [rollout("x"), rollout("y"), rollout("z", num_actions=1)]
    scored = score(rows, lambda completions: [[1, 2, 3], None, 5])
    assert [row.rewards for row in scored] == [(1.0, 2.0, 3.0), (), (5.0,)]
    assert scored[1].failure == "no reward applies"
    assert [row.score for row in score(rows, lambda completions: torch.arange(3.0))] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_async_rows_run_together(isolation, rollout):
    """40 rows that each wait 0.2 s take far less than 8 s; a slow one times out alone, a raising one fails alone."""

    async def judge(completion):
        await asyncio.sleep(30 if completion == "slow" else 0.2)
        return 1 / 0 if completion == "bad" else float(completion)

    texts = [str(index) for index in range(40)] + ["slow", "bad"]
    start = time.monotonic()
    scored = score([rollout(text) for text in texts], judge, isolation=isolation, timeout_s=1.0)
    assert time.monotonic() - start < 4.0
    assert [row.score for row in scored[:40]] == list(range(40))
    assert [row.failure for row in scored[40:]] == ["judge: timed out after 1 s", "judge: raised ZeroDivisionError"]


def test_async_inside_a_running_loop_and_async_batch(rollout):
    """Notebooks run everything inside a loop; an async batch function is awaited as a whole."""

    async def batch(completions, log_metric):
        await asyncio.sleep(0)
        log_metric("seen", len(completions))
        return [1.0] * len(completions)

    async def notebook():
        return score([rollout("a"), rollout("b")], batch, isolation="none")

    assert [row.metrics["seen"] for row in asyncio.run(notebook())] == [2.0, 2.0]


def test_cancelled_coroutine_fails_its_sample(rollout):
    async def gives_up(completion):
        raise asyncio.CancelledError

    assert score([rollout("x")], gives_up)[0].failure == "gives_up: raised CancelledError"


def test_partials_instances_and_lambdas(rollout):
    class Judge:
        async def __call__(self, completion):
            return 3.0

    def scaled(scale, completion):
        return scale

    def keyword(completion, scale):
        return scale

    rows = [rollout("x")]
    assert score(rows, partial(scaled, 2.0))[0].metrics["scaled"] == 2.0
    assert score(rows, partial(keyword, scale=4.0))[0].metrics["keyword"] == 4.0
    assert score(rows, Judge())[0].metrics["Judge"] == 3.0
    assert score(rows, lambda completion: 1.0)[0].metrics["lambda"] == 1.0


@pytest.mark.parametrize(
    "function",
    [
        lambda text: 1.0,
        lambda **kwargs: 1.0,
        lambda *args: 1.0,
        lambda completion, completions: 1.0,
        lambda completion, /: 1.0,
        lambda: 1.0,
        max,
        "correct",
        None,
    ],
)
def test_other_shapes_are_refused_with_both_shapes_named(function):
    with pytest.raises(RewardError, match=r"f\(completion, .*or f\(prompts, completions, "):
        RewardTerm(function)


def test_missing_columns(rollout):
    """A row that lacks a column fails; a batch function whose column no row has is an error of the user's."""

    def uses(completion, answer):
        return float(answer)

    scored = score([rollout("x", answer=2), rollout("y")], uses)
    assert scored[0].score == 2.0
    assert scored[1].failure == "uses: needs 'answer', which the data lacks"

    def batch(completions, answer):
        return answer

    with pytest.raises(RewardError, match="'batch' needs 'answer'"):
        score([rollout("x")], batch)


def test_one_function_may_be_called_reward(rollout):
    def reward(completion):
        return len(completion) / 4

    (scored,) = score([rollout("abc")], reward)
    assert scored.metrics["reward"] == 0.75 == sum(scored.rewards)


def test_settings_are_checked():
    f = constant(1.0)
    for terms, settings, message in [
        ([], {}, "no reward"),
        ([RewardTerm(f), RewardTerm(f)], {}, "two rewards are named 'constant'"),
        ([RewardTerm(f, 0.5, name="reward")], {}, "a reward is named 'reward', as the weighted sum is"),
        ([RewardTerm(f, name="reward"), RewardTerm(f)], {}, "a reward is named 'reward', as the weighted sum is"),
        ([RewardTerm(f)], {"timeout_s": 0}, "timeout_s is 0"),
        ([RewardTerm(f)], {"isolation": "thread"}, "isolation is 'thread'"),
    ]:
        with pytest.raises(RewardError, match=message):
            Scorer(terms, **{"timeout_s": 1} | settings)
    with pytest.raises(RewardError, match="weight of reward 'constant' is nan"):
        RewardTerm(f, math.nan)
