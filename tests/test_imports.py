"""The direction of imports, what `import upslope` costs, and what it exports."""

import ast
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import upslope

ROOT = Path(upslope.__file__).parent
LAYERS = [
    ("records", "errors", "cache", "stopwatch"),
    ("estimators", "losses", "kernels", "naming", "presets", "settings", "algorithm", "recipe"),
    ("policies", "report", "cluster"),
    ("rewards", "engines"),
    ("tasks", "search"),
    ("evaluation",),
    ("training",),
    ("doctor", "tuning", "compress", "serve"),
    ("cli",),
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
PURE = {"estimators", "losses"}  # torch and what stands in the same layer or below
OPTIONAL = {  # the one module that may import each, inside a function
    "peft": "policies/loading.py",
    "gguf": "policies/embedded.py",
    "datasets": "tasks/readers.py",
    "pyarrow": "tasks/readers.py",
    "reasoning_gym": "tasks/reasoning_gym.py",
    "sacrebleu": "rewards/overlap.py",
    "rouge_score": "rewards/overlap.py",
    "math_verify": "rewards/mathematics.py",
    "jsonschema": "rewards/rules.py",
    "jsonschema_specifications": "rewards/rules.py",
    "wandb": "report/trackers.py",
    "mlflow": "report/trackers.py",
    "trackio": "report/trackers.py",
    "vllm": "engines/vllm.py",
    "ray": "cluster/ray.py",
    "optuna": "tuning/samplers.py",
    "scipy": "tuning/samplers.py",
    "fastapi": "serve/app.py",
}
REQUIRED = {
    "torch", "transformers", "tokenizers", "safetensors", "pydantic", "typer", "rich", "numpy", "tensorboard",
    "cloudpickle", "tomli_w",
}  # fmt: skip

MODULES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def imports(tree, *, top_level_only=False):
    """(line, dotted module) of every import; `from a import b` counts as a.b as well, as b may be a module."""
    skipped = set()
    if top_level_only:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_type_checking(node):
                skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def part_of(path):
    return path.removesuffix(".py").split("/")[0]


def own_parts(tree):
    """Which of the package's parts a module imports, with the line of one such import."""
    found = {}
    for line, name in imports(tree):
        first, *rest = name.split(".")
        if first == "upslope" and rest[0] != "__version__":
            assert rest[0] in LAYER, f"line {line} imports {name}, whose place in the layers nobody has named"
            found[rest[0]] = line
    return found


INNER = [path for path in MODULES if path != "__init__.py"]


def test_every_part_has_a_layer():
    assert {part_of(path) for path in INNER} <= LAYER.keys()


@pytest.mark.parametrize("path", INNER)
def test_imports_point_down_only(path):
    part = part_of(path)
    for imported, line in own_parts(MODULES[path]).items():
        assert LAYER[imported] <= LAYER[part], f"{path}:{line} imports {imported}, which stands above {part}"


def test_parts_of_one_layer_do_not_import_each_other_in_circles():
    edges = {(part_of(path), to) for path in INNER for to in own_parts(MODULES[path]) if to != part_of(path)}
    assert len(edges) > 20
    while edges:
        leaves = {to for _, to in edges} - {source for source, _ in edges}
        assert leaves, f"a circle among {sorted(edges)}"
        edges = {edge for edge in edges if edge[1] not in leaves}


def test_mathematics_imports_torch_only():
    for path in INNER:
        if part_of(path) in PURE:
            outer = {name.split(".")[0] for _, name in imports(MODULES[path])} - {"upslope"} - sys.stdlib_module_names
            assert outer <= {"torch"}, path


def test_only_policies_and_engines_know_the_kinds_of_policy():
    """A batch is a list of decisions, whatever the model: nothing that learns or measures names a kind of policy."""
    kinds = ("CausalPolicy", "ClassifierPolicy", "Seq2SeqPolicy", "SinglePassPolicy", "TaggerPolicy")
    blind = {"records", "estimators", "losses", "tasks", "evaluation", "training", "report"}
    texts = {path: (ROOT / path).read_text() for path in INNER if part_of(path) in blind}
    assert len(texts) > 40
    assert not [path for path, text in texts.items() if any(kind in text for kind in kinds)]


def test_optional_dependencies_are_imported_in_one_module_inside_a_function():
    for path, tree in MODULES.items():
        for line, name in imports(tree):
            package = name.split(".")[0]
            if package in OPTIONAL:
                assert path == OPTIONAL[package], f"{path}:{line} imports {package}"
            else:
                allowed = REQUIRED | {"upslope"} | sys.stdlib_module_names
                assert package in allowed, f"{path}:{line} imports {package}, which is no dependency"
        at_top = {name.split(".")[0] for _, name in imports(tree, top_level_only=True)}
        assert not at_top & OPTIONAL.keys(), path


def test_no_module_is_named_after_nothing():
    for path in MODULES:
        assert not {"utils", "helpers", "common", "manager"} & set(path.removesuffix(".py").split("/"))


def fresh(code):
    """What a new interpreter prints, read as JSON."""
    command = [sys.executable, "-W", "error", "-c", code]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_import_upslope_is_light():
    """`import upslope` itself takes neither torch nor Transformers nor anything optional, and well under a second."""
    code = (
        "import sys, time, json; t = time.perf_counter(); import upslope; t = time.perf_counter() - t;"
        "print(json.dumps([t, [m for m in sys.modules if '.' not in m]]))"
    )
    seconds, modules = fresh(code)
    assert seconds < 1.0
    assert not {"torch", "transformers", "numpy", "pydantic", *OPTIONAL} & set(modules)


def test_everything_exported_takes_under_a_second_beyond_torch_and_transformers():
    """All of upslope's own names, after torch's and Transformers' own imports, in under a second; nothing optional."""
    code = (
        "import sys, time, json, torch, numpy, pydantic, importlib\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM\n"
        "before = set(sys.modules); t = time.process_time()\n"
        "import upslope\n"
        "for name in upslope.__all__: getattr(upslope, name)\n"
        "t = time.process_time() - t\n"
        "print(json.dumps([t, sorted({m.split('.')[0] for m in set(sys.modules) - before})]))"
    )
    seconds, modules = fresh(code)
    assert seconds < 1.0
    assert "upslope" in modules
    assert not OPTIONAL.keys() & set(modules)


def test_the_command_line_shows_its_help_without_torch():
    code = (
        "import sys, json; import upslope.cli.main\n"
        "print(json.dumps([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]))"
    )
    assert fresh(code) == []


EXPORTED = [
    "Batch", "Prompt", "Recipe", "RewardTerm", "Rollout", "Run", "Scores", "Task", "UpslopeError", "collate",
    "compare", "evaluate", "pack", "resume", "train", "tune", "unpack",
]  # fmt: skip


def test_exported_names():
    assert upslope.__all__ == EXPORTED
    assert set(dir(upslope)) >= {*EXPORTED, "__version__"}
    for name in EXPORTED:
        value = getattr(upslope, name)
        assert value.__name__ == name
        assert value.__doc__
        assert value.__module__.startswith("upslope.")
    with pytest.raises(AttributeError, match="module 'upslope' has no attribute 'tarin'"):
        _ = upslope.tarin


def test_exported_names_are_those_shown_to_type_checkers():
    (block,) = [node for node in MODULES["__init__.py"].body if _is_type_checking(node)]
    shown = sorted(alias.asname for statement in block.body for alias in statement.names)
    assert shown == EXPORTED


def test_version_is_the_distributions():
    from importlib.metadata import version

    assert upslope.__version__ == version("upslope")


def test_layers_are_told_apart():
    """The checks above see an import that points up, a hidden one within a function as well."""
    tree = ast.parse("def f():\n    from upslope.cli import main\nimport upslope.errors")
    assert own_parts(tree) == {"cli": 2, "errors": 3}
    assert [name for _, name in imports(tree, top_level_only=True)] == ["upslope.errors"]
    assert all(a < b for a, b in pairwise([LAYER["errors"], LAYER["losses"], LAYER["policies"], LAYER["engines"]]))
