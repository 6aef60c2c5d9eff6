"""Log-probabilities of completions, against the model's own forward one text at a time."""

import math
import pickle

import cloudpickle
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from upslope.errors import ModelError
from upslope.policies.tiny import tiny_model
from upslope.rewards import RewardTerm, Scorer, language_model, likelihood
from upslope.tasks import load_terms

CHAT = [{"role": "user", "content": "2 + 2?"}]
CASES = [("once upon", " a time"), ("once upon", " b"), (CHAT, "4"), ("x", "äあ"), ("once", "")]


@pytest.fixture(scope="module", params=["tiny-gpt2", "tiny-llama"])
def folder(request, tmp_path_factory):
    """A random model as Transformers saves it."""
    torch.manual_seed(3)
    model, tokenizer = tiny_model(request.param)
    path = tmp_path_factory.mktemp("model") / request.param
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def by_transformers(folder, prompt, completion, *, given_prompt=True):
    """The log-probabilities of the completion's tokens and of the end after it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if not given_prompt:
        before = [tokenizer.eos_token_id]
    elif isinstance(prompt, str):
        before = tokenizer(prompt)["input_ids"]
    else:
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    written = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logprobs = model(torch.tensor([[*before, *written]])).logits[0].log_softmax(-1)
    return [logprobs[len(before) - 1 + place, token].item() for place, token in enumerate(written)]


@pytest.mark.parametrize("given_prompt", [True, False])
def test_values_are_the_models_own(folder, given_prompt):
    """Many texts at a time, in pieces of a few tokens, equal one text at a time; the end is counted."""
    prompts, texts = zip(*CASES, strict=True)
    own = [by_transformers(folder, *case, given_prompt=given_prompt) for case in CASES]
    means = likelihood(folder, given_prompt=given_prompt, max_tokens=24)(prompts=prompts, completions=texts)
    assert means == pytest.approx([sum(values) / len(values) for values in own], abs=1e-5)
    sums = likelihood(folder, per_token=False, given_prompt=given_prompt)(prompts=prompts, completions=texts)
    assert sums == pytest.approx([math.fsum(values) for values in own], abs=1e-4)
    assert len(own[-1]) == 1


@pytest.mark.parametrize("folder", ["tiny-llama"], indirect=True)
def test_as_a_term_in_the_worker(folder, rollout):
    (term,) = load_terms([{"function": "likelihood", "model": folder, "weight": 0.5}])
    rows = [rollout(text, content=content if isinstance(content, str) else tuple(content)) for content, text in CASES]
    with Scorer([term], timeout_s=60.0) as scorer:
        scored = scorer.score(rows)
    expected = [sum(values) / len(values) for values in (by_transformers(folder, *case) for case in CASES)]
    assert [row.metrics["likelihood"] for row in scored] == pytest.approx(expected, abs=1e-5)
    assert [row.score for row in scored] == pytest.approx([value / 2 for value in expected], abs=1e-5)


@pytest.mark.parametrize("folder", ["tiny-llama"], indirect=True)
def test_the_model_is_loaded_once_as_the_function_is_rebuilt(folder):
    """The worker does that while it starts, so the time of a row need not cover it."""
    sent = cloudpickle.dumps(likelihood(folder))
    language_model.load_causal.cache_clear()
    rebuilt = pickle.loads(sent)
    assert language_model.load_causal.cache_info().misses == 1
    rebuilt(prompts=["a"], completions=["b"])
    assert language_model.load_causal.cache_info().misses == 1


@pytest.mark.parametrize("folder", ["tiny-llama"], indirect=True)
def test_a_row_beyond_the_context_is_dropped_and_counted(folder, rollout):
    with Scorer([RewardTerm(likelihood(folder))], timeout_s=60.0, isolation="none") as scorer:
        rows = scorer.score([rollout("a"), rollout("a" * 5000)])
    assert [row.failure for row in rows] == [None, "likelihood: returned nan"]


def test_a_model_that_is_not_there_is_told_as_the_function_is_rebuilt():
    with pytest.raises(ModelError, match=r"model './nowhere' is no folder"):
        pickle.loads(cloudpickle.dumps(likelihood("./nowhere")))


def test_a_real_model_prefers_its_own_language(data_folder):
    """stories260k, which was trained on children's stories, against the same words in disorder."""
    model = likelihood(str(data_folder / "models" / "stories260k"), given_prompt=False)
    story, disorder = model(
        prompts=["", ""],
        completions=["Once upon a time, there was a little girl.", "girl little a was there, time a upon Once."],
    )
    assert story > disorder + 1.0
