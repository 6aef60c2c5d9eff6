"""What every policy promises: its scores are the model's own, however they were computed."""

from types import SimpleNamespace

import pytest
import torch
from kinds import widen
from torch.testing import assert_close
from transformers import AutoTokenizer

from upslope.errors import ModelError
from upslope.losses import ratio_statistics
from upslope.recipe import Recipe
from upslope.training.optimizer import make_optimizer
from upslope.training.update import update


def expected_logprobs(kind, policy, rollouts, temperature=1.0):
    """log softmax(logits / temperature) of each action, in float64, by one forward a token."""
    rows = []
    for rollout in rollouts:
        logits = kind.logits(policy, rollout).double() / temperature
        rows.append(logits.log_softmax(1)[range(len(rollout.actions)), rollout.actions])
    return torch.cat(rows)


def test_logprobs_are_those_of_one_forward_a_token(kind, make_batch, sampling):
    """CHECKS 1: the log-probability of token t comes from logits t-1, and rows of one prompt do not see each other."""
    policy = kind.build()
    rollouts = kind.rows(policy)
    actual = policy.score(make_batch(rollouts), sampling=sampling()).logprobs
    expected = expected_logprobs(kind, policy, rollouts)
    assert expected.std() > 0.2
    assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def test_temperature_enters_the_logprobs(kind, make_batch, sampling):
    """CHECKS 17: the recomputed log-probabilities are those at the sampling temperature."""
    policy = kind.build()
    rollouts = kind.rows(policy)
    for temperature in (0.6, 1.7):
        actual = policy.score(make_batch(rollouts), sampling=sampling(temperature)).logprobs
        assert_close(actual.double(), expected_logprobs(kind, policy, rollouts, temperature), rtol=0, atol=1e-5)


def test_cut_support_is_renormalised(kind, make_batch, sampling):
    """CHECKS 18: with top-k and top-p the log-probability is that of the renormalised support the action is in."""
    policy = kind.build()
    rollouts = kind.rows(policy)
    chosen = likeliest(kind, policy, rollouts)
    batch = make_batch(chosen)
    logits = torch.cat([kind.logits(policy, rollout) for rollout in chosen]).double() / 0.8
    for top_k, top_p in ((3, None), (None, 0.5), (5, 0.7)):
        actual = policy.score(batch, sampling=sampling(0.8, top_k, top_p)).logprobs
        expected = []
        for row in logits:
            ordered = sorted(row.softmax(0).tolist(), reverse=True)[: top_k or len(row)]
            mass = [p / sum(ordered) for p in ordered]
            support = next(n for n in range(1, len(mass) + 1) if sum(mass[:n]) >= (top_p or 1 - 1e-12))
            expected.append(mass[0] / sum(mass[:support]))
        assert_close(actual.double().exp(), torch.tensor(expected).double(), rtol=0, atol=1e-5)


def likeliest(kind, policy, rollouts):
    """The rows with the likeliest action at every place, given those before it."""
    for _ in range(max(len(rollout.actions) for rollout in rollouts)):
        rollouts = [r.replace(actions=tuple(kind.logits(policy, r).argmax(1).tolist())) for r in rollouts]
    return rollouts


def test_a_row_scores_the_same_in_any_company(kind, make_batch, sampling):
    """CHECKS 2, 3: alone, in mixed lengths, shuffled: equal log-probabilities, values and bootstrap."""
    policy = kind.build(critic="head")
    batch = make_batch(kind.rows(policy))
    with torch.no_grad():
        whole = policy.score(batch, sampling=sampling(), entropy=True, values=True)
        orders = [torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
        for rows in [*torch.arange(batch.num_rows).split(1), *torch.arange(batch.num_rows).split(4), *orders]:
            part = policy.score(batch.select(rows), sampling=sampling(), entropy=True, values=True)
            for name in ("logprobs", "entropy", "values"):
                pieces = batch.split_rows(getattr(whole, name))
                assert_close(getattr(part, name), torch.cat([pieces[row] for row in rows]), rtol=0, atol=1e-5)
            assert_close(part.bootstrap, whole.bootstrap[rows], rtol=0, atol=1e-5)


def test_rows_that_share_a_group_but_not_a_prompt(kind, make_batch, sampling):
    """CHECKS 11: a group's rows may start from different tokens; none is scored under another's prompt."""
    policy = kind.build()
    rollouts = [rollout.replace(group=0) for rollout in kind.rows(policy)]
    actual = policy.score(make_batch(rollouts), sampling=sampling()).logprobs
    assert_close(actual.double(), expected_logprobs(kind, policy, rollouts), rtol=0, atol=1e-5)


def test_values_are_read_where_the_action_was_decided_and_bootstrap_at_the_last_token(kind, make_batch, sampling):
    """CHECKS 13: value of the hidden state at each position; bootstrap of a cut row at its last real token, else 0."""
    for critic in ("head", "separate"):
        policy = kind.build(critic=critic)
        head = policy.module.value_head.linear
        rollouts = kind.rows(policy)
        values, bootstrap = [], []
        for rollout in rollouts:
            hidden = kind.hidden(policy, rollout).double()  # where actions were decided, and at the end
            scaled = hidden / (hidden.square().mean(1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
            read = (scaled @ head.weight.double().T + head.bias.double())[:, 0].detach()
            values.append(read[:-1])
            bootstrap.append(read[-1] if rollout.stop_reason == "length" else read.new_zeros(()))
        for way in kind.ways:
            vars(policy).update(way)
            scores = policy.score(make_batch(rollouts), sampling=sampling(), values=True)
            assert_close(scores.values.double(), torch.cat(values), rtol=0, atol=1e-4)
            assert_close(scores.bootstrap.double(), torch.stack(bootstrap), rtol=0, atol=1e-4)


def test_pad_id_is_of_no_consequence(kind, make_batch, sampling):
    """CHECKS 5, 13: with pad == EOS the end of a row is trained and attended, and the value stays at the last token."""
    policy = kind.build(critic="head")
    end = policy.tokenizer.eos_token_id
    rollouts = [kind.ended(rollout, end) for rollout in kind.rows(policy)]
    batch = make_batch(rollouts)
    before = policy.score(batch, sampling=sampling(), values=True)
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    policy.model.config.pad_token_id = end
    assert policy.pad_id == end
    after = policy.score(batch, sampling=sampling(), values=True)
    assert_close(after.logprobs.double(), expected_logprobs(kind, policy, rollouts), rtol=0, atol=1e-5)
    for name in ("logprobs", "values", "bootstrap"):
        assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0)


def test_entropy_is_exact_over_the_support(kind, make_batch, sampling):
    """CHECKS 34: the reported entropy is -sum p log p of the distribution sampled from."""
    policy = kind.build()
    rollouts = likeliest(kind, policy, kind.rows(policy))  # what was cut off could not have been sampled
    logits = torch.cat([kind.logits(policy, rollout) for rollout in rollouts]).double()
    for temperature, top_k in ((1.0, None), (0.7, None), (1.0, 4)):
        cut = logits.topk(top_k or logits.shape[1]).values / temperature
        expected = torch.distributions.Categorical(logits=cut).entropy()
        setting = sampling(temperature, top_k)
        actual = policy.score(make_batch(rollouts), sampling=setting, entropy=True).entropy
        assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def test_distributions_are_the_models_own_logits(kind, make_batch):
    policy = kind.build()
    rollouts = kind.rows(policy)
    expected = torch.cat([kind.logits(policy, rollout) for rollout in rollouts])
    with torch.no_grad():
        for max_tokens in (1, 30, 4096):
            chunks = list(policy.distributions(make_batch(rollouts), max_tokens=max_tokens))
            assert_close(torch.cat(chunks), expected, rtol=0, atol=1e-4)
    assert len(chunks) == 1


def test_score_gradients_against_finite_differences(kind, make_batch, sampling):
    """In float64 the derivative of every output along a random direction is its central difference."""
    policy = kind.build(critic="head")
    widen(policy)
    batch = make_batch(kind.rows(policy))
    generator = torch.Generator().manual_seed(0)
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def total():
        scores = policy.score(batch, sampling=sampling(0.8), entropy=True, values=True)
        mixed = torch.arange(1.0, len(batch.actions) + 1, dtype=torch.float64)
        per_action = scores.logprobs + 0.3 * scores.entropy + 0.7 * scores.values
        return per_action @ mixed + scores.bootstrap.sum()

    value = total()
    assert value.dtype == torch.float64
    gradient = torch.autograd.grad(value, parameters)
    analytic = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))

    def moved(step):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
            result = total()
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=step)
        return result

    numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert_close(numeric, analytic, rtol=1e-6, atol=1e-6)


def test_scores_and_gradients_are_the_same_bits_again(kind, make_batch, sampling):
    policy = kind.build(critic="separate")
    batch = make_batch(kind.rows(policy))
    found = []
    for _ in range(2):
        policy.module.zero_grad()
        scores = policy.score(batch, sampling=sampling(0.8), entropy=True, values=True)
        (scores.logprobs.sum() + scores.entropy.sum() + scores.values.sum() + scores.bootstrap.sum()).backward()
        found.append(
            [scores.logprobs, scores.values, *(p.grad for p in policy.module.parameters() if p.grad is not None)]
        )
    assert len(found[0]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_micro_batches_hold_every_row_once_and_fit(kind, make_batch):
    policy = kind.build()
    batch = make_batch(kind.rows(policy))
    for max_tokens in (1, 12, 20, 10_000):
        pieces = policy.micro_batches(batch, max_tokens=max_tokens)
        assert sorted(torch.cat(pieces).tolist()) == list(range(batch.num_rows))
        for rows in pieces:
            source = 0 if batch.source_lengths is None else int(batch.source_lengths[rows].max())
            longest = source + int(batch.row_lengths[rows].max())
            assert len(rows) == 1 or longest <= max_tokens or _distinct(batch.select(rows)) == 1
    assert len(pieces) == 1
    assert len(policy.micro_batches(batch, max_tokens=1)) == _smallest_pieces(kind, batch)


def _distinct(batch):
    return len({tuple(row.tolist()) for row in batch.tokens.split(batch.row_lengths.tolist())})


def _smallest_pieces(kind, batch):
    """How many pieces the batch has at most: equal rows are computed once where nothing is written after them."""
    return _distinct(batch) if kind.computes_equal_rows_once else batch.num_rows


def _learnable(policy, batch, sampling):
    """The batch with all that a loss may read, near the policy's own log-probabilities."""
    with torch.no_grad():
        level = policy.score(batch, sampling=sampling()).logprobs.double()
    generator = torch.Generator().manual_seed(3)

    def draw(size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    count = len(batch.actions)
    return batch.replace(
        advantages=draw(count),
        returns=draw(count),
        old_values=draw(count),
        old_logprobs=level + 0.3 * draw(count),
        ref_logprobs=level + 0.3 * draw(count),
        engine_logprobs=level + 0.3 * draw(count),
    )


def _update(policy, batch, settings, sampling, *, tokens):
    """One step of plain gradient descent at rate 1: the weights move by minus the gradient."""
    optimizer = torch.optim.SGD(policy.module.parameters(), lr=1.0)
    return update(
        policy,
        optimizer,
        batch,
        settings,
        sampling=sampling,
        kl_coef=0.3,
        micro_batch_tokens=tokens,
        max_grad_norm=1e9,
    )


def test_micro_batches_never_change_the_gradient(kind, make_batch, sampling):
    """CHECKS 29: accumulation over whatever pieces gives the gradient of the whole, for every aggregation."""
    ppo = {"kl": "loss", "kl_estimator": "k3", "value_clip": 0.2, "entropy_coef": 0.1, "importance_cap": 2.0}
    variants = [{"preset": "ppo", **ppo, "over": over} for over in ("tokens", "rows", "rows_token_mean", "constant")]
    for algorithm in [*variants, {"preset": "gspo"}, {"preset": "rloo"}, {"preset": "cispo"}]:
        settings = Recipe.resolve({"algorithm": algorithm}).algorithm
        moved, reports = [], []
        for tokens in (10_000, 14, 1):
            policy = kind.build(critic="head" if settings.needs_critic else None)
            widen(policy)
            before = [p.detach().clone() for p in policy.module.parameters()]
            batch = _learnable(policy, make_batch(kind.rows(policy)), sampling)
            pieces = len(policy.micro_batches(batch, max_tokens=tokens))
            assert pieces == {10_000: 1, 1: _smallest_pieces(kind, batch)}.get(tokens, pieces)
            reports.append(_update(policy, batch, settings, sampling(), tokens=tokens))
            after = policy.module.parameters()
            moved.append(torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).detach())
        assert moved[0].abs().max() > 1e-4
        for other, report in zip(moved[1:], reports[1:], strict=True):
            assert_close(other, moved[0], rtol=0, atol=1e-12 * float(moved[0].abs().max()) + 1e-12)
            assert_close(report.values["loss_policy"], reports[0].values["loss_policy"], rtol=1e-6, atol=1e-6)
            assert_close(report.logprobs, reports[0].logprobs, rtol=0, atol=1e-6)


def test_ratio_is_one_first_and_not_afterwards(kind, make_batch, sampling):
    """CHECKS 15, 19: recomputed log-probabilities equal the update's own to 1e-5, and stay put when weights move."""
    policy = kind.build()
    settings = Recipe.resolve({"algorithm": {"preset": "grpo", "kl": "off", "kl_coef": 0.0}}).algorithm
    batch = _learnable(policy, make_batch(kind.rows(policy)), sampling)
    with torch.no_grad():
        old = policy.score(batch, sampling=sampling(0.7)).logprobs
    batch = batch.replace(old_logprobs=old, advantages=batch.advantages.float())
    optimizer = make_optimizer(policy.module, Recipe().optimizer.model_copy(update={"lr": 1e-3}))
    deviations = []
    for _ in range(2):
        report = update(
            policy,
            optimizer,
            batch,
            settings,
            sampling=sampling(0.7),
            kl_coef=0.0,
            micro_batch_tokens=16,
            max_grad_norm=1.0,
        )
        deviations.append(ratio_statistics(report.logprobs, old).max_deviation)
    assert deviations[0] <= 1e-5
    assert deviations[1] > 1e-3


def test_scoring_is_free_of_dropout(kind, make_batch, sampling):
    """CHECKS 16: a model configured with dropout scores as without it, in train mode and through checkpointing too."""
    noisy, silent = dict.fromkeys(kind.noisy, 0.1), dict.fromkeys(kind.noisy, 0.0)
    expected_policy = kind.build(**silent)
    batch = make_batch(kind.rows(expected_policy))
    expected = expected_policy.score(batch, sampling=sampling()).logprobs
    for checkpoint in (False, True):
        policy = kind.build(checkpoint=checkpoint, **noisy)
        policy.module.train()
        for _ in range(2):
            assert_close(policy.score(batch, sampling=sampling()).logprobs, expected, rtol=0, atol=1e-6)
        with policy.dropout(True):
            disturbed = policy.score(batch, sampling=sampling()).logprobs
        assert (disturbed - expected).abs().max() > 1e-3
        assert_close(policy.score(batch, sampling=sampling()).logprobs, expected, rtol=0, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient(kind, make_batch, sampling):
    """CHECKS 16: recomputation in the backward pass, with dropout configured, gives the gradients of the plain pass, in
    float64."""
    gradients = []
    for checkpoint, probability in ((False, 0.0), (True, 0.1)):
        policy = kind.build(checkpoint=checkpoint, critic="head", **dict.fromkeys(kind.noisy, probability))
        widen(policy)
        assert policy.module.training == checkpoint
        scores = policy.score(make_batch(kind.rows(policy)), sampling=sampling(), values=True)
        (scores.logprobs.sum() + scores.values.square().sum()).backward()
        gradients.append({name: p.grad for name, p in policy.module.named_parameters()})
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, expected in gradients[0].items():
        assert_close(gradients[1][name], expected, rtol=1e-9, atol=1e-9)


def _disturb(policy):
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)


def test_reference_is_no_alias(kind, make_batch, sampling):
    """CHECKS 20: the reference shares no storage with the policy and scores as at the start after the policy moved."""
    policy = kind.build(keep_reference=True)
    batch = make_batch(kind.rows(policy))
    with policy.reference() as reference:
        mine = {p.data_ptr() for p in policy.module.parameters()}
        assert not mine & {p.data_ptr() for p in reference.model.parameters()}
        assert not any(p.requires_grad for p in reference.model.parameters())
        start = reference.score(batch, sampling=sampling()).logprobs
    before = policy.score(batch, sampling=sampling()).logprobs.detach()
    _disturb(policy)
    with policy.reference() as reference:
        assert_close(reference.score(batch, sampling=sampling()).logprobs, start, rtol=0, atol=0)
    assert (policy.score(batch, sampling=sampling()).logprobs - before).abs().max() > 0.05


def test_reference_of_lora_is_the_base_model(kind, make_batch, sampling):
    """CHECKS 20: with adapters the reference is the model with them off, and they are on again afterwards."""
    adapters = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"}
    base, policy = kind.build(), kind.build(lora=adapters, keep_reference=True)
    batch = make_batch(kind.rows(base))
    _disturb(policy)
    with policy.reference() as reference:
        start = reference.score(batch, sampling=sampling()).logprobs
    moved = policy.score(batch, sampling=sampling()).logprobs
    assert (moved - start).abs().max() > 0.05
    with policy.reference() as reference:
        assert_close(reference.score(batch, sampling=sampling()).logprobs, start, rtol=0, atol=0)
    assert_close(policy.score(batch, sampling=sampling()).logprobs, moved, rtol=0, atol=0)
    assert sum(p.numel() for p in policy.module.parameters() if p.requires_grad) < 20_000


def test_bfloat16_models_take_their_logsoftmax_in_float32(kind, make_batch, sampling):
    """CHECKS 23: log-softmax of a bfloat16 model's logits is exact to float32, and the error is reported."""
    policy = kind.build(dtype="bfloat16")
    batch = make_batch(kind.rows(policy))
    rows = [batch.select([row]) for row in range(batch.num_rows)]
    with torch.no_grad():
        scores = policy.score(batch, sampling=sampling(0.9), entropy=True)
        logits = torch.cat(list(policy.distributions(batch)))
        one_by_one = torch.cat([policy.score(row, sampling=sampling(0.9)).logprobs for row in rows])
        full = kind.build().score(batch, sampling=sampling(0.9)).logprobs
    assert torch.equal(logits.float(), logits.bfloat16().float())
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    exact = (logits.double() / 0.9).log_softmax(1).gather(1, batch.actions[:, None])[:, 0]
    assert_close(scores.logprobs.double(), exact, rtol=0, atol=1e-5)
    for other in (one_by_one, full):
        reported = ratio_statistics(scores.logprobs, other).max_deviation
        assert_close(reported, float((scores.logprobs - other).expm1().abs().max()))
        assert reported < 1.0
    assert reported > 0


def test_frozen_weights_stay(kind, make_batch, sampling):
    """Parameters that a pattern names keep their bits through a step, and all others move."""
    policy = kind.build(keep_reference=True)
    pattern = {"tiny-gpt2": "*wte*", "tiny-t5": "*shared*"}.get(kind.name, "*embed*")
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    frozen = {name for name in before if pattern.strip("*") in name}
    assert policy.freeze([pattern]) == sum(before[name].numel() for name in frozen) > 0
    batch = _learnable(policy, make_batch(kind.rows(policy)), sampling)
    settings = Recipe.resolve({"algorithm": {"preset": "grpo"}}).algorithm
    _update(policy, batch, settings, sampling(), tokens=10_000)
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert not moved & frozen
    assert len(moved) > len(before) // 2
    with pytest.raises(ModelError, match="'nothing' matches no parameter"):
        policy.freeze(["nothing"])
    with pytest.raises(ModelError, match="leave nothing of the model to train"):
        policy.freeze(["*"])


def test_policies_say_what_they_lack(kind, make_batch, sampling):
    policy = kind.build()
    with pytest.raises(ModelError, match="keep_reference=True"), policy.reference():
        pass
    with pytest.raises(ModelError, match="critic='head' or 'separate'"):
        policy.score(make_batch(kind.rows(policy)), sampling=sampling(), values=True)


def test_saved_folder_is_an_ordinary_transformers_model(kind, make_batch, sampling, tmp_path):
    """The saved model, loaded by Transformers alone, gives the policy's logits; adapters are merged."""
    adapters = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    for name, arguments in (("plain", {"critic": "head"}), ("lora", {"lora": adapters})):
        policy = kind.build(**arguments)
        _disturb(policy)
        policy.save(tmp_path / name)
        assert not list((tmp_path / name).glob("*.bin"))
        loaded = kind.auto.from_pretrained(tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer("12+ab")["input_ids"] == policy.tokenizer("12+ab")["input_ids"]
        rollout = kind.rows(policy)[3]
        with torch.no_grad():
            expected = kind.logits(SimpleNamespace(model=loaded), rollout)
            actual = torch.cat(list(policy.distributions(make_batch([rollout]))))
        assert_close(actual, expected, rtol=1e-5, atol=1e-4)
        assert actual[actual > float("-inf")].std() > 0.2
        assert not kind.labels or tuple(loaded.config.id2label[i] for i in range(len(kind.labels))) == kind.labels
        assert all("lora" not in key for key in loaded.state_dict())


def test_states_are_the_models_own_where_each_action_was_decided(kind, make_batch):
    """In any way of computing; with them come as many action vectors as there are actions to choose from."""
    policy = kind.build()
    rollouts = kind.rows(policy)
    expected = torch.cat([kind.hidden(policy, rollout)[:-1] for rollout in rollouts])
    for way in kind.ways:
        vars(policy).update(way)
        with torch.no_grad():
            states = policy.states(make_batch(rollouts))
        assert_close(states, expected, rtol=0, atol=1e-4)
    assert len(policy.action_vectors()) == kind.logits(policy, rollouts[0]).shape[1]
