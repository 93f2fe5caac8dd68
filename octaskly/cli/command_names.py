"""Names of the commands, in the groups of the help, and what other tools call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "Everyday": {
        "run": "octaskly.cli.commands.run:run",
        "submit": "octaskly.cli.commands.submit:submit",
        "map": "octaskly.cli.commands.arrays:map_",
        "array": "octaskly.cli.commands.arrays:array",
        "ls": "octaskly.cli.commands.tasks:ls",
        "show": "octaskly.cli.commands.tasks:show",
        "logs": "octaskly.cli.commands.tasks:logs",
        "wait": "octaskly.cli.commands.wait:wait",
        "fetch": "octaskly.cli.commands.fetch:fetch",
        "cancel": "octaskly.cli.commands.tasks:cancel",
        "reprioritize": "octaskly.cli.commands.tasks:reprioritize",
        "retry": "octaskly.cli.commands.retry:retry",
        "explain": "octaskly.cli.commands.tasks:explain",
        "top": "octaskly.cli.commands.top:top",
        "open": "octaskly.cli.commands.open:open_",
    },
    "Nodes": {
        "nodes": "octaskly.cli.commands.nodes:nodes",
        "stats": "octaskly.cli.commands.nodes:stats",
        "events": "octaskly.cli.commands.wait:events",
        "drain": "octaskly.cli.commands.drain:drain",
        "pause": "octaskly.cli.commands.drain:pause",
        "resume": "octaskly.cli.commands.drain:resume",
        "burst": "octaskly.cli.burst.command:burst",
        "forget": "octaskly.cli.commands.tasks:forget",
        "doctor": "octaskly.cli.doctor.command:doctor",
    },
    "Mesh and trust": {
        "invite": "octaskly.cli.commands.join:invite",
        "join": "octaskly.cli.commands.join:join",
        "requests": "octaskly.cli.commands.approve:requests",
        "approve": "octaskly.cli.commands.approve:approve",
        "leave": "octaskly.cli.commands.leave:leave",
        "revoke": "octaskly.cli.commands.rotate:revoke",
        "rotate": "octaskly.cli.commands.rotate:rotate",
        "secret": "octaskly.cli.commands.secret:secret",
        "ca": "octaskly.cli.commands.secret:ca",
        "token": "octaskly.cli.commands.tokens:token",
        "audit": "octaskly.cli.commands.audit:audit",
    },
    "Service": {
        "agent": "octaskly.cli.agent:agent",
        "service": "octaskly.cli.service.command:service",
        "config": "octaskly.cli.commands.config:config",
        "db": "octaskly.cli.commands.db:db",
        "completion": "octaskly.cli.completion:completion",
        "demo": "octaskly.cli.demo.command:demo",
    },
}
"""Module and attribute of each command, by the heading of its group."""

COMMANDS: Final[Mapping[str, str]] = {
    name: place for group in GROUPS.values() for name, place in group.items()
}
UNLISTED: Final[Mapping[str, str]] = {
    "help": "octaskly.cli.commands.help:help_",
    "version": "octaskly.cli.commands.help:version",
}
"""Commands that the help does not list, because every program has them."""

ALIASES: Final[Mapping[str, str]] = {
    "list": "ls",
    "ps": "ls",
    "status": "ls",
    "unpause": "resume",
}

_CANCEL: Final = "octaskly cancel --force ID    cancels a task, even if it is running"
_FETCH: Final = "octaskly fetch ID    fetches the outputs of a task"
_LOGS: Final = "octaskly logs -f ID    shows the output of a task"
_RUN: Final = "octaskly run -- CMD    runs a command and waits"
_SUBMIT: Final = "octaskly submit -- CMD    returns at once"
_FORGET: Final = "octaskly forget --older-than 7d    deletes ended tasks"
_AGENT: Final = "octaskly agent    runs a node in this terminal"
_SERVICE: Final = "octaskly service install    keeps a node running"
_TOP: Final = "octaskly top    shows the mesh live"
_SHOW: Final = "octaskly show ID    shows everything about a task"
_EXPLAIN: Final = "octaskly explain ID    says why a task does not run"
_REPRIORITIZE: Final = (
    "octaskly reprioritize ID N    changes the priority of a waiting task"
)
_REVOKE: Final = "octaskly revoke NODE    ends a node's access to the mesh"
_SEND: Final = "octaskly run --in PATH -- CMD    sends files with a task"
_OPEN: Final = "octaskly open    opens the dashboard"

_HINTS: Final[Mapping[str, tuple[str, ...]]] = {
    "kill scancel abort terminate": (_CANCEL,),
    "stop": (
        _CANCEL,
        "octaskly drain NODE    stops new work on a node",
        "systemctl --user stop octaskly    stops the service of this machine",
    ),
    "rm remove delete del": (_CANCEL, _FORGET, _REVOKE),
    "clean prune purge clear reset": (_FORGET,),
    "get download pull results": (_FETCH, _LOGS),
    "cp copy send upload push put": (_SEND, _FETCH),
    "add enqueue queue sbatch qsub job new create": (_SUBMIT,),
    "exec srun do execute": (_RUN,),
    "jobs tasks task squeue qstat history": (
        "octaskly ls    lists tasks",
        "octaskly nodes    lists nodes",
    ),
    "hosts workers worker node sinfo machines members": (
        "octaskly nodes    lists nodes",
    ),
    "log tail follow attach output out cat": (_LOGS,),
    "info inspect describe details scontrol": (_SHOW, _EXPLAIN),
    "why": (_EXPLAIN,),
    "nice renice priority prio qalter": (_REPRIORITIZE,),
    "restart rerun resubmit repeat requeue": (
        "octaskly retry ID    runs an ended task again",
        _SERVICE,
    ),
    "parallel xargs foreach each": (
        "octaskly map CMD {} ::: ITEM...    runs a command for each item",
    ),
    "start up serve server daemon init": (
        _AGENT,
        _SERVICE,
        "octaskly resume NODE    ends a pause or a drain",
    ),
    "install uninstall": (_SERVICE, "octaskly service uninstall    removes it"),
    "hold freeze stash cordon": ("octaskly pause NODE    freezes what a node runs",),
    "release uncordon unfreeze": ("octaskly resume NODE    ends a pause or a drain",),
    "kick ban evict": (_REVOKE,),
    "pair connect enroll": (
        "octaskly invite    on a member shows a code",
        "octaskly join CODE    on the new machine",
    ),
    "disconnect quit exit": ("octaskly leave    takes this machine out of its mesh",),
    "login auth key": ("octaskly token create --role client    creates a token",),
    "watch monitor htop": (_TOP, _OPEN),
    "dashboard ui web gui": (_OPEN,),
    "scale autoscale alloc salloc grow": (
        "octaskly burst -- CMD    starts visitors while tasks wait",
    ),
    "ping check diagnose debug": ("octaskly doctor    checks this machine",),
    "settings set env": ("octaskly config    shows the settings of this machine",),
}
HINTS: Final[Mapping[str, tuple[str, ...]]] = {
    word: hints for words, hints in _HINTS.items() for word in words.split()
}
"""Commands that words of docker, Slurm, pueue and others may mean."""
