import pytest

from upslope.records import Rollout


@pytest.fixture
def rollout_of():
    """A rollout of a prompt that ended by itself after two actions, with the given text."""

    def make(prompt, text, stop_reason="eos"):
        return Rollout(prompt, 0, 0, (1, 2, 3), (2, 3), (0, 1), (0.0, 0.0), text, stop_reason)

    return make
