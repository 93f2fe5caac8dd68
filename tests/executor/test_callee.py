"""The process that performs calls, started like a task."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from octaskly.executor import call_runner

HEADER = {
    "python": call_runner.python_version(),
    "cloudpickle": cloudpickle.__version__,
    "has_inputs": False,
}


def perform(
    stdin: bytes, folder: Path, *flags: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the process in a folder with a parcel."""
    words = [sys.executable, *flags, call_runner.__file__]
    return subprocess.run(
        words, input=stdin, capture_output=True, cwd=folder, check=False, timeout=90
    )


def parcel(function: Any, *arguments: Any, **header: str) -> bytes:
    """Return a parcel with one call."""
    parts = call_runner.pickle_value(
        (function, [(arguments, {})], False), cloudpickle.dumps
    )
    return b"".join(call_runner.encode_payload(parts, HEADER | header))


def run_by(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    return call_runner.decode_payload(memoryview(bytearray(done.stdout)))[0]


def test_a_call_is_answered_with_its_value(tmp_path: Path) -> None:
    """Stdout has nothing else."""

    def add(a: int, b: int) -> int:
        print("said")
        return a + b

    done = perform(parcel(add, 2, 3), tmp_path)
    header, parts = call_runner.decode_payload(memoryview(bytearray(done.stdout)))

    assert (done.returncode, header["kind"]) == (0, "value")
    assert call_runner.unpickle(parts) == 5
    assert done.stderr == b"said\n"


def test_another_python_is_refused_before_unpickling(tmp_path: Path) -> None:
    """A function pickled by one version does not run in another one."""
    done = perform(parcel(exit, 3, python="2.7"), tmp_path)

    assert (done.returncode, run_by(done)["kind"]) == (1, "mismatch")
    here = f"{sys.executable} is Python {call_runner.python_version()}"
    assert run_by(done)["text"] == f"{here}, but the caller runs Python 2.7"


def test_a_missing_or_different_cloudpickle_is_reported(tmp_path: Path) -> None:
    """The worker's interpreter must be able to import it."""
    missing = run_by(perform(parcel(len, ""), tmp_path, "-I", "-S"))
    older = run_by(perform(parcel(len, "", cloudpickle="0.9"), tmp_path))

    assert missing["kind"] == older["kind"] == "mismatch"
    assert "cannot import cloudpickle" in missing["text"]
    assert older["text"].endswith("but the caller has cloudpickle 0.9")


def test_the_cloudpickle_of_the_agent_serves_other_interpreters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They see nothing else that is installed beside it."""
    folder = Path(cloudpickle.__file__).parent
    monkeypatch.setenv("OCTASKLY_CLOUDPICKLE", str(folder))

    def sees() -> tuple[str, bool]:
        import sys

        return sys.modules["cloudpickle"].__file__ or "", "octaskly" in sys.modules

    done = perform(parcel(sees), tmp_path, "-I", "-S")
    header, parts = call_runner.decode_payload(memoryview(bytearray(done.stdout)))

    assert header["kind"] == "value", done.stderr
    assert call_runner.unpickle(parts) == (str(folder / "__init__.py"), False)


def test_the_log_of_a_failed_call_has_its_traceback(tmp_path: Path) -> None:
    """Without the frames of this program."""

    def fail() -> None:
        raise LookupError("seed")

    done = perform(parcel(fail), tmp_path)
    first, place, *_code, last = done.stderr.decode().splitlines()

    assert first == "Traceback (most recent call last):"
    assert place.endswith("in fail")
    assert last == "LookupError: seed"


class Silent(Exception):
    """An exception without a text."""

    def __str__(self) -> str:
        raise LookupError


def make_unpicklable(text: str) -> Exception:
    return ValueError(text, (letter for letter in text))


cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize(
    ("make", "kind", "is_pickled"),
    [
        (lambda: Silent("told"), "Silent", True),
        (lambda: ValueError("\x00" * 90_000), "ValueError", True),
        (lambda: ValueError("\u4e2d" * 85_000), "ValueError", True),
        (lambda: ValueError("\U0001f600" * 600_000), "ValueError", True),
        (lambda: make_unpicklable("x" * 600_000), "ValueError", False),
        (lambda: make_unpicklable("\U0001f600" * 600_000), "ValueError", False),
        (type("X" * 600_000, (Exception,), {}), "XXX", True),
    ],
    ids=["silent", "escaped", "wide", "file", "unpicklable", "both", "name"],
)
def test_any_exception_arrives(
    make: Callable[[], Exception], kind: str, is_pickled: bool, tmp_path: Path
) -> None:
    """With a text that fits, whatever the text of the exception."""

    def fail() -> None:
        raise make()

    done = perform(parcel(fail), tmp_path)
    assert len(done.stdout) <= 1 << 20  # What a node keeps.
    header, parts = call_runner.decode_payload(memoryview(bytearray(done.stdout)))
    if header["kind"] == "file":
        path = tmp_path / call_runner.RESULT_FILE
        header, parts = call_runner.decode_payload(call_runner.map_file(str(path)))

    assert (header["kind"], bool(parts)) == ("error", is_pickled)
    assert kind in header["type"]
    assert header["traceback"].startswith("Traceback (most recent call last):")
    is_silent = "its str() raises LookupError" in header["text"]
    was_cut = "characters were cut" in "".join(map(str, header.values()))
    assert is_silent != was_cut
    if is_pickled:
        made = call_runner.unpickle(parts)
        assert (type(made).__name__, made.args) == (
            make().__class__.__name__,
            make().args,
        )


def test_a_call_may_close_its_stderr(tmp_path: Path) -> None:
    """Its exception still arrives."""

    def fail() -> None:
        sys.stderr.close()
        raise LookupError("seed")

    assert run_by(perform(parcel(fail), tmp_path))["type"] == "builtins.LookupError"


def test_an_unpicklable_value_may_have_any_error(tmp_path: Path) -> None:
    """Also one whose text is long."""

    class Picky:
        def __reduce__(self) -> str:
            raise ValueError("\x00" * 200_000)

    done = perform(parcel(Picky), tmp_path)
    assert len(done.stdout) <= 1 << 20
    assert run_by(done)["kind"] == "unpicklable"


def test_a_large_answer_is_a_file(tmp_path: Path) -> None:
    """In the task's first working directory; stdout refers to it."""

    def elsewhere() -> bytes:
        import os

        os.chdir("/")
        return b"x" * 1_000_000

    done = perform(parcel(elsewhere), tmp_path)

    assert run_by(done)["kind"] == "file"
    header, parts = call_runner.decode_payload(
        call_runner.map_file(str(tmp_path / call_runner.RESULT_FILE))
    )
    assert (header["kind"], call_runner.unpickle(parts)) == ("value", b"x" * 1_000_000)


def test_parts_of_a_call_may_be_files(tmp_path: Path) -> None:
    """A call may change its arguments; the file stays unchanged."""

    def change(data: Any) -> bytes:
        view = memoryview(data)
        view[:1] = b"J"
        return bytes(view)

    import pickle

    buffer = bytearray(b"hello")
    pickled = call_runner.pickle_value(
        (change, [((pickle.PickleBuffer(buffer),), {})], False), cloudpickle.dumps
    )
    (tmp_path / "part").write_bytes(pickled[1])
    stdin = b"".join(call_runner.encode_payload([pickled[0], "part"], HEADER))
    _, parts = call_runner.decode_payload(
        memoryview(bytearray(perform(stdin, tmp_path).stdout))
    )

    assert call_runner.unpickle(parts) == b"Jello"
    assert (tmp_path / "part").read_bytes() == b"hello"


@pytest.mark.parametrize("cut", [0, 1, 8, 20])
def test_an_invalid_parcel_is_refused(cut: int) -> None:
    """For example the output of a process that was killed during its answer."""
    whole = b"".join(
        call_runner.encode_payload([b"abc", b"d" * 100], {"kind": "value"})
    )
    header, parts = call_runner.decode_payload(memoryview(whole))

    assert (header["kind"], [bytes(part) for part in parts]) == (
        "value",
        [b"abc", b"d" * 100],
    )
    with pytest.raises(call_runner.InvalidPayload):
        call_runner.decode_payload(memoryview(whole[: len(whole) - 1 - cut]))
    with pytest.raises(call_runner.InvalidPayload):
        call_runner.decode_payload(memoryview(whole[1:]))
