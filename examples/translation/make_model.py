"""An English-German translator with random weights and a vocabulary learnt from the data, to train from scratch.

    python examples/translation/make_model.py $UPSLOPE_DATA/data/multi30k_en_de/train.jsonl runs/translation_model

A MarianMT model of 7.5 million weights: three layers a side, width 256, one vocabulary of 8,000 pieces for both
languages. Any pretrained model that AutoModelForSeq2SeqLM loads takes its place by its name in the recipes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def learn_pieces(data: Path, *, columns: tuple[str, ...], size: int) -> PreTrainedTokenizerFast:
    """A byte-pair vocabulary of the texts in the columns of a JSONL file; every text ends with END."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator((row[column] for row in rows for column in columns), trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def make_model(tokenizer: PreTrainedTokenizerFast, *, width: int = 256, layers: int = 3) -> MarianMTModel:
    """A model with random weights for the vocabulary, which both sides and the output share."""
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": layers, "attention_heads": width // 64, "ffn_dim": 4 * width}.items()
    }
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        max_position_embeddings=128,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
        scale_embedding=True,
        dropout=0.1,
        activation_function="gelu",
        **sides,
        **ids,
    )
    return MarianMTModel(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--columns", nargs="+", default=["en", "de"])
    parser.add_argument("--pieces", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = learn_pieces(options.data, columns=tuple(options.columns), size=options.pieces)
    model = make_model(tokenizer)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(tokenizer)} pieces, in {options.folder}")


if __name__ == "__main__":
    main()
