"""Data files to prompts, and 20 and more lines that are none (the `data lines` row of the fault table)."""

import csv
import json
import os
from pathlib import Path

import pytest

from faults.lines import ALSO_GOOD, BAD_LINES, GOOD
from upslope.errors import DataError, DependencyError
from upslope.rewards import numeric_answer
from upslope.tasks import as_prompts, read_prompts


def contents(prompts):
    return [prompt.content for prompt in prompts]


@pytest.mark.parametrize("fault", BAD_LINES)
def test_bad_line(fault, tmp_path, caplog):
    """Strict: one sentence with file and line. Lenient: skipped, counted by reason and logged; ids do not move."""
    line, reason = BAD_LINES[fault]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([GOOD, line, ALSO_GOOD]) + b"\n")
    with pytest.raises(DataError) as refused:
        read_prompts(path)
    assert str(refused.value).startswith(f"{path}:2: the record has ")
    assert reason in str(refused.value)
    assert not caplog.records
    prompts, skipped = read_prompts(path, strict=False)
    assert contents(prompts) == ["one", "three"]
    assert [prompt.id for prompt in prompts] == [0, 2]
    assert list(skipped.values()) == [1]
    assert reason in next(iter(skipped))
    assert "skipped 1 of 3 records" in caplog.text


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_good_jsonl(line_end, start, tmp_path):
    """A byte-order mark at the start, Windows line ends, blank lines and a missing last line end are all fine."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(start + line_end.join([GOOD, b"", b"  ", ALSO_GOOD]))
    prompts, skipped = read_prompts(path, first_id=100)
    assert [(p.id, p.content, dict(p.columns)) for p in prompts] == [
        (100, "one", {"answer": 1}),
        (101, "three", {"answer": 3}),
    ]
    assert skipped == {}
    assert contents(read_prompts(path, limit=1)[0]) == ["one"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_file(content, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    for strict in (True, False):
        with pytest.raises(DataError, match=r"data\.jsonl: there is no usable record"):
            read_prompts(path, strict=strict)


def test_files_that_are_not_there_or_not_readable(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "data.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"'\.xlsx' cannot be read; convert it"):
        read_prompts(tmp_path / "data.xlsx")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"damaged folder of datasets\.save_to_disk"):
        read_prompts(tmp_path / "saved")


def test_missing_column_names_those_there_are(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"question": "q", "final": 3}\n')
    with pytest.raises(DataError, match=r":1: the record has no 'prompt', only 'question', 'final'; name the column"):
        read_prompts(path)
    prompts, _ = read_prompts(path, prompt="question", rename={"final": "answer"})
    assert (prompts[0].content, dict(prompts[0].columns)) == ("q", {"answer": 3})
    with pytest.raises(DataError, match="two columns named 'question'"):
        read_prompts(path, prompt="question", rename={"final": "question"})


def test_csv(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('prompt,answer\n"a, ""quoted""\nprompt",1\nplain,2\n', encoding="utf-8-sig")
    prompts, _ = read_prompts(path)
    assert [(p.content, p.columns["answer"]) for p in prompts] == [('a, "quoted"\nprompt', "1"), ("plain", "2")]
    (tmp_path / "data.tsv").write_text("prompt\tanswer\nx,y\t3\n")
    assert contents(read_prompts(tmp_path / "data.tsv")[0]) == ["x,y"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"two", "another number of fields than the header"),
        (b"two,2,2", "another number of fields than the header"),
        (b"tw\xff,2", "bytes that are not UTF-8"),
        (b"t\0wo,2", "a NUL byte"),
        (b",2", "an empty 'prompt'"),
        (b'"two"x,2', "broken CSV"),
        (b"x" * 200_000 + b",2", "broken CSV (field larger than field limit"),
    ],
)
def test_bad_csv_line(line, reason, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"prompt,answer\none,1\n" + line + b"\nthree,3\n")
    with pytest.raises(DataError) as refused:
        read_prompts(path)
    assert str(refused.value).startswith(f"{path}:3: ")
    assert reason in str(refused.value)
    prompts, skipped = read_prompts(path, strict=False)
    assert contents(prompts)[0] == "one"
    assert sum(skipped.values()) >= 1


def test_csv_quote_that_never_closes_and_bad_headers(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('prompt,answer\none,1\n"two,2\nthree,3\n')
    with pytest.raises(DataError, match="broken CSV"):
        read_prompts(path)
    assert contents(read_prompts(path, strict=False)[0]) == ["one"]
    for header in ("", "prompt,prompt\n"):
        path.write_text(header)
        with pytest.raises(DataError, match=r":1: the first line must name each column once"):
            read_prompts(path)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "data.parquet"
    chat = [{"role": "user", "content": "Hi"}]
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": chat, "answer": 1}, {"prompt": chat, "answer": 2}]), path)
    prompts, _ = read_prompts(path)
    assert [(p.content, p.columns["answer"]) for p in prompts] == [(tuple(chat), 1), (tuple(chat), 2)]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_prompts(path)


def test_datasets_folder_and_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list([{"prompt": "one"}, {"prompt": "two"}])
    made.save_to_disk(tmp_path / "single")
    assert contents(read_prompts(tmp_path / "single")[0]) == ["one", "two"]
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(tmp_path / "splits")
    assert contents(read_prompts(tmp_path / "splits", split="test")[0]) == ["two"]
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        read_prompts(tmp_path / "splits", split="dev")

    def load_dataset(name, *, split):
        assert (name, split) == ("owner/name", "validation")
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert contents(read_prompts("owner/name", split="validation")[0]) == ["one", "two"]
    with pytest.raises(DataError, match="neither a file here nor a dataset"):
        read_prompts("owner/other")


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "data.parquet"), ("datasets", "owner/name")])
def test_missing_package_names_the_extra(package, name, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    (tmp_path / "data.parquet").write_bytes(b"")
    with pytest.raises(DependencyError, match=r"upslope\[data\]"):
        read_prompts(tmp_path / name if "." in name else name)


def write(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_prompt_formats(tmp_path):
    """Plain text, chats, `messages`, and TRL's prompt-completion pairs, plain and conversational."""
    user, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    path = write(
        tmp_path / "data.jsonl",
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [user], "completion": [reply]},
        {"messages": [user, reply]},
        {"messages": [user]},
    )
    prompts, _ = read_prompts(path)
    assert contents(prompts) == ["Hi", (user,), (user,), (user,)]
    assert [p.columns.get("completion") for p in prompts] == ["Hello", "Hello", "Hello", None]


def test_chat_and_system(tmp_path):
    user, system = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
    own = {"role": "system", "content": "Own."}
    path = write(tmp_path / "data.jsonl", {"prompt": "Hi"}, {"prompt": [user]}, {"prompt": [own, user]})
    assert contents(read_prompts(path, chat=True)[0]) == [(user,), (user,), (own, user)]
    assert contents(read_prompts(path, system="Be brief.")[0]) == [(system, user), (system, user), (own, user)]


def test_completion_column(tmp_path):
    path = write(tmp_path / "data.jsonl", {"prompt": "q", "answer": "a"}, {"prompt": "q", "answer": " "})
    assert read_prompts(path, completion="answer", limit=1)[0][0].columns == {"completion": "a"}
    with pytest.raises(DataError, match=":2: the record has an empty 'answer'"):
        read_prompts(path, completion="answer")
    with pytest.raises(DataError, match=":1: the record has no 'reply', only"):
        read_prompts(path, completion="reply")


def test_as_prompts_names_the_item():
    assert contents(as_prompts(["a", [{"role": "user", "content": "b"}], {"prompt": "c"}])) == [
        "a",
        ({"role": "user", "content": "b"},),
        "c",
    ]
    with pytest.raises(DataError, match="prompt 1 has an empty 'prompt'"):
        as_prompts(["a", ""])


@pytest.fixture
def data():
    if not os.environ.get("UPSLOPE_DATA"):
        pytest.skip("UPSLOPE_DATA is not set: the folder that holds data/gsm8k/train.jsonl and other real data")
    return Path(os.environ["UPSLOPE_DATA"]) / "data"


def lines(path):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_real_gsm8k(data):
    """6,973 problems; the last number of each worked answer is the official final number."""
    path = data / "gsm8k" / "train.jsonl"
    prompts, _ = read_prompts(path, prompt="question", chat=True)
    assert len(prompts) == len(lines(path)) == 6973
    reward = numeric_answer("final")
    assert all(reward(p.columns["answer"], **p.columns) == 1.0 for p in prompts)


def test_real_sms_spam_through_every_format(data, tmp_path):
    """4,127 messages with quotes, line breaks and odd characters come back the same from JSONL, CSV and Parquet."""
    path = data / "sms_spam" / "train.jsonl"
    expected = [(record["text"], record["label"]) for record in lines(path)]
    with (tmp_path / "spam.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *expected])
    paths = [path, tmp_path / "spam.csv"]
    for source in paths:
        prompts, _ = read_prompts(source, prompt="text")
        assert [(p.content, p.columns["label"]) for p in prompts] == expected
    assert len(expected) == 4127


def test_real_hh_rlhf(data):
    path = data / "hh_rlhf" / "train.jsonl"
    prompts, skipped = read_prompts(path, completion="chosen", strict=False)
    records = lines(path)
    assert len(prompts) + sum(skipped.values()) == len(records)
    assert all(p.content == records[p.id]["prompt"] for p in prompts)
    assert all(p.columns["completion"] == records[p.id]["chosen"] for p in prompts)
