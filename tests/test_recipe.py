"""Settings: what a recipe may say, and the one sentence with which everything else is refused."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope import naming
from upslope.algorithm import AlgorithmSettings
from upslope.errors import RecipeError
from upslope.presets import PRESETS
from upslope.recipe import Recipe, parse_override


def refused(values=None, **overrides):
    with pytest.raises(RecipeError) as caught:
        Recipe.resolve(values or {}, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_setting_has_a_default():
    recipe = Recipe()
    assert recipe == Recipe.resolve({})
    assert recipe.algorithm.preset == "ppo"
    assert recipe.sampling.top_k is None  # CHECKS 18: no silent cut
    assert recipe.sampling.top_p is None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("optimiser", "optimizer"),
        ("algoritm", "algorithm"),
        ("methd", "method"),
    ],
)
def test_misspelt_sections_are_named_with_the_nearest(name, nearest):
    assert refused({name: {}}) == f"{name!r} is no setting; did you mean {nearest!r}?"


@pytest.mark.parametrize(
    ("section", "name", "nearest"),
    [
        ("optimizer", "learning_rat", None),
        ("optimizer", "weigth_decay", "optimizer.weight_decay"),
        ("sampling", "max_tokens", "sampling.max_new_tokens"),
        ("algorithm", "group_sise", "algorithm.group_size"),
        ("training", "prompt_per_step", "training.prompts_per_step"),
        ("run", "keeplast", "run.keep_last"),
    ],
)
def test_misspelt_settings_are_named_with_the_nearest(section, name, nearest):
    message = refused({section: {name: 1}})
    assert message.startswith(f"'{section}.{name}' is no setting")
    assert nearest is None or message.endswith(f"; did you mean {nearest!r}?")


def test_misspelt_nested_settings():
    assert refused({"model": {"lora": {"rr": 3}}}) == "'model.lora.rr' is no setting; did you mean 'model.lora.r'?"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr is 'fast', but it should be a valid number"),
        ({"training": {"steps": 2.5}}, "training.steps is 2.5, but it should be a valid integer"),
        ({"training": {"steps": "none"}}, "training.steps is 'none', but it should be a valid integer"),
        ({"training": 3}, "training is 3, but it should be a valid dictionary"),
        ({"sampling": {"stop": "###"}}, "sampling.stop is '###', but it should be a valid tuple"),
        ({"training": {"steps": 0}}, "training.steps is 0, but it should be greater than 0"),
        ({"optimizer": {"lr": -1e-5}}, "optimizer.lr is -1e-05, but it should be greater than 0"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr is nan, but it should be a finite number"),
        ({"optimizer": {"betas": [0.9, 1.5]}}, "optimizer.betas.1 is 1.5, but it should be less than 1"),
        ({"sampling": {"temperature": 0.0}}, "sampling.temperature is 0.0, but it should be greater than 0"),
        ({"algorithm": {"gamma": 1.01}}, "algorithm.gamma is 1.01, but it should be less than or equal to 1"),
        ({"algorithm": {"dual_clip": 1.0}}, "algorithm.dual_clip is 1.0, but it should be greater than 1"),
        ({"training": {"seed": -1}}, "training.seed is -1, but it should be greater than or equal to 0"),
        ({"sampling": {"top_p": 1.5}}, "sampling.top_p is 1.5, but a probability mass is at most 1"),
    ],
)
def test_wrong_types_and_values_are_named_with_what_is_allowed(values, message):
    assert refused(values).startswith(message)


def test_a_wrong_choice_is_named_with_the_choices_and_the_nearest():
    message = refused({"model": {"dtype": "bfloat"}})
    assert message == "model.dtype is 'bfloat', but it should be 'float32' or 'bfloat16'; did you mean 'bfloat16'?"
    message = refused({"algorithm": {"baseline": "critc"}})
    assert message.startswith("algorithm.baseline is 'critc', but it should be 'none', 'running_mean'")
    assert message.endswith("; did you mean 'critic'?")


def test_an_unknown_preset_is_named_with_the_nearest():
    message = refused({"algorithm": {"preset": "ppoo"}})
    assert message.startswith("algorithm.preset is 'ppoo', which is not one of reinforce, reinforce_pp, rloo")
    assert message.endswith("; did you mean 'ppo'?")
    for other in (3, ["ppo"], {"name": "ppo"}, None):
        assert refused({"algorithm": {"preset": other}}).startswith(f"algorithm.preset is {other!r}, which is not one")


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"preset": "grpo", "group_size": 1}, "group_size is 1, but baseline 'group_mean' needs at least 2"),
        ({"preset": "rloo", "group_size": 1}, "group_size is 1, but baseline 'leave_one_out' needs at least 2"),
        ({"preset": "reinforce_pp", "scale": "group_std"}, "group_size is 1, but scale 'group_std' needs at least 2"),
        ({"preset": "ppo", "baseline": "none"}, "credit is 'gae', which needs baseline = 'critic', not 'none'"),
        ({"preset": "a2c", "baseline": "batch_mean"}, "credit is 'n_step', which needs baseline = 'critic'"),
        (
            {"preset": "a2c", "epochs": 2},
            "surrogate is 'log_prob', which is on-policy: epochs and minibatches must be 1",
        ),
        ({"preset": "gspo", "credit": "return"}, "surrogate is 'sequence_clip', which needs credit = 'row_return'"),
        ({"preset": "grpo", "clip_low": "none"}, "surrogate is 'clip', which needs clip_low and clip_high"),
        ({"preset": "cispo", "clip_high": "none"}, "surrogate is 'cispo', which needs clip_high"),
        ({"preset": "dapo", "scale": "none", "baseline": "none", "group_size": 1}, "group_size is 1, but dynamic_samp"),
        ({"preset": "grpo", "kl_estimator": "k1"}, "kl_estimator is 'k1', whose expected gradient in the loss is zero"),
        ({"preset": "ppo", "kl_estimator": "k3"}, "kl_estimator is 'k3', whose gradient is wrong in the reward"),
        ({"preset": "ppo", "kl_coef": 0.0}, "kl_target is set, but kl_coef is 0 and would stay 0"),
        ({"preset": "cispo", "dual_clip": 3.0}, "dual_clip is set, but it belongs to surrogate 'clip', not 'cispo'"),
        ({"preset": "ppo", "kl": "off", "kl_coef": 0.1}, "kl is 'off', so kl_coef must be 0 and kl_target 'none'"),
    ],
)
def test_settings_at_odds_are_refused(algorithm, message):
    assert refused({"algorithm": algorithm}).startswith(f"algorithm.{message}")


def test_impossible_arithmetic_is_refused():
    assert refused(prompts_per_step=10, minibatches=4) == (
        "training.prompts_per_step is 10, which algorithm.minibatches = 4 must divide"
    )
    assert refused(patience=3) == "evaluation.patience is set, so evaluation.every_steps must be set as well"
    assert refused(overlong="penalty", overlong_buffer=65, max_new_tokens=64) == (
        "algorithm.overlong_buffer is 65, but must be at most sampling.max_new_tokens = 64"
    )
    Recipe.resolve({"method": "supervised"}, {"prompts_per_step": 10, "minibatches": 4})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_and_survives_toml(preset, tmp_path):
    recipe = Recipe.resolve({"algorithm": {"preset": preset}})
    for name, value in PRESETS[preset].items():
        assert getattr(recipe.algorithm, name) == value
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == recipe
    assert tomllib.loads(recipe.to_toml())["algorithm"]["dual_clip"] == "none"


def test_a_preset_is_filled_in_and_overridden():
    algorithm = Recipe.resolve({"algorithm": {"preset": "dapo", "clip_high": 0.3}}).algorithm
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.dynamic_sampling) == (0.2, 0.3, True)
    assert Recipe.resolve({}, {"preset": "grpo", "group_size": 4}).algorithm.group_size == 4
    assert Recipe.resolve({"algorithm": {"preset": "grpo"}}, {"preset": "gspo"}).algorithm.clip_low == 3e-4


def test_another_preset_replaces_the_old_ones_settings_and_keeps_the_users():
    """Over a recipe as resolved, which spells every setting out, as over one that names the preset alone."""
    written = Recipe.resolve({"algorithm": {"preset": "grpo", "clip_high": 0.3, "gamma": 0.9}})
    expected = Recipe.resolve({"algorithm": {"preset": "ppo", "clip_high": 0.3, "gamma": 0.9}}).algorithm
    for values in (written.model_dump(), tomllib.loads(written.to_toml())):
        assert Recipe.resolve(values, {"preset": "ppo"}).algorithm == expected
        assert Recipe.resolve(values, {"preset": "grpo"}) == written


def test_presets_are_those_of_the_design():
    """DESIGN section 2's table: baseline, credit, surrogate, scale, sum over, where the KL stands."""
    table = {
        "reinforce": ("running_mean", "return", "log_prob", "none", "rows", "off"),
        "reinforce_pp": ("batch_mean", "return", "clip", "batch_std", "tokens", "reward"),
        "rloo": ("leave_one_out", "row_return", "sequence_ratio", "none", "rows", "reward"),
        "a2c": ("critic", "n_step", "log_prob", "none", "tokens", "off"),
        "ppo": ("critic", "gae", "clip", "batch_std", "tokens", "reward"),
        "grpo": ("group_mean", "return", "clip", "group_std", "rows_token_mean", "loss"),
        "dr_grpo": ("group_mean", "return", "clip", "none", "constant", "off"),
        "dapo": ("group_mean", "return", "clip", "group_std", "tokens", "off"),
        "gspo": ("group_mean", "row_return", "sequence_clip", "group_std", "rows", "off"),
        "cispo": ("group_mean", "return", "cispo", "group_std", "tokens", "off"),
    }
    assert list(PRESETS) == list(table)
    for preset, columns in table.items():
        a = Recipe.resolve({"algorithm": {"preset": preset}}).algorithm
        assert (a.baseline, a.credit, a.surrogate, a.scale, a.over, a.kl) == columns
        assert a.needs_critic == (columns[0] == "critic")
        assert a.needs_reference == (columns[5] != "off")


def test_kl_off_takes_the_presets_coefficient_and_target_with_it():
    algorithm = Recipe.resolve({}, {"preset": "ppo", "kl": "off"}).algorithm
    assert (algorithm.kl_coef, algorithm.kl_target, algorithm.needs_reference) == (0.0, None, False)


def test_overlong_buffer_is_a_fifth_of_the_length_where_it_is_not_set():
    assert Recipe.resolve({}, {"preset": "dapo", "max_new_tokens": 100}).overlong_buffer == 20
    assert Recipe.resolve({}, {"preset": "dapo", "max_new_tokens": 3}).overlong_buffer == 1
    assert Recipe.resolve({}, {"preset": "dapo", "max_new_tokens": 100, "overlong_buffer": 7}).overlong_buffer == 7


def test_nested_settings_have_short_names_too():
    assert Recipe.resolve({}, {"lora_alpha": 8}).model.lora.lora_alpha == 8


def test_none_turns_off_what_may_be_off():
    recipe = Recipe.resolve(
        {
            "algorithm": {"kl_target": "none", "value_clip": "none", "baseline": "critic"},
            "run": {"folder": "none", "checkpoint_every_steps": "none"},
            "model": {"lora": "none"},
        }
    )
    assert recipe.algorithm.kl_target is recipe.algorithm.value_clip is None
    assert recipe.run.checkpoint_every_steps is recipe.run.folder is recipe.model.lora is None
    algorithm = {"preset": "reinforce", "baseline": "none", "scale": "none"}
    assert Recipe.resolve({"algorithm": algorithm}).algorithm.baseline == "none"


def test_a_full_recipe_survives_toml(tmp_path):
    recipe = Recipe.resolve(
        {
            "method": "supervised",
            "model": {"name": "tiny-llama", "lora": {"r": 2, "target_modules": ["q_proj"]}, "freeze": ["a.*", "b"]},
            "task": {"options": {"digits": 2, "shaping": {"correct": 1.0}, "words": ["a", 'b"\n']}},
            "reward": {"functions": ["m:f", {"function": "m:g", "weight": 0.5}]},
            "sampling": {"stop": ["\n\n", "Ü"], "top_p": 0.9},
            "optimizer": {"lr": 3e-5, "betas": [0.9, 0.999]},
        }
    )
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == recipe
    assert recipe.model.lora.r == 2


def test_overrides_by_short_and_full_name():
    recipe = Recipe.resolve({"optimizer": {"lr": 1e-5}}, {"lr": 2e-5, "training.seed": 3, "method": "supervised"})
    assert (recipe.optimizer.lr, recipe.training.seed, recipe.method) == (2e-5, 3, "supervised")
    assert Recipe.resolve({}, {"model.lora.r": 3}).model.lora.r == 3
    assert Recipe.resolve({}, {"task.options.digits": 3}).task.options == {"digits": 3}


def test_overrides_leave_the_given_values_alone():
    values = {"optimizer": {"lr": 1e-5}}
    Recipe.resolve(values, {"lr": 2e-5})
    assert values == {"optimizer": {"lr": 1e-5}}


def test_ambiguous_and_unknown_short_names_are_refused():
    assert refused(name="x") == "setting 'name' could be any of model.name, task.name; write it in full"
    assert refused(zzzzqqq=1) == "'zzzzqqq' is no setting"
    assert refused(group_sise=2) == "'group_sise' is no setting; did you mean 'algorithm.group_size'?"
    assert refused(**{"optimizer.lrr": 2}) == "'optimizer.lrr' is no setting; did you mean 'optimizer.lr'?"
    assert refused(**{"optimiser.lr": 2}) == "'optimiser.lr' is no setting; did you mean 'optimizer.lr'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-4", ("lr", 1e-4)),
        ("steps=3", ("steps", 3)),
        ("kl = none", ("kl", "none")),
        ("model.name=tiny-llama", ("model.name", "tiny-llama")),
        ('model.name="123"', ("model.name", "123")),
        ("run.folder=/a/b=c", ("run.folder", "/a/b=c")),
        ("dynamic_sampling=true", ("dynamic_sampling", True)),
        ('stop=["a", "b"]', ("stop", ["a", "b"])),
        ("shaping={ correct = 1.0 }", ("shaping", {"correct": 1.0})),
        ("stop=", ("stop", "")),
    ],
)
def test_overrides_from_a_command_line(text, expected):
    assert parse_override(text) == expected


def test_an_override_without_a_value_is_refused():
    with pytest.raises(RecipeError, match=r"--set 'lr' has no value; write --set section\.setting=value"):
        parse_override("lr")


def test_a_recipe_file_that_cannot_be_used(tmp_path):
    path = tmp_path / "r.toml"
    with pytest.raises(RecipeError, match=r"recipe '.*r\.toml' cannot be read: No such file"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match=r"cannot be read: Is a directory"):
        Recipe.load(tmp_path)
    path.write_text("[training\nsteps = 3")
    with pytest.raises(RecipeError, match=r"recipe '.*r\.toml' is not TOML: .*line 1"):
        Recipe.load(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match="is not TOML"):
        Recipe.load(path)
    path.write_text("[training]\nstep = 3")
    with pytest.raises(RecipeError, match=r"'training\.step' is no setting; did you mean 'training\.steps'"):
        Recipe.load(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
sections = st.sampled_from([*Recipe.model_fields, "other"])
names = st.sampled_from([*AlgorithmSettings.model_fields, "name", "lr", "lora", "options", "betas", "functions"])


@given(values=st.dictionaries(sections, json_values | st.dictionaries(names, json_values, max_size=3), max_size=3))
@settings(max_examples=300)
def test_whatever_is_given_is_resolved_or_refused_in_one_sentence(values):
    try:
        recipe = Recipe.resolve(values)
    except RecipeError as error:
        sentence = str(error)
    else:
        assert Recipe.resolve(recipe.model_dump()) == recipe
        return
    assert sentence
    assert "\n" not in sentence or "\n" in str(values)


def test_switching_the_kl_off_takes_the_presets_coefficient_and_target_along():
    algorithm = Recipe.resolve({}, {"preset": "ppo", "kl": "off"}).algorithm
    assert (algorithm.kl_coef, algorithm.kl_target) == (0.0, None)


def test_nested_sections_and_their_settings_go_by_short_names():
    assert Recipe.resolve({}, {"lora": {"r": 2}}) == Recipe.resolve({}, {"model.lora.r": 2})
    assert refused(**{"lora.rr": 2}).startswith("'lora.rr' is no setting")
    assert refused(**{"model.lora.rr": 2}).endswith("did you mean 'model.lora.r'?")


def test_the_overlong_buffer_is_a_fifth_of_the_length_where_not_set():
    assert Recipe.resolve({}, {"preset": "dapo", "max_new_tokens": 40}).overlong_buffer == 8
    assert Recipe.resolve({}, {"preset": "dapo", "overlong_buffer": 3}).overlong_buffer == 3


@pytest.mark.parametrize(
    ("elsewhere", "here"),
    [("learning_rate", "optimizer.lr"), ("num_generations", "algorithm.group_size"), ("gae_lambda", "algorithm.lam")],
)
def test_names_from_trl_and_stable_baselines_lead_to_ours(elsewhere, here):
    assert refused(**{elsewhere: 1}) == f"{elsewhere!r} is no setting; did you mean {here!r}?"


def test_every_name_that_is_suggested_for_another_librarys_is_a_setting():
    names = naming.setting_names(Recipe)
    assert all(here in names for here in naming.ELSEWHERE.values())


def test_a_section_given_as_text_is_explained():
    assert refused(model="tiny-llama").startswith("model is a section of settings, not 'tiny-llama'; set model.name")
