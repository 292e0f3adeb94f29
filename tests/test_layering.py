"""The arrows between the modules: who may import whom, and who does without torch."""

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "detofa"

# A module imports only what stands before it. CONTRIBUTING.md explains the order; what stands
# here beyond it needs an entry in docs/decisions.md.
ORDER = [
    "errors",
    "files",
    "units",
    "arch",
    "blocks",
    "space",
    "presets",
    "imaging",
    "subnet",
    "predictor",
    "reachable",
    "search",
    "path_filter",
    "timer",
    "runtime",
    "supernet",
    "data",
    "export",
    "profiling",
    "train",
    "evidence",
    "choose",
    "report",
    "recipes",
    "loop",
    "demo",
    "doctor",
    "cli",
]
# Not in the first design: docs/decisions.md says why each is there.
ADDED = {
    "errors",
    "files",
    "units",
    "blocks",
    "presets",
    "predictor",
    "reachable",
    "choose",
    "evidence",
    "loop",
    "demo",
    "doctor",
}
LEAVES = {"errors", "files", "units"}
SPACE = LEAVES | {"arch", "blocks", "space", "presets"}
# Narrower than the order: these take what they work on as arguments.
ONLY = {
    "predictor": SPACE,
    "reachable": SPACE,
    "search": SPACE | {"reachable"},
    "path_filter": SPACE | {"predictor"},
    "export": set(ORDER[: ORDER.index("export")]) - {"supernet", "data"},
}
NO_TORCH = [
    *sorted(SPACE),
    "subnet",
    "predictor",
    "reachable",
    "search",
    "imaging",
    "timer",
    "runtime",
]
NOT_IN_THE_BASE_INSTALL = [
    "torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "tensorrt", "pynvml",
    "faster_coco_eval", "fvcore", "yaml", "sklearn", "matplotlib", "jinja2", "plotly",
]  # fmt: skip


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def top_level(module: str) -> str:
    """Give `runtime` for `detofa.runtime.detections`, and an empty name for `detofa` itself."""
    return ".".join(module.split(".")[1:2])


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Yield (module or name imported, line), in functions and under TYPE_CHECKING too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def resolve(name: str) -> str:
    """Give the module that an imported name is, or is in."""
    return name if name in MODULES else name.rpartition(".")[0]


def own_imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    for name, line in imports(module, path):
        if name.split(".")[0] == "detofa":
            yield resolve(name), line


def test_every_module_has_its_place_in_the_order():
    unknown = {top_level(module) for module in MODULES} - {"", "__main__", *ORDER}
    assert not unknown, f"give {unknown} a place in ORDER, and a reason in docs/decisions.md"


def test_every_module_beyond_the_first_design_has_its_reason_written_down():
    decisions = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    assert {name for name in ADDED if f"`{name}`" not in decisions} == set()


def test_a_module_imports_only_what_stands_above_it():
    faults = []
    for module, path in MODULES.items():
        name = top_level(module)
        if name not in ORDER:
            continue
        allowed = {"", name} | ONLY.get(name, set(ORDER[: ORDER.index(name)]))
        for imported, line in own_imports(module, path):
            if top_level(imported) not in allowed:
                faults.append(f"{path.relative_to(ROOT)}:{line} imports {imported}")
    assert not faults, "\n".join(faults)


def test_no_imports_go_round_in_a_circle():
    graph = {
        module: {imported for imported, _line in own_imports(module, path)} - {module}
        for module, path in MODULES.items()
    }
    # Raises CycleError, which names the modules of the circle.
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_the_package_never_imports_what_stands_beside_it():
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in MODULES.items()
        for name, line in imports(module, path)
        if name.split(".")[0] in {"benchmarks", "deploy", "tests"}
    ]
    assert not faults, "\n".join(faults)


def test_what_is_copied_to_a_device_imports_only_what_needs_no_torch():
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "deploy").rglob("*.py"))
        for name, line in imports("deploy", path)
        if name.split(".")[0] in {"torch", "torchvision"}
        or (name.split(".")[0] == "detofa" and top_level(resolve(name)) not in {"", *NO_TORCH})
    ]
    assert not faults, "\n".join(faults)


# Runs in a fresh interpreter: refuses the modules named in the first argument, then runs the
# second. Refused attempts are reported even where the importer carries on without.
REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in refused:
            if name in ("torch", "torchvision"):
                attempts.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

refused, attempts = set(sys.argv[1].split(",")), []
sys.meta_path.insert(0, Refuse())
program = sys.argv.pop(2)
try:
    exec(program)
finally:
    assert not attempts, f"tried to import {attempts}"
"""


def run_on_the_base_install(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", REFUSING, ",".join(NOT_IN_THE_BASE_INSTALL), program],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["", *NO_TORCH])
def test_a_module_marked_so_needs_neither_torch_nor_any_extra(name, tmp_path):
    modules = [module for module in MODULES if top_level(module) == name and module != "tests"]
    if not modules:
        pytest.skip(f"detofa.{name} is not there")
    done = run_on_the_base_install("\n".join(f"import {module}" for module in modules), tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not any(top_level(module) == "cli" for module in MODULES), reason="no cli")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"]])
def test_the_command_line_answers_without_torch_or_any_extra(arguments, tmp_path):
    program = (
        f"import sys; sys.argv[:] = ['detofa', *{arguments}]\nfrom detofa.cli import main\nmain()"
    )
    done = run_on_the_base_install(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir())


def test_the_refusing_interpreter_does_refuse(tmp_path):
    """The tests above prove something only if this one fails its program."""
    for program in ("import torch", "try:\n    import torch\nexcept ImportError:\n    pass"):
        done = run_on_the_base_install(program, tmp_path)
        assert done.returncode == 1
        assert "tried to import ['torch']" in done.stderr
