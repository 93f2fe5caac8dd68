"""The banner of an agent on a terminal, and the log lines that it replaces."""

from __future__ import annotations

import pytest

from octaskly import __version__
from octaskly.agent.process_hooks import Banner
from octaskly.config.agent import load_agent_config
from octaskly.system.log import StartupFilter, configure, startup_filter


def banner(
    startup_filter: StartupFilter | None,
    *,
    name: str | None = None,
    is_discoverable: bool = True,
) -> Banner:
    flags = {"name": name, "state_dir": "/s 1"}
    config = load_agent_config(flags, {"HOME": "/nowhere"})
    return Banner(config, startup_filter, is_discoverable=is_discoverable)


@pytest.mark.parametrize(
    ("dispatcher", "nodes", "about"),
    [
        ("desk", 1, "1 node; this node is its dispatcher."),
        ("ash", 3, "3 nodes; its dispatcher is ash."),
        (None, 1, "1 node; no dispatcher is elected yet."),
    ],
)
def test_banner_of_a_member_names_mesh_and_first_commands(
    dispatcher: str | None,
    nodes: int,
    about: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A new user needs no other page to go on."""
    banner(StartupFilter()).print_member(
        name="desk", mesh="8c2999686a7ee777", dispatcher=dispatcher, nodes=nodes
    )

    assert capsys.readouterr().err == (
        f"Octaskly {__version__}: node desk, running until Ctrl-C\n"
        f"Mesh 8c2999686a7ee777: {about}\n"
        "\n"
        "  Try it:              octaskly run -- hostname\n"
        "  Open the dashboard:  octaskly open\n"
        "  Add a machine:       octaskly invite\n"
        "\n"
    )


def test_banner_of_an_unpaired_node_leads_to_a_mesh(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the one in sight, or to one of its own."""
    banner(StartupFilter(), name="desk").print_unpaired()

    assert capsys.readouterr().err == (
        f"Octaskly {__version__}: node desk, running until Ctrl-C\n"
        "It sees a mesh that it is not a member of, and waits to be admitted.\n"
        "\n"
        "  On a member:         octaskly invite\n"
        "  Then here:           octaskly --node desk join CODE\n"
        "  A mesh of your own:  octaskly agent --new-mesh\n"
        "\n"
    )


def test_banner_names_the_state_folder_of_an_agent_that_is_not_found_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command can be pasted."""
    hidden = banner(StartupFilter(), name="desk", is_discoverable=False)
    hidden.print_member(name="desk", mesh="m", dispatcher="desk", nodes=1)

    assert "octaskly --state-dir '/s 1' open\n" in capsys.readouterr().err


def test_without_a_terminal_there_is_no_banner(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a pipe or the journal, the log has everything."""
    assert startup_filter("auto", "info") is None
    silent = banner(None)
    silent.print_member(name="desk", mesh="m", dispatcher="desk", nodes=1)
    silent.print_unpaired()

    assert not silent.is_wanted
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("style", "level", "is_hidden"),
    [
        ("auto", "info", True),
        ("console", "info", False),
        ("json", "info", False),
        ("auto", "debug", False),
    ],
)
def test_a_requested_log_is_not_hidden_on_a_terminal(
    style: str, level: str, monkeypatch: pytest.MonkeyPatch, *, is_hidden: bool
) -> None:
    """Only the default log gives way to the banner."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    assert (startup_filter(style, level) is not None) is is_hidden


def test_the_log_of_a_start_is_hidden_except_for_warnings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After the banner, all lines are shown."""
    hidden = StartupFilter()
    log = configure("json", "info", {}, hidden)

    log.info("discovering")
    log.warning("port taken")
    hidden.show_all()
    log.info("dispatcher elected")

    lines = capsys.readouterr().err.splitlines()
    assert ["taken" in lines[0], "elected" in lines[1], len(lines)] == [True, True, 2]


def test_the_log_of_joining_is_hidden_until_the_node_is_a_member(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The node starts again, and the banner of a member says the same."""
    hidden = StartupFilter()
    log = configure("json", "info", {}, hidden)
    waiting = banner(hidden)

    waiting.print_unpaired()
    log.info("joining a mesh")
    waiting.print_member(name="desk", mesh="m", dispatcher="ash", nodes=2)
    log.info("dispatcher elected")

    said = capsys.readouterr().err
    assert ("joining" in said, "elected" in said) == (False, True)
