"""Files survive kills: the right outputs, or an error that says so.

`SOAK_FILES_SEED` sets the first seed, `SOAK_FILES_SEEDS` their number.
"""

import os
from collections import Counter

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.file_kills import FAULTS, HOSTS, FileKills, seeds_of

SEEDS = int(os.environ.get("SOAK_FILES_SEEDS", "50"))
FIRST = int(os.environ.get("SOAK_FILES_SEED", "1"))

pytestmark = pytest.mark.netns


@pytest.mark.timeout(600)
def test_one_of_each_kill_ends_with_right_outputs_or_an_error(
    make_lab: MakeLab,
) -> None:
    """Of a worker, the dispatcher, the command, the node with the files, two disks."""
    with FileKills(make_lab(3)) as kills:
        for seed, fault in enumerate(FAULTS):
            kills.run_round(seed, fault)

    assert [one.fault for one in kills.rounds] == list(FAULTS)


@pytest.mark.soak
@pytest.mark.timeout(120 * SEEDS)
def test_many_kills_end_with_right_outputs_or_an_error(make_lab: MakeLab) -> None:
    """Most end well: a kill of one node loses no file of a task that can run again."""
    with FileKills(make_lab(HOSTS)) as kills:
        for seed, fault in seeds_of(FIRST, SEEDS):
            kills.run_round(seed, fault)

    ended = Counter((one.fault, one.code == 0) for one in kills.rounds)
    print(ended)
    assert ended["worker", True] >= ended["worker", False]
    assert ended["dispatcher", True] >= ended["dispatcher", False]
