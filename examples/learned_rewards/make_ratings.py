"""Writes ratings.jsonl: what somebody might say on the page of `upslope rate RUN --stars` of answers to the complaints.

    python examples/learned_rewards/make_ratings.py

An apology with a next step gets five stars, a next step alone four, a curt answer two, and a rude one a single star.
"""

import json
import sys
from pathlib import Path

from upslope.report.questions import questions
from upslope.report.ratings import Ratings

HERE = Path(__file__).parent
CURT = ("OK.", "Maybe next week.", "We will see.", "Noted.")
RUDE = ("That is not our problem.", "Read the terms first.", "You should have been more careful.", "Ask somebody else.")


def rated(number: int, step: str) -> dict[str, int]:
    """Two answers to the complaint of this number, and their stars."""
    if number % 2:
        return {f"I am sorry about that. {step}": 5, RUDE[number // 2 % 4]: 1}
    return {step: 4, CURT[number // 2 % 4]: 2}


def main(path: Path = HERE / "ratings.jsonl") -> Ratings:
    """The store at this path, made anew."""
    files = (HERE / "demonstrations.jsonl", HERE / "demonstrations_held_out.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    shown = [(row["prompt"], row["completion"].split(" Next: ")[1]) for row in rows]
    stars, samples = {}, []
    for number, (complaint, step) in enumerate(shown):
        for place, (text, given) in enumerate(rated(number, step).items()):
            prompt = [{"role": "user", "content": complaint}]
            samples.append({"kind": "sample", "step": 1, "group": number, "sample": place, "stop_reason": "eos"})
            samples[-1] |= {"prompt": prompt, "text": text}
            stars[complaint, text] = given
    path.unlink(missing_ok=True)
    store = Ratings(path)
    for question in questions(samples, stars=True, seed=0):
        given = stars[question.prompt[0]["content"], question.answers[0].text]
        store.add(question, given, rater="example", seconds=2.0, seed=0)
    return store


if __name__ == "__main__":
    print(f"{len(main(*map(Path, sys.argv[1:])).standing())} ratings")
