"""A task that a tiny model learns in a few steps: to write vowels. Its prompts are all different."""

import upslope

WORDS = ("sea", "sky", "fog", "oak", "ice", "sun", "owl", "elm", "bay", "fir", "ash", "dew")
RECIPE = {
    "model": {"name": "tiny-llama"},
    "task": {"name": "vowel_task:task"},
    "reward": {"isolation": "none"},
    "algorithm": {"preset": "reinforce"},
    "sampling": {"max_new_tokens": 4},
    "optimizer": {"warmup_steps": 0},
    "training": {"steps": 4, "prompts_per_step": 4},
    "evaluation": {"every_steps": 2},
    "run": {"trackers": [], "samples_per_step": 0, "samples_per_evaluation": 0, "checkpoint_every_steps": 1},
}


def vowels(completion):
    """Share of vowels among the letters, so from 0 to 1."""
    return sum(letter in "aeiou" for letter in completion) / max(1, len(completion))


def task():
    held_out = [f"tell {word} {other}" for word in WORDS for other in WORDS[:3]]
    return upslope.Task(prompts=[f"say {word}" for word in WORDS], reward=vowels, eval_prompts=held_out, name="vowels")
