"""How likely a language model finds what was written. Imports no torch before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.errors import ModelError, RewardError

if TYPE_CHECKING:
    from upslope.policies.causal import CausalPolicy
    from upslope.records import Rollout


@dataclass(frozen=True)
class Likelihood:
    """A batch function: log-probabilities of completions under a causal language model; made by `likelihood`.

    The model is loaded once a process. Where the function is rebuilt in the reward worker that happens while the worker
    starts, so that neither the time a row may take nor its memory has to cover it.
    """

    model: str
    per_token: bool
    given_prompt: bool
    max_tokens: int
    device: str

    __name__ = "likelihood"  # of instances: what the term is called

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        load_causal(self.model, self.device)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """One number a row, in nats; NaN, for which the row is dropped and counted, where the model's context is too
        short."""
        policy = load_causal(self.model, self.device)
        texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        given = [prompt if self.given_prompt else None for prompt in prompts]
        rows = [completion_row(policy, *pair) for pair in zip(given, texts, strict=True)]
        fitting = [row for row in rows if row is not None]
        sums = iter(_logprobs(policy, fitting, max_tokens=self.max_tokens))
        return [math.nan if row is None else next(sums) / (len(row.actions) if self.per_token else 1) for row in rows]


def completion_row(
    policy: CausalPolicy, prompt: Any, text: str, *, actions: tuple[int, ...] | None = None
) -> Rollout | None:
    """The text and its end, or the given actions, after the prompt (None: after the beginning of a text).

    None where the model cannot read all of it.

    Raises: RewardError for a tokenizer without an end of sequence.
    """
    from upslope.records import Prompt

    tokenizer = policy.tokenizer
    end = tokenizer.eos_token_id
    if end is None:
        raise RewardError(f"the tokenizer of {tokenizer.name_or_path!r} has no end of sequence; take another model")
    if prompt is None:
        encoded = Prompt(0, "", tokens=(end if tokenizer.bos_token_id is None else tokenizer.bos_token_id,))
    else:
        encoded = policy.encode(Prompt(0, prompt if isinstance(prompt, str) else tuple(prompt)))
    if actions is None:
        actions = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
    room = policy.room(encoded)
    if room is not None and len(actions) > room:
        return None
    return policy.row(encoded, actions, (0.0,) * len(actions), text=text, stop_reason="eos")


def likelihood(
    model: str, *, per_token: bool = True, given_prompt: bool = True, max_tokens: int = 4096, device: str = "cpu"
) -> Likelihood:
    """log p(completion and its end | prompt) in nats under a causal model: the mean over tokens, or their sum.

    model is a run, a folder, a hub id or an embedded name. given_prompt False reads the completion alone, for how
    fluent it is. The end counts: writing nothing is no way out, and a cut text is charged for ending there. A chat goes
    through the model's own template. max_tokens are computed at a time.
    Raises: ModelError or DependencyError where an embedded model cannot be fetched; as the worker starts, RewardError
    where a model cannot be loaded.
    """
    return Likelihood(resolved(model), per_token, given_prompt, max_tokens, device)


def resolved(name: str) -> str:
    """What to load for a name: a run's model, an embedded model's folder; folders by their full path, as the worker may
    be elsewhere.

    Raises: ModelError where a run has no model yet; ModelError or DependencyError where an embedded one cannot be had.
    """
    from upslope.policies.loading import load_source

    folder = Path(name)
    if not folder.is_dir():
        return load_source(name)
    if (folder / "recipe.toml").is_file():
        folder = folder / "model"
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} has no final model yet: {folder} is written when training ends")
    return str(folder.resolve())


@cache
def load_causal(model: str, device: str) -> CausalPolicy:
    """A causal model for reading, loaded once a process."""
    from upslope.policies.loading import load_policy

    held: Mapping[str, Any] = {"critic": None, "keep_reference": False, "lora": None, "gradient_checkpointing": False}
    return load_policy(model, dtype="float32", freeze=(), device=device, seed=0, **held)  # type: ignore[return-value]


def _logprobs(policy: CausalPolicy, rows: Sequence[Rollout], *, max_tokens: int) -> list[float]:
    """The log-probability of each row's actions."""
    import torch

    from upslope.policies.sampling import Sampling
    from upslope.records import collate

    if not rows:
        return []
    batch = collate(rows)[0].to(policy.device)
    plain = Sampling(temperature=1.0, top_k=None, top_p=None, max_new_tokens=1, stop=())
    found = [0.0] * len(rows)
    with torch.inference_mode():
        for picked in policy.micro_batches(batch, max_tokens=max_tokens):
            piece = batch.select(picked)
            scored = piece.split_rows(policy.score(piece, sampling=plain).logprobs)
            for row, logprobs in zip(picked.tolist(), scored, strict=True):
                found[row] = float(logprobs.double().sum())
    return found
