"""Values of preference and reward-model losses beside TRL's, on the same rows: python benchmarks/preference_losses.py.

Both sides load the same tiny policy and reference and read the same pairs; TRL's trainers tokenise, pad and compute.
KTO is given TRL's estimate of the KL, whose mismatched rows are others than upslope's, and ORPO is compared in its odds
ratio. Ends with an error where a value differs by more than 1e-5.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from harness import Side, arguments, measure
from results import machine

TOLERANCE = 1e-5
BETA, FLIPS, CENTERING = 0.3, 0.2, 0.05
PAIRS = [
    {"prompt": "say sea", "chosen": " sea.", "rejected": " a lake!", "margin": 0.5},
    {"prompt": "say sky, please", "chosen": " sky", "rejected": " no", "margin": 0.0},
    {"prompt": "x", "chosen": " y and z and more", "rejected": " z", "margin": 1.0},
    {"prompt": "count to 3", "chosen": " 1 2 3", "rejected": " 3 2 1 0", "margin": 0.2},
]
LOSSES = ("dpo", "conservative", "robust_dpo", "ipo", "kto", "orpo", "bradley_terry")
TRL_LOSS = {"dpo": "sigmoid", "robust_dpo": "robust", "ipo": "ipo"}


def prepare(folder: Path) -> None:
    """Reference, policy and reward model as ordinary folders."""
    import torch

    from upslope.policies.loading import load_policy
    from upslope.policies.tiny import tiny_model

    torch.manual_seed(0)
    model, tokenizer = tiny_model("tiny-llama")
    for name in ("reference", "policy"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
    held: dict[str, Any] = {"critic": None, "keep_reference": False, "lora": None, "gradient_checkpointing": False}
    reward = load_policy(
        str(folder / "policy"),
        kind="reward",
        labels=("reward",),
        dtype="float32",
        freeze=(),
        device="cpu",
        seed=0,
        **held,
    )
    reward.save(folder / "reward")


def upslope(turn: Any, *, folder: str) -> None:
    """Every loss by the trainers' own objectives."""
    import torch
    from transformers import AutoModelForCausalLM

    from upslope import Recipe, Task, collate
    from upslope.losses import orpo
    from upslope.training import preference
    from upslope.training.judged import Judged, judged_rows
    from upslope.training.launch import policy_of
    from upslope.training.reward_model import objective_of

    prompts = Task(prompts=PAIRS).prompts
    values: dict[str, Any] = {}

    class Given:
        recipe: Any
        policy: Any

    for name in ("dpo", "conservative", "robust_dpo", "ipo", "kto", "orpo"):
        loss = "dpo" if name == "conservative" else name
        flips = FLIPS if name in ("conservative", "robust_dpo") else 0.0
        session: Any = Given()
        settings = {"loss": loss, "beta": BETA, "flip_rate": flips}
        session.recipe = Recipe.resolve(
            {"method": "preference", "model": {"name": f"{folder}/reference"}, "preference": settings}
        )
        session.policy = policy_of(session.recipe)
        session.policy.model.load_state_dict(AutoModelForCausalLM.from_pretrained(f"{folder}/policy").state_dict())
        items = [Judged(prompt, judged_rows(session.policy, prompt)) for prompt in prompts]
        batch, _ = collate([row for group, item in enumerate(items) for row in item.grouped(group)])
        with torch.no_grad():
            logprobs = preference._logprobs(session.policy, batch, 1000)
            if loss != "orpo":
                drawn = preference.Drawn(items, list(range(len(items))), {})
                batch = batch.replace(ref_logprobs=preference._references(session, batch, drawn, {}))
            scores = preference._row_scores(session.recipe.preference, logprobs, batch)
            if name == "kto":
                values["log_ratios"] = scores.tolist()
            elif name == "orpo":
                chosen, rejected = scores.view(-1, 2).unbind(1)
                ones = torch.ones(len(items))
                whole = orpo(chosen, rejected, beta=BETA, weights=ones, denominator=float(len(items)))
                values |= {"orpo": float(whole + chosen.mean()), "means": [chosen.tolist(), rejected.tolist()]}
            else:
                values[name] = float(preference.objective(session, batch, items, anchor=0.0)(batch, batch.actions).loss)
    recipe = Recipe.resolve({"method": "reward_model", "model": {"name": f"{folder}/reward"}})
    policy = policy_of(recipe)
    items = [Judged(prompt, judged_rows(policy, prompt)) for prompt in prompts]
    batch, _ = collate([row for group, item in enumerate(items) for row in item.grouped(group)])
    settings = recipe.reward_model.model_copy(update={"centering_coef": CENTERING})
    with torch.no_grad():
        values["bradley_terry"] = float(objective_of(policy, settings, items)(items)(batch, batch.actions).loss)
    turn()
    turn(**values)


def trl(turn: Any, *, folder: str) -> None:
    """Every loss by TRL's trainers, on one batch of all pairs."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
    from trl.experimental.orpo import ORPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/reference")
    tokenizer.chat_template = None
    common: dict[str, Any] = {
        "per_device_train_batch_size": 2 * len(PAIRS),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    sides = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in PAIRS]

    def models() -> dict[str, Any]:
        return {
            "model": AutoModelForCausalLM.from_pretrained(f"{folder}/policy"),
            "ref_model": AutoModelForCausalLM.from_pretrained(f"{folder}/reference"),
            "processing_class": tokenizer,
        }

    def value(trainer: Any) -> float:
        (batch,) = list(trainer.get_train_dataloader())
        trainer.model.eval()
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, batch))

    values: dict[str, Any] = {}
    for name, loss in {**TRL_LOSS, "conservative": None}.items():
        if loss is None:  # TRL has no loss of this name: it is (1 - e) of the pair's and e of the flipped pair's
            flipped = [{"prompt": r["prompt"], "chosen": r["rejected"], "rejected": r["chosen"]} for r in sides]
            settings = DPOConfig(tempfile.mkdtemp(), beta=BETA, loss_type=["sigmoid"], **common)
            turned = value(DPOTrainer(args=settings, train_dataset=Dataset.from_list(flipped), **models()))
            values[name] = (1 - FLIPS) * values["dpo"] + FLIPS * turned
            continue
        smoothing = FLIPS if name == "robust_dpo" else 0.0
        settings = DPOConfig(tempfile.mkdtemp(), beta=BETA, loss_type=[loss], label_smoothing=smoothing, **common)
        values[name] = value(DPOTrainer(args=settings, train_dataset=Dataset.from_list(sides), **models()))
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in sides
        for side in ("chosen", "rejected")
    ]
    settings = KTOConfig(tempfile.mkdtemp(), beta=BETA, **common)
    trainer = KTOTrainer(args=settings, train_dataset=Dataset.from_list(rows), **models())
    values["kto"] = value(trainer)
    values["kto_kl"] = next(m["kl"][-1] for m in trainer._metrics.values() if m.get("kl"))
    scores = AutoModelForSequenceClassification.from_pretrained(f"{folder}/reward")
    settings = RewardConfig(tempfile.mkdtemp(), center_rewards_coefficient=CENTERING, **common)
    judged = Dataset.from_list([{**row} for row in PAIRS])
    values["bradley_terry"] = value(
        RewardTrainer(model=scores, args=settings, train_dataset=judged, processing_class=tokenizer)
    )

    class Bare:
        beta = BETA

        class accelerator:  # noqa: N801
            device = "cpu"

    def odds(means: list[list[float]]) -> float:
        chosen, rejected = torch.tensor(means)
        return float(-ORPOTrainer.odds_ratio_loss(Bare(), chosen, rejected)[0].mean())

    turn()
    means = json.loads(Path(folder, "means.json").read_text())
    turn(**values, orpo=odds(means))


def main() -> None:
    options = arguments(__doc__, repeats=1).parse_args()
    folder = Path(tempfile.mkdtemp(prefix="upslope-losses-"))
    prepare(folder)
    sides = {
        "upslope": Side("upslope", __file__, "upslope", {"folder": str(folder)}),
        "TRL": Side("TRL", __file__, "trl", {"folder": str(folder)}, environment="trl"),
    }
    found, versions = {}, {}
    for name, side in sides.items():
        (measured,) = measure([side], repeats=1, warmups=0, peers=options.peers)
        if measured.problem:
            raise SystemExit(f"{name} could not run: {measured.problem}")
        found[name], versions[name] = measured.answers[0], measured.versions
        if name == "upslope":
            (folder / "means.json").write_text(json.dumps(found[name]["means"]))
    own, peer = found["upslope"], found["TRL"]
    own["kto"] = _kto(own["log_ratios"], peer["kto_kl"])
    cases = [{"loss": n, "upslope": own[n], "trl": peer[n], "difference": abs(own[n] - peer[n])} for n in LOSSES]
    for case in cases:
        print(f"{case['loss']:<14} {case['upslope']:.7f}  TRL {case['trl']:.7f}  differ by {case['difference']:.1e}")
    document = {"benchmark": "preference_losses", "machine": machine(), "versions": versions, "cases": cases}
    (options.results / "preference_losses.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if wrong := [case["loss"] for case in cases if not case["difference"] <= TOLERANCE]:
        raise SystemExit(f"values differ by more than {TOLERANCE:g}: {', '.join(wrong)}")


def _kto(log_ratios: list[float], reference_kl: float) -> float:
    import torch

    from upslope.losses import kto

    count = len(log_ratios)
    return float(
        kto(
            torch.tensor(log_ratios),
            torch.arange(count) % 2 == 0,
            reference_kl=reference_kl,
            beta=BETA,
            desirable_weight=1.0,
            undesirable_weight=1.0,
            weights=torch.ones(count),
            denominator=float(count),
        )
    )


if __name__ == "__main__":
    main()
