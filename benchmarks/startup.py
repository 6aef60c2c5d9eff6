"""From a cold process to imports done and to the first sampled token: python benchmarks/startup.py [--repeats 5].

Each repetition is a fresh process. upslope imports what a training run needs; the peer imports TRL's GRPOTrainer. The
first token is sampled by SmolLM2-135M-Instruct from a one-line prompt; the peer's side is Transformers alone.
"""

from __future__ import annotations

from typing import Any

import workloads
from harness import Side, arguments, measure
from results import compare, report

IMPORTS = {
    "upslope": "import upslope.training.launch",
    "TRL": "from trl import GRPOConfig, GRPOTrainer",
}
FIRST_TOKEN = {
    "upslope": """
import torch
from upslope.engines.local import LocalEngine
from upslope.policies.causal import CausalPolicy
from upslope.policies.loading import load_model
from upslope.policies.sampling import Sampling
from upslope.settings import EngineSettings
from upslope.records import Prompt
policy = CausalPolicy(*load_model({model!r}, dtype=torch.float32))
engine = LocalEngine(**EngineSettings().model_dump())
engine.load(policy, version=0)
prompt = policy.encode(Prompt(id=0, content="Once upon a time"))
(rollout,) = engine.sample([prompt], group_size=1, sampling=Sampling(1.0, None, None, 1, ()), seed=0)
assert len(rollout.actions) == 1
""",
    "Transformers": """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({model!r})
model = AutoModelForCausalLM.from_pretrained({model!r}, dtype=torch.float32)
prompt = tokenizer("Once upon a time", return_tensors="pt")
row = model.generate(**prompt, do_sample=True, top_k=0, max_new_tokens=1)
assert row.shape[1] == prompt["input_ids"].shape[1] + 1
""",
}


def run(turn: Any, *, code: str) -> None:
    """Repetitions of a program in this environment's Python."""
    import subprocess
    import sys

    from worker import peak_bytes_of_children

    while True:
        turn(peak_bytes=peak_bytes_of_children())
        subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    options = arguments(__doc__, repeats=5).parse_args()
    model, cases = workloads.folder(), []
    for title, programs, environment in (("import", IMPORTS, "trl"), ("first token", FIRST_TOKEN, None)):
        sides = [
            Side(name, __file__, "run", {"code": code.format(model=model)}, None if name == "upslope" else environment)
            for name, code in programs.items()
        ]
        results = measure(sides, repeats=options.repeats, peers=options.peers)
        cases.append(compare(title, *results, unit="s"))
    report("startup", cases, results=options.results)


if __name__ == "__main__":
    main()
