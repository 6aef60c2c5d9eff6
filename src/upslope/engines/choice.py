"""The engine that a policy is sampled by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upslope.engines.engine import BranchingEngine
from upslope.engines.local import LocalEngine
from upslope.engines.single_pass import SinglePassEngine
from upslope.policies.policy import Policy
from upslope.policies.single_pass import SinglePassPolicy


def engine_for(policy: Policy, settings: Mapping[str, Any]) -> BranchingEngine:
    """An engine for this kind of policy; settings are those of the recipe's [engine] section."""
    return SinglePassEngine() if isinstance(policy, SinglePassPolicy) else LocalEngine(**settings)
