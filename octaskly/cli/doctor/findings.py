"""What symptoms mean, and what helps: one plain sentence and one command for each."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from octaskly.cli.doctor.symptoms import Neighbour, Symptoms
from octaskly.cli.output.render import size

ROOM_BYTES = 64 << 20  #: below it the agent takes no new work
DESCRIPTORS_NEEDED = 560  #: for all connections that the API may have, and the rest
CLOCK_S_MAX = 30.0  #: that tokens forgive
CLOCK_S_NOTED = 5.0
CROWD = 2  #: neighbours that agree against this machine's clock
SHOWN_MAX = 3


class Status(StrEnum):
    """How a check ended."""

    FINE = "ok"
    ODD = "warning"  #: it works, and should be known
    BAD = "fault"
    UNCHECKED = "unchecked"


class Finding(NamedTuple):
    """One line of the doctor."""

    check: str
    status: Status
    says: str
    hint: str | None = None


def findings(seen: Symptoms) -> list[Finding]:
    """Return the findings, in the order in which one thing needs another."""
    return [
        *_agent(seen),
        *_interfaces(seen),
        *_mdns(seen),
        *_secret(seen),
        *_meshes(seen),
        *_multicast(seen),
        *_tcp(seen),
        *_clock(seen),
        *_versions(seen),
        *_ports(seen),
        *_copies(seen),
        *_room(seen),
        *_descriptors(seen),
    ]


def _agent(seen: Symptoms) -> Iterator[Finding]:
    if seen.agent_error is not None:
        says = f"an agent runs here but does not talk to us: {seen.agent_error}"
        yield Finding("agent", Status.UNCHECKED, says, seen.agent_error.hint)
    elif seen.agent is None:
        says = "none runs on this machine"
        yield Finding("agent", Status.ODD, says, "octaskly service install")
    else:
        says = f"{seen.agent.name} runs (pid {seen.agent.pid})"
        yield Finding("agent", Status.FINE, says)


def _interfaces(seen: Symptoms) -> Iterator[Finding]:
    by_name = {each.name: each for each in seen.interfaces}
    lan = [each for each in seen.interfaces if each.kind.value == "lan"]
    instead = f"octaskly agent --interface {lan[0].name if lan else 'NAME'}"
    if not seen.names:
        if lan:
            shown = ", ".join(f"{each.name} ({each.addresses[0].host})" for each in lan)
            yield Finding("interface", Status.FINE, shown)
        else:
            says = "none leads to a LAN: other machines are out of reach"
            yield Finding("interface", Status.BAD, says, "ip address    is a cable in?")
    for name in seen.names:
        chosen = by_name.get(name)
        kind = chosen.kind.value if chosen else "down"
        if kind == "lan":
            yield Finding("interface", Status.FINE, f"{name}, as chosen")
        elif kind == "loopback":
            says = f"{name} was chosen: agents of this machine alone are found"
            yield Finding("interface", Status.ODD, says, instead)
        elif kind == "down":
            says = f"{name} was chosen, but is down or has no address"
            yield Finding("interface", Status.BAD, says, instead)
        else:
            says = f"{name} was chosen, a {kind}: the machines of the LAN are not there"
            yield Finding("interface", Status.BAD, says, instead)


def _mdns(seen: Symptoms) -> Iterator[Finding]:
    if seen.mdns_error is None:
        yield Finding("mdns", Status.FINE, "UDP port 5353 is shared")
        return
    holder = seen.mdns_holder or "another program, which only root can see"
    says = f"UDP port 5353 is held by {holder} for itself alone: nobody is found"
    hint = (
        "sudo sed -i s/^disallow-other-stacks=yes/disallow-other-stacks=no/ "
        "/etc/avahi/avahi-daemon.conf    if it is avahi; meanwhile: octaskly agent "
        "--join HOST"
    )
    yield Finding("mdns", Status.BAD, says, hint)


def _secret(seen: Symptoms) -> Iterator[Finding]:
    file = seen.secret_file
    others = _of_other_meshes(seen)
    untrusted = [each for each in _own(seen) if each.answer == "untrusted"]
    mates = any(each.is_member or each.answer == "reached" for each in _own(seen))
    running = seen.agent.mesh if seen.agent else None
    if not seen.may_read_secret:
        says = f"{file} is not readable for this user"
        yield Finding("secret", Status.UNCHECKED, says, "sudo octaskly doctor")
    elif seen.secret_error is not None:
        error = seen.secret_error
        yield Finding("secret", Status.BAD, str(error), error.hint)
    elif seen.mesh is None and others:
        says = f"there is none in {file}, but in sight is {_shown(others)}"
        yield Finding("secret", Status.BAD, says, "octaskly join")
    elif seen.mesh is None:
        yield Finding("secret", Status.FINE, "none yet: the first agent makes it")
    elif running is not None and running != seen.mesh:
        says = f"{file} was changed to another mesh's since the agent started"
        hint = "systemctl --user restart octaskly    or however it was started"
        yield Finding("secret", Status.BAD, says, hint)
    elif untrusted:
        says = (
            f"{file} is an old one of the mesh {seen.mesh}, or a wrong one: "
            f"{_shown(untrusted)} has another"
        )
        yield Finding("secret", Status.BAD, says, "octaskly join --force")
    elif others and not mates:
        says = f"this machine is alone in the mesh {seen.mesh}, not in {_shown(others)}"
        yield Finding("secret", Status.BAD, says, "octaskly join")
    else:
        yield Finding("secret", Status.FINE, f"that of the mesh {seen.mesh}")


def _meshes(seen: Symptoms) -> Iterator[Finding]:
    others = _of_other_meshes(seen)
    if others and seen.mesh is not None:
        count = len({each.mesh for each in others})
        says = f"{_plural(count, 'other mesh', 'other meshes')} on this LAN: "
        hint = (
            "octaskly join    moves this machine; else they do not disturb each other"
        )
        yield Finding("mesh", Status.ODD, says + _shown(others), hint)
    elif others:
        yield Finding("mesh", Status.FINE, f"in sight, as said: {_shown(others)}")
    else:
        yield Finding("mesh", Status.FINE, "no other mesh is in sight")


def _multicast(seen: Symptoms) -> Iterator[Finding]:
    hint = (
        "octaskly agent --join HOST    works without it; look for IGMP snooping or "
        "client isolation on the switch and the access point"
    )
    known = [each for each in _own(seen) if each.is_member or each.answer == "reached"]
    unseen = [each for each in known if not each.is_in_sight]
    if seen.mdns_error is not None:
        yield Finding("multicast", Status.UNCHECKED, "port 5353 is not ours to ask")
    elif seen.hears_itself is False:
        says = "not even this machine's own agent is heard: a firewall here drops it"
        yield Finding("multicast", Status.BAD, says, "sudo ufw allow 5353/udp")
    elif unseen and len(unseen) == len(known):
        says = f"{_shown(unseen)} is reached over TCP, but its multicast does not come"
        yield Finding("multicast", Status.BAD, says, hint)
    elif unseen:
        says = f"{_shown(unseen)} is reached over TCP, but not heard; others are"
        yield Finding("multicast", Status.ODD, says, hint)
    elif any(each.is_in_sight for each in seen.neighbours):
        yield Finding("multicast", Status.FINE, "other nodes are heard")
    else:
        says = "no other node is heard or known, so there is nothing to compare with"
        yield Finding(
            "multicast", Status.UNCHECKED, says, "octaskly doctor --join HOST"
        )


def _tcp(seen: Symptoms) -> Iterator[Finding]:
    own = [each for each in seen.neighbours if each.answer != "unasked"]
    is_fine, gone = True, 0
    for each in own:
        if each.answer == "silent":
            says = f"{each.name} ({each.place}) does not answer: a firewall is between"
            hint = "sudo ufw allow 7878/tcp && sudo ufw allow 3443/tcp    there"
        elif each.answer == "unknown":
            says = f"nothing is called {each.name!r} here: it has no address"
            hint = "octaskly doctor --join ADDRESS    as `ip address` shows it there"
        elif each.answer == "refused" and seen.agent and not each.is_member:
            # It was a member once, or is to be one: nothing here is wrong.
            says = f"no agent listens at {each.place}, where this one also looks"
            hint = "octaskly nodes    shows who is there"
            yield Finding("tcp", Status.ODD, says, hint)
            gone += 1
            continue
        elif each.answer == "refused":
            says = f"{each.name} ({each.place}) refuses: no agent listens there"
            hint = "octaskly service status    there"
        elif each.hears_us and "silent" in (
            each.hears_us.peer_port,
            each.hears_us.lan_port,
        ):
            says = f"{each.name} gets no answer from this machine: a firewall is here"
            hint = "sudo ufw allow 7878/tcp && sudo ufw allow 3443/tcp"
        else:
            continue
        is_fine = False
        yield Finding("tcp", Status.BAD, says, hint)
    if not own:
        of_ours = " in this machine's mesh" if seen.neighbours else ""
        says = f"there is no other node{of_ours} to try it with"
        yield Finding("tcp", Status.UNCHECKED, says)
    elif is_fine and len(own) > gone:
        count = _plural(len(own) - gone, "node is", "nodes are")
        asked = any(each.hears_us for each in own)
        ways = "both ways" if asked else "from here; the way back needs an agent here"
        yield Finding("tcp", Status.FINE, f"{count} reached, {ways}")


def _clock(seen: Symptoms) -> Iterator[Finding]:
    known = [each for each in seen.neighbours if each.ahead_s is not None]
    wrong = [each for each in known if abs(each.ahead_s or 0) > CLOCK_S_NOTED]
    if not known:
        yield Finding("clock", Status.UNCHECKED, "no other clock to compare with")
        return
    if not wrong:
        yield Finding("clock", Status.FINE, "the same as that of the others")
        return
    far = max(wrong, key=lambda each: abs(each.ahead_s or 0))
    ahead_s = far.ahead_s or 0.0
    status = Status.BAD if abs(ahead_s) > CLOCK_S_MAX else Status.ODD
    is_ours = len(wrong) == len(known) and len(known) >= CROWD
    whose = "this machine's clock" if is_ours else f"the clock of {far.name}, or ours,"
    way = "behind" if (ahead_s > 0) == is_ours else "ahead"
    says = f"{whose} is {abs(ahead_s):.0f} s {way}"
    yield Finding("clock", status, says, "sudo timedatectl set-ntp true")


def _versions(seen: Symptoms) -> Iterator[Finding]:
    known = [each for each in seen.neighbours if each.version]
    other = [each for each in known if each.version != seen.version]
    if other:
        major = {str(each.version).partition(".")[0] for each in other}
        is_far = major != {seen.version.partition(".")[0]}
        shown = ", ".join(f"{each.name} {each.version}" for each in other[:SHOWN_MAX])
        says = f"this machine runs {seen.version}, but {shown}"
        hint = "pipx upgrade octaskly && octaskly service install    on the older one"
        yield Finding("version", Status.BAD if is_far else Status.ODD, says, hint)
    elif known:
        yield Finding("version", Status.FINE, f"{seen.version} everywhere")
    else:
        says = f"{seen.version}; no other node to compare with"
        yield Finding("version", Status.UNCHECKED, says)


def _ports(seen: Symptoms) -> Iterator[Finding]:
    for each in seen.taken:
        holder = each.holder or "another program, which only root can see"
        then = f"the agent uses {each.used}" if each.used else "an agent takes the next"
        says = f"{each.port} is taken by {holder}; {then}"
        hint = f"octaskly service install {each.flag} {each.used or each.port + 1}"
        yield Finding("port", Status.ODD, says, hint)
    if not seen.taken:
        yield Finding("port", Status.FINE, "those of the agent are its own")


def _copies(seen: Symptoms) -> Iterator[Finding]:
    key = seen.state_dir / "node.key"
    if seen.copies:
        says = (
            f"{', '.join(seen.copies)} lives with the id of this state folder: "
            "one is a copy of the other"
        )
        yield Finding(
            "state", Status.BAD, says, f"rm {key}    gives it an id of its own"
        )
    elif seen.agent and seen.agent.was_renewed:
        says = f"{seen.state_dir} was a copy, so this node took a new id"
        hint = "leave node.key out when a machine or a container is cloned"
        yield Finding("state", Status.ODD, says, hint)
    else:
        yield Finding("state", Status.FINE, f"{seen.state_dir} is this node's alone")


def _room(seen: Symptoms) -> Iterator[Finding]:
    if seen.free_bytes is None:
        says = f"{seen.state_dir} cannot be looked at"
        yield Finding("disk", Status.UNCHECKED, says, "sudo octaskly doctor")
    elif seen.free_bytes < ROOM_BYTES:
        says = f"{size(seen.free_bytes)} are free for {seen.state_dir}: no new work"
        yield Finding("disk", Status.BAD, says, f"df -h {seen.state_dir}")
    else:
        yield Finding("disk", Status.FINE, f"{size(seen.free_bytes)} are free")


def _descriptors(seen: Symptoms) -> Iterator[Finding]:
    most = seen.descriptors_max
    if 0 <= most < DESCRIPTORS_NEEDED:
        says = f"the agent may open {most} files: it takes fewer connections"
        hint = "ulimit -n 4096    before it starts; LimitNOFILE=4096 in a unit"
        yield Finding("descriptors", Status.BAD, says, hint)
    else:
        yield Finding("descriptors", Status.FINE, f"{most} may be open")


def _own(seen: Symptoms) -> list[Neighbour]:
    return [each for each in seen.neighbours if each.answer != "unasked"]


def _of_other_meshes(seen: Symptoms) -> list[Neighbour]:
    """Return the nodes of other meshes; those of no mesh disturb nobody."""
    return [each for each in seen.neighbours if each.mesh not in (None, seen.mesh)]


def _shown(some: list[Neighbour]) -> str:
    """Return who it is: nodes of our mesh by name, others by mesh."""
    places: dict[str, dict[str, None]] = {}
    for each in some:
        places.setdefault(each.name, {})[each.place] = None
    words = [f"{name} ({', '.join(at)})" for name, at in places.items()]
    more = f" and {len(words) - SHOWN_MAX} more" if len(words) > SHOWN_MAX else ""
    return ", ".join(words[:SHOWN_MAX]) + more


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
