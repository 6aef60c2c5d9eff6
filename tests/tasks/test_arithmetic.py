"""The built-in arithmetic task."""

import re
import subprocess
import sys

import pytest

from upslope.errors import RecipeError
from upslope.rewards import Scorer
from upslope.tasks.arithmetic import arithmetic

CONFIGS = [
    {},
    {"digits": 1, "num_train": 60, "num_eval": 20},
    {"digits": 3, "operation": "-", "seed": 5},
    {"digits": [2, 1], "operation": "*", "num_eval": 100},
    {"digits": 9, "num_train": 50, "num_eval": 10},
]


def text(prompt):
    return prompt.content if isinstance(prompt.content, str) else prompt.content[-1]["content"]


@pytest.mark.parametrize("config", CONFIGS)
def test_answers_are_right_and_held_out_pairs_are_disjoint(config):
    """The expression as written evaluates to the answer; no held-out pair is trained on, in either order."""
    task = arithmetic(**config)
    pairs = {"train": set(), "eval": set()}
    for part, prompts in (("train", task.prompts), ("eval", task.eval_prompts)):
        for prompt in prompts:
            written = re.fullmatch(r"(\d+) ([-+*]) (\d+)", text(prompt))
            assert str(eval(" ".join(written.groups()))) == prompt.columns["answer"]
            pairs[part].add((int(written[1]), int(written[3])))
    assert len(pairs["train"]) == len(task.prompts)
    assert len(pairs["eval"]) == len(task.eval_prompts) == config.get("num_eval", 200)
    trained = pairs["train"] | {(b, a) for a, b in pairs["train"]}
    assert not trained & pairs["eval"]


def test_operands_have_the_digits_asked_for():
    task = arithmetic(digits=[2, 1], num_train=2000, num_eval=50)
    assert {len(str(p.columns["a"])) for p in task.eval_prompts + task.prompts} <= {1, 2}
    train = [(p.columns["a"], p.columns["b"]) for p in task.prompts]
    assert min(train)[0] == 10
    assert max(train)[0] == 99
    assert {b for _, b in train} == set(range(10))


def test_seed_alone_decides_the_pairs():
    """CHECKS 39: the same prompts in another process, whatever its hash seed; other seeds give others."""
    code = (
        "from upslope.tasks.arithmetic import arithmetic as a; t = a(); print([p.columns['answer'] for p in t.prompts])"
    )
    env = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    there = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    here = [p.columns["answer"] for p in arithmetic().prompts]
    assert there.stdout.strip() == str(here)
    assert [p.columns["answer"] for p in arithmetic(seed=1).prompts] != here


def test_reward_and_metric(rollout_of):
    """Metric: last number right and ended by itself. Reward: the weighted shaping terms."""
    task = arithmetic(shaping={"correct": 1.0, "digits_right": 0.5, "brevity": 0.25, "ended": 0.125})
    prompt = next(p for p in task.prompts if p.columns["answer"] == "46")
    rows = [
        rollout_of(prompt, "46"),
        rollout_of(prompt, "= 46"),
        rollout_of(prompt, "46", "length"),
        rollout_of(prompt, "45"),
        rollout_of(prompt, "I think so"),
    ]
    with Scorer(task.terms, timeout_s=5) as scorer:
        scored = scorer.score(rows)
    assert [row.metrics[task.metric_name] for row in scored] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert [row.score for row in scored] == [1.875, 1.75, 0.75, 0.625, 0.125]


def test_template_chat_and_system():
    plain = arithmetic(template="{a}{operation}{b}=", chat=False)
    assert re.fullmatch(r"\d\d\+\d\d=", plain.prompts[0].content)
    assert [m["role"] for m in arithmetic(system="Only digits.").eval_prompts[0].content] == ["system", "user"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operation": "/"}, r"operation '/'; it must be one of \+, -, \*"),
        ({"digits": 0}, "digits = 0"),
        ({"digits": [1, 2, 3]}, "one for a and one for b"),
        ({"digits": 1}, "too few for num_train = 4000 and num_eval = 200"),
        ({"num_train": 0}, "num_train = 0"),
        ({"shaping": {"corect": 1.0}}, "no shaping term 'corect'; did you mean correct"),
        ({"shaping": {"correct": 0.0}}, "no shaping term with a weight"),
        ({"template": "{c}"}, "template '{c}' may hold"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(RecipeError, match=message):
        arithmetic(**options)
