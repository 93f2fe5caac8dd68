"""The tool that measures the structure of the code, on small packages."""

from __future__ import annotations

import graphlib
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent

import pytest

from tests.structure import contracts, entered, rules, source
from tests.structure.__main__ import table
from tests.structure.figures import Figure
from tests.structure.functions import Function, functions, percentile
from tests.structure.source import Module

Make = Callable[[dict[str, str]], dict[str, Module]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes a package called `made`, and reads it."""

    def write(files: dict[str, str]) -> dict[str, Module]:
        for name, text in {"__init__.py": "", **files}.items():
            path = tmp_path / "made" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        return source.read(tmp_path / "made")

    return write


def lines(count: int) -> str:
    """Return this many simple statements."""
    return "x = 1\n" * count


def function(make: Make, body: str) -> Function:
    """Return the function with this body."""
    text = "def made():\n" + indent(dedent(body), "    ")
    (found,) = functions(make({"a.py": text}).values())
    return found


def test_every_form_of_import_names_the_module_that_it_imports(make: Make) -> None:
    """A submodule imported from its package is the target, not the package."""
    modules = make(
        {
            "core/__init__.py": "",
            "core/a.py": """
                import os
                import made.core.c
                from made.core import b, version
                from made.core.d import something
            """,
            **{f"core/{name}.py": "" for name in "bcd"},
        }
    )

    assert source.imports(modules) == {
        ("made.core.a", "made.core"),
        ("made.core.a", "made.core.b"),
        ("made.core.a", "made.core.c"),
        ("made.core.a", "made.core.d"),
    }


def test_import_inside_a_function_counts(make: Make) -> None:
    """Otherwise a dependency could be hidden from the figures."""
    modules = make({"a.py": "def f():\n    import made.b\n", "b.py": ""})

    assert source.imports(modules) == {("made.a", "made.b")}


def test_outermost_package_imports_nothing(make: Make) -> None:
    """It names the exports for type checkers only, so it closes no cycle."""
    modules = make({"__init__.py": "from made import a", "a.py": "import made"})

    assert source.imports(modules) == {("made.a", "made")}


def test_longest_chain_runs_from_the_importer_to_the_last_imported() -> None:
    """A reader follows it in this direction."""
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")}

    assert source.longest_chain(edges) == ["a", "b", "c"]


def test_longest_chain_refuses_modules_that_import_each_other() -> None:
    """A cycle has no longest chain."""
    with pytest.raises(graphlib.CycleError):
        source.longest_chain({("a", "b"), ("b", "c"), ("c", "a")})


def test_longest_chain_without_imports_is_empty() -> None:
    """A package of independent modules can be measured, too."""
    assert source.longest_chain(set()) == []


def test_chain_inside_one_folder_ends_at_its_border(make: Make) -> None:
    """Neither a parent folder nor a folder below prolongs it."""
    modules = make(
        {
            "a.py": "import made.core.b",
            "core/b.py": "import made.core.c",
            "core/c.py": "import made.core.deep.d",
            "core/deep/d.py": "import made.core.deep.e",
            "core/deep/e.py": "import made.core.deep.f",
            "core/deep/f.py": "",
        }
    )
    edges = source.imports(modules)

    assert len(source.longest_chain(edges)) == 6
    assert source.chain_in_one_folder(modules, edges) == [
        "made.core.deep.d",
        "made.core.deep.e",
        "made.core.deep.f",
    ]


def test_imports_between_subpackages_are_counted_by_pair() -> None:
    """Imports inside one subpackage, and from outside the package, do not count."""
    edges = {
        ("made.core.node.a", "made.core.log.x"),
        ("made.core.node.b", "made.core.log.x"),
        ("made.core.node.b", "made.core.node.a"),
        ("made.core.log.x", "made.core.events"),
        ("made.core.log.x", "made.core"),
        ("made.agent.loop", "made.core.node.a"),
    }

    assert source.between_subpackages("made.core", edges) == {
        ("node", "log"): 2,
        ("log", "events"): 1,
    }


def test_length_of_a_function_leaves_out_its_decorators(make: Make) -> None:
    """A decorator is not read with the body."""
    text = "@cache\n@other\ndef f(\n    a,\n):\n    return a\n"
    (found,) = functions(make({"a.py": text}).values())

    assert (found.line, found.lines, found.undocumented_lines) == (3, 4, 4)


def test_length_without_docstring_leaves_out_all_its_lines(make: Make) -> None:
    """A long explanation does not make a function complex."""
    found = function(make, '"""Do it.\n\nAt once.\n"""\nreturn 1\n')

    assert (found.lines, found.undocumented_lines) == (6, 2)


@pytest.mark.parametrize(
    "body",
    [
        "match x:\n" + "".join(f"    case {n}:\n        f({n})\n" for n in range(30)),
        "a = x\nmatch x:\n" + "    case 1 if a:\n        return 1\n" * 30,
        "return [\n" + "    1,\n" * 60 + "]\n",
        "made = {\n" + "    1: 2,\n" * 60 + "}\nreturn made\n",
    ],
    ids=["match", "match with guards", "list", "dict"],
)
def test_flat_match_or_table_may_be_long(make: Make, body: str) -> None:
    """A table is read row by row, so its length costs nothing."""
    assert function(make, body).is_table
    assert rules.long_functions(make({}).values()) == []


@pytest.mark.parametrize(
    "body",
    [
        lines(60),
        "match x:\n" + "    case 1:\n        if y:\n            f()\n" * 30,
        "match x:\n" + "    case 1:\n        f()\n" * 20 + lines(45),
        "match x:\n" + "    case 1:\n        f()\n" * 60 + lines(55),
        "return [\n    1\n    for _ in x\n" + "    if y\n" * 60 + "]\n",
    ],
    ids=["statements", "nested match", "more around it", "long", "comprehension"],
)
def test_long_function_that_is_no_table_breaks_a_rule(make: Make, body: str) -> None:
    """Neither nesting nor a small table in a long function is exempt."""
    found = function(make, body)

    assert not found.is_table
    assert rules.long_functions(make({}).values()) == [
        f"made.a:1: made has {found.lines} lines, the limit is 50: split it"
    ]


@pytest.mark.parametrize(("count", "is_broken"), [(50, False), (51, True)])
def test_function_of_fifty_lines_is_allowed(
    make: Make, count: int, *, is_broken: bool
) -> None:
    """The style allows up to 50 lines, signature included."""
    modules = make({"a.py": "def f():\n" + indent(lines(count - 1), "    ")})

    assert bool(rules.long_functions(modules.values())) == is_broken


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([], 0), ([7], 7), (range(1, 101), 95), ([1] * 19 + [9], 1), ([1] * 18 + [9], 9)],
)
def test_percentile_is_a_length_that_occurs(lengths: list[int], expected: int) -> None:
    """At least 95 of 100 functions are no longer than that."""
    assert percentile(lengths, 0.95) == expected


@pytest.mark.parametrize(("count", "is_broken"), [(14, False), (15, True)])
def test_folder_has_at_most_fifteen_modules(
    make: Make, count: int, *, is_broken: bool
) -> None:
    """The `__init__.py` counts."""
    modules = make({f"m{n}.py": "" for n in range(count)})

    broken = rules.crowded_folders(modules.values())

    assert bool(broken) == is_broken
    assert all("made/ has 16 modules" in line for line in broken)


def test_folders_of_commands_and_routes_may_have_more_modules(make: Make) -> None:
    """A reader looks up a command by its name."""
    folders = ("cli/commands", "api/routes")
    modules = make({f"{f}/m{n}.py": "" for f in folders for n in range(20)})

    assert rules.crowded_folders(modules.values()) == []
    assert list(rules.folder_sizes(modules.values()).values()) == [1]


def test_names_with_words_of_other_products_break_a_rule(make: Make) -> None:
    """One word for one thing, in modules, classes, functions, arguments and fields."""
    modules = make(
        {
            "job_table.py": "",
            "a.py": """
                class MasterNode: ...
                def f(slave, n_jobs): ...
                self.daemons = jobs = 1
                leader = 1
                job.run()
            """,
            "link_manager.py": "",
        }
    )

    assert rules.wrong_names(modules.values()) == [
        "made.a: MasterNode: say dispatcher",
        "made.a: jobs: say tasks",
        "made.a: slave: say standby",
        "made.job_table: job_table: say task",
        "made.link_manager: name it after what it owns",
    ]


def test_module_without_importers_breaks_a_rule(make: Make) -> None:
    """A module whose name is in a string runs in its own process."""
    modules = make(
        {
            "used.py": "COMMAND = 'python -m made.started'",
            "started.py": "import made.used",
            "dead.py": "import made.used\nME = 'made.dead'",
        }
    )

    assert rules.unused_modules(modules, source.imports(modules)) == [
        "made.dead is imported by no module: delete it"
    ]


def test_test_without_docstring_breaks_a_rule(make: Make) -> None:
    """The name states the expectation, the docstring the reason."""
    modules = make(
        {
            "test_a.py": """
                def helper(): ...
                def test_said():
                    '''For a reason.'''
                async def test_silent(): ...
            """
        }
    )

    assert rules.undocumented_tests(modules.values()) == [
        "made.test_a:5: test_silent has no docstring: give its reason"
    ]


def test_large_modules_are_reported(make: Make) -> None:
    """Above 700 lines a reviewer asks why."""
    modules = make({"a.py": lines(701), "b.py": lines(700)})

    assert rules.large_modules(modules.values()) == ["made.a (701)"]


def test_small_module_used_only_in_its_folder_is_reported(make: Make) -> None:
    """It may be a part of its neighbour, unless others use it or it is long enough."""
    modules = make(
        {
            "part.py": lines(119),
            "long.py": lines(120),
            "shared.py": "",
            "far.py": "",
            "user.py": "import made.part, made.long, made.shared",
            "other.py": "import made.shared",
            "deep/user.py": "import made.far",
            "api/routes/tokens.py": "",
            "api/routes/table.py": "import made.api.routes.tokens",
        }
    )

    assert rules.small_modules(modules, source.imports(modules)) == ["made.part (119)"]


def test_contract_that_lists_the_files_of_a_folder_is_counted_once(
    make: Make, tmp_path: Path
) -> None:
    """Packages, layers and a few single files are no list."""
    modules = make({f"{f}/{n}.py": "" for f in ("api", "core") for n in "abcd"})
    project = tmp_path / "pyproject.toml"
    api = [f"made.api.{name}" for name in "abcd"]
    project.write_text(
        f"""
        [[tool.importlinter.contracts]]
        source_modules = {[*api, "made.core.a", "made.core.b", "made.core.c"]}
        [[tool.importlinter.contracts]]
        source_modules = {api}
        [[tool.importlinter.contracts]]
        containers = ["made.core"]
        layers = ["a", "b", "c", "d"]
        """
    )
    read = contracts.read_contracts(project)

    assert len(read) == 3
    assert contracts.file_lists(read, modules) == {"made.api"}


def test_trace_counts_files_and_the_calls_between_them(tmp_path: Path) -> None:
    """A call through a library counts from the file that made it; others not at all."""
    texts = {
        "core/a.py": "def f(g, h):\n    inner()\n    g()\n    sorted([1], key=h)\n"
        "def inner(): ...\n",
        "core/b.py": "def g(): ...\ndef h(x): return x\n",
        "other.py": "def outside(): ...\n",
    }
    names: dict[str, Callable[..., None]] = {}
    for name, text in texts.items():
        exec(compile(text, f"{tmp_path}/{name}", "exec"), names)  # noqa: S102
    trace = entered.Trace(tmp_path / "core")

    with trace.recording():
        names["f"](names["g"], names["h"])
        names["outside"]()
    names["g"]()

    assert trace.files == {f"{tmp_path}/core/a.py", f"{tmp_path}/core/b.py"}
    assert trace.crossings == 2


def test_submitted_task_enters_more_files_than_a_wake_up() -> None:
    """Both are measured on a settled dispatcher, and in the same way each time."""
    wake_up, submission = entered.wake_up(1), entered.submission(1)

    assert wake_up.files < submission.files
    assert 0 < wake_up.crossings < submission.crossings
    assert entered.wake_up(1) == wake_up
    assert entered.life_of_a_task(2).files > entered.submission(2).files


def test_table_says_which_goals_are_met() -> None:
    """A figure at its goal meets it; one that is only reported has none."""
    figures = [
        Figure("modules", 83, 15, 15),
        Figure("lines", 9, 12, 8),
        Figure("report", None, 3, None),
    ]

    assert table(figures).splitlines() == [
        "figure  before    now   goal  met",
        "modules     83     15     15  yes",
        "lines        9     12      8   no",
        "report              3",
    ]
