"""Diagnosis of symptoms: one sentence and one command for each finding."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from octaskly.cli.doctor.observations import ProbedNode, Symptoms
from octaskly.cli.output.render import data_size
from octaskly.core.model.ids import STREAMS_MAX, STREAMS_WARN

FULL_SHARE = 0.9  #: of a quota, from which a store of files is reported
FREE_BYTES_MIN = 64 << 20  #: free space below which the agent accepts no work
FILES_FREE_BYTES_MIN = 256 << 20  #: free space below which it accepts no files
DESCRIPTORS_NEEDED = 1008  #: for the most connections of the API, and all other files
CLOCK_S_MAX = 30.0  #: difference between clocks that tokens tolerate
CLOCK_S_NOTED = 5.0
CLOCKS_AGREEING_MIN = 2  #: other nodes needed to call this machine's clock wrong
SHOWN_MAX = 3


class FindingStatus(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARNING = "warning"  #: works, but may need attention
    FAULT = "fault"
    UNCHECKED = "unchecked"


class Finding(NamedTuple):
    """One line of the doctor's output."""

    check: str
    status: FindingStatus
    says: str
    hint: str | None = None


def make_findings(symptoms: Symptoms) -> list[Finding]:
    """Return the findings; each check comes after the checks that it depends on."""
    return [
        *_agent(symptoms),
        *_interfaces(symptoms),
        *_mdns(symptoms),
        *_secret(symptoms),
        *_meshes(symptoms),
        *_multicast(symptoms),
        *_tcp(symptoms),
        *_clock(symptoms),
        *_versions(symptoms),
        *_ports(symptoms),
        *_check_duplicate_ids(symptoms),
        *_check_disk(symptoms),
        *_check_files(symptoms),
        *_check_log(symptoms),
        *_descriptors(symptoms),
    ]


def _agent(symptoms: Symptoms) -> Iterator[Finding]:
    if symptoms.agent_error is not None:
        says = f"an agent runs here but cannot be used: {symptoms.agent_error}"
        yield Finding("agent", FindingStatus.UNCHECKED, says, symptoms.agent_error.hint)
    elif symptoms.agent is None:
        says = "none runs on this machine"
        yield Finding("agent", FindingStatus.WARNING, says, "octaskly service install")
    else:
        says = f"{symptoms.agent.name} runs (pid {symptoms.agent.pid})"
        yield Finding("agent", FindingStatus.OK, says)


def _interfaces(symptoms: Symptoms) -> Iterator[Finding]:
    by_name = {each.name: each for each in symptoms.interfaces}
    lan = [each for each in symptoms.interfaces if each.kind.value == "lan"]
    instead = f"octaskly agent --interface {lan[0].name if lan else 'NAME'}"
    if not symptoms.names:
        if lan:
            shown = ", ".join(f"{each.name} ({each.addresses[0].host})" for each in lan)
            yield Finding("interface", FindingStatus.OK, shown)
        else:
            says = "none is connected to a LAN, so no other machine can be reached"
            yield Finding(
                "interface",
                FindingStatus.FAULT,
                says,
                "ip address    lists the interfaces; is a cable plugged in?",
            )
    for name in symptoms.names:
        chosen = by_name.get(name)
        kind = chosen.kind.value if chosen else "down"
        if kind == "lan":
            yield Finding("interface", FindingStatus.OK, f"{name}, as set")
        elif kind == "loopback":
            says = f"{name} is set, so only agents of this machine are found"
            yield Finding("interface", FindingStatus.WARNING, says, instead)
        elif kind == "down":
            says = f"{name} is set, but is down or has no address"
            yield Finding("interface", FindingStatus.FAULT, says, instead)
        else:
            says = f"{name} is set, but is a {kind}, which is not connected to the LAN"
            yield Finding("interface", FindingStatus.FAULT, says, instead)


def _mdns(symptoms: Symptoms) -> Iterator[Finding]:
    if symptoms.mdns_error is None:
        yield Finding("mdns", FindingStatus.OK, "UDP port 5353 is shared")
        return
    holder = symptoms.mdns_port_owner or "another program, which only root can see"
    says = f"{holder} uses UDP port 5353 exclusively, so no other node is found"
    hint = (
        "sudo sed -i s/^disallow-other-stacks=yes/disallow-other-stacks=no/ "
        "/etc/avahi/avahi-daemon.conf    if it is avahi; meanwhile: octaskly agent "
        "--join HOST"
    )
    yield Finding("mdns", FindingStatus.FAULT, says, hint)


def _secret(symptoms: Symptoms) -> Iterator[Finding]:
    file = symptoms.secret_file
    others = _of_other_meshes(symptoms)
    untrusted = [
        each
        for each in _nodes_of_own_mesh(symptoms)
        if each.probe_result == "untrusted"
    ]
    mates = any(
        each.is_member or each.probe_result == "reached"
        for each in _nodes_of_own_mesh(symptoms)
    )
    running = symptoms.agent.mesh if symptoms.agent else None
    if not symptoms.may_read_secret:
        says = f"{file} cannot be read by this user"
        yield Finding("secret", FindingStatus.UNCHECKED, says, "sudo octaskly doctor")
    elif symptoms.secret_error is not None:
        error = symptoms.secret_error
        yield Finding("secret", FindingStatus.FAULT, error.message, error.hint)
    elif symptoms.mesh is None and others:
        says = f"{file} has none, but a mesh is visible: {_list_nodes(others)}"
        yield Finding("secret", FindingStatus.FAULT, says, "octaskly join")
    elif symptoms.mesh is None:
        yield Finding(
            "secret", FindingStatus.OK, "none yet; the first agent creates it"
        )
    elif running is not None and running != symptoms.mesh:
        says = f"{file} has the secret of another mesh than that of the running agent"
        hint = (
            "systemctl --user restart octaskly    or restart the agent as it "
            "was started"
        )
        yield Finding("secret", FindingStatus.FAULT, says, hint)
    elif untrusted:
        says = (
            f"{file} has an old or wrong secret of the mesh {symptoms.mesh}; "
            f"another one is in use at {_list_nodes(untrusted)}"
        )
        yield Finding("secret", FindingStatus.FAULT, says, "octaskly join --force")
    elif others and not mates:
        says = (
            f"this machine is alone in the mesh {symptoms.mesh}; "
            f"visible nodes are in another one: {_list_nodes(others)}"
        )
        yield Finding("secret", FindingStatus.FAULT, says, "octaskly join")
    else:
        yield Finding("secret", FindingStatus.OK, f"that of the mesh {symptoms.mesh}")


def _meshes(symptoms: Symptoms) -> Iterator[Finding]:
    others = _of_other_meshes(symptoms)
    if others and symptoms.mesh is not None:
        count = len({each.mesh for each in others})
        says = f"{_plural(count, 'other mesh', 'other meshes')} on this LAN: "
        hint = "octaskly join    moves this machine to one; to stay, ignore this"
        yield Finding("mesh", FindingStatus.WARNING, says + _list_nodes(others), hint)
    elif others:
        yield Finding("mesh", FindingStatus.OK, f"other meshes: {_list_nodes(others)}")
    else:
        yield Finding("mesh", FindingStatus.OK, "no other mesh is visible")


def _multicast(symptoms: Symptoms) -> Iterator[Finding]:
    hint = (
        "octaskly agent --join HOST    works without it; check the switch and the "
        "access point for IGMP snooping and client isolation"
    )
    known = [
        each
        for each in _nodes_of_own_mesh(symptoms)
        if each.is_member or each.probe_result == "reached"
    ]
    unseen = [each for each in known if not each.is_seen_by_mdns]
    if symptoms.mdns_error is not None:
        yield Finding(
            "multicast", FindingStatus.UNCHECKED, "port 5353 is not available"
        )
    elif symptoms.sees_itself is False:
        says = "a firewall here drops multicast, even that of this machine's own agent"
        yield Finding("multicast", FindingStatus.FAULT, says, "sudo ufw allow 5353/udp")
    elif unseen and len(unseen) == len(known):
        says = (
            f"TCP works, but no multicast arrives from any node: {_list_nodes(unseen)}"
        )
        yield Finding("multicast", FindingStatus.FAULT, says, hint)
    elif unseen:
        says = f"TCP works, but no multicast arrives from {_list_nodes(unseen)}"
        yield Finding("multicast", FindingStatus.WARNING, says, hint)
    elif any(each.is_seen_by_mdns for each in symptoms.probed_nodes):
        yield Finding("multicast", FindingStatus.OK, "it arrives from other nodes")
    else:
        says = "no other node is visible or known, so it cannot be checked"
        yield Finding(
            "multicast", FindingStatus.UNCHECKED, says, "octaskly doctor --join HOST"
        )


def _tcp(symptoms: Symptoms) -> Iterator[Finding]:
    own = [each for each in symptoms.probed_nodes if each.probe_result != "unasked"]
    is_fine, gone = True, 0
    for each in own:
        if each.probe_result == "silent":
            node = f"{each.name} ({each.address})"
            says = f"{node} does not answer: a firewall between the machines blocks it"
            hint = "sudo ufw allow 7878/tcp && sudo ufw allow 3443/tcp    there"
        elif each.probe_result == "unknown":
            says = f"the name {each.name!r} cannot be resolved here"
            hint = "octaskly doctor --join ADDRESS    `ip address` shows it there"
        elif each.probe_result == "refused" and symptoms.agent and not each.is_member:
            # It may be a former or future member, so this is only a warning.
            says = f"no agent listens at {each.address}, which this agent also tries"
            hint = "octaskly nodes    lists the nodes"
            yield Finding("tcp", FindingStatus.WARNING, says, hint)
            gone += 1
            continue
        elif each.probe_result == "refused":
            says = (
                f"{each.name} ({each.address}) refuses the connection: no agent "
                "listens there"
            )
            hint = "octaskly service status    there"
        elif each.reachability and {
            each.reachability.peer_port,
            each.reachability.lan_port,
        } != {"reached"}:
            says = (
                f"{each.name} cannot connect to this machine: a firewall here blocks it"
            )
            hint = "sudo ufw allow 7878/tcp && sudo ufw allow 3443/tcp"
        else:
            continue
        is_fine = False
        yield Finding("tcp", FindingStatus.FAULT, says, hint)
    if not own:
        of_ours = " in this machine's mesh" if symptoms.probed_nodes else ""
        says = f"there is no other node{of_ours} to connect to"
        yield Finding("tcp", FindingStatus.UNCHECKED, says)
    elif is_fine and len(own) > gone:
        count = _plural(len(own) - gone, "node is", "nodes are")
        asked = any(each.reachability for each in own)
        ways = (
            "in both directions"
            if asked
            else "from here; the other direction is checked if an agent runs here"
        )
        yield Finding("tcp", FindingStatus.OK, f"{count} reached, {ways}")


def _clock(symptoms: Symptoms) -> Iterator[Finding]:
    known = [each for each in symptoms.probed_nodes if each.clock_ahead_s is not None]
    wrong = [each for each in known if abs(each.clock_ahead_s or 0) > CLOCK_S_NOTED]
    if not known:
        yield Finding(
            "clock", FindingStatus.UNCHECKED, "no other clock to compare with"
        )
        return
    if not wrong:
        yield Finding("clock", FindingStatus.OK, "agrees with the other nodes")
        return
    far = max(wrong, key=lambda each: abs(each.clock_ahead_s or 0))
    ahead_s = far.clock_ahead_s or 0.0
    status = (
        FindingStatus.FAULT if abs(ahead_s) > CLOCK_S_MAX else FindingStatus.WARNING
    )
    is_ours = len(wrong) == len(known) and len(known) >= CLOCKS_AGREEING_MIN
    whose = (
        "this machine's clock"
        if is_ours
        else f"the clock of {far.name} (or of this machine)"
    )
    way = "behind" if (ahead_s > 0) == is_ours else "ahead"
    says = f"{whose} is {abs(ahead_s):.0f} s {way}"
    yield Finding("clock", status, says, "sudo timedatectl set-ntp true")


def _versions(symptoms: Symptoms) -> Iterator[Finding]:
    known = [each for each in symptoms.probed_nodes if each.version]
    other = [each for each in known if _is_other_build(each, symptoms)]
    if other:
        major = {str(each.version).partition(".")[0] for each in other}
        is_far = major != {symptoms.version.partition(".")[0]}
        has_builds = any(each.version == symptoms.version for each in other)
        shown = ", ".join(
            f"{each.name} {_version(each.version, each.build, has_builds=has_builds)}"
            for each in other[:SHOWN_MAX]
        )
        own = _version(symptoms.version, symptoms.build, has_builds=has_builds)
        says = f"this machine runs {own}, but {shown}"
        hint = (
            "pipx upgrade octaskly && octaskly service install    on the older machine"
        )
        yield Finding(
            "version",
            FindingStatus.FAULT if is_far else FindingStatus.WARNING,
            says,
            hint,
        )
    elif known:
        yield Finding("version", FindingStatus.OK, f"{symptoms.version} everywhere")
    else:
        says = f"{symptoms.version}; no other node to compare with"
        yield Finding("version", FindingStatus.UNCHECKED, says)
    builds = {symptoms.build, symptoms.program_build}
    if len(builds - {""}) > 1:
        says = (
            f"the agent runs build {symptoms.build}, but this program is build "
            f"{symptoms.program_build}"
        )
        hint = "octaskly service install    restarts the service with this program"
        yield Finding("upgrade", FindingStatus.WARNING, says, hint)


def _is_other_build(node: ProbedNode, symptoms: Symptoms) -> bool:
    """Return True if a node runs another version, or another build of the same."""
    if node.version != symptoms.version:
        return True
    # A node that was not asked for its health has no build here.
    return bool(node.build and symptoms.build and node.build != symptoms.build)


def _version(version: str | None, build: str | None, *, has_builds: bool) -> str:
    return f"{version} (build {build})" if has_builds and build else str(version)


def _ports(symptoms: Symptoms) -> Iterator[Finding]:
    for each in symptoms.taken_ports:
        if each.is_stolen:
            says = (
                f"{each.owner} holds port {each.port}: that user gets what programs "
                "send there, and an agent serves no API on any port of this machine"
            )
            hint = (
                "octaskly config socket    prints the socket, which programs can use\n"
                "end that process, then restart the agent"
            )
            yield Finding("port", FindingStatus.FAULT, says, hint)
            continue
        then = (
            f"the agent uses {each.used}"
            if each.used
            else "an agent uses the next free port"
        )
        says = f"{each.port} is taken by {each.owner}; {then}"
        hint = f"octaskly service install {each.flag} {each.used or each.port + 1}"
        yield Finding("port", FindingStatus.WARNING, says, hint)
    if not symptoms.taken_ports:
        yield Finding(
            "port", FindingStatus.OK, "no other program uses the agent's ports"
        )


def _check_duplicate_ids(symptoms: Symptoms) -> Iterator[Finding]:
    key = symptoms.state_dir / "node.key"
    if symptoms.hosts_with_same_id:
        says = (
            "another node has the id of this state folder, so one is a copy of the "
            f"other: {', '.join(symptoms.hosts_with_same_id)}"
        )
        yield Finding(
            "state", FindingStatus.FAULT, says, f"rm {key}    gives it its own id"
        )
    elif symptoms.agent and symptoms.agent.was_renewed:
        says = f"{symptoms.state_dir} was a copy, so this node has a new id now"
        hint = "do not copy node.key when you clone a machine or a container"
        yield Finding("state", FindingStatus.WARNING, says, hint)
    else:
        yield Finding(
            "state",
            FindingStatus.OK,
            f"no other node uses the id of {symptoms.state_dir}",
        )


def _check_disk(symptoms: Symptoms) -> Iterator[Finding]:
    if symptoms.free_bytes is None:
        says = f"{symptoms.state_dir} cannot be read"
        yield Finding("disk", FindingStatus.UNCHECKED, says, "sudo octaskly doctor")
    elif symptoms.free_bytes < FREE_BYTES_MIN:
        free = data_size(symptoms.free_bytes)
        says = (
            f"only {free} is free for {symptoms.state_dir}, so no new tasks are "
            f"accepted; {data_size(FILES_FREE_BYTES_MIN)} are needed"
        )
        yield Finding("disk", FindingStatus.FAULT, says, f"df -h {symptoms.state_dir}")
    elif symptoms.free_bytes < FILES_FREE_BYTES_MIN:
        free, needed = data_size(symptoms.free_bytes), data_size(FILES_FREE_BYTES_MIN)
        says = (
            f"only {free} is free for {symptoms.state_dir}, so files of tasks and "
            f"their outputs are refused; {needed} are needed"
        )
        yield Finding("disk", FindingStatus.FAULT, says, f"df -h {symptoms.state_dir}")
    else:
        yield Finding(
            "disk", FindingStatus.OK, f"{data_size(symptoms.free_bytes)} is free"
        )


def _check_files(symptoms: Symptoms) -> Iterator[Finding]:
    """Check the space for files that tasks need, and for their outputs."""
    for each in symptoms.agent.stores if symptoms.agent else ():
        says = f"{data_size(each.used_bytes)} of {data_size(each.quota_bytes)} is used"
        if each.used_bytes < each.quota_bytes * FULL_SHARE:
            yield Finding(each.store, FindingStatus.OK, says)
        elif each.store == "files":
            hint = "raise the agent's --files-quota, or wait: unused files are deleted"
            yield Finding(each.store, FindingStatus.WARNING, says, hint)
        else:
            hint = (
                "octaskly fetch ID    lets the node delete those; or raise "
                "--output-quota"
            )
            yield Finding(each.store, FindingStatus.WARNING, says, hint)


def _check_log(symptoms: Symptoms) -> Iterator[Finding]:
    """Check the log, and its streams: each change of the dispatcher adds one."""
    if symptoms.log_error is not None:
        says, hint = symptoms.log_error.message, symptoms.log_error.hint
        yield Finding("log", FindingStatus.FAULT, says, hint)
    if symptoms.agent is None:
        return
    streams = symptoms.agent.streams
    if streams > STREAMS_MAX:
        says = f"it has {streams} streams; other nodes refuse more than {STREAMS_MAX}"
        hint = "restart the agent: it repairs its log when it starts"
        yield Finding("log", FindingStatus.FAULT, says, hint)
    elif streams > STREAMS_WARN:
        says = (
            f"it has {streams} of at most {STREAMS_MAX} streams, so ended tasks are "
            "forgotten early"
        )
        hint = "octaskly service logs    says why the dispatcher changes so often"
        yield Finding("log", FindingStatus.WARNING, says, hint)
    else:
        says = f"it has {_plural(streams, 'stream', 'streams')}"
        yield Finding("log", FindingStatus.OK, says)


def _descriptors(symptoms: Symptoms) -> Iterator[Finding]:
    most = symptoms.descriptors_max
    if 0 <= most < DESCRIPTORS_NEEDED:
        says = f"the agent may open only {most} files, so it accepts fewer connections"
        hint = "ulimit -n 4096    before it starts; LimitNOFILE=4096 in a unit"
        yield Finding("descriptors", FindingStatus.FAULT, says, hint)
    else:
        yield Finding(
            "descriptors", FindingStatus.OK, f"the agent may open {most} files"
        )


def _nodes_of_own_mesh(symptoms: Symptoms) -> list[ProbedNode]:
    return [each for each in symptoms.probed_nodes if each.probe_result != "unasked"]


def _of_other_meshes(symptoms: Symptoms) -> list[ProbedNode]:
    """Return the nodes of other meshes, without nodes that have no mesh."""
    return [
        each for each in symptoms.probed_nodes if each.mesh not in (None, symptoms.mesh)
    ]


def _list_nodes(some: list[ProbedNode]) -> str:
    """Return the first nodes with their addresses, and the number of the others."""
    places: dict[str, dict[str, None]] = {}
    for each in some:
        places.setdefault(each.name, {})[each.address] = None
    words = [f"{name} ({', '.join(at)})" for name, at in places.items()]
    more = f" and {len(words) - SHOWN_MAX} more" if len(words) > SHOWN_MAX else ""
    return ", ".join(words[:SHOWN_MAX]) + more


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
