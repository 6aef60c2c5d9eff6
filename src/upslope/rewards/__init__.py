"""Reward functions: any Python callable, run in a worker process, weighted and added into one score a row.

Names are imported on first use, so that a reward worker, which needs none of them, starts in a tenth of a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope.rewards.demonstrated import implicit as implicit
    from upslope.rewards.demonstrated import inverse_q as inverse_q
    from upslope.rewards.judge import llm_judge as llm_judge
    from upslope.rewards.language_model import likelihood as likelihood
    from upslope.rewards.learned import reward_model as reward_model
    from upslope.rewards.mathematics import math_answer as math_answer
    from upslope.rewards.numbers import brevity as brevity
    from upslope.rewards.numbers import closeness as closeness
    from upslope.rewards.numbers import correct as correct
    from upslope.rewards.numbers import digits_right as digits_right
    from upslope.rewards.numbers import ended as ended
    from upslope.rewards.numbers import last_number as last_number
    from upslope.rewards.overlap import CorpusScore as CorpusScore
    from upslope.rewards.overlap import bleu as bleu
    from upslope.rewards.overlap import chrf as chrf
    from upslope.rewards.overlap import corpus_bleu as corpus_bleu
    from upslope.rewards.overlap import corpus_chrf as corpus_chrf
    from upslope.rewards.overlap import one_minus_ter as one_minus_ter
    from upslope.rewards.overlap import rouge_1 as rouge_1
    from upslope.rewards.overlap import rouge_2 as rouge_2
    from upslope.rewards.overlap import rouge_l as rouge_l
    from upslope.rewards.programs import passes_tests as passes_tests
    from upslope.rewards.rules import contains as contains
    from upslope.rewards.rules import cost_matrix as cost_matrix
    from upslope.rewards.rules import ends_with as ends_with
    from upslope.rewards.rules import exact_match as exact_match
    from upslope.rewards.rules import json_parsable as json_parsable
    from upslope.rewards.rules import json_schema as json_schema
    from upslope.rewards.rules import length_penalty as length_penalty
    from upslope.rewards.rules import numeric_answer as numeric_answer
    from upslope.rewards.rules import overlong_penalty as overlong_penalty
    from upslope.rewards.rules import regex_match as regex_match
    from upslope.rewards.rules import repetition_penalty as repetition_penalty
    from upslope.rewards.rules import starts_with as starts_with
    from upslope.rewards.sandbox.supervisor import Case as Case
    from upslope.rewards.sandbox.supervisor import Sandbox as Sandbox
    from upslope.rewards.sandbox.supervisor import Verdict as Verdict
    from upslope.rewards.scorer import Scorer as Scorer
    from upslope.rewards.scorer import count_failures as count_failures
    from upslope.rewards.spans import find_spans as find_spans
    from upslope.rewards.spans import span_credit as span_credit
    from upslope.rewards.spans import span_f1 as span_f1
    from upslope.rewards.spans import tag_accuracy as tag_accuracy
    from upslope.rewards.terms import RewardTerm as RewardTerm

_HOME_OF = {
    "implicit": "demonstrated",
    "inverse_q": "demonstrated",
    "llm_judge": "judge",
    "likelihood": "language_model",
    "math_answer": "mathematics",
    "brevity": "numbers",
    "closeness": "numbers",
    "correct": "numbers",
    "digits_right": "numbers",
    "ended": "numbers",
    "last_number": "numbers",
    "CorpusScore": "overlap",
    "bleu": "overlap",
    "chrf": "overlap",
    "corpus_bleu": "overlap",
    "corpus_chrf": "overlap",
    "one_minus_ter": "overlap",
    "rouge_1": "overlap",
    "rouge_2": "overlap",
    "rouge_l": "overlap",
    "reward_model": "learned",
    "passes_tests": "programs",
    "contains": "rules",
    "cost_matrix": "rules",
    "ends_with": "rules",
    "exact_match": "rules",
    "json_parsable": "rules",
    "json_schema": "rules",
    "length_penalty": "rules",
    "numeric_answer": "rules",
    "overlong_penalty": "rules",
    "regex_match": "rules",
    "repetition_penalty": "rules",
    "starts_with": "rules",
    "Case": "sandbox.supervisor",
    "Sandbox": "sandbox.supervisor",
    "Verdict": "sandbox.supervisor",
    "Scorer": "scorer",
    "count_failures": "scorer",
    "find_spans": "spans",
    "span_credit": "spans",
    "span_f1": "spans",
    "tag_accuracy": "spans",
    "RewardTerm": "terms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
