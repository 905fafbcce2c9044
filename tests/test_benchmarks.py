"""Benchmarks are run by hand and seldom; here each is imported, and what it calls of the project is
held against the signatures of today.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Names as torch 2.11 and its CUDA libraries give them.
OPERATIONS = {
    "aten::mkldnn_convolution": "convolutions",
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_"
    "tilesize128x128x64_warpgroupsize1x1x1": "convolutions",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816wgrad_optimized_bf16_"
    "256x128_32x3_nhwc_align8>": "convolutions",
    "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT": "matrix products",
    "triton_poi_fused__native_batch_norm_legit_functional_relu_5": "compiled elementwise work",
    "aten::native_batch_norm_backward": "normalisation",
    "aten::_foreach_norm": "optimiser and clipping",
    "aten::linalg_vector_norm": "optimiser and clipping",
    "aten::_foreach_mul_": "optimiser and clipping",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>": (
        "optimiser and clipping"
    ),
    "Memcpy DtoD (Device -> Device)": "copies, casts, layouts",
    "aten::sigmoid": "rest",
}
ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "tests" / "benchmarks").glob("*.py"))
FLOORS = ("detector", "cluster", "tune", "pipelines", "tests")


def ours(thing: Any) -> bool:
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return isinstance(name, str) and name.split(".")[0] in FLOORS


def names_of(tree: ast.Module, module: ModuleType) -> dict[str, Any]:
    """The module's names and those that its functions import; what a function gives a value of its
    own is left out.
    """
    found = dict(vars(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in FLOORS:
            source = importlib.import_module(node.module)
            for alias in node.names:
                # A submodule is no attribute of its package before it is imported.
                if not hasattr(source, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = getattr(source, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found.pop(node.arg, None)
        elif (
            isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and not node.id.isupper()
        ):
            found.pop(node.id, None)
    return found


def uses(tree: ast.Module, names: dict[str, Any]) -> Iterator[tuple[Callable[..., Any], ast.Call]]:
    """Every call of something of ours that is named by the module. An attribute that a module of
    ours does not have is an AttributeError.
    """

    def thing(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = thing(node.value)
            return (
                getattr(owner, node.attr)
                if (isinstance(owner, ModuleType | type)) and ours(owner)
                else None
            )
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            thing(node)
        elif isinstance(node, ast.Call) and callable(called := thing(node.func)) and ours(called):
            yield called, node


def check(path: Path, module: ModuleType) -> int:
    """The number of calls that were held against their signatures; `TypeError` or `AttributeError`
    for one that would fail.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    count = 0
    for called, node in uses(tree, names_of(tree, module)):
        open_ended = any(isinstance(value, ast.Starred) for value in node.args) or any(
            word.arg is None for word in node.keywords
        )
        signature = inspect.signature(called)
        try:
            (signature.bind_partial if open_ended else signature.bind)(
                *(value for value in node.args if not isinstance(value, ast.Starred)),
                **{word.arg: word for word in node.keywords if word.arg},
            )
        except TypeError as error:
            raise TypeError(
                f"{path.name}:{node.lineno}: {ast.unparse(node)[:80]}: {error}"
            ) from None
        count += 1
    return count


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_calls_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One benchmark may take another's functions by its bare name, as when it is started as a
    # script.
    monkeypatch.syspath_prepend(str(path.parent))
    assert check(path, importlib.import_module(f"tests.benchmarks.{path.stem}")) > 0


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("from cluster.loading.stream import Stream\nStream(None, rank=0, ranks=1, **{})", "ranks"),
        ("from detector.batch import collate\ncollate()", "samples"),
        ("from cluster.loading import datasets\ndatasets.no_such_name", "no_such_name"),
        ("def main():\n    from detector import batch\n    batch.collate([], size=3)", "size"),
    ],
)
def test_a_call_that_would_fail_is_found(source: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "stale.py"
    path.write_text(source)
    module = ModuleType("stale")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ImportFrom):
            exec(ast.unparse(statement), vars(module))
    with pytest.raises((TypeError, AttributeError), match=complaint):
        check(path, module)


@pytest.mark.parametrize(("operation", "group"), OPERATIONS.items())
def test_the_breakdown_of_a_step_knows_operations_and_kernels(operation: str, group: str) -> None:
    assert importlib.import_module("tests.benchmarks.step").group_of(operation) == group


def imported_by(path: Path, seen: set[Path]) -> set[str]:
    """The outside packages that a file imports when it is imported, through files of ours too."""
    if path in seen:
        return set()
    seen.add(path)
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            ours = ROOT.joinpath(*module.split(".")).with_suffix(".py")
            if ours.is_file():
                found |= imported_by(ours, seen)
        if modules[0].split(".")[0] not in FLOORS:
            found.add(modules[0].split(".")[0])
    return found


@pytest.mark.parametrize("name", ["step", "gpu"])
def test_the_benchmarks_of_a_gpu_need_torch_alone(name: str) -> None:
    """So that they run on any machine with a GPU, without this project's other requirements."""
    outside = imported_by(ROOT / "tests" / "benchmarks" / f"{name}.py", set())
    assert outside - set(sys.stdlib_module_names) == {"numpy", "torch", "torchvision"}
