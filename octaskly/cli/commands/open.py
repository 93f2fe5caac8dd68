"""`octaskly open`: the dashboard in a browser, signed in."""

from __future__ import annotations

import webbrowser

import click

from octaskly.cli.context import CliContext
from octaskly.cli.output.render import note
from octaskly.cli.output.terminal import print_line
from octaskly.client.flows import rest_calls
from octaskly.errors import MeshError
from octaskly.rest.access import SessionCode

SCREENS = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")
CODE_HINT = "it signs in the first user who opens it, within 60 s"


@click.command("open", epilog="Example: octaskly open")
@click.option(
    "--print",
    "is_printed",
    is_flag=True,
    help="Print the address instead of opening it.",
)
@click.option(
    "--lan", "is_lan", is_flag=True, help="Print an address for another machine."
)
@click.pass_obj
def open_(
    context: CliContext,
    is_printed: bool,  # noqa: FBT001
    is_lan: bool,  # noqa: FBT001
) -> None:
    """Open the dashboard in your browser, and sign in.

    The address contains a code that works once, within 60 s, and only for your own
    programs. Without a browser, or with --print or --lan, the address is printed, and
    works for the first person to open it.
    """
    has_screen = any(context.environ.get(name) for name in SCREENS)
    if has_screen and not (is_printed or is_lan):
        url = _local_url(_code(context, "me"))
        if webbrowser.open(url):
            note(f"opened {url.partition('#')[0]} in your browser")
            return
        note("no browser could be started; open this address in one:")
    code = _code(context, "anybody")
    print_line(_lan_url(code) if is_lan else _local_url(code))
    note(CODE_HINT)


def _code(context: CliContext, good_for: str) -> SessionCode:
    call = rest_calls.post_once("/api/v1/sessions/codes", {"good_for": good_for})
    with context.connect() as client:
        return client.send_and_decode(call, SessionCode)


def _local_url(code: SessionCode) -> str:
    if code.url is None:
        raise MeshError(
            "this node has no port on this machine, because another user holds it",
            hint="octaskly doctor    says who\n"
            "octaskly open --lan    opens the page from another machine",
        )
    return code.url


def _lan_url(code: SessionCode) -> str:
    if code.lan_url is None:
        raise MeshError(
            "this node does not serve the dashboard to the network",
            hint="octaskly open --print    for this machine",
        )
    return code.lan_url
