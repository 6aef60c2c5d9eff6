"""The records: a batch is rows of actions end to end, and every way to cut and join it keeps each row's own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from upslope.errors import RecordError
from upslope.records import Batch, Prompt, Rollout, collate, pack, ragged_index, unpack


def rollout(prompt=(7, 8), actions=(3, 4, 5), gap=0, index=0, **changes):
    """A row whose first action follows the prompt and whose others come after `gap` tokens of tool output."""
    tokens, positions = list(prompt), []
    for i, action in enumerate(actions):
        tokens += [99] * (gap if i == 1 else 0)
        positions.append(len(tokens) - 1)
        tokens.append(action)
    made = Rollout(
        prompt=Prompt(id=40 + index, content="x", tokens=tuple(prompt)),
        group=index // 2,
        sample=index,
        tokens=tuple(tokens),
        actions=tuple(actions),
        positions=tuple(positions),
        engine_logprobs=tuple(-0.1 * (a + 1) for a in actions),
        text="",
        stop_reason="eos" if index % 2 else "length",
        version=index,
        rewards=tuple(float(a) for a in actions),
    )
    return made.replace(**changes)


ROWS = [
    rollout((7, 8), (3, 4, 5), gap=2, index=0),
    rollout((7, 8), (6,), index=1),
    rollout((1,), (2, 2, 2, 2), index=2),
    rollout((5, 5, 5), (9, 8), gap=1, index=3),
]
PER_ROW = ("row_lengths", "num_actions", "terminated", "group", "version")


def rows_of(batch: Batch):
    """The batch as a list of plain rows, each field cut by hand."""
    rows, token, action = [], 0, 0
    for i in range(batch.num_rows):
        length, count = int(batch.row_lengths[i]), int(batch.num_actions[i])
        own = [x.tolist() for x in (batch.tokens[token : token + length],)]
        fields = (batch.actions, batch.positions, batch.engine_logprobs, batch.rewards)
        own += [x[action : action + count].tolist() for x in fields]
        rows.append((*own, *(getattr(batch, name)[i].item() for name in PER_ROW)))
        token, action = token + length, action + count
    return rows


def test_collate_packs_every_row_end_to_end():
    """CHECKS 10: the tokens of several turns stay in the row; only actions are listed, at their own positions."""
    batch, dropped = collate(ROWS)
    assert dropped == 0
    assert batch.tokens.tolist() == [7, 8, 3, 99, 99, 4, 5, 7, 8, 6, 1, 2, 2, 2, 2, 5, 5, 5, 9, 99, 8]
    assert batch.row_lengths.tolist() == [7, 3, 5, 6]
    assert batch.actions.tolist() == [3, 4, 5, 6, 2, 2, 2, 2, 9, 8]
    assert batch.positions.tolist() == [1, 4, 5, 1, 0, 1, 2, 3, 2, 4]
    assert batch.num_actions.tolist() == [3, 1, 4, 2]
    assert batch.terminated.tolist() == [False, True, False, True]
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.rewards.tolist() == [3, 4, 5, 6, 2, 2, 2, 2, 9, 8]
    assert len(batch) == batch.num_rows == 4


def test_empty_rows_are_dropped_and_counted():
    """CHECKS 8: a row without actions is a counted skip and changes nothing else; nothing left is an error."""
    empty = rollout(actions=(), index=9)
    batch, dropped = collate([empty, *ROWS, empty])
    assert dropped == 2
    assert rows_of(batch) == rows_of(collate(ROWS)[0])
    with pytest.raises(RecordError, match="none of 2 rollouts holds an action"):
        collate([empty, empty])
    with pytest.raises(RecordError, match="none of 0 rollouts"):
        collate([])


def test_rewards_are_kept_only_when_every_row_has_them():
    assert collate([ROWS[0], ROWS[1].replace(rewards=())])[0].rewards is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": (1, 4)}, "has 3 actions but 2 positions"),
        ({"engine_logprobs": (-1.0,) * 4}, "has 3 actions but 4 engine_logprobs"),
        ({"rewards": (1.0,)}, "has 3 actions but 1 rewards"),
        ({"positions": (1, 4, 7)}, "has a position outside its 7 tokens"),
        ({"positions": (-1, 4, 5)}, "has a position outside its 7 tokens"),
        ({"positions": (1, 5, 5)}, "has positions that do not increase"),
        ({"positions": (4, 1, 5)}, "has positions that do not increase"),
        ({"actions": (3, -4, 5)}, "holds a negative token or action id"),
        ({"tokens": (7, 8, 3, -1, 99, 4, 5)}, "holds a negative token or action id"),
        ({"engine_logprobs": (-1.0, math.nan, -1.0)}, "has a non-finite value in engine_logprobs"),
        ({"engine_logprobs": (-1.0, -math.inf, -1.0)}, "has a non-finite value in engine_logprobs"),
        ({"rewards": (0.0, math.inf, 0.0)}, "has a non-finite value in rewards"),
    ],
)
def test_collate_names_the_row_that_contradicts_itself(changes, message):
    with pytest.raises(RecordError) as caught:
        collate([*ROWS, ROWS[0].replace(sample=5, **changes)])
    assert str(caught.value) == f"rollout 4 (prompt 40, sample 5) {message}"


@given(order=st.lists(st.integers(0, 3), max_size=7))
@settings(max_examples=60)
def test_select_takes_rows_as_they_are(order):
    """CHECKS 3, 31: any rows in any order, repeated or none; positions and groups are never re-indexed."""
    batch, _ = collate(ROWS)
    assert rows_of(batch.select(order)) == [rows_of(batch)[i] for i in order]


def test_concatenate_joins_rows_and_keeps_what_all_have():
    first, second = collate(ROWS[:1])[0], collate(ROWS[1:])[0]
    joined = Batch.concatenate([first, second])
    assert rows_of(joined) == rows_of(collate(ROWS)[0])
    partly = Batch.concatenate([first.replace(advantages=torch.ones(3)), second])
    assert partly.advantages is None
    with pytest.raises(RecordError, match="no batch to concatenate"):
        Batch.concatenate([])


def test_encoder_decoder_sources_follow_their_rows():
    batch, _ = collate([row.replace(source=tuple(range(i + 1))) for i, row in enumerate(ROWS)])
    picked = batch.select([3, 1])
    assert picked.source.tolist() == [0, 1, 2, 3, 0, 1]
    assert picked.source_lengths.tolist() == [4, 2]


def test_floats_keep_the_dtype_they_are_given():
    batch = collate(ROWS)[0].replace(advantages=torch.arange(10, dtype=torch.float64))
    picked = batch.select([2, 0])
    assert picked.advantages.dtype == torch.float64
    assert picked.advantages.tolist() == [4, 5, 6, 7, 0, 1, 2]
    assert [row.tolist() for row in picked.split_rows(picked.advantages)] == [[4, 5, 6, 7], [0, 1, 2]]


@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=6), data=st.data())
@settings(max_examples=60)
def test_ragged_index_against_lists(lengths, data):
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    cells, start = [], 0
    for length in lengths:
        cells.append(list(range(start, start + length)))
        start += length
    expected = [cell for row in rows for cell in cells[row]]
    assert ragged_index(torch.tensor(lengths), torch.tensor(rows, dtype=torch.int64)).tolist() == expected


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_pack_never_reads_padded_slots(garbage):
    """CHECKS 7: NaN, inf or 1e30 at padded slots changes no value and no gradient of anything packed."""
    mask = torch.tensor([[True, True, False], [False, True, False]])
    padded = torch.tensor([[1.0, 2.0, garbage], [garbage, 3.0, garbage]], requires_grad=True)
    packed, num_actions = pack(padded, mask)
    assert packed.tolist() == [1, 2, 3]
    assert num_actions.tolist() == [2, 1]
    packed.square().sum().backward()
    assert_close(padded.grad, torch.tensor([[2.0, 4.0, 0.0], [0.0, 6.0, 0.0]]), rtol=0, atol=0)


def test_unpack_is_the_inverse_of_pack():
    packed, num_actions = torch.arange(6.0, dtype=torch.float64), torch.tensor([1, 3, 2])
    padded, mask = unpack(packed, num_actions, fill=-1)
    assert padded.tolist() == [[0, -1, -1], [1, 2, 3], [4, 5, -1]]
    assert padded.dtype == torch.float64
    assert_close(pack(padded, mask)[0], packed)
    assert pack(padded, mask)[1].tolist() == [1, 3, 2]
    empty, empty_mask = unpack(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert empty.shape == empty_mask.shape == (0, 0)


def test_how_a_row_ended():
    """CHECKS 4, 32: only a length limit is a truncation."""
    ended = {reason: rollout(stop_reason=reason).terminated for reason in ("eos", "stop", "action", "length")}
    assert ended == {"eos": True, "stop": True, "action": True, "length": False}
    assert rollout(rewards=(0.1,) * 10).score == 1.0


def test_a_chat_reads_as_lines():
    assert Prompt(0, "plain").text == "plain"
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    assert Prompt(0, chat).text == "system: Be brief.\nuser: Hi"


def test_records_are_frozen():
    batch, _ = collate(ROWS)
    for record, name in ((ROWS[0], "group"), (ROWS[0].prompt, "id"), (batch, "group")):
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(record, name, 3)
