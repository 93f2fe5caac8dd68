"""Attacks of a task or a local user on an agent: one try, whose status is the result.

Usage: intruder.py NAME PID TARGET. It exits with 0 on success; otherwise it prints the
name of the error that stopped it. Some attempts print what they got. It imports none of
our modules, so tasks can run it alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

PTRACE_SEIZE = 0x4206
SYS_PIDFD_GETFD = 438
CLONE_NEWNET = 0x40000000
READ_BYTES_MAX = 1 << 20
MDNS = ("224.0.0.251", 5353)

libc = ctypes.CDLL(None, use_errno=True)


def called(result: int) -> None:
    """Raise the error of a C library call, if it is one."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def connect(path: str) -> None:
    """Open a UNIX socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def take_descriptors(pid: int) -> None:
    """Take open files of another process, such as its connection to the agent."""
    handle = os.pidfd_open(pid)
    for number in range(64):
        called(libc.syscall(SYS_PIDFD_GETFD, handle, number, 0))


def enter_group(folder: str) -> None:
    """Move into another cgroup."""
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))


def kill_group(folder: str) -> None:
    """Kill all processes in a cgroup."""
    Path(folder, "cgroup.kill").write_text("1")


def read_memory(pid: int) -> None:
    """Read memory of another process; the address is invalid, so success is EFAULT."""
    byte = ctypes.create_string_buffer(1)
    own = (ctypes.c_size_t * 2)(ctypes.addressof(byte), 1)
    other = (ctypes.c_size_t * 2)(1, 1)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    called(libc.process_vm_readv(pid, own, one, other, one, none))


def bind(address: str) -> None:
    """Listen on a port that is in use, as far as options allow sharing."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, int(port)))
        listener.listen()


def bind_unix(path: str) -> None:
    """Listen on a socket file where programs look for an agent."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def talk(address: str) -> None:
    """Print what a port answers to a line; nothing, if it closes the connection."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(b"HELLO\n\n")
        with contextlib.suppress(ConnectionResetError):
            print(connection.recv(100))


def ask(address: str) -> None:
    """Send the requests on stdin: (method, path, token, body); print each answer.

    Requests share a connection as far as answers end. The body of an endless one is "".
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = (
        HTTPSConnection(host, int(port), context=context, timeout=30)
        if port == "3443"
        else HTTPConnection(host, int(port), timeout=30)
    )
    answers = []
    for method, path, token, body in json.load(sys.stdin):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, data, headers)
        reply = connection.getresponse()
        is_endless = reply.length is None
        answers.append([reply.status, "" if is_endless else reply.read().decode()])
        if is_endless:
            connection.close()
    print(json.dumps(answers))


def shout() -> None:
    """Send the datagrams on stdin to everybody who listens to mDNS on this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sender.bind(("127.0.0.1", MDNS[1]))
        own = socket.inet_aton("127.0.0.1")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
        for data in json.load(sys.stdin):
            sender.sendto(bytes.fromhex(data), MDNS)


def try_several() -> None:
    """Try the attempts on stdin: (name, pid, target); print the error of each, or null.

    Each has a process of its own, so that none changes what the next one may do.
    """
    errors = []
    for name, pid, target in json.load(sys.stdin):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            error = ""
            try:
                tries(int(pid), str(target))[name]()
            except OSError as failure:
                error = errno.errorcode[failure.errno or 0]
            os.write(writer, error.encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        errors.append(os.read(reader, 100).decode() or None)
        os.close(reader)
    print(json.dumps(errors))


def search(folders: str) -> None:
    """Print each file that can be read and has one of the words on stdin."""
    words = [word.encode() for word in json.load(sys.stdin)]
    for path in files_below(folders.split(",")):
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            os.set_blocking(file.fileno(), False)
            data = file.read(READ_BYTES_MAX) or b""
            print(path, [word.decode() for word in words if word in data])


def files_below(folders: list[str]) -> Iterator[Path]:
    """Yield each file of the folders, but nothing behind links."""
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if name != "task"]
            for name in names:
                yield Path(place, name)


def tries(pid: int, target: str) -> dict[str, Callable[[], object]]:
    """Return all attacks, on a process and on a path or number."""
    return {
        "read": lambda: Path(target).read_bytes(),
        "open to write": lambda: os.close(os.open(target, os.O_WRONLY)),
        "enter": lambda: os.chdir(target),
        "list": lambda: os.listdir(target),  # noqa: PTH208
        "make": lambda: Path(target).write_text("planted"),
        "remove": lambda: Path(target).unlink(),
        "rename": lambda: Path(target).rename(f"{target}-moved"),
        "link": lambda: os.link(target, "hard-link"),
        "connect": lambda: connect(target),
        "signal": lambda: os.kill(pid, int(target)),
        "stop": lambda: os.kill(pid, signal.SIGSTOP),
        "trace": lambda: called(libc.ptrace(PTRACE_SEIZE, pid, 0, 0)),
        "descriptors": lambda: take_descriptors(pid),
        "memory": lambda: read_memory(pid),
        "renice": lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
        "affinity": lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0)),
        "namespace": lambda: called(libc.setns(os.pidfd_open(pid), CLONE_NEWNET)),
        "bind": lambda: bind(target),
        "bind unix": lambda: bind_unix(target),
        "talk": lambda: talk(target),
        "ask": lambda: ask(target),
        "search": lambda: search(target),
        "shout": shout,
        "several": try_several,
        "limit": lambda: called(libc.prlimit(pid, 7, (ctypes.c_ulong * 2)(9, 9), 0)),
        "setuid": lambda: os.setuid(int(target)),
        "setgid": lambda: os.setgid(int(target)),
        "setgroups": lambda: os.setgroups([int(target)]),
        "enter group": lambda: enter_group(target),
        "kill group": lambda: kill_group(target),
        "make group": lambda: Path(target, "own").mkdir(),
    }


def main() -> None:
    """Try one attack."""
    name, pid, target = sys.argv[1:]
    try:
        tries(int(pid), target)[name]()
    except OSError as error:
        print(errno.errorcode[error.errno or 0])
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
