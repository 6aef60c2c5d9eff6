"""Data lines that are none: refused by file and line, or, where the recipe asks for it, left out and counted."""

from __future__ import annotations

from faults.processes import ended
from faults.runs import check_done, check_refused, start
from faults.verdict import Injection, check
from upslope.report.run import Run

GOOD = b'{"prompt": "one", "answer": 1}'
ALSO_GOOD = b'{"prompt": "three", "answer": 3}'

BAD_LINES = {
    "cut JSON": (b'{"prompt": "two", "ans', "broken JSON"),
    "cut string": (b'{"prompt": "tw', "broken JSON"),
    "single quotes": (b"{'prompt': 'two'}", "broken JSON"),
    "two objects": (GOOD + GOOD, "broken JSON"),
    "no JSON": (b"two", "broken JSON"),
    "BOM inside": (b"\xef\xbb\xbf" + GOOD, "broken JSON"),
    "list": (b'["two"]', "a JSON list instead of an object"),
    "string": (b'"two"', "a JSON str instead of an object"),
    "number": (b"2", "a JSON int instead of an object"),
    "null": (b"null", "a JSON NoneType instead of an object"),
    "missing prompt": (b'{"question": "two"}', "no 'prompt'"),
    "empty object": (b"{}", "no 'prompt'"),
    "empty prompt": (b'{"prompt": ""}', "an empty 'prompt'"),
    "blank prompt": (b'{"prompt": " \\n"}', "an empty 'prompt'"),
    "null prompt": (b'{"prompt": null}', "an empty 'prompt'"),
    "number prompt": (b'{"prompt": 2}', "a 'prompt' of type int"),
    "object prompt": (b'{"prompt": {"text": "two"}}', "a 'prompt' of type dict"),
    "empty chat": (b'{"prompt": []}', "an empty 'prompt'"),
    "chat without text": (b'{"prompt": [{"role": "user", "content": " "}]}', "an empty 'prompt'"),
    "message without content": (b'{"prompt": [{"role": "user"}]}', "a message in 'prompt' without a text role and"),
    "bad UTF-8": (b'{"prompt": "tw\xff"}', "bytes that are not UTF-8"),
    "Latin-1": ('{"prompt": "zwölf"}'.encode("latin-1"), "bytes that are not UTF-8"),
    "NUL byte": (b'{"prompt": "t\0wo"}', "a NUL byte"),
    "escaped NUL": (b'{"prompt": "t\\u0000wo"}', "a NUL character in 'prompt'"),
    "lone surrogate": (b'{"prompt": "\\ud83d"}', "half a surrogate pair in 'prompt'"),
    "more than 10 MiB": (b'{"prompt": "' + b"x" * (10 << 20) + b'"}', "more than 10 MiB on its line"),
    "duplicate keys": (b'{"prompt": "two", "prompt": "zwei"}', "the same key twice"),
    "NaN": (b'{"prompt": "two", "score": NaN}', "NaN, which is not JSON"),
    "deep nesting": (b'{"prompt": ' + b"[" * 100_000, "JSON nested too deep"),
    "long number": (b'{"prompt": "two", "n": ' + b"9" * 5000 + b"}", "too long a number"),
    "number as completion": (b'{"prompt": "two", "completion": 2}', "a 'completion' of type int"),
}

CASES = (
    "cut JSON", "cut string", "no JSON", "two objects", "list", "string", "null", "missing prompt", "empty object",
    "empty prompt", "blank prompt", "null prompt", "number prompt", "bad UTF-8", "NUL byte", "escaped NUL",
    "more than 10 MiB", "duplicate keys", "BOM inside", "deep nesting",
)  # fmt: skip


def bad_line(injection: Injection) -> None:
    """A run on a file with one bad line among good ones: strict, it is refused before there is a run folder; lenient,
    it trains on the rest, and the log says how many lines were left out and why."""
    line, reason = BAD_LINES[injection.case]
    path, folder = injection.folder / "data.jsonl", injection.folder / "run"
    path.write_bytes(b"\n".join([GOOD, line, ALSO_GOOD]) + b"\n")
    options = {"path": str(path), "reward": ["faults.runs:vowels"]}
    how = {"task": "file", "steps": 1, "minibatches": 1}
    end = ended(lambda _: start(folder, **how, **{"task.options": options}))
    check_refused(end, "DataError", f"{path}:2: ", reason)
    check(not folder.exists(), "a run folder was made")
    check_done(ended(lambda _: start(folder, **how, **{"task.options": {**options, "strict": False}})))
    (said,) = [event["lines"] for event in Run.open(folder).events("skipped_lines")] or [{}]
    check(list(said.values()) == [1] and reason in next(iter(said)), f"the line left out is not counted: {said}")
