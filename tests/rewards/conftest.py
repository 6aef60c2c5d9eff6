import pytest

from upslope.records import Prompt, Rollout


@pytest.fixture
def rollout():
    """Makes a rollout with the given text; num_actions actions after a prompt of two tokens."""

    def make(text, *, num_actions=3, content="Question?", stop_reason="eos", sample=0, **columns):
        prompt = Prompt(id=sample, content=content, columns=columns)
        return Rollout(
            prompt=prompt,
            group=0,
            sample=sample,
            tokens=tuple(range(2 + num_actions)),
            actions=tuple(range(10, 10 + num_actions)),
            positions=tuple(range(1, 1 + num_actions)),
            engine_logprobs=(-0.5,) * num_actions,
            text=text,
            stop_reason=stop_reason,
        )

    return make
