"""
The walls of the house: who may import whom, who knows what, what is called what. Read from the source, nothing is run.

Each wall is a function that returns what breaks it. Beside it stands a broken house that it must see.
"""

import ast
import functools
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Path from the root -> text
Sources = Mapping[str, str]
HOUSE: Sources = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("sb3_trpo", "tests", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

STANDARD_LIBRARY = set(sys.stdlib_module_names)
VARIANTS = ("sb3_trpo.maskable", "sb3_trpo.recurrent", "sb3_trpo.maskable_recurrent")
ADAPTERS = ("sb3_trpo.vec_env",)
# Packages that not every user has -> where a module may need one to be imported
ROOMS_OF_OPTIONAL = {
    "matplotlib": (),
    "mpl_toolkits": (),
    "rl_zoo3": ("sb3_trpo/zoo/",),
    "sb3_contrib": ("sb3_trpo/maskable.py", "sb3_trpo/recurrent.py", "sb3_trpo/maskable_recurrent.py", "sb3_trpo/contrib.py"),
    "envpool": ("sb3_trpo/vec_env/",),
}
# A type, no more
NO_KNOWLEDGE_OF_TRPO = ("sb3_trpo.trust_region.fisher.Parameters",)
# What its arguments and its parts are called
WORDS_OF_TRPO = ("target_kl", "cg_", "line_search", "n_critic_updates", "KL", "Fisher", "trust region", "surrogate")
MOST_LINES = {"sb3_trpo/trpo.py": 330}
MOST_LINES_OF_A_TEST = 600


# How a source is read


# Read by many walls; nobody changes it
parsed = functools.cache(ast.parse)


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(tree: ast.AST, path: str) -> Iterator[str]:
    """Yield the full name of everything imported: ``from a import b`` gives ``a.b``, relative ones made absolute."""
    package = module_name(path).split(".") if path.endswith("/__init__.py") else module_name(path).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(path: str, source: str) -> set[str]:
    """Return everything that a module ever imports, or a type checker for it."""
    return set(imported(parsed(source), path))


def imports_of_loading(path: str, source: str) -> set[str]:
    """Return what is imported when the module is: outside of functions, and not for a type checker alone."""

    class AtLoading(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else self.generic_visit(node)

    return set(imported(AtLoading().visit(ast.parse(source)), path))


def is_in(name: str, *modules: str) -> bool:
    """Whether a name is one of the modules or of what is in them."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def top(name: str) -> str:
    return name.split(".")[0]


def package_of(sources: Sources) -> Sources:
    """Leave out what is not shipped."""
    return {path: source for path, source in sources.items() if path.startswith("sb3_trpo/")}


def room(sources: Sources, *prefixes: str) -> Sources:
    return {path: source for path, source in sources.items() if path.startswith(prefixes)}


def broken_by(sources: Sources, is_allowed: Callable[[str], bool]) -> list[str]:
    """Return each import of these modules that is not allowed."""
    return [f"{path}: {name}" for path, source in sources.items() for name in imports(path, source) if not is_allowed(name)]


# The walls


def trust_region_is_plain_numerics(sources: Sources) -> list[str]:
    """Torch, the standard library and itself: nothing of Stable-Baselines3, Gymnasium or the rest of the package."""
    allowed = STANDARD_LIBRARY | {"torch"}
    numerics = room(sources, "sb3_trpo/trust_region/")
    return broken_by(numerics, lambda name: is_in(name, "sb3_trpo.trust_region") or top(name) in allowed)


def direction_and_distance_do_not_know_each_other(sources: Sources) -> list[str]:
    """Conjugate gradients and line search import nothing of ours, and the line search no torch either."""
    direction = room(sources, "sb3_trpo/trust_region/conjugate_gradient.py")
    distance = room(sources, "sb3_trpo/trust_region/line_search.py")
    of_direction = broken_by(direction, lambda name: top(name) in STANDARD_LIBRARY | {"torch"})
    return of_direction + broken_by(distance, lambda name: top(name) in STANDARD_LIBRARY)


def only_metrics_knows_a_logger_key(sources: Sources) -> list[str]:
    """The keys stand in one table and nowhere else."""
    return [
        f"{path}: {node.value!r}"
        for path, source in package_of(sources).items()
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(("train/", "time/"))
        if path != "sb3_trpo/metrics.py"
    ]


def package_imports_neither_tests_nor_benchmarks(sources: Sources) -> list[str]:
    """What a user installs does not need what only we have."""
    ours_only = {"tests", "benchmarks", "examples", "pytest", "hypothesis"}
    return broken_by(package_of(sources), lambda name: top(name) not in ours_only)


def inspect_and_zoo_are_imported_by_nobody_inside(sources: Sources) -> list[str]:
    """They look at the package from outside."""
    leaves = ("sb3_trpo/inspect/", "sb3_trpo/zoo/")
    inside = {path: source for path, source in package_of(sources).items() if not path.startswith(leaves)}
    return broken_by(inside, lambda name: not is_in(name, "sb3_trpo.inspect", "sb3_trpo.zoo"))


def optional_packages_are_imported_where_they_are_used(sources: Sources) -> list[str]:
    """Importing the package needs no optional one; Matplotlib is imported by what draws, when it does."""
    return [
        f"{path}: {name}"
        for path, source in package_of(sources).items()
        for name in imports_of_loading(path, source)
        if top(name) in ROOMS_OF_OPTIONAL and not path.startswith(ROOMS_OF_OPTIONAL[top(name)])
    ]


def pyplot_is_left_to_the_user(sources: Sources) -> list[str]:
    """Its state is global: what draws makes figures of its own."""
    return broken_by(package_of(sources), lambda name: not is_in(name, "matplotlib.pyplot"))


def only_distributed_knows_of_more_than_one_process(sources: Sources) -> list[str]:
    """Neither an import of ``torch.distributed`` elsewhere, nor a look at it through ``torch``."""
    elsewhere = {path: source for path, source in package_of(sources).items() if path != "sb3_trpo/distributed.py"}
    looks = [
        f"{path}: {ast.unparse(node)}"
        for path, source in elsewhere.items()
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Attribute) and node.attr == "distributed" and ast.unparse(node.value) in ("th", "torch")
    ]
    return looks + broken_by(elsewhere, lambda name: not is_in(name, "torch.distributed"))


def trpo_imports_no_variant_and_no_adapter(sources: Sources) -> list[str]:
    """The variants are made of it, and vector environments are like any other to it."""
    base = room(sources, "sb3_trpo/trpo.py", "sb3_trpo/update.py")
    return broken_by(base, lambda name: not is_in(name, *VARIANTS, *ADAPTERS))


def package_loads_no_variant_and_no_adapter(sources: Sources) -> list[str]:
    """They need what not every user has: ``sb3_trpo`` hands them out when they are asked for."""
    entry = room(sources, "sb3_trpo/__init__.py")
    names = [name for path, source in entry.items() for name in imports_of_loading(path, source)]
    return [name for name in names if is_in(name, *VARIANTS, *ADAPTERS)]


def manners_know_nothing_of_trpo(sources: Sources) -> list[str]:
    """What any careful algorithm does knows of ours only the guards, and rooms that know nothing of TRPO, by word either."""
    rooms = ("checked_algorithm", "guards", "policies", "randomness", "vec_env")
    own = (*(f"sb3_trpo.{name}" for name in rooms), *NO_KNOWLEDGE_OF_TRPO)
    manners = room(sources, "sb3_trpo/checked_algorithm.py", "sb3_trpo/guards/", "sb3_trpo/vec_env/")
    words = [f"{path}: {word}" for path, source in manners.items() for word in WORDS_OF_TRPO if word in source]
    return words + broken_by(manners, lambda name: is_in(name, *own) or top(name) != "sb3_trpo")


def modules_stand_in_no_circle(sources: Sources) -> list[str]:
    """Not even for a type, nor inside of a function: who is imported by a module does not import it in turn."""
    modules = {module_name(path) for path in sources}

    def of_ours(name: str) -> str | None:
        parts = name.split(".")
        prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((prefix for prefix in prefixes if prefix in modules), None)

    needs = {module_name(path): {of_ours(name) for name in imports(path, source)} for path, source in sources.items()}
    for module, needed in needs.items():
        needed.discard(None)
        assert module is not None
    done: set[str] = set()

    def circle_from(module: str, above: tuple[str, ...]) -> list[str]:
        if module in above:
            return [" -> ".join([*above[above.index(module) :], module])]
        if module in done:
            return []
        found = [circle for needed in sorted(filter(None, needs[module])) for circle in circle_from(needed, (*above, module))]
        done.add(module)
        return found

    return [circle for module in sorted(needs) for circle in circle_from(module, ())]


def no_two_modules_share_a_name(sources: Sources) -> list[str]:
    """Wherever it is: who says a name means one module."""
    names = Counter(Path(path).stem for path in sources)
    return [name for name, n in names.items() if n > 1 and name not in ("__init__", "__main__", "conftest")]


def module_of_test(path: str, modules: Collection[str]) -> str:
    """
    Return the module that a test is named after.

    ``tests/fast/test_actors.py`` is for ``sb3_trpo/fast/actors.py``, and so is ``test_actors_<promise>.py``;
    ``tests/zoo/test_zoo.py`` is for ``zoo/__init__.py``, ``test_zoo_command.py`` for ``zoo/__main__.py``.
    """
    *folders, name = path.removeprefix("tests/").split("/")
    stem = name.removeprefix("test_").removesuffix(".py")
    words = stem.split("_")
    if folders and stem == folders[-1]:
        words = ["__init__"]
    elif folders and stem == f"{folders[-1]}_command":
        words = ["__main__"]
    named = ["/".join(["sb3_trpo", *folders, f"{'_'.join(words[:n])}.py"]) for n in range(len(words), 0, -1)]
    return next((module for module in named if module in modules), named[0])


def package_is_mirrored_by_tests(sources: Sources) -> list[str]:
    """
    Each module has its test by name, and each test its module.

    Those of no single module are in ``tests/promises``, those of the benchmarks in ``tests/benchmarks``.
    """
    elsewhere = ("tests/promises/", "tests/benchmarks/", "tests/test_layers.py")
    files = [path for path in sources if path.startswith("tests/") and "/test_" in path and not path.startswith(elsewhere)]
    modules = package_of(sources).keys()
    tested = {module_of_test(path, modules) for path in files}
    no_test = {path for path in modules if not path.endswith("__init__.py")} - tested
    return [f"{path} has no test" for path in no_test] + [f"there is a test of {path}" for path in tested - modules]


def files_are_short(sources: Sources) -> list[str]:
    """The algorithm fits into a head, and a file of tests is about one thing."""
    limits = MOST_LINES | {path: MOST_LINES_OF_A_TEST for path in sources if path.startswith("tests/")}
    lengths = {path: len(source.splitlines()) for path, source in sources.items()}
    return [f"{path}: {lengths[path]} lines" for path, limit in limits.items() if lengths.get(path, 0) > limit]


# For each wall houses that it must not stand in: path -> source, of one or more modules
WALLS: dict[Callable[[Sources], list[str]], list[dict[str, str]]] = {
    trust_region_is_plain_numerics: [
        {"sb3_trpo/trust_region/step.py": "from sb3_trpo.objective import Batch"},
        {"sb3_trpo/trust_region/fisher.py": "def f():\n    import stable_baselines3.common.distributions"},
        {"sb3_trpo/trust_region/__init__.py": "from .. import critic"},
    ],
    direction_and_distance_do_not_know_each_other: [
        {"sb3_trpo/trust_region/conjugate_gradient.py": "from sb3_trpo.trust_region.line_search import backtrack"},
        {"sb3_trpo/trust_region/line_search.py": "from . import conjugate_gradient"},
        {"sb3_trpo/trust_region/line_search.py": "import torch"},
    ],
    only_metrics_knows_a_logger_key: [{"sb3_trpo/trpo.py": 'logger.record(f"train/{name}", 1.0)'}],
    package_imports_neither_tests_nor_benchmarks: [
        {"sb3_trpo/zoo/sampler.py": "from benchmarks import settings"},
        {"sb3_trpo/inspect/probe.py": "def f():\n    import tests.cases"},
    ],
    inspect_and_zoo_are_imported_by_nobody_inside: [
        {"sb3_trpo/trpo.py": "from sb3_trpo.inspect.callback import TrustRegionRecorder"},
        {"sb3_trpo/__init__.py": "from . import zoo"},
    ],
    optional_packages_are_imported_where_they_are_used: [
        {"sb3_trpo/trpo.py": "import sb3_contrib"},
        {"sb3_trpo/inspect/style.py": "from matplotlib.figure import Figure"},
        {"sb3_trpo/vec_env/__init__.py": "class C:\n    import rl_zoo3"},
        {"sb3_trpo/rollout.py": "try:\n    import envpool\nexcept ImportError:\n    pass"},
    ],
    pyplot_is_left_to_the_user: [{"sb3_trpo/inspect/style.py": "def f():\n    from matplotlib import pyplot as plt"}],
    only_distributed_knows_of_more_than_one_process: [
        {"sb3_trpo/objective.py": "import torch.distributed as dist"},
        {"sb3_trpo/critic.py": "def f():\n    from torch import distributed"},
        {"sb3_trpo/rollout.py": "import torch as th\nth.distributed.all_reduce(x)"},
    ],
    trpo_imports_no_variant_and_no_adapter: [
        {"sb3_trpo/trpo.py": "def f():\n    from sb3_trpo.maskable import MaskableTRPO"},
        {"sb3_trpo/update.py": "from sb3_trpo import recurrent"},
        {"sb3_trpo/trpo.py": "from sb3_trpo.vec_env.envpool_adapter import EnvPool"},
    ],
    package_loads_no_variant_and_no_adapter: [
        {"sb3_trpo/__init__.py": "from sb3_trpo.maskable_recurrent import MaskableRecurrentTRPO"},
    ],
    manners_know_nothing_of_trpo: [
        {"sb3_trpo/checked_algorithm.py": "from sb3_trpo.hyperparameters import TRPO_RULES"},
        {"sb3_trpo/guards/finite.py": "from sb3_trpo.trust_region.fisher import flatten"},
        {"sb3_trpo/guards/model_zip.py": "from sb3_trpo import TRPO"},
        {"sb3_trpo/guards/finite.py": "message = 'target_kl limits the KL'"},
    ],
    modules_stand_in_no_circle: [
        {
            "sb3_trpo/a.py": "import sb3_trpo.b",
            "sb3_trpo/b.py": "def f():\n    from sb3_trpo import c",
            "sb3_trpo/c.py": "from . import a",
        },
        {
            "sb3_trpo/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sb3_trpo.b import B",
            "sb3_trpo/b.py": "from sb3_trpo.a import A",
        },
        {"sb3_trpo/__init__.py": "from sb3_trpo.trpo import TRPO", "sb3_trpo/trpo.py": "from sb3_trpo import __version__"},
        {"tests/a.py": "from tests.a import B"},
    ],
    no_two_modules_share_a_name: [{"sb3_trpo/critic.py": "", "sb3_trpo/fast/critic.py": ""}],
    package_is_mirrored_by_tests: [
        {"sb3_trpo/fast/lstm.py": "", "tests/test_lstm.py": ""},
        {"sb3_trpo/zoo/__main__.py": ""},
        {"sb3_trpo/critic.py": "", "tests/test_critic.py": "", "tests/guards/test_critics.py": ""},
    ],
    files_are_short: [{"sb3_trpo/trpo.py": "x = 1\n" * 331}, {"tests/fast/test_actors.py": "x = 1\n" * 601}],
}
BROKEN = [(wall, house) for wall, houses in WALLS.items() for house in houses]


@pytest.mark.parametrize("wall", WALLS, ids=lambda wall: wall.__name__)
def test_wall_stands(wall: Callable[[Sources], list[str]]) -> None:
    """Nothing in the house breaks it."""
    assert wall(HOUSE) == []


@pytest.mark.parametrize("wall, house", BROKEN, ids=[f"{wall.__name__}-{', '.join(house)}" for wall, house in BROKEN])
def test_wall_is_seen_to_be_broken(wall: Callable[[Sources], list[str]], house: dict[str, str]) -> None:
    """A wall that sees nothing would stand for ever."""
    assert wall(house)


def test_walls_stand_around_the_whole_house() -> None:
    """The sources are there, and every room that a wall names by its path."""
    expected = [
        "sb3_trpo/trpo.py",
        "sb3_trpo/metrics.py",
        "sb3_trpo/checked_algorithm.py",
        "sb3_trpo/trust_region/line_search.py",
    ]
    assert all(path in HOUSE for path in expected)
    assert len(room(HOUSE, "sb3_trpo/trust_region/")) >= 5 and len(room(HOUSE, "sb3_trpo/guards/")) >= 5
    assert len(room(HOUSE, "tests/")) > 50 and len(room(HOUSE, "benchmarks/")) >= 8 and len(room(HOUSE, "examples/")) >= 2


def test_walls_see_every_form_of_import() -> None:
    """Plain, renamed, from, relative, inside a function and for a type: none of them climbs over."""
    source = (
        "import a.b as c\nfrom d import e\nfrom . import f\nfrom ..g import h\ndef i():\n    import j\n"
        "if TYPE_CHECKING:\n    import k\nif other:\n    import m\n"
    )
    everything = imports("sb3_trpo/zoo/plugin.py", source)
    assert everything == {"a.b", "d.e", "sb3_trpo.zoo.f", "sb3_trpo.g.h", "j", "k", "m"}
    assert imports_of_loading("sb3_trpo/zoo/plugin.py", source) == everything - {"j", "k"}
    assert imports("sb3_trpo/zoo/__init__.py", "from .x import y") == {"sb3_trpo.zoo.x.y"}


def test_walls_let_through_what_is_allowed() -> None:
    """A lazy import of an optional package, a room's own one, and a wrapper around one process in its room."""
    allowed = {
        "sb3_trpo/inspect/style.py": "def f():\n    from matplotlib.figure import Figure",
        "sb3_trpo/maskable.py": "import sb3_contrib\nfrom sb3_trpo.trpo import TRPO",
        "sb3_trpo/distributed.py": "import torch.distributed",
        "sb3_trpo/objective.py": "import torch as th\nth.distributions.Normal",
        "sb3_trpo/trpo.py": "from sb3_trpo.objective import Batch",
    }
    with_names_alone = (package_is_mirrored_by_tests,)
    assert {wall.__name__: wall(allowed) for wall in WALLS if wall not in with_names_alone and wall(allowed)} == {}
