"""Does rounding the weights cost anything? `python examples/compare_models.py`.

A model's linear layers are rounded to 8 and to 4 bits, and each is compared with the original on the same sums, sampled
with the same random numbers. The table says how many samples each verdict took, and how many plain averaging over
unpaired prompts would have needed for the same standard error.
"""

import sys
import tempfile
from pathlib import Path

import torch

import upslope
from upslope.policies.loading import load_model

COLUMNS = ("b", "verdict", "J(b) - J(a)", "95% interval", "samples", "unpaired would need", "comparing took")


def rounded(name, bits, folder):
    """The model with the weights of its linear layers, the head aside, rounded to so many bits a row."""
    model, tokenizer = load_model(name, dtype=torch.float32)
    head = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            step = layer.weight.data.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            layer.weight.data = (layer.weight.data / step).round() * step
    target = Path(folder) / f"{bits} bits"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def row(found):
    """A comparison as a row of the table."""
    difference, interval = found.difference, found.interval
    return (
        Path(found.names[1]).name,
        found.verdict,
        f"{found.estimate:+.3f}",
        f"[{interval.low:+.3f}, {interval.high:+.3f}]",
        str(difference.num_samples),
        f"{difference.num_samples_unpaired:.0f}",
        f"{found.added_s / found.generating_s:.1%}",
    )


def main(model="smollm2-135m-instruct", num_prompts=200, **settings):
    how = {"task": "arithmetic", "metric": "reward", "temperature": 1.0, "max_new_tokens": 8, "margin": 0.05}
    how |= {"num_prompts": num_prompts, "look_every": 40} | settings
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for bits in (8, 4):
            found.append(upslope.compare(model, rounded(model, bits, folder), **how))
            print(found[-1], file=sys.stderr)
    for cells in (COLUMNS, ("---",) * len(COLUMNS), *map(row, found)):
        print("| " + " | ".join(cells) + " |")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
