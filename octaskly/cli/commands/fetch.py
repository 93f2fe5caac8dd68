"""`octaskly fetch`: the outputs of an ended task, or of all members of an array."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from octaskly.cli import completion
from octaskly.cli.context import CliContext
from octaskly.cli.output.fetched import fetch_outputs, fetched_text, report_fetched
from octaskly.cli.output.render import EXIT_OCTASKLY_FAILED, note, print_json
from octaskly.cli.task_refs import resolve_ref
from octaskly.client import Session
from octaskly.client.errors import Conflict
from octaskly.client.fetching import digests_sent_from
from octaskly.client.flows import queries, rest_calls
from octaskly.errors import MeshError
from octaskly.files.output_patterns import has_wildcards, prefixes
from octaskly.files.unpacker import Fetched
from octaskly.rest.client_types import Task

NO_DIGEST: Final = b""  #: of a file that must not be replaced


@click.command(epilog="Example: octaskly fetch last --to results")
@click.argument("ref", metavar="ID", shell_complete=completion.complete_tasks)
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    metavar="DIR",
    help="Destination folder (default: the current one).",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was fetched.")
@click.pass_obj
def fetch(
    context: CliContext,
    ref: str,
    folder: Path,
    as_json: bool,  # noqa: FBT001
) -> int:
    """Fetch the outputs of a task, or of all members of an array.

    They keep their paths, and nothing else in the folder changes. A file that --in sent
    from there is kept if it has changed since. To resume an interrupted fetch, repeat
    it.

    The exit code is 125 if an output is missing, or got another name because a
    different local file has its name. Members that were cancelled may lack theirs.
    """
    results = []
    is_complete = True
    taken: dict[str, bytes] = {}  #: files of other members, which globs may cover too
    sent_by_tree: dict[str, dict[str, bytes]] = {}  #: members of an array share one
    with context.connect() as client:
        full = resolve_ref(client, ref)
        for task in _tasks_with_outputs(client, full):
            placed: set[str] = set()
            tree = task.tree.sha256 if task.tree else ""
            if tree not in sent_by_tree:
                sent_by_tree[tree] = digests_sent_from(folder, task)
            sent = ChainMap(taken, sent_by_tree[tree])
            fetched = fetch_outputs(client, task, folder, sent=sent, placed=placed)
            taken |= dict.fromkeys(placed, NO_DIGEST)
            # After an interrupt, only the other members' outputs are wanted.
            must_be_whole = task.id == full or task.status != "cancelled"
            is_complete &= report_fetched(task, fetched, must_be_whole=must_be_whole)
            results.append((task, fetched))
    if as_json:
        for task, fetched in results:
            print_json(msgspec.json.encode(_shown(task, folder, fetched)))
    elif results:
        note(_summary(results, full))
    return 0 if is_complete else EXIT_OCTASKLY_FAILED


def _tasks_with_outputs(client: Session, ref: str) -> list[Task]:
    """Return an ended task, or the ended members of an array.

    Raises:
        Conflict: the task has not ended.
        MeshError: there are no outputs, or two members have the same.
    """
    task = client.send_and_decode(rest_calls.task(ref), Task)
    if task.array is None or not task.is_final:
        if task.is_final and not task.outputs:
            raise MeshError(
                f"{task.id} has no declared outputs",
                hint="octaskly submit --out PATH -- CMD    declares one",
            )
        if not task.is_final:
            raise Conflict(
                "Task has not ended", status=409, hint=f"{task.id} is {task.status}"
            )
        return [task]
    flow = queries.tasks(client.requests, {"array": task.id})
    members = [
        client.send_and_decode(rest_calls.task(member.id), Task)
        for member in list(client.iterate(flow))
    ]
    kept = [member for member in members if any(o.path for o in member.outputs)]
    if not kept and task.is_final:
        raise MeshError(
            f"no member of {task.id} has outputs",
            hint="octaskly map --out PATH -- CMD    declares one",
        )
    _check_distinct(kept)
    return kept


def _check_distinct(members: Iterable[Task]) -> None:
    """Raise MeshError if two members would be placed in the same files.

    What a glob covers is seen file by file: one that is there already is kept.
    """
    owners: dict[str, str] = {}
    leading: dict[str, str] = {}
    for member in members:
        kept = (out.path for out in member.outputs if out.bytes is not None)
        for path in (path for path in kept if not has_wildcards(path)):
            above = list(prefixes(path))
            found = [owners.get(folder) for folder in above] + [leading.get(path)]
            other = next(
                (owner for owner in found if owner not in (None, member.id)), None
            )
            if other is not None:
                raise MeshError(
                    f"{other} and {member.id} both have the output {path}",
                    hint=f"octaskly fetch {member.id} --to DIR    fetches into "
                    "another folder",
                )
            owners[path] = member.id
            for folder in above:
                leading.setdefault(folder, member.id)


def _shown(task: Task, folder: Path, fetched: Fetched) -> dict[str, Any]:
    return {
        "id": task.id,
        "folder": str(folder.absolute()),
        "files": fetched.files,
        "bytes": fetched.bytes,
        "kept": [kept._asdict() for kept in fetched.kept],
        "skipped_links": fetched.skipped_links,
        "missing": fetched.missing,
    }


def _summary(results: list[tuple[Task, Fetched]], ref: str) -> str:
    if len(results) == 1:
        task, fetched = results[0]
        return fetched_text([out.path for out in task.outputs], fetched)
    total = Fetched(
        files=sum(fetched.files for _, fetched in results),
        bytes=sum(fetched.bytes for _, fetched in results),
    )
    return fetched_text([f"{len(results)} tasks of {ref}"], total)
