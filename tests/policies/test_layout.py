"""How rows are laid out: every row once, within the budget, and each token seeing exactly its own past."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.policies import layout
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


@given(rows=rows_strategy, max_tokens=st.integers(1, 60), share=st.booleans(), with_last=st.booleans())
@settings(max_examples=150)
def test_plan_covers_every_row_once_within_the_budget(rows, max_tokens, share, with_last):
    batch = batch_of(rows)
    plan = layout.plan(layout.segments(batch, share=share, with_last=with_last), max_tokens=max_tokens)
    assert sorted(row for piece in plan for row in piece) == list(range(batch.num_rows))
    for piece in plan:
        found = layout.segments(batch.select(piece), share=share, with_last=with_last)
        cost = len(found) * max(segment.width for segment in found)
        assert cost <= max_tokens or len(piece) == 1


@given(rows=rows_strategy, share=st.booleans())
@settings(max_examples=150)
def test_each_token_sees_its_own_row_and_nothing_else(rows, share):
    """CHECKS 1, 2: from each action's place, the visible tokens in order of position are those of its row before it."""
    batch = batch_of(rows)
    found = layout.segments(batch, share=share, with_last=True)
    laid = layout.arrange(batch, found, pad_id=99, dtype=torch.float32)
    width = laid.input_ids.shape[1]
    tokens = batch.tokens.split(batch.row_lengths.tolist())

    def visible(flat):
        segment, slot = divmod(flat, width)
        if laid.mask.dim() == 4:
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


def test_a_shared_prompt_is_computed_once():
    batch = batch_of([(3, 0, [(4, True)] * 3, True) for _ in range(5)])
    (segment,) = layout.segments(batch, share=True, with_last=False)
    assert segment.width == 4 + 5 * 2  # the last action of a terminated row is never read
    assert [s.width for s in layout.segments(batch, share=False, with_last=False)] == [6] * 5
    cut = batch_of([(3, 0, [(4, True)] * 3, False) for _ in range(5)])
    assert layout.segments(cut, share=True, with_last=True)[0].width == 4 + 5 * 3
