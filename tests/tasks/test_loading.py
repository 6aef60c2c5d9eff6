"""Tasks and rewards by name."""

import sys

import pytest

from upslope import rewards
from upslope.errors import RecipeError
from upslope.rewards import RewardTerm, correct
from upslope.rewards.sandbox.confinement import missing
from upslope.tasks import Task, load_function, load_task, load_terms
from upslope.tasks.loading import FUNCTIONS, RULES


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder as the current directory, with a package of theirs, that is not on the import path."""
    (tmp_path / "mytasks").mkdir()
    (tmp_path / "mytasks" / "__init__.py").write_text("")
    (tmp_path / "mytasks" / "sums.py").write_text(
        "from upslope.tasks import Task\n"
        "def reward(completion): return 1.0\n"
        "ready = Task(prompts=['a'], reward=reward)\n"
        "def build(size, word='x'): return Task(prompts=[word] * size, reward=reward)\n"
        "def wrong(): return 3\n"
        "class Holder:\n    reward = staticmethod(reward)\n"
        "number = 3\n"
    )
    (tmp_path / "mytasks" / "needy.py").write_text("import not_installed_at_all\n")
    (tmp_path / "mytasks" / "broken.py").write_text("def (:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mytasks"]:
        del sys.modules[name]


def test_users_own_tasks(project):
    assert [p.content for p in load_task("mytasks.sums:build", {"size": 2, "word": "y"}).prompts] == ["y", "y"]
    assert isinstance(load_task("mytasks.sums:ready"), Task)
    assert load_function("mytasks.sums:Holder.reward")(completion="x") == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("arithmetics", {}, "no task 'arithmetics' .did you mean 'arithmetic'"),
        ("arithmetic", {"digit": 2}, "'arithmetic' has no option 'digit'; did you mean 'digits'"),
        ("reasoning-gym", {}, "'reasoning-gym' needs the option 'dataset'"),
        ("file", {"prompt": "x"}, "'file' needs the option 'path'"),
        ("mytask.sums:build", {}, "there is no module 'mytask'"),
        ("mytasks.sum:build", {}, r"there is no module 'mytasks\.sum'"),
        ("mytasks.sums:built", {}, "mytasks.sums has no 'built'; did you mean 'build'"),
        ("mytasks.sums:build", {}, "needs the option 'size'"),
        ("mytasks.sums:build", {"sise": 2}, "no option 'sise'; did you mean 'size'"),
        ("mytasks.sums:ready", {"size": 2}, "ready made and takes no options, but got size"),
        ("mytasks.sums:wrong", {}, "gave a int; it must return an upslope.tasks.Task"),
        ("mytasks.sums:number", {}, "is a int, which cannot be called"),
        ("mytasks.needy:build", {}, "its module needs 'not_installed_at_all', which is not installed"),
        ("mytasks.broken:build", {}, "importing mytasks.broken raised SyntaxError"),
        (":build", {}, "write package.module:name"),
        ("mytasks.sums:", {}, "write package.module:name"),
    ],
)
def test_mistakes_are_named(name, options, message, project):
    with pytest.raises(RecipeError, match=message):
        load_task(name, options)


def test_terms_by_name(project):
    terms = load_terms(
        [
            "correct",
            {"function": "numeric_answer", "column": "final", "weight": 0.5, "name": "right"},
            "mytasks.sums:reward",
            lambda completion: 1.0,
            RewardTerm(correct, 2.0, "twice"),
        ]
    )
    assert [(term.name, term.weight) for term in terms] == [
        ("correct", 1.0),
        ("right", 0.5),
        ("reward", 1.0),
        ("lambda", 1.0),
        ("twice", 2.0),
    ]
    assert terms[1].function(completion="5", final="5") == 1.0
    assert load_terms("correct")[0].function is correct


def test_every_reward_of_the_package_has_its_name_in_recipes():
    """What is exported from upslope.rewards and makes or is a reward function is there by that name, and logs as it."""
    no_rewards = {
        "Case",
        "CorpusScore",
        "RewardTerm",
        "Sandbox",
        "Scorer",
        "Verdict",
        "corpus_bleu",
        "corpus_chrf",
        "count_failures",
        "find_spans",
        "last_number",
    }
    assert {*RULES, *FUNCTIONS} == set(dir(rewards)) - no_rewards
    options = {
        "json_schema": {"schema": {}},
        "llm_judge": {"base_url": "http://localhost:8000/v1", "model": "m"},
        "length_penalty": {"per_token": 0.1},
        "implicit": {"model": "tiny-llama", "reference": "tiny-gpt2"},
        "inverse_q": {"model": "tiny-llama"},
        "likelihood": {"model": "tiny-llama"},
        "overlong_penalty": {"max_tokens": 2, "cache_tokens": 1},
        "regex_match": {"pattern": "a"},
        "reward_model": {"model": "tiny-llama"},
        "starts_with": {"text": "a"},
        "ends_with": {"text": "a"},
    }
    for name in RULES.keys() - ({"passes_tests"} if missing() else set()):
        assert load_terms([{"function": name} | options.get(name, {})])[0].name == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("corect", "no built-in reward 'corect' .did you mean 'correct'"),
        ({"function": "numeric_answer", "colum": "x"}, "'numeric_answer' has no option 'colum'; did you mean 'column'"),
        ({"function": "overlong_penalty", "max_tokens": 3}, "needs the option 'cache_tokens'"),
        ({"function": "correct", "column": "x"}, "'correct' takes no options, but got column"),
        ({"weight": 1.0}, "needs a function"),
        (3, "needs a function"),
    ],
)
def test_terms_that_do_not_exist(spec, message):
    with pytest.raises(RecipeError, match=message):
        load_terms(spec)


def test_file_task_with_rewards_by_name(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "1 + 1", "final": "2"}\n')
    rule = {"function": "numeric_answer", "column": "final"}
    task = load_task(
        "file", {"path": str(path), "prompt": "question", "reward": [rule, "ended"], "metric": rule | {"name": "exact"}}
    )
    assert [term.name for term in task.terms] == ["numeric_answer", "ended", "exact"]
    assert task.metric_name == "exact"
