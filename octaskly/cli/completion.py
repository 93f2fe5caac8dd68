"""Shell completion, and `octaskly completion`.

Dynamic values come from the local agent within `BUDGET_S`. An error completes nothing
and prints nothing, because the user is editing a command line.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from octaskly.cli.context import CliContext
from octaskly.cli.output.terminal import on_one_line, print_text
from octaskly.cli.task_refs import newest_tasks
from octaskly.client import Session, find_local_agents
from octaskly.client.flows.rest_calls import NODES, TOKENS, Call
from octaskly.rest.access import TokenList
from octaskly.rest.client_types import Task
from octaskly.rest.mesh import NodeInfo, NodePage

BUDGET_S: Final = 0.2
OFFERED_MAX: Final = 50  #: newest tasks offered
SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_OCTASKLY_COMPLETE"

CompletionItems = list[CompletionItem]
FetchItems = Callable[[Session, str], Iterable[CompletionItem]]
Completer = Callable[[click.Context, click.Parameter, str], CompletionItems]


class _BudgetExceeded(BaseException):
    """The time budget is used up; error handlers must not catch this."""


def _completer(fetch: FetchItems, *always: CompletionItem) -> Completer:
    """Return what completes an argument with `always`, and what a node answers.

    Args:
        fetch: Gets the items from a node, and the text that was typed.
        always: Items that need no node.
    """

    def complete(
        ctx: click.Context, _: click.Parameter, incomplete: str
    ) -> CompletionItems:
        offered = _fetch_items(ctx, lambda client: fetch(client, incomplete))
        return _with_prefix(incomplete, [*always, *offered])

    return complete


def _fetch_tasks(client: Session, incomplete: str) -> Iterator[CompletionItem]:
    return _items(newest_tasks(client, OFFERED_MAX), incomplete)


def _fetch_arrays(client: Session, incomplete: str) -> Iterator[CompletionItem]:
    return _items(
        (task for task in newest_tasks(client, OFFERED_MAX) if task.array), incomplete
    )


def _nodes(client: Session) -> Sequence[NodeInfo]:
    return client.send_and_decode(Call("GET", NODES), NodePage).nodes


def _fetch_nodes(client: Session, _: str) -> Iterator[CompletionItem]:
    return (CompletionItem(node.name, help=node.state) for node in _nodes(client))


def _fetch_labels(client: Session, _: str) -> Iterator[CompletionItem]:
    for node in _nodes(client):
        for name, value in node.labels.items():
            yield CompletionItem(f"{name}={value}", help=node.name)


def _fetch_tokens(client: Session, _: str) -> Iterator[CompletionItem]:
    listed = client.send_and_decode(Call("GET", TOKENS), TokenList)
    for token in listed.tokens:
        if token.state == "good":
            yield CompletionItem(token.name, help=token.role)


complete_tasks: Final = _completer(
    _fetch_tasks, CompletionItem("last", help="the newest task")
)
"""Offers `last` and the newest tasks, with their commands."""
complete_arrays: Final = _completer(_fetch_arrays)
"""Offers the arrays among the newest tasks."""
complete_nodes: Final = _completer(_fetch_nodes)
"""Offers the names of the nodes, with their states."""
complete_tokens: Final = _completer(_fetch_tokens)
"""Offers the names of the valid tokens, with their roles."""
complete_labels: Final = _completer(_fetch_labels)
"""Offers the labels that nodes have, as `NAME=VALUE`."""


def complete_agents(
    _: click.Context, __: click.Parameter, incomplete: str
) -> CompletionItems:
    """Offer the agents of this machine."""
    return _with_prefix(
        incomplete,
        (CompletionItem(name) for name, _ in find_local_agents(CliContext().environ)),
    )


def complete_files(
    _: click.Context, __: click.Parameter, incomplete: str
) -> CompletionItems:
    """Let the shell offer files."""
    return [CompletionItem(incomplete, type="file")]


def _with_prefix(incomplete: str, items: Iterable[CompletionItem]) -> CompletionItems:
    """Return the items with this prefix, without duplicates."""
    # What cannot be shown cannot be typed either, so it is left out.
    fitting = (
        CompletionItem(item.value, item.type, on_one_line(item.help or "") or None)
        for item in items
        if item.value.startswith(incomplete) and item.value == on_one_line(item.value)
    )
    return list({item.value: item for item in fitting}.values())


def _fetch_items(
    ctx: click.Context, fetch: Callable[[Session], Iterable[CompletionItem]]
) -> CompletionItems:
    """Return the agent's response, or nothing if it exceeds the time budget."""
    chosen = ctx.find_root().params
    choice = CliContext(
        node=chosen.get("node"),
        state_dir=chosen.get("state_dir"),
        url=chosen.get("url"),
        ca_file=chosen.get("ca_file"),
    )
    try:
        with _time_limit(), choice.connect(is_silent=True) as client:
            return list(fetch(client))
    except (_BudgetExceeded, Exception):  # noqa: BLE001 - completion is silent, see above
        return []


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def on_alarm(_number: int, _frame: object) -> None:
        raise _BudgetExceeded

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, BUDGET_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _items(some: Iterable[Task], incomplete: str) -> Iterator[CompletionItem]:
    """Yield short ids, and whole ones if the user has begun to type one."""
    for task in some:
        command = (task.call or task.command or "")[:60]
        is_whole = incomplete and not task.short_id.startswith(incomplete)
        shown = task.id if is_whole else task.short_id or task.id
        yield CompletionItem(shown, help=f"{task.status}: {command}")


def script(shell: str, command: click.Command) -> str:
    """Return the script that makes a shell complete `command`."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    # Call the base class, because bash's own class starts bash to check its version.
    return ShellComplete.source(kind(command, {}, "octaskly", VARIABLE))


@click.command(epilog="Example: octaskly completion fish | source")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, ids and names.

    \b
    bash:  eval "$(octaskly completion bash)"    in ~/.bashrc
    zsh:   eval "$(octaskly completion zsh)"     in ~/.zshrc, after compinit
    fish:  octaskly completion fish > ~/.config/fish/completions/octaskly.fish
    """  # noqa: D301 - click needs this character
    print_text(script(shell, ctx.find_root().command))
