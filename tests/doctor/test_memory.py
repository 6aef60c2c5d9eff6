"""The memory forecast: its parts against what a run really holds, and its sum against the peak of a real process."""

import json
import subprocess
import sys

import pytest
import torch

from upslope.doctor import memory
from upslope.doctor.findings import Findings
from upslope.doctor.live import LiveBytes
from upslope.doctor.load import load_of
from upslope.engines.local import LocalEngine
from upslope.policies.tiny import tiny_model
from upslope.recipe import Recipe
from upslope.tasks import task_of
from upslope.training.launch import policy_of
from upslope.training.optimizer import apply_gradients, make_optimizer, trainable

MIDDLING = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}


def recipe_of(preset="grpo", **settings):
    small = {"model.name": "tiny-llama", "prompts_per_step": 4, "group_size": 4, "max_new_tokens": 8}
    return Recipe.resolve({"algorithm": {"preset": preset}}, {**small, **settings})


def forecast_of(recipe):
    policy = policy_of(recipe)
    engine = LocalEngine(**recipe.engine.model_dump())
    engine.load(policy, version=0)
    task = task_of(recipe)
    return policy, memory.forecast(recipe, policy, engine, load_of(recipe, policy, task), runtime=1000)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("grpo", {}),
        ("dr_grpo", {"model.name": "tiny-gpt2"}),
        ("ppo", {"critic": "separate"}),
        ("ppo", {"model.lora.r": 4}),
        ("a2c", {"freeze": ["model.layers.0.*"]}),
    ],
)
def test_parts_are_what_a_run_holds(preset, settings):
    """Weights, reference, critic and moments, byte for byte, against the tensors of a policy that took a step."""
    recipe = recipe_of(preset, **settings)
    policy, found = forecast_of(recipe)
    optimizer = make_optimizer(policy.module, recipe.optimizer)
    for parameter in trainable(policy.module).values():
        parameter.grad = torch.ones_like(parameter)
    apply_gradients(policy.module, optimizer, max_norm=1.0)
    moments = [s for state in optimizer.state.values() for s in state.values() if s.dim()]
    weights = {p.data_ptr(): p.nbytes for p in [*policy.model.parameters(), *policy.model.buffers()]}
    assert found.weights == sum(weights.values())
    assert found.optimiser == sum(moment.nbytes for moment in moments)
    kept = policy._reference
    assert found.reference == (sum(p.nbytes for p in [*kept.parameters(), *kept.buffers()]) if kept else 0)
    critic = [*policy.module.value_head.parameters()] if policy.module.value_head else []
    critic += [*policy.module.critic.parameters()] if policy.module.critic else []
    assert found.critic == sum(p.nbytes for p in critic)
    assert found.total == sum(found.parts.values())
    assert found.runtime == 1000


@pytest.mark.parametrize(
    "settings",
    [{}, {"model.name": "tiny-gpt2"}, {"dtype": "bfloat16"}, {"model.lora.r": 4}, {"gradient_checkpointing": True}],
)
def test_small_micro_batches_foretell_a_large_one(settings):
    """Within 5% of the bytes counted in a micro-batch five times as large as the largest that was tried."""
    recipe = recipe_of("ppo", **settings)
    policy = policy_of(recipe)
    costs = memory.costs(recipe, policy)
    assert not any(p.grad is not None for p in policy.module.parameters())
    batch = memory._rows(policy, 20, 40)
    memory._backward(recipe, policy, batch)
    with LiveBytes() as live:
        memory._backward(recipe, policy, batch)
    assert costs.of(policy.computed_tokens(batch), 800) == pytest.approx(live.peak, rel=0.05)
    assert costs.of(policy.computed_tokens(batch), 800) > 3 * costs.of(256, 128)


def test_logits_of_more_actions_than_a_chunk_cost_nothing_more():
    costs = memory.Costs(fixed=10.0, token=2.0, action=3.0, most_actions=64)
    assert costs.of(100, 64) == costs.of(100, 1000) == 10 + 200 + 192
    assert memory.Costs(10.0, 2.0, 3.0, None).of(100, 1000) == 10 + 200 + 3000


def test_several_micro_batches_hold_gradients_beside_activations():
    _, one = forecast_of(recipe_of())
    _, several = forecast_of(recipe_of(micro_batch_tokens=64))
    gradients = several.optimiser // 2
    assert several.gradients == gradients
    assert one.gradients == max(0, gradients - one.activations)


def test_the_model_is_not_loaded_where_its_weights_alone_are_too_many(tmp_path, monkeypatch):
    """The bytes follow from the config: no weight is read."""
    model, tokenizer = tiny_model("tiny-gpt2", n_layer=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    wanted = sum(parameter.numel() for parameter in model.parameters())
    assert memory.least_bytes(recipe_of(**{"model.name": str(tmp_path)})) == 4 * wanted
    half = {"model.name": str(tmp_path), "dtype": "bfloat16", "model.lora.r": 2}
    assert memory.least_bytes(recipe_of(**half)) == 2 * wanted


@pytest.mark.parametrize(("free", "level"), [(3000, "ok"), (2100, "warning"), (1900, "error")])
def test_a_forecast_beyond_what_is_free_is_an_error_with_a_mend(monkeypatch, free, level):
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    parts = dict.fromkeys(memory.Forecast.__slots__, 0) | {"weights": 500, "optimiser": 1000, "activations": 500}
    findings = Findings()
    memory.examine_memory(findings, memory.Forecast(**parts))
    (found,) = findings
    assert (found.level, found.values["bytes"]) == (level, 2000)
    assert bool(found.mend) == (level != "ok")
    if found.mend:
        assert "[model.lora]" in found.mend  # the optimiser is the largest part


@pytest.mark.timeout(900)
def test_the_forecast_is_within_15_percent_of_the_measured_peak(tmp_path):
    """A random model of 30 million weights: doctor and run in processes of their own, the peak by VmHWM.

    Most of it is the model's, so that what Python takes by itself decides nothing.
    """
    model, tokenizer = tiny_model("tiny-llama", **MIDDLING)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = {"model.name": str(tmp_path / "model"), "group_size": 8, "max_new_tokens": 16}
    settings |= {"run.folder": str(tmp_path / "run"), "steps": 2, "run.trackers": [], "micro_batch_tokens": 512}
    recipe = recipe_of("grpo", **settings)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    doctor = "from upslope.cli.main import run; run()"
    out = run_python(doctor, "doctor", tmp_path / "recipe.toml", "--json", "--prompts", "1")
    (found,) = (each["values"] for each in json.loads(out)["findings"] if each["check"] == "forecast")
    train = (
        "import sys; from upslope.recipe import Recipe; from upslope.training.launch import launch\n"
        "launch(Recipe.load(sys.argv[1]))\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"
    )
    peak = 1024 * int(run_python(train, tmp_path / "recipe.toml").splitlines()[-1])
    assert found["parts"]["runtime"] < 0.4 * peak
    assert found["bytes"] == pytest.approx(peak, rel=0.15)


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
