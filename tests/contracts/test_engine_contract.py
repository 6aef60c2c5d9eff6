"""What every engine that writes promises: its rows are samples of the policy, and say exactly what was sampled."""

import pytest
import torch
from torch.testing import assert_close
from transformers import T5ForConditionalGeneration

from upslope.errors import ModelError
from upslope.losses import ratio_statistics
from upslope.policies.policy import Policy
from upslope.records import Prompt, Rollout, collate


def prompts_of(policy, texts=("12+7=", "a", "Say something long: ", "b\n")) -> list[Prompt]:
    return [policy.encode(Prompt(id=10 + i, content=text)) for i, text in enumerate(texts)]


@pytest.fixture
def kind(writer):
    return writer[0]


@pytest.fixture
def make_engine(writer):
    return writer[1]


@pytest.fixture
def policy(kind) -> Policy:
    return kind.build()


@pytest.fixture
def engine(make_engine, policy):
    engine = make_engine()
    engine.load(policy, version=3)
    return engine


def same(rollout: Rollout):
    return rollout.prompt.id, rollout.sample, rollout.actions, rollout.stop_reason, rollout.text


def test_rows_say_what_was_sampled(engine, kind, policy, sampling):
    """CHECKS 11, 18: the ids kept are those sampled, though many do not survive decode and encode, none cut at 50."""
    rollouts = engine.sample(prompts_of(policy), group_size=60, sampling=sampling(3.0), seed=1)
    assert [(r.group, r.sample) for r in rollouts] == [(g, s) for g in range(4) for s in range(60)]
    for rollout in rollouts:
        source, begin = ((), rollout.prompt.tokens) if kind.kind == "causal" else (rollout.prompt.tokens, policy.start)
        start = len(begin)
        assert rollout.source == source
        assert rollout.tokens == begin + rollout.actions
        assert [rollout.tokens[position + 1] for position in rollout.positions] == list(rollout.actions)
        assert rollout.positions == tuple(range(start - 1, start - 1 + len(rollout.actions)))
        assert len(rollout.engine_logprobs) == len(rollout.actions)
        assert rollout.version == 3
    survive = [policy.tokenizer(r.text)["input_ids"] == list(r.actions) for r in rollouts]
    assert sum(survive) < 0.8 * len(rollouts)
    first = {r.actions[0] for r in rollouts if r.group == 0}
    ranks = kind.logits(policy, rollouts[0])[0].argsort(descending=True).tolist()
    assert len(first) > 25
    assert max(ranks.index(token) for token in first) >= 50


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, None), (0.6, None, None), (1.5, 7, None), (1.0, None, 0.6)]
)
def test_engine_logprobs_are_the_trainers(engine, policy, sampling, temperature, top_k, top_p):
    """CHECKS 15, 18, 22: at any sampling the engine's log-probabilities equal the recomputed; the gap is near 0."""
    setting = sampling(temperature, top_k, top_p)
    batch, empty = collate(engine.sample(prompts_of(policy), group_size=4, sampling=setting, seed=1))
    assert not empty
    with torch.no_grad():
        recomputed = policy.score(batch, sampling=setting).logprobs
    assert batch.engine_logprobs.std() > 0.1
    assert_close(batch.engine_logprobs, recomputed, rtol=0, atol=2e-5)
    gap = ratio_statistics(recomputed, batch.engine_logprobs)
    assert abs(gap.k3) < 1e-8
    assert gap.effective_sample_size > 1 - 1e-6
    assert gap.max_deviation < 2e-5


def test_after_a_step_the_engine_has_the_new_weights(engine, policy, sampling):
    """CHECKS 21: after an optimiser step and load, engine and trainer agree to 1e-4, and the old numbers are gone."""
    setting = sampling(0.8)
    before = engine.sample(prompts_of(policy), group_size=2, sampling=setting, seed=1)
    optimizer = torch.optim.AdamW(policy.module.parameters(), lr=1e-2)
    batch, _ = collate(before)
    policy.score(batch, sampling=setting).logprobs.mean().backward()
    optimizer.step()
    engine.load(policy, version=4)
    after = engine.sample(prompts_of(policy), group_size=2, sampling=setting, seed=1)
    batch, _ = collate(after)
    with torch.no_grad():
        recomputed = policy.score(batch, sampling=setting).logprobs
    assert_close(batch.engine_logprobs, recomputed, rtol=0, atol=1e-4)
    assert {r.version for r in after} == {4}
    assert abs(before[0].engine_logprobs[0] - after[0].engine_logprobs[0]) > 1e-2


def test_same_seed_same_rows_in_any_company(kind, make_engine, policy, engine, sampling):
    """CHECKS 39: a row depends on seed, prompt and sample alone; members of a group differ; another seed differs."""
    prompts = prompts_of(policy)
    whole = engine.sample(prompts, group_size=5, sampling=sampling(), seed=7)
    again = make_engine()
    again.load(kind.build(), version=0)
    assert [same(r) for r in again.sample(prompts, group_size=5, sampling=sampling(), seed=7)] == list(map(same, whole))
    backwards = engine.sample(prompts[::-1], group_size=5, sampling=sampling(), seed=7)
    assert sorted(map(same, backwards)) == sorted(map(same, whole))
    for prompt in prompts:
        alone = engine.sample([prompt], group_size=2, sampling=sampling(), seed=7)
        assert list(map(same, alone)) == [same(r) for r in whole if r.prompt.id == prompt.id][:2]
    few = make_engine(max_rows=3)
    few.load(policy, version=0)
    assert list(map(same, few.sample(prompts, group_size=5, sampling=sampling(), seed=7))) == list(map(same, whole))
    assert len({r.actions for r in whole}) == len(whole)
    other = engine.sample(prompts, group_size=5, sampling=sampling(), seed=8)
    assert len({r.actions for r in other} & {r.actions for r in whole}) < len(whole) / 4  # short rows may be equal
    assert {r.prompt.id for r in engine.sample(prompts[:1] * 2, group_size=1, sampling=sampling(), seed=7)} == {10}
    twice = engine.sample(prompts[:1] * 2, group_size=2, sampling=sampling(), seed=7)
    assert len({r.actions for r in twice}) == 4


def test_first_tokens_are_distributed_as_the_policy_says(engine, kind, policy, sampling):
    """Chi-square of 3,000 first tokens against softmax(logits / 0.7), at a fixed seed."""
    prompt = prompts_of(policy)[0]
    rollouts = engine.sample([prompt], group_size=3000, sampling=sampling(0.7, max_new_tokens=1), seed=5)
    expected = (kind.logits(policy, rollouts[0])[0].double() / 0.7).softmax(0)
    counts = torch.bincount(torch.tensor([r.actions[0] for r in rollouts]), minlength=len(expected))
    common = expected * 3000 >= 5
    observed = torch.cat([counts[common].double(), counts[~common].sum()[None].double()])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]) * 3000
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    degrees = len(wanted) - 1
    assert degrees >= 10
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


def test_greedy_takes_the_likeliest_token(engine, kind, policy, sampling):
    rollouts = engine.sample(prompts_of(policy), group_size=2, sampling=sampling(0.0), seed=1)
    for rollout in rollouts:
        rows = kind.logits(policy, rollout)
        for logits, action, logprob in zip(rows, rollout.actions, rollout.engine_logprobs, strict=True):
            assert action == int(logits.argmax())
            assert logprob == pytest.approx(float(logits.log_softmax(0).max()), abs=1e-5)
    assert rollouts[0].actions == rollouts[1].actions


def test_the_first_end_of_sequence_is_the_last_action(engine, policy, sampling):
    """CHECKS 4, 6: any of several EOS ids ends a row and is its last action; a row without one keeps all."""
    policy.model.generation_config.eos_token_id = [5, 30, 31, *range(40, 60)]
    ends = {*policy.model.generation_config.eos_token_id, policy.tokenizer.eos_token_id}
    assert policy.eos_ids == ends
    rollouts = engine.sample(prompts_of(policy), group_size=20, sampling=sampling(3.0, max_new_tokens=6), seed=1)
    ended = [r for r in rollouts if r.stop_reason == "eos"]
    cut = [r for r in rollouts if r.stop_reason == "length"]
    assert len(ended) + len(cut) == 80
    assert len({r.actions[-1] for r in ended}) > 4
    assert all(r.actions[-1] in ends and not ends & {*r.actions[:-1]} and r.terminated for r in ended)
    assert len(cut) > 5
    assert all(len(r.actions) == 6 and not ends & {*r.actions} and not r.terminated for r in cut)
    assert {len(r.actions) for r in ended} >= {1, 2, 3}
    batch, _ = collate(rollouts)
    assert int(sum(batch.actions == 5)) == sum(r.actions[-1] == 5 for r in ended)
    text = policy.tokenizer.decode(ended[0].actions[:-1], skip_special_tokens=True)
    assert ended[0].text == text


def test_pad_equal_to_end_changes_nothing(engine, policy, sampling):
    """CHECKS 5: with pad == EOS the same rows are sampled, and EOS is still the last, trained action."""
    policy.model.generation_config.eos_token_id = list(range(40, 70))
    before = engine.sample(prompts_of(policy), group_size=6, sampling=sampling(), seed=1)
    policy.tokenizer.pad_token_id = 45
    after = engine.sample(prompts_of(policy), group_size=6, sampling=sampling(), seed=1)
    assert list(map(same, after)) == list(map(same, before))
    batch, _ = collate(after)
    with torch.no_grad():
        assert_close(policy.score(batch, sampling=sampling()).logprobs, batch.engine_logprobs, rtol=0, atol=2e-5)
    ends = batch.actions[batch.num_actions.cumsum(0) - 1]
    assert sum(end in policy.eos_ids for end in ends.tolist()) == int(batch.terminated.sum()) > 5


def test_stop_strings_end_a_row(engine, policy, sampling):
    """A stop string ends the row where it is complete and is no part of its text; its tokens are actions."""
    free = engine.sample(prompts_of(policy), group_size=8, sampling=sampling(), seed=1)
    longest = max(free, key=lambda r: len(r.text))
    stop = longest.text[3:5]
    assert len(stop) == 2
    stopped = engine.sample(prompts_of(policy), group_size=8, sampling=sampling(stop=("nowhere", stop)), seed=1)
    found = [r for r in stopped if r.stop_reason == "stop"]
    assert found
    for before, after in zip(free, stopped, strict=True):
        assert before.actions[: len(after.actions)] == after.actions
        assert stop not in after.text
        if stop in before.text:
            assert after.stop_reason == "stop"
            assert after.text == before.text[: before.text.index(stop)]
            assert policy.tokenizer.decode(after.actions, skip_special_tokens=True).endswith(stop)
            assert after.terminated
        else:
            assert same(before) == same(after)


def test_a_special_token_may_be_a_stop_string(engine, policy, sampling):
    """The row ends there; special tokens, that one included, are no part of its text."""
    setting = sampling(3.0, max_new_tokens=40, stop=("<pad>", "ZZZ"))
    rollouts = engine.sample(prompts_of(policy), group_size=12, sampling=setting, seed=1)
    found = [r for r in rollouts if r.stop_reason == "stop"]
    assert len(found) > 5
    pad, unknown = policy.tokenizer.pad_token_id, policy.tokenizer.unk_token_id
    assert any(unknown in r.actions for r in found)
    for rollout in found:
        assert [at for at, action in enumerate(rollout.actions) if action == pad] == [len(rollout.actions) - 1]
        assert rollout.text == policy.tokenizer.decode([a for a in rollout.actions if a not in (pad, unknown)])


def test_non_finite_logits_are_reported(engine, policy, sampling):
    """A model that has broken down gives rows whose log-probabilities say so, never an invented number."""
    with torch.no_grad():
        next(policy.model.parameters())[:] = float("nan")
    for temperature in (0.0, 1.0):
        for rollout in engine.sample(prompts_of(policy), group_size=2, sampling=sampling(temperature), seed=1):
            assert not any(torch.isfinite(torch.tensor(rollout.engine_logprobs)))
            assert rollout.failure == "non-finite logits"
            assert max(rollout.actions) < len(policy.tokenizer)


def test_sampling_leaves_the_policys_mode_alone(kind, make_engine, sampling):
    """CHECKS 16: dropout stays off and train mode (checkpointing) comes back, after an error as well."""
    policy = kind.build(checkpoint=True, **dict.fromkeys(kind.noisy, 0.1))
    engine = make_engine()
    engine.load(policy, version=0)
    prompts = prompts_of(policy)
    batch, _ = collate(engine.sample(prompts, group_size=2, sampling=sampling(), seed=1))
    assert policy.module.training
    assert_close(policy.score(batch, sampling=sampling()).logprobs, batch.engine_logprobs, rtol=0, atol=2e-5)
    with pytest.raises(IndexError):
        engine.sample([Prompt(id=0, content="x", tokens=(10_000,))], group_size=1, sampling=sampling(), seed=1)
    assert policy.module.training


def test_impossible_requests_are_refused(make_engine, engine, policy, sampling):
    with pytest.raises(ModelError, match="load"):
        make_engine().sample(prompts_of(policy), group_size=1, sampling=sampling(), seed=1)
    with pytest.raises(ModelError, match=r"prompt 10 has no tokens"):
        engine.sample([Prompt(id=10, content="x")], group_size=1, sampling=sampling(), seed=1)
    with pytest.raises(ModelError, match="policies that write, not from a str"):
        make_engine().load("tiny-llama", version=0)
    with pytest.raises(ModelError, match=r"algorithm.expected"):
        engine.every_answer(prompts_of(policy), sampling=sampling())
    assert engine.sample([], group_size=2, sampling=sampling(), seed=1) == []


def test_no_row_outgrows_the_context(engine, policy, sampling):
    """A row that could not be finished is refused beforehand; T5's positions are relative, so it may write on."""
    (prompt,) = prompts_of(policy, texts=["Say something long: "])
    room = policy.room(prompt)
    if isinstance(policy.model, T5ForConditionalGeneration):
        assert room is None
        (rollout,) = engine.sample([prompt], group_size=1, sampling=sampling(0.0, max_new_tokens=260), seed=1)
        assert len(rollout.actions) == 260 or rollout.terminated
        return
    with pytest.raises(ModelError, match=r"prompt 10 has \d+ tokens.*context has room for .* max_new_tokens = "):
        engine.sample([prompt], group_size=1, sampling=sampling(max_new_tokens=room + 1), seed=1)
    (rollout,) = engine.sample([prompt], group_size=1, sampling=sampling(0.0, max_new_tokens=room), seed=1)
    assert len(rollout.actions) == room or rollout.terminated


def test_a_rested_engine_samples_again_once_it_is_loaded(engine, policy, sampling):
    """Weights and caches given back for an update are taken anew by the next load, and not sampled without before."""

    def draw():
        return engine.sample(prompts_of(policy), group_size=2, sampling=sampling(), seed=3)

    before = draw()
    engine.rest()
    with pytest.raises(ModelError, match=r"call load\(policy"):
        draw()
    engine.load(policy, version=3)
    assert draw() == before


def test_branches_begin_as_their_row_and_go_on_as_the_policy(engine, kind, policy, sampling):
    """Kept actions stay, what follows has the log-probabilities of one forward a token, and ends where a row would."""
    setting = sampling(1.5, max_new_tokens=7)
    policy.model.generation_config.eos_token_id = [1, *range(40, 60)]
    rollouts = engine.sample(prompts_of(policy), group_size=3, sampling=setting, seed=1)
    kept = [row % (len(rollout.actions) + 1) for row, rollout in enumerate(rollouts)]
    branches = engine.branch(rollouts, kept, num_branches=6, sampling=setting, seed=2)
    assert [r.group for r in branches] == [row for row in range(12) for _ in range(6)]
    assert len({(r.prompt.id, r.sample) for r in branches}) == len(branches)
    for branch in branches:
        row, count = rollouts[branch.group], kept[branch.group]
        assert branch.prompt == row.prompt
        assert branch.actions[:count] == row.actions[:count]
        if count == len(row.actions):
            assert (branch.actions, branch.text, branch.stop_reason) == (row.actions, row.text, row.stop_reason)
        expected = torch.cat([logits[None] for logits in kind.logits(policy, branch)]).div(1.5).log_softmax(1)
        taken = expected[range(len(branch.actions)), branch.actions]
        assert_close(torch.tensor(branch.engine_logprobs), taken, rtol=0, atol=1e-4)
        assert (branch.stop_reason == "eos") == (branch.actions[-1] in policy.eos_ids)
        assert branch.stop_reason == "eos" or len(branch.actions) == 7
    open_ = [row for row, rollout in enumerate(rollouts) if kept[row] < len(rollout.actions)]
    assert len(open_) > 6
    for row in open_:
        assert len({r.actions for r in branches if r.group == row}) > 1
    again = engine.branch(rollouts[5:], kept[5:], num_branches=2, sampling=setting, seed=2)
    assert [r.actions[: kept[5 + r.group]] for r in again] == [
        rollouts[5 + r.group].actions[: kept[5 + r.group]] for r in again
    ]
