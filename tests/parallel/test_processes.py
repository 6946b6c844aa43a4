"""What tells a process that it is one of several."""

import pytest

from rc3_jax.parallel.processes import join_processes, launched_together
from rc3_jax.settings import ConfigError


@pytest.mark.parametrize(
    ("environment", "together"),
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "8"}, True),
        ({"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # a shell within an allocation, not started by srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "host:1234"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a pod that belongs to no indexed job
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host"}, True),
    ],
)
def test_launchers_are_known_by_their_variables(environment, together):
    assert launched_together(environment) == together


def test_half_a_description_is_refused(monkeypatch):
    joined = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *given: joined.append(given))
    with pytest.raises(ConfigError, match="--processes and --process together, or none"):
        join_processes("localhost:1234", 2, None)
    join_processes("localhost:1234", 2, 0)
    join_processes()
    assert joined == [("localhost:1234", 2, 0)]
