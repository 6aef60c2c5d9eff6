"""What was trained is an ordinary Transformers folder: its Auto classes alone predict what `upslope predict` wrote."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import upslope
from upslope.cli.predict import predict

TEXTS = ("ab cde f", "gh", "i jk lm n", "op qrs")
LABELS = ("one", "two", "three")
QUICK = {
    "steps": 2,
    "prompts_per_step": 4,
    "max_new_tokens": 5,
    "isolation": "none",
    "trackers": [],
    "warmup_steps": 0,
    "lr": 1e-2,
    "checkpoint_every_steps": "none",
}


def written(model, tokenizer, text):
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=5, pad_token_id=0)[0]
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    return tokenizer.decode(out[start:], skip_special_tokens=True)


def chosen(model, tokenizer, text):
    logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
    return model.config.id2label[int(logits.argmax())]


def tagged(model, tokenizer, text):
    """By the first piece of each word: of a character tokenizer, its first character."""
    logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
    first = [place for place, letter in enumerate(text) if letter != " " and (place == 0 or text[place - 1] == " ")]
    return " ".join(model.config.id2label[int(logits[place].argmax())] for place in first)


CASES = {
    "causal": ("tiny-llama", "causal", AutoModelForCausalLM, written),
    "seq2seq": ("tiny-bart", "seq2seq", AutoModelForSeq2SeqLM, written),
    "classifier": ("tiny-bert", "classifier", AutoModelForSequenceClassification, chosen),
    "classifier of a decoder": ("tiny-gpt2", "classifier", AutoModelForSequenceClassification, chosen),
    "tagger": ("tiny-bert", "tagger", AutoModelForTokenClassification, tagged),
    "tagger of a decoder": ("tiny-llama", "tagger", AutoModelForTokenClassification, tagged),
}


def letters(completion, prompt):
    """Anything that differs from row to row."""
    return sum(map(ord, completion)) % 7 + len(prompt)


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_predicts_the_same(case, tmp_path):
    name, kind, auto, read = CASES[case]
    task = upslope.Task(prompts=list(TEXTS), reward=letters, labels=LABELS if kind in ("classifier", "tagger") else ())
    run = upslope.train(model=name, task=task, kind=kind, run=tmp_path / "run", algorithm="rloo", group_size=4, **QUICK)
    file, out = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    predict(str(run.folder), file, out=out, prompt="text", strict=True, seed=0)
    found = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    model, tokenizer = auto.from_pretrained(run.model_path).eval(), AutoTokenizer.from_pretrained(run.model_path)
    with torch.no_grad():
        assert found == [read(model, tokenizer, text) for text in TEXTS]
