import pytest

from segkit.data.memory import available_memory


@pytest.fixture
def cgroup(tmp_path):
    def write(limit, current=0, inactive=0):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{current}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
        return tmp_path

    return write


@pytest.fixture
def meminfo(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       8000 kB\nMemFree:  1 kB\nMemAvailable:   3000 kB\n")
    return path


def test_the_smaller_of_machine_and_container_counts(meminfo, cgroup):
    assert available_memory(meminfo, cgroup("max")) == 3000 * 1024
    assert available_memory(meminfo, cgroup(2_000_000, 700_000, 100_000)) == 1_400_000
    assert available_memory(meminfo, cgroup(10**12)) == 3000 * 1024
    assert available_memory(meminfo, cgroup(1000, 5000)) == 0


def test_systems_that_tell_less(tmp_path, meminfo, cgroup):
    assert available_memory(meminfo, tmp_path / "none") == 3000 * 1024
    assert available_memory() > 0
