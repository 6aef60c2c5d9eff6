"""How rows are laid out: every row once, within the budget, and each token seeing exactly its own past."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.policies import attention, layout
from upslope.records import Prompt, Rollout, collate

rows_strategy = st.lists(
    st.tuples(
        st.integers(0, 3),  # group
        st.integers(0, 2),  # which of the group's prompts
        st.lists(st.tuples(st.integers(3, 9), st.booleans()), min_size=1, max_size=6),  # tokens, decided or read
        st.booleans(),  # terminated
    ),
    min_size=1,
    max_size=9,
)


def batch_of(rows):
    rollouts = []
    for index, (group, which, drawn, ended) in enumerate(rows):
        tail = [(drawn[0][0], True), *drawn[1:]]
        prompt = tuple(range(10 * group, 10 * group + 1 + group + which))
        tokens = prompt + tuple(token for token, _ in tail)
        decided = [len(prompt) + i for i, (_, action) in enumerate(tail) if action]
        rollouts.append(
            Rollout(
                prompt=Prompt(id=group, content="", tokens=prompt),
                group=group,
                sample=index,
                tokens=tokens,
                actions=tuple(tokens[at] for at in decided),
                positions=tuple(at - 1 for at in decided),
                engine_logprobs=(0.0,) * len(decided),
                text="",
                stop_reason="eos" if ended else "length",
            )
        )
    return collate(rollouts)[0]


@given(
    rows=rows_strategy,
    max_tokens=st.integers(1, 60),
    share=st.booleans(),
    with_last=st.booleans(),
    packed=st.booleans(),
)
@settings(max_examples=200)
def test_plan_covers_every_row_once_within_the_budget(rows, max_tokens, share, with_last, packed):
    batch = batch_of(rows)
    plan = layout.plan(layout.segments(batch, share=share, with_last=with_last), max_tokens=max_tokens, packed=packed)
    assert sorted(row for piece in plan for row in piece) == list(range(batch.num_rows))
    for piece in plan:
        found = layout.segments(batch.select(piece), share=share, with_last=with_last)
        laid = layout.arrange(batch.select(piece), found, packed=packed, pad_id=99, dtype=torch.float32)
        assert laid.input_ids.numel() <= layout.filled(max_tokens) or len(piece) == 1


def test_plan_keeps_groups_whole_and_fills_gaps():
    """Segments of 13, 9 and 4 tokens in a budget of 18: the widest goes with the narrowest, none is split."""
    shapes = [(3, 3, 4), (2, 2, 4), (1, 1, 3)]  # group, rows, tokens a row beyond the prompt of group + 1
    batch = batch_of([(group, 0, [(4, True)] * count, True) for group, rows, count in shapes for _ in range(rows)])
    found = layout.segments(batch, share=True, with_last=False)
    assert [segment.width for segment in found] == [13, 9, 4]
    assert layout.plan(found, max_tokens=18, packed=True) == [[0, 1, 2, 5], [3, 4]]
    assert layout.plan(found, max_tokens=18, packed=False) == [[0, 1, 2], [3, 4, 5]]
    assert layout.plan(found, max_tokens=12, packed=True) == [[0, 1], [3, 4], [2, 5]]


@pytest.mark.parametrize("neighbourhood", [1, 7, 128])
@pytest.mark.parametrize("packed", [True, False])
@given(rows=rows_strategy, share=st.booleans())
@settings(max_examples=100)
def test_each_token_sees_its_own_row_and_nothing_else(packed, neighbourhood, rows, share):
    """CHECKS 1, 2: from each action's place, the visible tokens in order of position are those of its row before it."""
    batch = batch_of(rows)
    found = layout.segments(batch, share=share, with_last=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_NEIGHBOURHOOD", neighbourhood)
        laid = layout.arrange(batch, found, packed=packed, pad_id=99, dtype=torch.float32)
    width = laid.input_ids.shape[1]
    tokens = batch.tokens.split(batch.row_lengths.tolist())
    used = sum(segment.width for segment in found)
    packed_mask = seen_by_blocks(laid.blocks, width, used) if packed else None
    if packed:
        assert laid.input_ids.shape == (1, layout.filled(used))
        assert laid.blocks.longest == max(length for segment in found for length in segment.lengths)

    def visible(flat):
        segment, slot = divmod(flat, width)
        if packed:
            seen = packed_mask[slot]
        elif laid.mask.dim() == 4:
            seen = laid.mask[segment, 0, slot] == 0
        else:
            seen = laid.mask[segment].bool() & (torch.arange(width) <= slot)
        positions = laid.position_ids[segment][seen]
        assert positions.tolist() == list(range(len(positions)))
        return laid.input_ids[segment][seen].tolist()

    rows_of_action = torch.arange(batch.num_rows).repeat_interleave(batch.num_actions).tolist()
    for flat, row, position in zip(laid.actions.tolist(), rows_of_action, batch.positions.tolist(), strict=True):
        assert visible(flat) == tokens[row][: position + 1].tolist()
    for row, flat in enumerate(laid.last.tolist()):
        if not batch.terminated[row]:
            assert visible(flat) == tokens[row].tolist()


def seen_by_blocks(blocks, width, used):
    """Which token sees which, [N, N]; each of the first `used` tokens is a query of one own block, those that fill up
    the row of none, and no pair is counted twice."""
    counts = torch.zeros(width, width, dtype=torch.int64)
    own = torch.zeros(width, dtype=torch.int64)
    for block in blocks.own:
        own[block.queries] += 1
    assert (own[:used] == 1).all()
    assert (own[used:] == 0).all()
    for block in (*blocks.own, *blocks.prompts):
        part = counts[block.queries, block.keys]
        seen = torch.ones_like(part)
        if block.causal:
            seen = seen.tril()
        elif block.mask is not None:
            seen = (block.mask[0, 0] == 0).long()
        part += seen
    assert counts.max() == 1
    return counts.bool()


def test_a_shared_prompt_is_computed_once():
    batch = batch_of([(3, 0, [(4, True)] * 3, True) for _ in range(5)])
    (segment,) = layout.segments(batch, share=True, with_last=False)
    assert segment.width == 4 + 5 * 2  # the last action of a terminated row is never read
    assert [s.width for s in layout.segments(batch, share=False, with_last=False)] == [6] * 5
    cut = batch_of([(3, 0, [(4, True)] * 3, False) for _ in range(5)])
    assert layout.segments(cut, share=True, with_last=True)[0].width == 4 + 5 * 3
