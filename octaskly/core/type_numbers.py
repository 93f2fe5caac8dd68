"""The numbers by which classes are known on the wire and in the log.

Messages have those below 100, facts those from 100 on, and values that travel or are
kept by themselves those from 120 on. What is only ever part of a known class, as an
`Epoch`, has none.
"""

from __future__ import annotations

from typing import Final

from octaskly.core import facts, keys, messages, model
from octaskly.core.merge import TaskRecord
from octaskly.core.options import TaskOptions

NUMBERS: Final[dict[type, int]] = {
    messages.Hello: 1,
    messages.HelloOk: 2,
    messages.Heartbeat: 3,
    messages.HeartbeatOk: 4,
    messages.Probe: 5,
    messages.ProbeOk: 6,
    messages.Claim: 7,
    messages.ClaimOk: 8,
    messages.ClaimNo: 9,
    messages.Roster: 10,
    messages.Redirect: 11,
    messages.Pull: 12,
    messages.Entries: 13,
    messages.Dispatch: 14,
    messages.Kill: 15,
    messages.Results: 16,
    messages.ResultsOk: 17,
    messages.Reattach: 18,
    messages.Transfer: 19,
    messages.Leave: 20,
    messages.Repl: 21,
    messages.ReplOk: 22,
    messages.Snapshot: 24,
    messages.Records: 25,
    keys.KeysHeld: 28,
    keys.KeysGiven: 29,
    facts.Submitted: 100,
    facts.CancelAsked: 101,
    facts.Assigned: 102,
    facts.Finished: 103,
    facts.Floor: 104,
    facts.Ready: 105,
    facts.Notified: 106,
    facts.Recorded: 107,
    facts.Entry: 120,
    TaskRecord: 121,
    messages.Report: 122,
    model.TaskSpec: 123,
    model.Outcome: 124,
    model.Attempt: 125,
    model.NodeInfo: 126,
    messages.RosterLine: 127,
    model.Address: 128,
    TaskOptions: 129,
}
"""A number stays with its class for ever, and is never given to another."""
