"""The house rules that a reader can rely on, checked on the source itself.

Every test collects all offenders and names them with file and line, so that one run shows all there is to
mend. The rules and their reasons stand in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_sde"

# A room may import from rooms on lower floors only. Rooms on one floor do not know each other.
FLOORS = {
    "ops": 0,
    "nn": 1,
    "sde": 2,
    "solvers": 3,
    "distributions": 4,
    "priors": 5,
    "guides": 5,
    "infer": 6,
    "data": 7,
    "diagnostics": 7,
    "models": 8,
    "quickstart": 9,
    "testing": 9,
    "cli": 10,
}
ROOF = 11  # the facade pyro_sde/__init__.py and pyro_sde/__main__.py: nothing imports them

# These packages are slow to import or optional: few files know them.
ONLY_IMPORTERS = {
    "arviz": ("pyro_sde/diagnostics/arviz.py",),
    "lightning": ("pyro_sde/infer/lightning_module.py",),
    "matplotlib": ("pyro_sde/diagnostics/_axes.py", "pyro_sde/diagnostics/plots.py"),
    "numba": ("pyro_sde/ops/_kalman_compiled.py", "pyro_sde/ops/scan.py", "pyro_sde/solvers/_jit.py"),
    "torchsde": ("pyro_sde/solvers/adaptive.py",),
}
LOADED_ON_REQUEST = ("arviz", "lightning", "matplotlib", "numba", "torchsde")

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
MAX_IMPORT_SECONDS = 0.2
NAMELESS = {"utils", "util", "misc", "helpers", "helper", "common"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    """One imported module, as an absolute dotted name."""

    name: str
    line: int
    late: bool  # inside a function: runs at call time


class Module(NamedTuple):
    """A source file of the package with its syntax tree."""

    name: str
    path: Path
    source: str
    tree: ast.Module

    @property
    def where(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def room(self) -> str:
        """`ops` for pyro_sde.ops.grid, `cli` for pyro_sde.cli, and an empty name for the roof."""
        parts = self.name.split(".")[1:]
        return parts[0] if parts and parts != ["__main__"] else ""


@cache
def modules() -> dict[str, Module]:
    """All modules of the package by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        source = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, source, ast.parse(source, filename=str(path)))
    return found


def imports(module: Module) -> Iterator[Import]:
    """Everything that a module imports, relative names resolved, `from room import module` followed."""
    parts = module.name.split(".")
    package = parts if module.is_package else parts[:-1]
    late = {
        id(node)
        for function in ast.walk(module.tree)
        if isinstance(function, FunctionNode)
        for node in ast.walk(function)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in late)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                inner = f"{target}.{alias.name}"
                yield Import(inner if inner in modules() else target, node.lineno, id(node) in late)


def own_imports(module: Module) -> Iterator[Import]:
    """The imports of `module` that lie in this package."""
    return (item for item in imports(module) if item.name.split(".")[0] == "pyro_sde")


def functions(module: Module) -> Iterator[tuple[FunctionNode, str, bool]]:
    """All functions as (node, qualified name, public); nested functions are not public."""

    def walk(node: ast.AST, prefix: str, public: bool) -> Iterator[tuple[FunctionNode, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FunctionNode):
                dunder = child.name.startswith("__") and child.name.endswith("__")
                shown = public and (dunder or not child.name.startswith("_"))
                yield child, prefix + child.name, shown
                yield from walk(child, f"{prefix}{child.name}.", False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.", public and not child.name.startswith("_"))
            else:
                yield from walk(child, prefix, public)

    return walk(module.tree, "", True)


def parameters(function: FunctionNode) -> list[ast.arg]:
    """The parameters a caller sees: without self and cls; `*args` and `**kwargs` count as one each."""
    a = function.args
    listed = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x is not None)]
    return [p for i, p in enumerate(listed) if not (i == 0 and p.arg in ("self", "cls"))]


def decorators(node: FunctionNode) -> set[str]:
    """The last names of the decorators: `overload` for `@typing.overload`."""
    return {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}


def floor(module: Module) -> int:
    return FLOORS.get(module.room, ROOF)


def no_offenders(offenders: list[str], rule: str) -> None:
    """Fail with the rule and the full list of the places that break it."""
    if offenders:
        pytest.fail(f"{rule}\n  " + "\n  ".join(sorted(offenders)), pytrace=False)


def run_python(code: str) -> str:
    """Run `code` in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        pytest.fail(f"a fresh interpreter failed:\n{done.stderr}", pytrace=False)
    return done.stdout


# --- floors -----------------------------------------------------------------------------


def test_every_room_stands_on_a_floor():
    offenders = [m.where for m in modules().values() if m.room and m.room not in FLOORS]
    no_offenders(offenders, "these files are in no room of FLOORS; give the room a floor and a plate:")


def test_imports_go_downwards_only():
    offenders = []
    for module in modules().values():
        for item in own_imports(module):
            target = modules().get(item.name)
            if target is None:
                offenders.append(f"{module.where}:{item.line} imports {item.name}, which does not exist")
            elif target.room == module.room and module.room:
                continue
            elif floor(target) >= floor(module) and not (module.room == "" and target.room == ""):
                here, there = floor(module), floor(target)
                offenders.append(f"{module.where}:{item.line} (floor {here}) imports {item.name} (floor {there})")
    no_offenders(offenders, "a module imports from lower floors only:")


def test_no_module_imports_its_own_facade():
    offenders = [
        f"{module.where}:{item.line} imports {item.name}; import from the file that defines the name"
        for module in modules().values()
        for item in own_imports(module)
        if module.room and not module.is_package and item.name in ("pyro_sde", f"pyro_sde.{module.room}")
    ]
    no_offenders(offenders, "a facade collects names for users, its own room imports files:")


def test_no_import_cycles():
    edges = {m.name: {i.name for i in own_imports(m)} & modules().keys() - {m.name} for m in modules().values()}
    done: set[str] = set()
    offenders = []

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            offenders.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in sorted(edges[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())
    no_offenders(offenders, "modules import each other in a circle:")


def test_no_late_imports_of_our_own():
    offenders = [
        f"{module.where}:{item.line} imports {item.name} inside a function"
        for module in modules().values()
        for item in own_imports(module)
        if item.late
    ]
    offenders += [
        f"{module.where}:{node.lineno} calls import_module"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("import_module", "__import__"))
        and "pyro_sde" in ast.unparse(node)
    ]
    no_offenders(offenders, "imports of our own code stand at the top of the file:")


@pytest.mark.parametrize("package", ONLY_IMPORTERS)
def test_few_files_know_each_heavy_package(package):
    offenders = [
        f"{module.where}:{item.line}"
        for module in modules().values()
        for item in imports(module)
        if item.name.split(".")[0] == package and module.where not in ONLY_IMPORTERS[package]
    ]
    no_offenders(offenders, f"only {ONLY_IMPORTERS[package]} may import {package}:")


# --- what importing does ----------------------------------------------------------------


def test_import_loads_no_heavy_package():
    loaded = json.loads(run_python("import sys, json, pyro_sde; print(json.dumps(sorted(sys.modules)))"))
    offenders = [name for name in LOADED_ON_REQUEST if name in loaded]
    no_offenders(offenders, "`import pyro_sde` loaded packages that it must load on request only:")


def test_import_leaves_global_state_alone():
    names = sorted(name for name in modules() if not name.endswith("__main__"))
    code = f"""
import importlib, json, logging, random, sys, warnings
import numpy, torch, torch.utils.checkpoint, torchsde, pyro  # the checkpoints of torch 2.5 add a filter

def state():
    return {{
        "torch default dtype": str(torch.get_default_dtype()),
        "torch random state": hash(bytes(torch.get_rng_state().tolist())),
        "torch threads": torch.get_num_threads(),
        "torch grad enabled": torch.is_grad_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "distribution validation": torch.distributions.Distribution._validate_args,
        "numpy random state": hash(numpy.random.get_state()[1].tobytes()),
        "python random state": hash(random.getstate()),
        # switches of our own are registered there (house rule), and change nothing of Pyro's
        "pyro settings": {{k: v for k, v in pyro.settings.get().items() if not k.startswith("pyro_sde_")}},
        "pyro parameters": sorted(pyro.get_param_store().keys()),
        "warnings filters": [str(f) for f in warnings.filters],
        "log handlers": [str(h) for h in logging.getLogger().handlers],
        "log level": logging.getLogger().level,
        "excepthook": sys.excepthook is sys.__excepthook__,
    }}

before = state()
for name in {names!r}:
    importlib.import_module(name)
after = state()
print(json.dumps([f"{{k}}: {{before[k]}} -> {{after[k]}}" for k in before if before[k] != after[k]]))
"""
    no_offenders(json.loads(run_python(code)), "importing the package changed global state:")


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="the checkpoints of this torch import sympy, 0.2 s")
def test_import_adds_little_to_import_pyro():
    # frozen: on Python 3.12 a collection of all that torch has left, 0.08 s, happens to fall into our import
    code = (
        "import gc, time, pyro; gc.freeze(); start = time.process_time(); import pyro_sde; "
        "print(time.process_time() - start)"
    )
    run_python(code)  # writes the byte code
    medians = []
    for _ in range(3):  # CPU time, but the machine may be busy: one quiet round is enough
        medians.append(statistics.median(float(run_python(code)) for _ in range(3)))
        if medians[-1] < MAX_IMPORT_SECONDS:
            return
    pytest.fail(
        f"`import pyro_sde` takes {min(medians):.2f} s of CPU time after `import pyro`, the limit is "
        f"{MAX_IMPORT_SECONDS} s; see `python -X importtime -c 'import pyro_sde'`",
        pytrace=False,
    )


def test_version_is_the_one_of_the_distribution():
    package = importlib.import_module("pyro_sde")
    assert package.__version__ == version("pyro_sde")


# --- names ------------------------------------------------------------------------------


def listed(module: Module) -> list[str] | None:
    """The literal value of `__all__`, or None."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and any(ast.unparse(t) == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def test_every_module_has_a_sorted_all_of_existing_names():
    offenders = []
    for module in modules().values():
        if module.name == "pyro_sde.__main__":
            continue
        names = listed(module)
        if names is None:
            offenders.append(f"{module.where} has no `__all__`")
            continue
        if names != sorted(names):
            offenders.append(f"{module.where} has an unsorted `__all__`; sorted: {sorted(names)}")
        if len(names) != len(set(names)):
            offenders.append(f"{module.where} lists a name twice in `__all__`")
        loaded = importlib.import_module(module.name)
        offenders += [f"{module.where} lists {n!r}, which does not exist" for n in names if not hasattr(loaded, n)]
    no_offenders(offenders, "`__all__` says what a module offers:")


def test_every_public_definition_is_in_all():
    offenders = [
        f"{module.where}:{node.lineno} defines {node.name}; list it or give it a leading underscore"
        for module in modules().values()
        for node in module.tree.body
        if isinstance(node, FunctionNode | ast.ClassDef)
        and not node.name.startswith("_")
        and node.name not in (listed(module) or [])
        and module.name != "pyro_sde.__main__"
    ]
    no_offenders(offenders, "a public definition is offered in `__all__`:")


def test_no_nameless_modules():
    offenders = [m.where for m in modules().values() if NAMELESS & set(m.path.with_suffix("").parts[-2:])]
    no_offenders(offenders, "a module is a noun; if it has no room, the room is missing:")


def test_every_module_has_its_test_file():
    offenders = []
    for module in modules().values():
        if module.is_package or module.path.name.startswith("_"):  # private ones are tested by their users
            continue
        inside = module.path.relative_to(PACKAGE)
        expected = ROOT / "tests" / inside.parent / f"test_{inside.name}"
        if not expected.exists():
            offenders.append(f"{module.where} has no {expected.relative_to(ROOT).as_posix()}")
    no_offenders(offenders, "tests/<room>/test_<module>.py mirrors the package:")


# --- plates and documents ---------------------------------------------------------------


def test_every_room_has_a_plate():
    offenders = []
    for module in modules().values():
        if not (module.is_package and module.room):
            continue
        plate = " ".join((ast.get_docstring(module.tree) or "").lower().split())
        missing = [part for part in ("lives here", "does not live here", "to add") if part not in plate]
        if missing:
            offenders.append(f"{module.where}: the docstring does not say {missing}")
        offenders += [
            f"{module.where}:{node.lineno} defines {node.name}; a facade only collects names"
            for node in module.tree.body
            if isinstance(node, FunctionNode | ast.ClassDef) and node.name not in ("__getattr__", "__dir__")
        ]
    no_offenders(offenders, "a room's __init__.py is its plate (what lives here, what does not, how to add one):")


def test_every_public_name_is_documented():
    offenders = []
    for module in modules().values():
        if ast.get_docstring(module.tree) is None:
            offenders.append(f"{module.where} has no module docstring")
        for node, name, public in functions(module):
            exempt = name.split(".")[-1].startswith("__") or decorators(node) & {"overload", "setter"}
            if public and not exempt and ast.get_docstring(node) is None:
                offenders.append(f"{module.where}:{node.lineno} {name}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                offenders.append(f"{module.where}:{node.lineno} class {node.name}")
    no_offenders(offenders, "public names without a docstring:")


class Entry(NamedTuple):
    """A public name: what its docstring says, and what a reader of its reference page sees beside that."""

    where: str
    annotations: str  # of arguments, results and fields
    result: str  # annotation of what a function returns
    tensors: tuple[str, ...]  # arguments that are a tensor, or a tensor or None or a number
    text: str
    beside: str  # docstrings of its class and, for what it overrides, of the base classes

    @property
    def has_equation(self) -> bool:
        return bool(EQUATION.search(" ".join(self.text.partition("\n\n")[2].split())))

    @property
    def arguments_without_shape(self) -> list[str]:
        """Tensors that neither their line in ``Args:``, nor any ``Shape:`` describes; none without ``Args:``."""
        listed_there = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", self.text, re.MULTILINE | re.DOTALL)
        described = " ".join(re.findall(r"^ *Shape:\n(.*?)(?:\n\n|\Z)", f"{self.text}\n\n{self.beside}", re.M | re.S))
        found = []
        for name in self.tensors if listed_there else ():
            line = re.search(rf"^    {name}: (.*?)(?=\n    \w|\Z)", listed_there[1], re.MULTILINE | re.DOTALL)
            said = bool(line) and (states_shape(line[1]) or SAME_SHAPE.search(line[1]))
            if not said and not re.search(rf"\b{name}\b", described):
                found.append(name)
        return found

    @property
    def result_without_shape(self) -> bool:
        """Whether a function returns tensors and says nothing of their shape outside the lines of its arguments."""
        if not re.search(r"\bTensor\b", self.result) or "Callable" in self.result:
            return False
        rest = re.sub(r"^Args:\n(.*?)(?:\n\n|\Z)", "", self.text, flags=re.MULTILINE | re.DOTALL)
        return not (states_shape(rest) or states_shape(self.beside) or SAME_SHAPE.search(rest))

    @property
    def has_tensors(self) -> bool:
        return bool(re.search(rf"\b(?:{'|'.join(tensor_types())})\b", self.annotations))


# A shape is a tuple in double backquotes with an axis that nothing but a shape has, ``(*batch, T, D)``, ``(n, ...)``,
# ``(..., in_dim)``, or with one axis or none, ``(b,)``, ``()``. Or it is one of a few words.
TUPLE = re.compile(r"(?<![\w.(\]])\(((?:[^()]|\([^()]*\))*)\)")
CLEAR_AXIS = re.compile(r"\*\w+$|\.\.\.$|[A-Z0-9]|\w+_\w|len\(")
SHAPE_WORDS = re.compile(r"\bscalars?\b|\belementwise\b|\b(?:any|same) shape\b|\bshapes? of\b|\bin its shape\b")
# In the line of an argument and for a result, a reference to another tensor or function will do.
SAME_SHAPE = re.compile(r"\b(?:broadcastable|likewise|of the shape|[Aa]s (?:for|in|its|given|there|`)|numbers? )")
# An equation is displayed, or is an inline formula with a relation; a range (`\sigma > 0`) is none. A formula in the
# summary says what the thing is, a definition: what is said of it further down needs a source.
EQUATION = re.compile(r"\.\. math::|:math:`[^`]*(?:=|\\sim\b|\\propto\b)[^`]*`")
# A source is a citation, author and year or an arXiv number; or a derivation, or that it is a definition, in words.
SOURCE = re.compile(
    r"\b[A-ZÀ-Þ][\w'’-]+(?: et al\.)? \((?:19|20)\d\d\)|\barXiv[ :]\d{4}\.\d|\b(?:Derivation|Definition):\s+[\w:]"
)


def is_shape(inside: str) -> bool:
    """Whether what stands in a pair of brackets is a shape."""
    axes = inside.split(", ")
    if len(axes) == 1:
        return axes[0] in ("", "...") or axes[0].startswith("*") or axes[0].endswith(",")
    return any(CLEAR_AXIS.match(axis) for axis in axes)


def states_shape(text: str) -> bool:
    """Whether a docstring says the shape of anything."""
    text = " ".join(text.split())
    quoted = re.findall("``([^`]+)``", text)
    return bool(SHAPE_WORDS.search(text)) or any(is_shape(t) for q in quoted for t in TUPLE.findall(q))


@cache
def tensor_types() -> frozenset[str]:
    """`Tensor`, and the type aliases of the package that are made of it."""
    aliases = {
        node.targets[0].id: ast.unparse(node.value)
        for module in modules().values()
        for node in module.tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id[0].isupper()
        if isinstance(node.value, ast.Subscript | ast.BinOp | ast.Name | ast.Attribute)
    }
    found = {"Tensor"}
    while new := {n for n, v in aliases.items() if found & set(re.findall(r"\w+", v))} - found:
        found |= new
    return frozenset(found)


def annotations_of(node: FunctionNode) -> str:
    """The annotations of a function, arguments and result."""
    found = [*(p.annotation for p in parameters(node)), node.returns]
    return " ".join(ast.unparse(a) for a in found if a is not None)


def result_of(node: FunctionNode) -> str:
    """The annotation of the result."""
    return "" if node.returns is None else ast.unparse(node.returns)


def tensor_arguments(node: FunctionNode) -> tuple[str, ...]:
    """The arguments that are tensors and nothing else but None or a number."""
    kinds = re.compile(r"Tensor(?: \| (?:None|float|int))*")
    return tuple(p.arg for p in parameters(node) if p.annotation and kinds.fullmatch(ast.unparse(p.annotation)))


def docstrings(node: FunctionNode | ast.ClassDef) -> str:
    """The docstring, and in a class those of its fields."""
    fields = node.body[1:] if isinstance(node, ast.ClassDef) else []
    texts = [n.value.value for n in fields if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    return "\n\n".join([ast.get_docstring(node) or "", *map(str, texts)])


@cache
def public_entries() -> tuple[Entry, ...]:
    """Every function, class and public method behind the `__all__` of a public module, once."""
    nodes = {
        (module.name, node.name): node
        for module in modules().values()
        for node in module.tree.body
        if isinstance(node, FunctionNode | ast.ClassDef)
    }
    homes = {}
    for module in modules().values():
        if not any(part.startswith("_") for part in module.name.split(".")):
            loaded = importlib.import_module(module.name)
            for name in listed(module) or []:
                thing = getattr(loaded, name)
                homes.setdefault((getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "")), thing)
    return tuple(e for home, thing in homes.items() if home in nodes for e in _entries(home, thing, nodes))


def _entries(
    home: tuple[str, str], thing: object, nodes: dict[tuple[str, str], FunctionNode | ast.ClassDef]
) -> Iterator[Entry]:
    """The entry of a function; those of a class and its public methods."""
    node, file = nodes[home], modules()[home[0]].where
    where = f"{file}:{node.lineno} {node.name}"
    if not isinstance(node, ast.ClassDef):
        yield Entry(where, annotations_of(node), result_of(node), tensor_arguments(node), docstrings(node), "")
        return
    family = [nodes.get((c.__module__, c.__qualname__)) for c in getattr(thing, "__mro__", ())[1:]]
    bases = [base for base in family if isinstance(base, ast.ClassDef)]
    above = "\n\n".join(map(docstrings, bases))
    fields = [ast.unparse(item.annotation) for item in node.body if isinstance(item, ast.AnnAssign)]
    methods = [item for item in node.body if isinstance(item, FunctionNode)]
    starts = [item for item in methods if item.name == "__init__"]
    fields += map(annotations_of, starts)
    given = tuple(name for item in starts for name in tensor_arguments(item))
    yield Entry(where, " ".join(fields), "", given, docstrings(node), "")
    for item in methods:
        if not item.name.startswith("_") and not decorators(item) & {"overload", "setter"}:
            same = [m for b in bases for m in b.body if isinstance(m, FunctionNode) and m.name == item.name]
            beside = "\n\n".join([docstrings(node), above, *map(docstrings, same)])
            where = f"{file}:{item.lineno} {node.name}.{item.name}"
            annotations, result = annotations_of(item), result_of(item)
            yield Entry(where, annotations, result, tensor_arguments(item), docstrings(item), beside)


def test_public_names_that_take_or_return_tensors_state_shapes():
    offenders = [e.where for e in public_entries() if e.has_tensors and not states_shape(f"{e.text} {e.beside}")]
    no_offenders(offenders, "a docstring states the shapes of its tensors, as ``(*batch, T, D)``:")


def test_every_tensor_in_a_list_of_arguments_has_its_shape():
    offenders = [f"{e.where}: {name}" for e in public_entries() for name in e.arguments_without_shape]
    no_offenders(offenders, "the line of a tensor in Args, or the section Shape, states its shape:")


def test_tensors_that_are_returned_have_their_shape():
    offenders = [e.where for e in public_entries() if e.result_without_shape]
    no_offenders(offenders, "the shape of a result stands outside the lines of the arguments:")


def test_public_names_with_an_equation_name_its_source():
    offenders = [e.where for e in public_entries() if e.has_equation and not SOURCE.search(f"{e.text} {e.beside}")]
    no_offenders(
        offenders, "an equation has a source: Author (year), arXiv 2001.01328, Derivation: or Definition: in words"
    )


def test_docstring_rules_tell_good_from_bad():
    shapes = [
        "x: ``(*batch, T, D)``.",
        "``(N,)``",
        "``(...)``",
        "``()``",
        "a scalar",
        "``times (B, N)``",
        "``(K, 2 D)``",
    ]
    none = [
        "the path (B, T)",
        "``drift(t, z)``",
        "``law.sample((3, 4))``",
        "``N(0, 1)``",
        "``(step, loss)``",
        "`(B, T)`",
    ]
    assert [states_shape(text) for text in shapes + none] == [True] * len(shapes) + [False] * len(none)
    equations = [".. math:: a", ":math:`dz = f\\,dt`", ":math:`z \\sim N(0, 1)`"]
    assert not Entry("", "", "", (), "Law :math:`z = 1`.\n\nOf `z`.", "").has_equation
    assert Entry("", "", "", (), "Law.\n\nThen :math:`z =\n1`.", "").has_equation
    args = (
        "Law.\n\nArgs:\n    a: states,\n        ``(B, D)``.\n    b: values.\n    c: times.\n\nShape:\n    c: ``(B,)``."
    )
    assert Entry("", "", "", ("a", "b", "c", "d"), args, "").arguments_without_shape == ["b", "d"]
    told = ["Args:\n    z: ``(B, D)``.\n\nReturns:\n    ``(B,)``.", "Values ``(B,)``.", "As `that`."]
    untold = ["Args:\n    z: ``(B, D)``.", "The values."]
    assert [Entry("", "", "tuple[Tensor, int]", (), text, "").result_without_shape for text in told] == [False] * 3
    assert [Entry("", "", "Tensor", (), text, "").result_without_shape for text in untold] == [True] * 2
    assert not Entry("", "", "Callable[..., Tensor]", (), "A function.", "").result_without_shape
    ranges = [":math:`\\theta > 0`", "the law :math:`p_0`", "x = 1"]
    assert [bool(EQUATION.search(text)) for text in equations + ranges] == [True] * 3 + [False] * 3
    sources = ["Definition:\n    a law", "Kalman (1960)", "Li et al. (2020)", "arXiv 2001.01328", "Derivation: by Ito"]
    no_sources = ["as everyone knows", "in (2020)", "References: a book", "see the derivation", "a definition"]
    assert [bool(SOURCE.search(text)) for text in sources + no_sources] == [True] * 5 + [False] * 5
    assert {"Tensor", "Rows"} <= tensor_types()
    names = [e.where.split()[1] for e in public_entries()]
    assert len(names) > 900
    assert {"SDEPath", "SDEPath.euler_kernels", "path_kl", "TimeGrid.refine"} <= set(names)


def test_every_public_function_is_annotated():
    offenders = []
    for module in modules().values():
        for node, name, public in functions(module):
            if not public:
                continue
            bare = [p.arg for p in parameters(node) if p.annotation is None]
            if bare:
                offenders.append(f"{module.where}:{node.lineno} {name}: no type for {', '.join(bare)}")
            if node.returns is None:
                offenders.append(f"{module.where}:{node.lineno} {name}: no return type")
    no_offenders(offenders, "public functions without full annotations:")


# --- size and cleanliness ---------------------------------------------------------------


def test_modules_are_short():
    sizes = {m.where: len(m.source.splitlines()) for m in modules().values()}
    offenders = [f"{where}: {lines} lines" for where, lines in sizes.items() if lines > MAX_MODULE_LINES]
    no_offenders(offenders, f"a module has at most {MAX_MODULE_LINES} lines and one reason to change:")


def test_functions_fit_a_screen():
    offenders = []
    for module in modules().values():
        for node, name, _ in functions(module):
            first = node.body[0]
            docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if lines > MAX_FUNCTION_LINES:
                offenders.append(f"{module.where}:{node.lineno} {name}: {lines} lines")
    no_offenders(offenders, f"a function has at most {MAX_FUNCTION_LINES} lines without its docstring:")


def test_functions_have_few_parameters():
    offenders = [
        f"{module.where}:{node.lineno} {name}: {len(parameters(node))} parameters"
        for module in modules().values()
        for node, name, _ in functions(module)
        if len(parameters(node)) > MAX_PARAMETERS
    ]
    no_offenders(offenders, f"a callable has at most {MAX_PARAMETERS} parameters:")


def test_no_asserts_in_the_package():
    offenders = [
        f"{module.where}:{node.lineno}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert)
    ]
    no_offenders(offenders, "`python -O` must not change what a user sees; raise ValueError or TypeError:")


def project_files() -> Iterator[Path]:
    """Every text file that we write: the package, tests, docs and the files at the root."""
    kinds = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".css", ".ipynb", ""}
    roots = [PACKAGE, ROOT / "tests", ROOT / "docs", ROOT / "tutorials", ROOT / ".ci"]
    nested = (path for root in roots for path in root.rglob("*"))
    for path in [*ROOT.iterdir(), *nested]:
        if path.is_file() and path.suffix in kinds and path.name != ".git" and "__pycache__" not in path.parts:
            yield path


def lines_matching(pattern: str) -> list[str]:
    """The places in the project's files that match `pattern`; a picture in a notebook is no text."""
    compiled = re.compile(pattern)
    return [
        f"{path.relative_to(ROOT).as_posix()}:{number} {line.strip()[:80]}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if compiled.search(line) and '"image/png": ' not in line
    ]


def test_no_unfinished_marks():
    marks = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"])  # in pieces, so that this line is none
    no_offenders(lines_matching(rf"\b({marks})\b"), "unfinished work belongs in an issue:")


def test_no_absolute_paths():
    tops = "|".join(["home", "root", "work", "tmp", "Users", "mnt", "opt"])
    pattern = rf"(?<![\w.)\]}}~/*-])/({tops})/\w|\b[A-Z]:\\\\?\w"
    no_offenders(lines_matching(pattern), "a path of one machine works on no other:")
