"""The other recipes of examples/ run as they are written: python benchmarks/recipes.py [NAME ...].

intent (banking77), sentiment_zh (chnsenticorp_hotel_zh), ner_zh (weibo_ner_zh) and summary (dialogsum), one seed each:
the task's metric on the held-out rows that the recipe evaluates on, before the first step and after the last, as the
run itself logged them. The two Chinese ones show a causal model as classifier and as tagger; sentiment_zh runs a second
time with minilm-l6, and the note says what share of the text that one does not know.
"""

from __future__ import annotations

from pathlib import Path

from learning import EXAMPLES, arguments, folder_of, minutes, trained
from results import Case, learnt, report
from transformers import AutoTokenizer

import upslope
from upslope.evaluation.held_out import gain
from upslope.evaluation.intervals import Interval
from upslope.policies.loading import load_source
from upslope.report.run import Run
from upslope.tasks import task_of

ENCODER = "minilm-l6"
CHINESE = "recipes/sentiment_zh.toml"


def case(name: str, run: Run) -> Case:
    """Before and after, from the run's own evaluations."""
    found = gain(list(run.events("evaluate")))
    assert found is not None
    before, after, gained = (_estimate(i) for i in (found.before.interval, found.after.interval, found.gain))
    names = (f"step 0, {found.before.num_prompts} rows", f"step {found.after.step}")
    return learnt(name, before, after, gained, names=names, unit="metric", wanted="")


def _estimate(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def unknown_share() -> float:
    """Share of the encoder's tokens of the Chinese reviews that are its unknown token."""
    task = task_of(upslope.Recipe.load(EXAMPLES / CHINESE))
    tokenizer = AutoTokenizer.from_pretrained(load_source(ENCODER))
    read = tokenizer([prompt.text for prompt in task.eval_prompts], add_special_tokens=False)["input_ids"]
    tokens = [token for row in read for token in row]
    return sum(token == tokenizer.unk_token_id for token in tokens) / len(tokens)


def main() -> None:
    parser = arguments(__doc__, seeds=1)
    parser.add_argument("names", nargs="*", default=["intent", "sentiment_zh", "ner_zh", "summary"])
    options = parser.parse_args()
    folder = folder_of(options)
    runs = {name: run for name in options.names for name, run in run_of(name, folder, options.limit).items()}
    notes = [f"{unknown_share():.2f} of the tokens that {ENCODER} makes of the Chinese reviews are its unknown token"]
    report(
        "recipes",
        [case(*each) for each in runs.items()],
        results=options.results,
        notes=[*notes, minutes(*runs.values())],
    )


def run_of(name: str, folder: Path, limit: int | None) -> dict[str, Run]:
    """The run of a recipe by what it is called, after that of its warm start where it has one."""
    recipe, how = f"recipes/{name}.toml", {"seed": 0, "limit": limit}
    if name == "ner_zh":
        warm = trained("recipes/ner_zh_warm.toml", folder / "ner_zh_warm", **how)
        start = {"model.name": str(warm.model_path)}
        return {"ner_zh, supervised": warm, "ner_zh": trained(recipe, folder / name, **how, **start)}
    runs = {name: trained(recipe, folder / name, **how)}
    if name == "sentiment_zh":
        runs[f"{name}, {ENCODER}"] = trained(recipe, folder / f"{name}-encoder", **how, **{"model.name": ENCODER})
    return runs


if __name__ == "__main__":
    main()
