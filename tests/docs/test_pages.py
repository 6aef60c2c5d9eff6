"""Pages whose blocks are one program, run from top to bottom."""

from __future__ import annotations

import json
import re

import pytest
import torch
from pages import ROOT, Block, blocks, commands, run_page, unlike

import upslope
from upslope.presets import PRESETS

DOCS = ROOT / "docs"


def test_every_claim_of_the_mathematics_page_holds():
    """Its asserts are the test: each section has one, and none compares a thing with itself."""
    page = (DOCS / "mathematics.md").read_text()
    sections = page.split("\n## ")[1:]
    assert all("\nsame(" in section or "\nassert " in section for section in sections)
    names: dict[str, object] = {}
    try:
        for block in blocks(DOCS / "mathematics.md"):
            exec(compile(block.text, "mathematics.md", "exec"), names)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_task_a_reward_and_a_policy_of_ones_own(reader, capsys, monkeypatch):
    ran = run_page(DOCS / "own.md", capsys, monkeypatch)
    assert len(ran) == 3
    assert set(upslope.Run.open("runs/rewards").metrics) >= {"reward/short", "reward/unlike_the_others"}
    run = upslope.Run.open("runs/bigrams")
    assert run.metrics["reward"][40] > 0.6 > 0.4 > run.metrics["reward"][1]
    table = torch.tensor(json.loads((run.model_path / "bigrams.json").read_text())).softmax(1)
    assert table[0, 1] > 0.7
    assert table[1, 0] > 0.7


def test_a_page_that_shows_what_is_not_printed_is_noticed():
    block = Block("console", "", "$ upslope train\nstep 1/3  reward 0.5\n...\nfinished: runs/a\n$ upslope resume\n")
    (_, shown), (_, nothing) = commands(block)
    assert nothing == []
    assert unlike(shown, "step 2/9 reward -1.25\nstep 3/9 reward 0\nfinished: runs/a\n") is None
    assert unlike(shown, "finished: runs/a\nstep 2/9 reward 1\n") == "finished: runs/a"
    assert unlike(shown, "step 2/9 reward 1\nfinished: runs/b\n") == "finished: runs/a"


@pytest.mark.parametrize("command", ["rm -r runs", "pip install x"])
def test_only_known_commands_are_typed(command, capsys, monkeypatch):
    from pages import run_command

    with pytest.raises(AssertionError, match="does not know"):
        run_command(command, capsys, monkeypatch)


def test_the_upslope_halves_of_moving_from_trl_run(reader):
    """As they stand, but for a tiny model and two steps; its reward model is a random classifier."""
    from transformers import AutoConfig, LlamaForSequenceClassification

    from upslope.policies.tiny import tiny_model

    model, tokenizer = tiny_model("tiny-llama")
    tokenizer.save_pretrained("my-reward-model")
    config = AutoConfig.for_model(**model.config.to_dict() | {"num_labels": 1})
    LlamaForSequenceClassification(config).save_pretrained("my-reward-model")
    small = {
        "HuggingFaceTB/SmolLM2-135M-Instruct": "tiny-llama",
        "steps=50": "steps=2",
        "prompts_per_step=64": "prompts_per_step=4",
    }
    names: dict[str, object] = {}
    rewards = {}
    for block in blocks(DOCS / "moving-from-trl.md"):
        code = compile(block.text, f"{block.title} of moving-from-trl.md", "exec")
        if block.title.startswith("TRL"):
            continue
        text = block.text
        for shown, run in small.items():
            text = text.replace(shown, run)
        exec(compile(text, code.co_filename, "exec"), names)
        if block.title == "upslope":
            rewards[names["run"].folder.name] = set(names["run"].metrics["reward"])
    assert rewards == {"grpo": {1, 2}, "rloo": {1, 2}, "ppo": {1, 2}}


def test_the_settings_table_names_what_there_is():
    """Every TRL name that a recipe's error can translate is translated alike by the page."""
    from upslope.naming import ELSEWHERE, setting_names

    known = setting_names(upslope.Recipe)
    rows = [line for line in (DOCS / "moving-from-trl.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.count("|") == 5][2:]
    for trl, _, here, _ in cells:
        for name in re.findall(r"`(\w+\.\w+)", here):
            assert name in known or name.startswith("upslope."), name
        for name in re.findall(r"`(\w+)`", trl):
            if name in ELSEWHERE:
                short = ELSEWHERE[name].rsplit(".", 1)[-1]
                assert f"{short}" in here, f"{name} is {ELSEWHERE[name]}, not {here}"
    translated = {name for trl, *_ in cells for name in re.findall(r"`(\w+)`", trl)}
    assert {"learning_rate", "num_generations", "beta", "epsilon", "loss_type", "num_ppo_epochs"} <= translated


def test_the_troubleshooting_page_speaks_of_settings_and_metrics_there_are():
    """Every name in code font is one of the metrics page or of the recipe."""
    from upslope.naming import setting_names

    page = (DOCS / "troubleshooting.md").read_text()
    metrics = set(re.findall(r"`([\w/]+)`", (DOCS / "metrics.md").read_text()))
    known = set(setting_names(upslope.Recipe))
    known |= {name.rsplit(".", 1)[-1] for name in known}
    for name in re.findall(r"`([a-z_.]+)(?: = [^`]*)?`", page):
        assert name in metrics | known | {"chat", "length_penalty"}, name


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code():
    """Each piece between the dots stands in the source, whose adjacent strings are joined."""
    source = "".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    source = re.sub(r'"\s*f?"', "", source)
    section = (DOCS / "troubleshooting.md").read_text().split("\n## It stops\n")[1].split("\n## ")[0]
    messages = [line.split("|")[1].strip().strip("`") for line in section.splitlines() if line.startswith("| `")]
    assert len(messages) == 5
    for piece in (piece.strip() for message in messages for piece in message.split("...")):
        assert piece in source, piece


def default(name):
    """A setting's default in the recipe without a preset's influence on it, where the page calls it so."""
    section, setting = name.split(".")
    return getattr(getattr(upslope.Recipe(), section), setting)


def test_the_defaults_beside_trls_are_those_of_the_recipe():
    table = (DOCS / "moving-from-trl.md").read_text().split("## Settings")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.count("|") == 5
    ]
    compared = 0
    for _, _, here, shown in rows[2:]:
        name = re.match(r"`(\w+\.\w+)`[^`]*$", here)
        if name and re.fullmatch(r"[\d.e-]+|`\"\w+\"`|off", shown):
            value = default(name[1])
            assert shown in (str(value), f'`"{value}"`') or (shown == "off" and value in (None, False)), name[1]
            compared += 1
    assert compared >= 8
    ppo = (DOCS / "presets" / "ppo.md").read_text()
    assert f"| weight of the value loss | {default('algorithm.value_coef')} |" in ppo
    assert (
        f"| {default('optimizer.lr'):.0e} constant, value head {default('optimizer.critic_lr'):.0e} |".replace(
            "e-0", "e-"
        )
        in ppo
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_page_says_what_it_must(preset):
    page = (DOCS / "presets" / f"{preset}.md").read_text()
    sections = ["Formula", "Settings", "Source", "Beside TRL", "When to use it", "What to watch", "Known bias"]
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == sections
    assert "$$" in page.split("## Formula")[1].split("\n## ")[0]
    assert re.search(r"arXiv:\d{4}\.\d{5}|19\d\d|20\d\d", page.split("## Source")[1].split("\n## ")[0])
    assert "(../metrics.md)" in page
