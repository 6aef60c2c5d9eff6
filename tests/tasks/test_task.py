"""Tasks: prompts, terms and metric."""

import pytest

from upslope.errors import DataError, RewardError
from upslope.records import Prompt
from upslope.rewards import RewardTerm, Scorer, cost_matrix
from upslope.tasks import Task, from_file


def long(completion):
    return float(len(completion))


def right(completion, answer):
    return float(completion == answer)


def test_prompts_of_every_kind_and_their_ids():
    """Held-out ids start at 10^9, so that no held-out prompt shares its random numbers with a training prompt."""
    kept = Prompt(id=7, content="kept")
    task = Task(
        prompts=["a", [{"role": "user", "content": "b"}], {"prompt": "c", "x": 1}, kept],
        reward=long,
        eval_prompts=["d"],
    )
    assert [p.id for p in task.prompts] == [0, 1, 2, 7]
    assert [p.id for p in task.eval_prompts] == [1_000_000_000]
    assert task.prompts[2].columns == {"x": 1}
    assert task.prompts[3] is kept


def test_chat_and_system_apply_to_strings():
    task = Task(prompts=["a"], reward=long, eval_prompts=["b"], system="s")
    for prompt, text in ((task.prompts[0], "a"), (task.eval_prompts[0], "b")):
        assert prompt.content == ({"role": "system", "content": "s"}, {"role": "user", "content": text})


def test_metric_is_the_reward_a_term_or_a_term_of_weight_0():
    assert Task(prompts=["a"], reward=long).metric_name == "reward"
    shared = Task(prompts=[{"prompt": "a", "answer": "b"}], reward=[long, right], metric=right)
    assert (len(shared.terms), shared.metric_name) == (2, "right")
    own = Task(prompts=[{"prompt": "a", "answer": "b"}], reward=long, metric=right)
    assert own.terms == (RewardTerm(long), RewardTerm(right, 0.0, "metric"))
    assert own.metric_name == "metric"


def test_metric_is_measured_and_not_rewarded(rollout_of):
    task = Task(prompts=[{"prompt": "a", "answer": "bb"}], reward=RewardTerm(long, 0.5), metric=right)
    with Scorer(task.terms, timeout_s=5, isolation="none") as scorer:
        (row,) = scorer.score([rollout_of(task.prompts[0], "bb")])
    assert (row.score, row.metrics[task.metric_name]) == (1.0, 1.0)


def test_metric_that_shares_its_name_with_a_reward_is_called_metric():
    task = Task(
        prompts=["a"], reward=RewardTerm(long, name="right"), metric=RewardTerm(lambda completion: 1.0, name="right")
    )
    assert [term.name for term in task.terms] == ["right", "metric"]
    assert task.metric_name == "metric"


def test_task_without_reward_can_still_be_measured(rollout_of):
    """Supervised training needs no reward; its held-out metric is measured all the same."""
    assert Task(prompts=["a"]).terms == ()
    task = Task(prompts=["a"], metric=long)
    with Scorer(task.terms, timeout_s=5, isolation="none") as scorer:
        (row,) = scorer.score([rollout_of(task.prompts[0], "abc")])
    assert (row.failure, row.score, row.metrics[task.metric_name]) == (None, 0.0, 3.0)


def test_mistakes_are_named():
    with pytest.raises(DataError, match="task 'mine' has no prompts"):
        Task(prompts=[], reward=long, name="mine")
    with pytest.raises(DataError, match="two prompts with id 3"):
        Task(prompts=[Prompt(3, "a"), Prompt(3, "b")], reward=long)
    with pytest.raises(
        RewardError, match="'right' asks for 'answer', but no prompt has such a column; did you mean 'answers'"
    ):
        Task(prompts=[{"prompt": "a", "answers": "b"}], reward=right)
    with pytest.raises(RewardError, match="neither shape"):
        Task(prompts=["a"], reward=lambda text: 1.0)


def test_from_file(tmp_path):
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    train.write_text('{"question": "a", "answer": "1"}\nbroken\n{"question": "b", "answer": "2"}\n')
    dev.write_text('{"question": "c", "answer": "3"}\nbroken\n')
    task = from_file(train, prompt="question", reward=right, eval=dev, strict=False)
    assert [p.id for p in task.prompts] == [0, 2]
    assert [(p.id, p.content) for p in task.eval_prompts] == [(1_000_000_000, "c")]
    assert list(task.skipped.values()) == [2]
    assert task.name == "train"
    with pytest.raises(DataError, match=r"train\.jsonl:2"):
        from_file(train, prompt="question", reward=right)


def test_a_cost_of_a_label_that_is_not_there_is_named():
    """In a task without labels of its own, a generator's, the table is taken as it is."""
    told = {"prompts": [{"prompt": "a", "label": "ham"}], "reward": cost_matrix(table={"spam": {"hamm": -5}})}
    with pytest.raises(RewardError, match=r"'cost_matrix' names the label 'hamm', .* did you mean 'ham'"):
        Task(**told, labels=["ham", "spam"])
    assert Task(**told).labels == ()
