"""Orders to launchers: what the pool says of an attempt that is to be started."""

from __future__ import annotations

import os
from typing import Any

from octaskly.core.arrays import INDEX_VARIABLE, ITEM_VARIABLE
from octaskly.core.model import name_of
from octaskly.core.options import TaskOptions
from octaskly.runner.seat import Item, given_limits

GPUS = b"CUDA_VISIBLE_DEVICES"
RESERVED = "OCTASKLY_"  #: begins the variables that only the agent sets
OF_MEMBERS = (INDEX_VARIABLE, ITEM_VARIABLE)  #: which come with the task all the same


def run_order(item: Item) -> list[object]:
    """Return the order to start an attempt; of most tasks it has no wishes."""
    spec = item.spec
    order: list[object] = [
        *("run", item.key, name_of(spec.id), str(item.attempt.n), item.mark),
        *(_raw(spec.command), spec.timeout_s),
    ]
    if spec.options is not None:
        asked = wishes(spec.options)
        if item.folder is not None:
            asked["folder"] = os.fsencode(item.folder)
        if (group := item.enclosure) is not None:
            asked["group"] = [os.fsencode(group.folder), group.held, len(group.fds)]
        if item.gpus:
            env = {**asked.get("env", {}), GPUS: ",".join(item.gpus).encode()}
            asked["env"] = env
        if asked:
            order.append(asked)
    return order


def wishes(options: TaskOptions) -> dict[str, Any]:
    """Return what a launcher must know of what a task asks for, as bytes.

    `env` adds variables; `cwd` and `stdin` are given if they are not the usual ones,
    and so are `grace_s` and `limits`, the latter by the names of `TaskLimits`. An
    attempt with a folder of its own has `folder` besides, and one with a cgroup of its
    own `group`: its folder, the limits that it holds, and how many descriptors come.
    """
    asked: dict[str, Any] = {}
    if env := [pair for pair in options.env if _is_taken(pair[0])]:
        asked["env"] = {_raw(name): _raw(value) for name, value in env}
    if options.cwd:
        asked["cwd"] = _raw(options.cwd)
    if options.stdin:
        asked["stdin"] = options.stdin
    if options.grace_s is not None:
        asked["grace_s"] = options.grace_s
    if options.limits is not None:
        asked["limits"] = given_limits(options.limits)
    return asked


def _is_taken(name: str) -> bool:
    return not name.startswith(RESERVED) or name in OF_MEMBERS


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
