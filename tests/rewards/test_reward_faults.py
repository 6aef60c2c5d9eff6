"""Reward functions that raise, hang, die or lie: the sample is excluded and counted, the run goes on (CHECKS 40 and the
`reward function` row of the fault table: its 14 faults and two more forks, as a row and as a batch function)."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from faults import hostile
from faults.hostile import FAILS_WHOLE_CALL, FAULTS
from faults.processes import group_members, recording
from faults.processes import survivors as survivors_of
from upslope.errors import RewardError
from upslope.rewards import RewardTerm, Scorer, count_failures, process

SURVIVABLE_HERE = {"raises", "none", "nan", "wrong length", "str", "huge", "sys.exit", "slow"}


def scorer(function, **settings):
    return Scorer([RewardTerm(function, name="f")], **{"timeout_s": 0.6, "memory_bytes": 1 << 30} | settings)


@pytest.fixture
def survivors(monkeypatch):
    """A function giving the ids of living processes of every worker this test started, once they had time to die."""
    groups = []
    monkeypatch.setattr(process.subprocess, "Popen", recording(groups))
    return lambda: survivors_of(groups)


def reason_of(fault):
    reason = FAULTS[fault]
    return reason if reason in (None, "no reward applies") else f"f: {reason}".format(0.6)


def check_good(rollouts):
    for rollout in rollouts:
        assert rollout.failure is None
        assert rollout.rewards == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("fault", FAULTS)
def test_row_fault_excludes_its_sample_only(fault, rollout, survivors, caplog):
    """CHECKS 40: the faulty row fails with its reason, its neighbours are scored, and so is the next batch."""
    with scorer(hostile.row) as scoring:
        before, bad, after = scoring.score([rollout("good"), rollout(fault), rollout("good")])
        assert bad.failure == reason_of(fault)
        assert bad.rewards == (() if FAULTS[fault] else (0.0, 0.0, 1.0))
        check_good([before, after, *scoring.score([rollout("good")] * 2)])
        assert group_members(scoring._worker._process.pid)
    assert survivors() == []
    assert bool(caplog.records) == (FAULTS[fault] not in (None, "no reward applies"))


@pytest.mark.parametrize("fault", FAULTS)
def test_batch_fault_excludes_the_rows_it_spoils(fault, rollout, survivors):
    """CHECKS 40: a call that fails takes all its rows along, a bad value only its own; the next call is scored."""
    with scorer(hostile.batch) as scoring:
        scored = scoring.score([rollout("good"), rollout(fault), rollout("good")])
        failures = [row.failure for row in scored]
        if fault in FAILS_WHOLE_CALL:
            assert failures == [reason_of(fault)] * 3
            assert count_failures(scored) == {reason_of(fault): 3}
        else:
            assert failures == [None, reason_of(fault), None]
            check_good([scored[0], scored[2]])
        check_good(scoring.score([rollout("good")] * 2))
    assert survivors() == []


@pytest.mark.parametrize("fault", sorted(SURVIVABLE_HERE))
def test_isolation_none_gives_the_same_verdicts(fault, rollout):
    with scorer(hostile.row, isolation="none") as scoring:
        before, bad, after = scoring.score([rollout("good"), rollout(fault), rollout("good")])
    assert bad.failure == reason_of(fault)
    check_good([before, after])


@pytest.mark.parametrize("fault", ["raises", "hangs", "os._exit"])
def test_off_the_main_thread(fault, rollout):
    """CHECKS 40: also off the main thread, where signal-based timeouts do not work."""
    results = []

    def score():
        with scorer(hostile.row) as scoring:
            results.extend(scoring.score([rollout("good"), rollout(fault), rollout("good")]))

    thread = threading.Thread(target=score)
    thread.start()
    thread.join(30)
    assert results[1].failure == reason_of(fault)
    check_good([results[0], results[2]])


def test_async_function_that_blocks_the_loop_fails_what_was_unfinished(rollout):
    with scorer(hostile.blocking, timeout_s=0.3) as scoring:
        rows = scoring.score([rollout("good"), rollout("hangs")])
        assert rows[1].failure == "f: timed out after 0.3 s"
        check_good(scoring.score([rollout("good"), rollout("slow")]))
        assert scoring.score([rollout("sys.exit"), rollout("good")])[0].failure == "f: raised SystemExit"


def test_killed_worker_is_replaced(rollout):
    with scorer(hostile.row) as scoring:
        check_good(scoring.score([rollout("good")]))
        os.kill(scoring._worker._process.pid, signal.SIGKILL)
        time.sleep(0.1)
        check_good(scoring.score([rollout("good")]))


def test_close_twice_and_score_again(rollout):
    scoring = scorer(hostile.row)
    check_good(scoring.score([rollout("good")]))
    scoring.close()
    scoring.close()
    check_good(scoring.score([rollout("good")]))
    scoring.close()


def test_what_cannot_be_sent_is_named(rollout):
    lock = threading.Lock()

    def locked(completion):
        with lock:
            return 1.0

    with pytest.raises(RewardError, match=r"'locked' cannot be sent .*lock.*isolation='none'"):
        Scorer([RewardTerm(locked)], timeout_s=1)
    with Scorer([RewardTerm(locked)], timeout_s=1, isolation="none") as scoring:
        check_good(scoring.score([rollout("x")]))


class _Unbuildable:
    def __call__(self, completion):
        return 1.0

    def __reduce__(self):
        return int, ("not a number",)


def test_what_cannot_be_rebuilt_is_named():
    with pytest.raises(RewardError, match=r"'f' cannot be rebuilt .*ValueError.*isolation='none'"):
        scorer(_Unbuildable()).__enter__()


def test_columns_that_cannot_be_sent_are_named(rollout):
    def uses(completion, thing):
        return 1.0

    with (
        pytest.raises(RewardError, match="data columns of reward 'uses'"),
        Scorer([RewardTerm(uses)], timeout_s=1) as scoring,
    ):
        scoring.score([rollout("x", thing=threading.Lock())])


SCRIPT = """
import sys, time
from upslope.records import Prompt, Rollout
from upslope.rewards import RewardTerm, Scorer
bonus = 2.0
def mine(completion):
    if completion == "forever":
        while True: time.sleep(0.01)
    return bonus + ("torch" in sys.modules)
def row(text):
    return Rollout(Prompt(0, "q"), 0, 0, (1, 2), (2,), (0,), (0.0,), text, "eos")
scorer = Scorer([RewardTerm(mine), RewardTerm(lambda completion: bonus)], timeout_s=60)
print(scorer.score([row("a")])[0].score, scorer._worker._process.pid, flush=True)
if "forever" in sys.argv:
    scorer.score([row("forever")])
"""


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_scripts_without_a_main_guard(way, tmp_path):
    """Functions, lambdas and globals of `__main__` work, the worker imports no torch, and none survives the exit."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)] if way == "file" else [sys.executable, "-"]
    done = subprocess.run(command, input=SCRIPT, capture_output=True, text=True, timeout=60, check=True)
    score, worker = done.stdout.split()
    assert float(score) == 4.0
    assert group_members(int(worker)) == []


def test_worker_follows_a_killed_trainer(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script), "forever"], stdout=subprocess.PIPE, text=True) as trainer:
        worker = int(trainer.stdout.readline().split()[1])
        time.sleep(0.3)
        assert group_members(worker)
        trainer.kill()
    deadline = time.monotonic() + 5
    while group_members(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert group_members(worker) == []


def test_interrupt_leaves_no_stale_answer(rollout):
    """A Ctrl-C in the middle of scoring must not shift the answers of the next batch by one row."""
    with Scorer([RewardTerm(hostile.row, name="f")], timeout_s=20) as scoring:
        timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            scoring.score([rollout("good"), rollout("hangs")])
        timer.join()
        check_good(scoring.score([rollout("good")] * 3))


def test_forged_answers_are_refused(rollout):
    """What the worker's socket says is checked: an answer for a row that was never asked fails the sample."""
    with Scorer([RewardTerm(_forge, name="f")], timeout_s=5) as scoring:
        (bad,) = scoring.score([rollout("x")])
    assert bad.rewards == ()
    assert bad.failure == "f: broke its connection"


def _forge(completion):
    import json
    import socket
    from pathlib import Path

    for link in Path("/proc/self/fd").iterdir():
        descriptor = int(link.name)
        try:
            if str(link.readlink()).startswith("socket:"):
                payload = json.dumps({"call": 5, "outcomes": []}).encode()
                socket.socket(fileno=os.dup(descriptor)).sendall(len(payload).to_bytes(8, "big") + payload)
        except OSError:
            continue
    time.sleep(1)
    return 1.0


def test_prints_stay_out_of_the_programs_output(rollout, capfd):
    def talks(completion):
        print("from the reward")
        return 1.0

    with Scorer([RewardTerm(talks)], timeout_s=5) as scoring:
        check_good(scoring.score([rollout("x")]))
    assert capfd.readouterr().out == ""
