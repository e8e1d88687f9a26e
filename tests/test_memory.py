"""How much memory a program needs, and how much is free."""

import jax
import jax.numpy as jnp
import pytest

from jaxcnn import memory
from jaxcnn.memory import describe_shortage, free_bytes, needed_bytes


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files like the ones that Linux has: 3 GiB are free, and the limit of a container leaves 2 GiB."""
    gib = 2**30
    group = tmp_path / "pods" / "one"
    group.mkdir(parents=True)
    files = {
        tmp_path / "meminfo": f"MemTotal: 99 kB\nMemAvailable: {3 * 2**20} kB\n",
        tmp_path / "cgroup": "0::/pods/one\n",
        group / "memory.max": f"{4 * gib}\n",
        group / "memory.current": f"{3 * gib}\n",
        group / "memory.stat": f"anon 5\ninactive_file {gib}\n",
    }
    for path, text in files.items():
        path.write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    return group


def test_the_least_of_machine_and_container_is_free(system):
    assert free_bytes() == 2 * 2**30
    (system / "memory.max").write_text("max\n")
    assert free_bytes() == 3 * 2**30
    memory.MEMINFO.unlink()
    assert free_bytes() is None


def test_the_limits_of_the_groups_around_count_as_well(system):
    """As of a job of Slurm, whose tasks have groups without a limit in that of the job."""
    task = system / "step" / "task"
    task.mkdir(parents=True)
    (task / "memory.max").write_text("max\n")
    memory.CGROUP.write_text("0::/pods/one/step/task\n")
    assert free_bytes() == 2 * 2**30


def test_a_shortage_names_both_sizes_and_what_to_do(system):
    assert describe_shortage(2 * 2**30, "a step") == ""
    said = describe_shortage(5 * 10**9, "a step")
    assert said.startswith("a step needs 5.0 GB of memory, but 2.1 GB are free; lower --batch_size or ")


def test_a_program_needs_its_results_and_what_lies_between():
    def function(x):
        return x @ x @ x  # The first product is kept until the second is computed.

    compiled = jax.jit(function).lower(jnp.zeros((256, 256))).compile()
    assert 2 * 256 * 256 * 4 <= needed_bytes(compiled) < 2**20
