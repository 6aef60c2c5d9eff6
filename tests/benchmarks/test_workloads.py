"""Both sides of a comparison do the same work: prompts of the stated length, rows that never end, honest ceilings."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_long_prompts_have_exactly_the_stated_length():
    from upslope.policies.tiny import character_tokenizer

    tokenizer = character_tokenizer()
    chats = importlib.import_module("workloads").long_prompts(tokenizer, tokens=200)
    lengths = [len(tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False)) for c in chats]
    assert lengths == [200] * 8
    assert len({chat[0]["content"] for chat in chats}) == 8


def test_endless_model_is_the_same_weights_without_an_end(tmp_path, make_policy):
    import torch

    policy = make_policy("tiny-llama")
    policy.save(tmp_path)
    endless = make_policy(importlib.import_module("workloads").endless(str(tmp_path)))
    assert policy.eos_ids == {1}
    assert endless.eos_ids == frozenset()
    pairs = zip(policy.model.parameters(), endless.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_model_size_counts_the_weights_of_the_linear_layers(tmp_path, make_policy):
    import torch

    policy = make_policy("tiny-llama")
    policy.save(tmp_path)
    size = importlib.import_module("ceilings").ModelSize.of(str(tmp_path))
    linear = {n: m.weight.numel() for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert size.head == linear.pop("lm_head")
    assert size.body == sum(linear.values())


def test_least_times_are_those_of_the_binding_ceiling():
    ceilings = importlib.import_module("ceilings")
    size = ceilings.ModelSize(body=3_000_000, head=1_000_000, weight_bytes=16_000_000)
    best = ceilings.Ceilings(gflop_per_s=1.0, read_gb_per_s=1.0)
    one = ceilings.generation_s(size, best, prompt_tokens=0, rows=1, new_tokens=10)
    many = ceilings.generation_s(size, best, prompt_tokens=100, rows=8, new_tokens=10)
    assert one == pytest.approx(10 * 0.016)  # reading the weights takes longer than 8 million operations
    assert many == pytest.approx(100 * 0.006 + 10 * 8 * 0.008)
    assert ceilings.training_s(size, best, tokens=10, actions=5) == pytest.approx(3 * 2 * (30e6 + 5e6) / 1e9)


SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if "arguments(__doc__" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_explains_itself(path):
    """--help prints the docstring, which must therefore hold the script's own command."""
    assert f"python benchmarks/{path.name}" in path.read_text().split('"""')[1]


def test_make_bench_names_existing_scripts():
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    names = next(line for line in makefile.splitlines() if line.startswith("BENCH ?=")).split()[2:]
    assert not [name for name in names if not (BENCHMARKS / f"{name}.py").exists()]
    assert not [path for path in (BENCHMARKS / "results").glob("*.json") if not json.loads(path.read_text())["cases"]]
