# ruff: noqa: E501 - programs and their tests, one a line
"""The sandbox: verdicts equal to a plain run's for programs of good faith, and nothing at all for hostile ones."""

import contextlib
import ctypes
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import upslope
from faults import programs
from upslope.errors import RewardError
from upslope.rewards import Case, RewardTerm, Sandbox, Scorer, Verdict, passes_tests
from upslope.rewards.programs import program_in
from upslope.rewards.sandbox import client, landlock, seccomp
from upslope.rewards.sandbox.confinement import missing
from upslope.rewards.sandbox.messages import decode, encode
from upslope.tasks.loading import load_terms

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"this machine lacks {missing()} for the sandbox")


@pytest.fixture(scope="module")
def sandbox():
    """With time enough for programs of good faith on a busy machine."""
    sandbox = Sandbox(timeout_s=30)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def quick():
    """For programs that pass nothing however long they take."""
    sandbox = Sandbox(timeout_s=0.5)
    yield sandbox
    sandbox.close()


ADD = "def add(a, b):\n    return a + b\n"
SUB = "def add(a, b):\n    return a - b\n"
GOOD_FAITH = [  # program, tests: each is also run plainly, in one interpreter
    (ADD, "assert add(2, 3) == 5"),
    (SUB, "assert add(2, 3) == 5"),
    (ADD, "assert add((1,), (2,)) == (1, 2) and add([1], [2]) == [1, 2] and add({1}, {2}) == {1}"),
    (ADD, "import math\ndef near(a, b):\n    return math.isclose(a, b)\nassert near(add(.1, .2), .3)"),
    ("def add(a, b):\n    return [a, b]", "assert add(1, 2) == (1, 2)"),
    ("def powers(n):\n    return {k: (k, k**n, {k}) for k in (1, 2)}", "assert powers(200)[2] == (2, 2**200, {2})"),
    ("def back(x):\n    x.reverse()", "x = [1, 2, 3]\nassert back(x) is None and x == [3, 2, 1]"),
    ("def fill(d):\n    d['a'] = [1]", "d = {}\nfill(d)\nassert d == {'a': [1]}"),
    ("def half(n):\n    return n / 0", "try:\n    half(1)\nexcept ZeroDivisionError as error:\n    assert 'by zero' in str(error)"),
    ("def half(n):\n    return n / 2", "try:\n    half(1)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False"),
    ("class Odd(ValueError):\n    pass\ndef f():\n    raise Odd('x')", "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'x'"),
    ("class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n        return self",
     "s = Stack()\ns.push(1).push('b')\nassert s.items == [1, 'b'] and len(s.items) == 2"),
    ("def count():\n    n = 0\n    while True:\n        yield n\n        n += 1", "c = count()\nassert [next(c), next(c)] == [0, 1]"),
    ("def evens(n):\n    return (k for k in range(n) if k % 2 == 0)", "assert list(evens(7)) == [0, 2, 4, 6]"),
    ("def nan():\n    return float('nan')", "assert nan() != nan()"),
    ("def text():\n    return '\\ud800\\0\\u4e2d'", "assert text() == '\\ud800\\0\\u4e2d'"),
    ("LIMIT = 7", "assert LIMIT == 7"),
    ("def add(a, b)\n    return a", "assert add(1, 2) == 1"),
    ("raise SystemExit(0)", "assert add(1, 2) == 1"),
    ("def sum_(x):\n    return sum(x)", "assert sum_([1, 2]) == 3 and sum([1]) == 1"),
    ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int", "assert P(3).x == 3 and str(P(3)) == 'P(x=3)'"),
    ("def f(a, *, k):\n    return a * k", "assert f('ab', k=2) == 'abab'"),
    ("def data():\n    return [b'\\xff', 1j, None, True, frozenset([1]), -0.0, 1e400]",
     "assert repr(data()) == repr([b'\\xff', 1j, None, True, frozenset([1]), -0.0, 1e400])"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "tests"), GOOD_FAITH, ids=range(len(GOOD_FAITH)))
def test_verdict_is_that_of_a_plain_run(program, tests, sandbox):
    namespace = {"__name__": "plain"}
    try:
        exec(program, namespace)
        exec(tests, namespace)
        passes = True
    except (Exception, SystemExit):
        passes = False
    verdict = sandbox.run(program, tests)
    assert (verdict.passed, verdict.total) == (int(passes), 1), verdict.why
    assert bool(verdict.why) != passes


@pytest.mark.parametrize(
    ("program", "case", "passes"),
    [
        ("print(int(input()) + int(input()))", ("2\n3\n", "5"), True),
        ("print('a  \\nb\\n\\n')", ("", "a\nb"), True),
        ("print('a\\n b')", ("", "a\nb"), False),
        ("import sys\nprint(len(sys.stdin.read()))", ("x" * 300_000, "300000"), True),
        ("print('late')", ("x" * 300_000, "late"), True),
        ("print(5); 1 / 0", ("", "5"), False),
        ("import sys\nprint(5); sys.exit()", ("", "5"), True),
        ("if __name__ == '__main__':\n    print('中')", ("", "中"), True),
        (
            "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    print(1)\nasyncio.run(main())",
            ("", "1"),
            True,
        ),
        ("print('x' * 10_000)", ("", "x" * 10_000), True),
    ],
)
def test_cases_compare_what_was_printed(program, case, passes, sandbox):
    assert sandbox.run(program, [Case(*case)]).passed == passes


@pytest.mark.parametrize(
    ("tests", "entry_point", "verdict"),
    [
        ("def check(candidate):\n    assert candidate(1, 2) == 3", "add", (1, 1)),
        ("def check(candidate):\n    assert candidate(1, 2) == 4", "add", (0, 1)),
        ("def check(candidate):\n    assert candidate(1, 2) == 3", "sub", (0, 1)),
        ("assert candidate(1, 2) == 3", "add", (1, 1)),
        ("from solution import add\ndef test_a():\n    assert add(1, 1) == 2\ndef test_b():\n    assert add(1, 1) == 3", None, (1, 2)),
        ("import unittest\nimport solution\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(solution.add(1, 1), 2)"
         "\n    def test_b(self):\n        self.fail()\nif __name__ == '__main__':\n    unittest.main()", None, (1, 2)),
        (["assert add(1, 1) == 2", "assert add(1, 1) == 3", "assert add(0, 1) == 1"], None, (2, 3)),
    ],
)  # fmt: skip
def test_forms_of_tests(tests, entry_point, verdict, sandbox):
    """HumanEval's, pytest's, unittest's, MBPP's; a method as the entry point."""
    found = sandbox.run(ADD, tests, entry_point=entry_point, every=True)
    assert (found.passed, found.total) == verdict
    method = "class Solution:\n    def add(self, a, b):\n        return a + b\n    sub = None"
    if entry_point:
        assert sandbox.run(method, tests, entry_point=f"Solution().{entry_point}").passed == verdict[0]


def test_stops_at_the_first_failure_unless_asked(sandbox):
    tests = ["assert add(1, 1) == 3", "assert add(1, 1) == 2"]
    assert sandbox.run(ADD, tests) == Verdict(0, 2, "AssertionError, at 'assert add(1, 1) == 3'")
    assert sandbox.run(ADD, tests, every=True).passed == 1
    cases = [Case("", "4"), Case("", "3")]
    assert sandbox.run("print(3)", cases, every=True) == Verdict(1, 2, "printed '3' for the input ''")


@pytest.mark.parametrize(
    ("tests", "entry_point", "message"),
    [
        ("assert add(", None, "broken: SyntaxError"),
        ("assert 1 == 1", None, "they ask nothing of the program"),
        ("import nothing_like_it\nassert add(1, 2) == 3", None, "No module named 'nothing_like_it'"),
        ("def check(candidate):\n    assert candidate(1, 2) == 3", None, "no entry_point says"),
        ("def check(candidate):\n    assert near(candidate(1, 2), 3)", "add", "they use 'near', which neither"),
        ("assert add(len, 3)", None, "they pass a builtin_function_or_method to the program"),
        ("add(1, 2)\nraise SystemExit", None, "they end their process"),
        ("add(1, 2)\nwhile True:\n    pass", None, "take more than 0.5 s of their own"),
        ("import ctypes\nctypes.string_at(0)", None, "tests died of signal 11"),
        ([], None, "there are no tests"),
        (["assert add(1, 2)", Case("", "1")], None, "cases are mixed with asserts"),
        ([Case("1", ""), Case("2", "\n")], None, "a program that does nothing passes"),
    ],
)
def test_tests_at_fault_are_told_not_paid_0(tests, entry_point, message, quick):
    with pytest.raises(RewardError, match=message):
        quick.run(ADD, tests, entry_point=entry_point)


LIARS = [
    "class Yes:\n    def __eq__(self, other):\n        return True\n    def __len__(self):\n        return 1\ndef add(a, b):\n    return Yes()",
    "class Yes(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\ndef add(a, b):\n    return Yes()",
    "import math\nmath.isclose = lambda *a: True\nisclose = math.isclose\ndef add(a, b):\n    return 0",
    "def add(a, b):\n    raise AssertionError",
    "def add(a, b):\n    return [[]] * 10**6",
    "def add(a, b):\n    x = []\n    for _ in range(10**5):\n        x = [x]\n    return x",
    "def add(a, b):\n    return 10**400_000",
    "import os\ndef add(a, b):\n    os.write(4, b'\\xff' * 100)",
    "def add(a, b):\n    add.__dict__.update(x=add)\n    return add",
]


@pytest.mark.parametrize("program", LIARS, ids=range(len(LIARS)))
def test_answers_that_lie_pass_nothing(program, quick):
    """What is compared is plain data, in the tests' process, by Python's own types."""
    for tests in ("assert add(2, 3) == 5", "import math\nassert math.isclose(add(2, 3), 5)"):
        assert quick.run(program, tests).passed == 0


@pytest.fixture
def reaping():
    """Ids of processes that this test left behind; daemons among them become this process's children."""
    prctl = ctypes.CDLL(None).prctl
    before = set(programs._descendants(os.getpid()))
    prctl(36, 1, 0, 0, 0)
    yield lambda: sorted(set(programs.descendants(0.0)) - before)
    prctl(36, 0, 0, 0, 0)


@pytest.mark.parametrize("case", programs.PROGRAMS)
def test_hostile_program_is_paid_nothing_and_leaves_nothing(case, tmp_path, monkeypatch, reaping):
    """The sixteen of CHECKS, by asserts and by output; `make faults` does them again in a reward worker."""
    word = "9f3a"
    monkeypatch.setenv("UPSLOPE_WORD", word)
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "tests.py").write_text(programs._asserts(word))
    sandbox = Sandbox(timeout_s=0.5)
    with programs._serving(word) as (port, name):
        source = programs.source_of(case, folder=str(tmp_path), port=port, name=name, pid=os.getpid())
        for tests in (programs._asserts(word), [Case("", word)]):
            began = time.monotonic()
            assert sandbox.run(source, tests).passed == 0
            assert time.monotonic() - began < 3.0
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "tests.py"}
    assert (tmp_path / "kept").read_text() == "kept"
    assert len(reaping()) == 1  # the forker
    sandbox.close()
    assert reaping() == []


@pytest.mark.parametrize("case", ["network", "read env", "edit the tests", "write outside"])
def test_the_attacks_are_real(case, tmp_path, monkeypatch):
    """Without the sandbox the same programs find the word, or change the folder."""
    word = "9f3a"
    monkeypatch.setenv("UPSLOPE_WORD", word)
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "tests.py").write_text(programs._asserts(word))
    with programs._serving(word) as (port, name):
        source = programs.source_of(case, folder=str(tmp_path), port=port, name=name, pid=os.getpid())
        source = source.replace("/proc/[0-9]*/", "/proc/self/nothing")  # of this machine's other processes nothing
        command = [sys.executable, "-I", "-S", "-c", source]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    if case == "write outside":
        assert {path.name for path in tmp_path.iterdir()} != {"kept", "tests.py"}
    else:
        assert done.stdout.strip() == word


@pytest.mark.parametrize(
    ("given_up", "still"),
    [("None", "read a file"), ("c.seccomp.install(c.libc)", "read a file"), ("c.landlock.read_only(c.libc, [])", "open a socket")],
)  # fmt: skip
def test_a_process_that_is_not_confined_is_found_out(given_up, still, monkeypatch):
    """The proof on the start sees what a confined process can still do, were any part of the confinement missing."""
    loose = "import upslope.rewards.sandbox.forker as f, upslope.rewards.sandbox.confinement as c; "
    loose += f"f.confine = lambda *a: (c.libc.prctl(38, 1, 0, 0, 0), {given_up}); "
    monkeypatch.setattr(client, "_BOOT", client._BOOT.replace("del sys.path[0]; ", loose + "del sys.path[0]; "))
    with pytest.raises(RewardError, match=f"does not hold on this machine: a confined process can still {still}"):
        Sandbox()


def test_what_the_machine_lacks_is_named(monkeypatch):
    monkeypatch.setattr(seccomp, "supported", lambda: False)
    with pytest.raises(RewardError, match="needs a table of system calls for its processor"):
        Sandbox()
    monkeypatch.undo()
    monkeypatch.setattr(landlock, "version", lambda libc: 0)
    with pytest.raises(RewardError, match=r"needs Landlock .* judge programs on one that has it"):
        Sandbox()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RewardError, match="needs Linux"):
        Sandbox()


def test_limits_are_checked():
    for name in ("timeout_s", "memory_mib", "output_kib"):
        with pytest.raises(RewardError, match=f"{name} is 0"):
            Sandbox(**{name: 0})
    with pytest.raises(RewardError, match="cannot confine a process: memory_mib is too low for the interpreter alone"):
        Sandbox(memory_mib=1)


def test_limits_hold():
    """Memory and output: just below passes, above fails. Time: what sleeps on is ended."""
    tests = [Case("", "ok")]
    small = Sandbox(timeout_s=30, memory_mib=200, output_kib=1)
    assert small.run("x = bytearray(100 << 20)\nprint('ok')", tests).passed == 1
    assert "MemoryError" in small.run("x = bytearray(200 << 20)\nprint('ok')", tests).why
    assert small.run("print('x' * 1000)", [Case("", "x" * 1000)]).passed == 1
    assert small.run("print('x' * 1100)", [Case("", "x" * 1100)]).why == "printed more than 1024 bytes"
    assert small.run("def f():\n    return 'x' * 900", "assert len(f()) == 900").passed == 1
    assert "no plain data (1200 bytes" in small.run("def f():\n    return 'x' * 1170", "assert f()").why
    small.close()


def test_time_is_up(quick):
    assert quick.run("import time\ntime.sleep(60)", [Case("", "ok")]).why == "timed out"
    assert quick.run("import time\ndef f():\n    time.sleep(60)", "assert f()").why == "timed out"


def test_installed_packages_only_when_asked():
    tests = "import numpy\nassert f(3) == [0, 1, 2] and numpy.sum(f(3)) == 3"
    program = "import numpy\ndef f(n):\n    return numpy.arange(n)"
    with_packages = Sandbox(packages=True, memory_mib=2048, timeout_s=20)
    assert with_packages.run(program, tests).passed == 1
    with_packages.close()


def test_ordinary_users_are_confined_alike():
    """No privilege is needed: the same verdict and the same refusals as another user than root."""
    python = shutil.which("python3", path="/usr/bin")
    if os.geteuid() or python is None:
        pytest.skip("only root can become another user, and needs a /usr/bin/python3")
    script = (
        f"import sys; sys.version_info >= (3, 11) or sys.exit(9); sys.path.insert(0, {str(Path(upslope.__file__).parents[1])!r})\n"
        "from upslope.rewards.sandbox.supervisor import Sandbox, Case\n"
        "program = '''import os, socket\nfor attempt in (os.fork, lambda: open('/etc/passwd'), socket.socket):\n"
        "    try: attempt()\n    except PermissionError: print('refused')'''\n"
        "print(Sandbox(timeout_s=10).run(program, [Case('', 'refused\\\\n' * 3)]))"
    )
    nobody = pwd.getpwnam("nobody")
    done = subprocess.run(
        [python, "-s", "-c", script.replace("\\\\", "\\")], user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], cwd="/",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode == 9 or "No module named 'upslope'" in done.stderr:
        pytest.skip("/usr/bin/python3 is older than 3.11, or nobody may not read this folder")
    assert done.stdout == "Verdict(passed=1, total=1, why='')\n", done.stderr


def test_a_killed_forker_is_replaced(sandbox):
    sandbox.run(ADD, "assert add(1, 2) == 3")
    os.kill(programs._descendants(os.getpid())[-1], signal.SIGKILL)
    with contextlib.suppress(RewardError):
        sandbox.run(ADD, "assert add(1, 2) == 3")
    assert sandbox.run(ADD, "assert add(1, 2) == 3").passed == 1


def test_nothing_outlives_a_killed_trainer(reaping):
    script = (
        "from upslope.rewards.sandbox.supervisor import Sandbox, Case\n"
        "sandbox = Sandbox(timeout_s=600)\nprint('on', flush=True)\nsandbox.run('while True: pass', [Case('', '1')])"
    )

    def running():  # the trainer, its forker and the program; a proof that takes the program's place is soon gone
        return len(reaping()) == 3 and not time.sleep(0.3) and len(reaping()) == 3

    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as trainer:
        try:
            assert trainer.stdout.readline() == "on\n"
            deadline = time.monotonic() + 20
            while not (began := running()) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert began
        finally:
            trainer.kill()
    deadline = time.monotonic() + 5
    while reaping() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert reaping() == []


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**30, 10**400) | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.tuples(st.integers()), inner)
    | st.frozensets(st.integers()) | st.sets(st.text()),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=50)
@given(PLAIN)
@example(10**5000)
def test_plain_data_arrives_as_it_was(value):
    """Types, signs of zero, NaN and all: what `repr` shows."""
    arrived = decode(json.loads(json.dumps(encode(value, pytest.fail))), pytest.fail)
    assert _shown(arrived) == _shown(value)


def _shown(value):
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [_shown(item) for item in value]
    if isinstance(value, dict):
        return [(_shown(key), _shown(item)) for key, item in value.items()]
    return hex(value) if type(value) is int else repr(value)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1\n", "x = 1\n"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```\nbetter:\n```py\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "x = 1"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("  ```python\n  x = '```'\n  ```", "  x = '```'\n"),
    ],
)
def test_program_is_the_last_block(text, program):
    assert program_in(text) == program


def test_rule_scores_rows_by_their_column(rollout):
    """0 for programs that fail, dropped and counted where the tests are at fault, shares where asked for."""
    rule = passes_tests(timeout_s=20.0)
    asserts = ["assert add(1, 2) == 3", "assert add(1, 2) == 4"]
    cases = {"inputs": ["1", "2"], "outputs": ["1", "3"]}
    rows = [
        rollout(ADD, tests="assert add(1, 2) == 3"),
        rollout(SUB, tests="assert add(1, 2) == 3"),
        rollout(f"```python\n{ADD}```", tests="def check(f):\n    assert f(1, 2) == 3", entry_point="add"),
        rollout(ADD, tests=asserts),
        rollout("print(input())", tests=json.dumps(cases)),
        rollout("print(input())", tests=[{"input": "1", "output": "1"}]),
        rollout(ADD, tests="assert add("),
        rollout(ADD, tests={"inputs": [], "outputs": ["1"]}),
        rollout(ADD, tests=3),
        rollout(ADD),
    ]
    share = RewardTerm(passes_tests(share=True, timeout_s=20.0), weight=0.0, name="share")
    with Scorer([RewardTerm(rule), share], timeout_s=60) as scorer:
        scored = scorer.score(rows)
    assert [row.metrics.get("passes_tests") for row in scored] == [1, 0, 1, 0, 0, 1] + [None] * 4
    assert [row.metrics.get("share") for row in scored[:6]] == [1, 0, 1, 0.5, 0.5, 1]
    assert [row.failure for row in scored[6:]] == ["passes_tests: raised RewardError"] * 4


def test_prefix_completes_the_prompts_function(rollout):
    rule = passes_tests(prefix="start", timeout_s=20.0)
    row = rollout("    return a + b", start="def add(a, b):\n", tests="assert add(1, 2) == 3")
    with Scorer([RewardTerm(rule)], timeout_s=60, isolation="none") as scorer:
        assert scorer.score([row])[0].rewards[-1] == 1.0


def test_rows_that_the_worker_has_no_time_for_are_counted(rollout, reaping):
    slow = "import time\ntime.sleep(100)"
    with Scorer([RewardTerm(passes_tests(timeout_s=8.0))], timeout_s=4.0) as scorer:
        bad, good = scorer.score(
            [rollout(slow, tests=[Case("", "1").__dict__]), rollout("print(1)", tests=[Case("", "1").__dict__])]
        )
        assert bad.failure == "passes_tests: timed out after 4 s"
        assert good.metrics["passes_tests"] == 1.0
    deadline = time.monotonic() + 5
    while reaping() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reaping() == []


def test_rule_by_name_and_through_the_pickle():
    (term,) = load_terms([{"function": "passes_tests", "timeout_s": 1.5, "column": "checks"}])
    assert term.function.columns == ("checks",)
    again = cloudpickle.loads(cloudpickle.dumps(term.function))
    assert again.__name__ == term.name == "passes_tests"
