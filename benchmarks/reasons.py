"""Why a goal that is known to be missed is missed, and what was tried.

The figures are measured anew.
"""

from __future__ import annotations

from typing import Final

PAGE: Final = "docs/explanation/performance.md"
HEADING: Final = "The next limit"  #: of the page, where each reason is explained
UNKNOWN: Final = "not known; look whether the machine had other work"

#: By the beginning of the name of a figure.
REASONS: Final = {
    "true by bulk REST": "a task costs its child, launcher and durable log 0.8 ms of"
    " two cores; the kernel's part alone is 0.48",
    "ends, 100 nodes of 16 slots, 1 s: CPU": "each end still comes in a frame of its"
    " own, and its order leaves in one: 200 us in the event loop, 110 in the writer;"
    " tried: reports that wait for 20 ms, which cost 2 % of the tasks a second",
    "plain external command": "the same 0.3 ms beside the child, of which a direct"
    " start saves one exec only",
    "no-op tasks": "four facts and a row are written for each task by Python under"
    " one lock, 26 us in the event loop and 30 in the writer; tried: facts that the"
    " collector of Python does not visit (a quarter faster), a compiled core (no gain)",
    "bulk accept": "each task is validated, packed as a fact and written with its"
    " indexes, some 20 us under Python's lock; tried: uvloop, processes that only"
    " parse, a compiled core, none of which gains",
    "no-op members": "each member is matched, has an id and an attempt in memory, and"
    " a time in the log: 14 us in the event loop of a dispatcher and 5 in its writer,"
    " in many steps of which none takes more than 6 %; on a single node the worker's"
    " part is added",
    "true, members of an array, by R": "a member costs its child and launcher as much"
    " as a plain task does; a range saves only part of the log",
    "p50 submit to result": "two commits, a start and some 1.7 ms of Python whose code"
    " is cold after a pause; waiting in the submission saves 5 %",
    "one task, alone": "some 1.7 ms of Python whose code is cold after a pause, in"
    " thirteen steps; none takes more than 0.2; waiting in the submission saves 5 %",
    "p99 submit to result": "a task waits for two commits, of which one in 60 to 200"
    " takes over 2 ms",
    "true on another node by TLS": "both agents take a seventh more CPU for a task,"
    " 2 to 7 % of all that it takes",
    "peer: xargs": "it keeps neither a queue nor a log, nor what tasks print, so it is"
    " as near to R as a program in C can be",
    "64 slots of sleep 1": "each sleep is a process that two cores start, in bursts"
    " of 64",
    "true with 1000000 queued": "each task is read back from the disk, which takes a"
    " reader 11 us and the event loop 7; the writer uses the same row, which took 13"
    " us off its own",
    "upload over HTTPS": "of the agent's CPU, SHA-256 takes 30 %, receiving in the"
    " kernel 26, TLS 16 and the write 9, and curl shares the two cores",
    "supply to a task's node": "one thread hashes all bytes in order, 1.0 to 1.3 s a"
    " GB while both nodes share two cores; two connections and larger pieces gained"
    " nothing",
    "forwarded fetch": "nginx that forwards to nginx reaches 0.5 to 0.7 itself; two"
    " nodes take 1.2 times its CPU; two threads took more CPU and were no faster",
    "longest pause of its loop": "a request of 10 000 tasks is accepted in one step"
    " of the node, some 26 ms of CPU",
}


def reason(figure: str) -> str:
    """Return why this figure misses its goal, and where to read more."""
    for begin, why in REASONS.items():
        if figure.startswith(begin):
            return f"{why}: {PAGE}, {HEADING}"
    return UNKNOWN
