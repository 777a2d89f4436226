"""What a process is said to have taken."""

import mmap
import sys
import threading
from pathlib import Path

import pytest

from turboquant_native.common import memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is a process's own")
def test_a_watch_counts_memory_taken_and_given_back_but_no_mapped_file(tmp_path: Path) -> None:
    size = 96 << 20
    path = tmp_path / "mapped"
    path.write_bytes(bytes(size))
    before = memory.own_memory()
    with memory.MemoryWatch() as nothing, open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[at] for at in range(0, size, mmap.PAGESIZE)) == 0  # every page is read
    with memory.MemoryWatch() as watch:
        taken = mmap.mmap(-1, size)  # of the system: what the process had freed before would be taken again unseen
        for _ in range(0, size, mmap.PAGESIZE):
            taken.write(b"\1" * mmap.PAGESIZE)
        for _ in range(500):  # until it has been seen
            if watch.peak >= before + 0.9 * size:
                break
            threading.Event().wait(0.02)
        taken.close()
    assert nothing.peak < before + size / 2
    assert before + 0.9 * size <= watch.peak < before + 1.5 * size
