"""The policies and engines that the contract suites run over. A new one joins by one line in its table."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from causal_kinds import CAUSAL
from labelled_kinds import LABELLED
from seq2seq_kinds import SEQ2SEQ

from upslope.engines.local import LocalEngine
from upslope.engines.single_pass import SinglePassEngine
from upslope.engines.transformers_forward import TransformersForward
from upslope.records import collate

POLICIES = {**CAUSAL, **SEQ2SEQ, **LABELLED}


class TransformersEngine(LocalEngine):
    """The local engine on an architecture that its decoder does not know."""

    def _choose(self, policy):
        return TransformersForward(policy, max_rows=self._max_rows, cache_bytes=self._cache_bytes)


def _local(kernels, kind=LocalEngine):
    def build(*, max_rows=64, cache_gib=0.1):
        return kind(max_rows=max_rows, cache_gib=cache_gib, kernels=kernels)

    return build


ENGINES = {name: _local(name) for name in ("native", "onednn", "torch")}
ENGINES["transformers"] = _local("torch", TransformersEngine)

WRITERS = [(kind, build) for kind in CAUSAL.values() for build in ENGINES.values()]
WRITERS += [(kind, _local("torch")) for kind in SEQ2SEQ.values()]
WRITER_NAMES = [f"{engine}-{kind}" for kind in CAUSAL for engine in ENGINES] + [f"encoder-decoder-{k}" for k in SEQ2SEQ]


@pytest.fixture(params=POLICIES)
def kind(request):
    """Every kind of policy."""
    return POLICIES[request.param]


@pytest.fixture(params=CAUSAL)
def causal_kind(request):
    """Those that pack rows and share prompts."""
    return CAUSAL[request.param]


@pytest.fixture(params=WRITERS, ids=WRITER_NAMES)
def writer(request):
    """Every policy that writes with every engine that samples from it."""
    return request.param


@pytest.fixture(params=LABELLED)
def labelled_kind(request):
    """Those that choose labels, which the single-pass engine samples from."""
    return LABELLED[request.param]


@pytest.fixture
def make_single_pass_engine():
    return SinglePassEngine


@pytest.fixture
def make_batch():
    """The batch of the given rollouts."""
    return lambda rollouts: collate(rollouts)[0]
