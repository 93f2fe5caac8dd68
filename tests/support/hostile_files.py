"""Paths and files with which a task would leave its folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

BAD_PATHS = [
    *("", ".", "..", "/", "//", "./", "../", "a/", "/a", "//a", "a//b", "./a", "a/."),
    *("../secret", "../../etc/passwd", "/etc/passwd", "a/../../secret", "a/.."),
    *("folder/../../secret", "..//secret", "a\0b", "\0", "secret\0.txt", "x" * 5000),
    *("x" * 300, "a/" * 2500 + "a", "\ud800", "\udcff/x"),
    *("away", "away/passwd", "updir", "updir/secret", "loop", "loop/x", "dangling"),
    *("folder/away", "folder/away/passwd", "away/", "file/x", "file/..", "proc"),
    *("proc/1/environ", "absolute", "pipe", "sock", "null", "%2e%2e/secret"),
    *("..\\secret", "....//secret", "~", "~root/x", "$HOME", "*", "file\n"),
]


def make_hostile_folder(tmp_path: Path) -> Path:
    """Return a work directory with links and special files, beside a secret."""
    (tmp_path / "secret").write_text("secret")
    work = tmp_path / "work"
    (work / "folder" / "deep").mkdir(parents=True)
    (work / "file").write_text("hello")
    (work / "folder" / "deep" / "file").write_text("deep")
    (work / "away").symlink_to("/etc")
    (work / "folder" / "away").symlink_to("../../../../../../../etc")
    (work / "absolute").symlink_to(work / "file")
    (work / "updir").symlink_to("..")
    (work / "loop").symlink_to("loop")
    (work / "dangling").symlink_to("nothing")
    (work / "proc").symlink_to("/proc/self/root")
    (work / "inside").symlink_to("folder/deep/../deep/file")
    (work / "inner").symlink_to("folder")
    os.mkfifo(work / "pipe")
    (work / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(work / "sock"))
    return work
