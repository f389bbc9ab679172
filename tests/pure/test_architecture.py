"""How the project is put together, as tables that are held against its imports. The README points here."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("relay", "fanout", "ops")
ENTRY = {"relay.app", "relay.measures", "relay.cli"}  # the composition root, what it measures, and its command line

# Which package may import which. `ops` is for any service, `fanout` for any node; only `relay` knows both.
MAY_IMPORT = {
    "fanout": {"fanout"},
    "ops": {"ops"},
    "relay": {"relay", "fanout"},  # and ENTRY: ops
}


def _named(package: str, names: str) -> list[str]:
    return [f"{package}.{name}" for name in names.split()]


# Modules that decide and do nothing else: no loop, no socket, no clock, no environment, no log. Tests pass them `now`.
PURE = (
    "relay.core.*",
    *_named("relay", "admission shell.events shell.words"),
    *_named("relay.api", "minting openapi page reading refusals routes schema sse statuses transcript usage"),
    *_named("relay.rulebook", "agents book fields lines plans upstreams"),
    "fanout.core.*",
    *_named("fanout", "errors ids items messages settings"),
    "ops.health",
    *_named("ops.simulator", "config conversation listening output reply response schema session speech vad validate"),
)
IMPURE = {
    *("asyncio", "concurrent", "multiprocessing", "select", "selectors", "signal", "socket", "ssl", "subprocess"),
    *("threading", "datetime", "time", "os", "pathlib", "random", "secrets", "tempfile", "uuid", "warnings"),
    *("logging", "structlog", "aiofastnet", "aiohttp", "picows", "redis", "uvloop", "jwt", "cryptography"),
    "prometheus_client",
}
MAY_MAKE_IDS = {"fanout.ids", "fanout.items"}  # pure but for `secrets`

# Who touches what. Anything else goes through these modules.
OWNERS = {
    "picows": {"relay.handoff", "relay.legs", "relay.upstream", "ops.bench.*"},
    "picows.picows.WSProtocol": {"relay.handoff"},
    "aiofastnet": {"relay.handoff", "ops.bench.*"},
    "redis": {"fanout.redis.*", "relay.demo"},
    "msgpack": {"fanout.core.envelope"},
    "jwt": {"relay.tokens", "relay.keys", "ops.bench.*"},  # the last may not import relay.tokens
    "cryptography": {"relay.devcert", "fanout.sealing"},
    "prometheus_client": {"ops.metrics"},
    "os.environ": {"relay.config", "relay.cli", "relay.demo", "fanout.client", "ops.bench.*"},
    "os.getenv": set[str](),
}

MODULE_LINES = 450
FUNCTION_LINES = 60


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for path in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = (path, ast.parse(path.read_text(), str(path)))
    return found


@cache
def used(module: str) -> frozenset[str]:
    """Dotted names that a module imports, and the attributes that it takes from what it imported by `import`."""
    names = set()
    for node in ast.walk(modules()[module][1]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{node.value.id}.{node.attr}")
    return frozenset(names)


def imported(module: str) -> frozenset[str]:
    """Dotted names that a module imports, whether at its top or inside a function."""
    tree = modules()[module][1]
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names = {(node.module, a.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    return frozenset(plain | {f"{source}.{name}" for source, name in names})


def project_modules(module: str) -> Iterator[str]:
    """Modules of the project that a module imports; what a package passes on counts as its own module's."""
    for name in imported(module):
        source, _, last = name.rpartition(".")
        if name in modules():
            yield name
        elif source in PACKAGES:
            yield from (found for found in project_modules(source) if _defines(found, last))
        elif source in modules():
            yield source


def _defines(module: str, name: str) -> bool:
    body = modules()[module][1].body
    return any(getattr(node, "name", None) == name for node in body)


def matches(module: str, patterns: tuple[str, ...] | set[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def reaches(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


MODULES = list(modules())
PURE_MODULES = [module for module in MODULES if matches(module, PURE)]


@pytest.mark.parametrize("module", MODULES)
def test_packages_depend_in_one_direction(module):
    """So that the bus and the tools can be read, tested and replaced without the relay."""
    package = module.partition(".")[0]
    allowed = MAY_IMPORT[package] | ({"ops"} if module in ENTRY else set())
    others = {name.partition(".")[0] for name in imported(module)} & {*PACKAGES, "tests"}
    assert others <= allowed


@pytest.mark.parametrize("pattern", PURE)
def test_every_pure_module_of_the_table_exists(pattern):
    """A row that matches nothing holds nothing."""
    assert any(fnmatchcase(module, pattern) for module in MODULES)


@pytest.mark.parametrize("module", PURE_MODULES)
def test_a_pure_module_imports_nothing_that_acts(module):
    """Its decisions can be tested without a loop, and read without thinking of one."""
    allowed = {"secrets"} if module in MAY_MAKE_IDS else set()
    assert {name.partition(".")[0] for name in imported(module)} & (IMPURE - allowed) == set()


@pytest.mark.parametrize("module", PURE_MODULES)
def test_a_pure_module_imports_only_pure_ones_of_the_project(module):
    """What it imports acts in its name."""
    assert [name for name in project_modules(module) if not matches(name, PURE)] == []


@pytest.mark.parametrize("module", PURE_MODULES)
def test_a_pure_module_never_waits(module):
    """``async`` would need a loop to run it."""
    tree = modules()[module][1]
    waits = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, waits)] == []


@pytest.mark.parametrize("library", OWNERS)
def test_what_has_an_owner_is_touched_by_no_one_else(library):
    """An upgrade, a replacement or an audit looks at these files and no others."""
    users = {module for module in MODULES if any(reaches(name, library) for name in used(module))}
    assert {module for module in users if not matches(module, OWNERS[library])} == set()


@pytest.mark.parametrize("library", [library for library, owners in OWNERS.items() if owners])
def test_every_owner_of_the_table_uses_what_it_owns(library):
    """A row that is out of date would let something in."""
    users = {module for module in MODULES if any(reaches(name, library) for name in used(module))}
    unused = {owner for owner in OWNERS[library] if not any(fnmatchcase(module, owner) for module in users)}
    assert {owner for owner in unused if owner != "ops.bench.*"} == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_one_thought(module):
    """It says first what it decides, and ends before the reader has forgotten that."""
    path, tree = modules()[module]
    text = path.read_text()
    assert not text or ast.get_docstring(tree)
    assert len(text.splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("module", MODULES)
def test_a_function_fits_on_a_screen(module):
    """Longer ones have parts with names."""
    functions = [
        node for node in ast.walk(modules()[module][1]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in long.items() if lines > FUNCTION_LINES} == {}
