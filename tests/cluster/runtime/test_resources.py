"""Resource requests against the nodes' resources."""

import pytest

from cluster.runtime.resources import ResourceRequest, bundles, check, inventory
from sleep_rl.contracts.errors import InputError


def test_the_inventory_lists_requested_and_available_resources():
    requests = [
        ResourceRequest("rollout", 8, cpus=1, gpus=1),
        ResourceRequest("learner", 4, gpus=0.5),
        ResourceRequest("reward", 1),
    ]
    assert inventory(
        requests, [{"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 2.0, "memory": 1e9}]
    ) == (
        "requested: 8 rollout x 1 CPU and 1 GPU, 4 learner x 0 CPU and 0.5 GPU, 1 reward x 0 CPU "
        "= 8 CPU and 10 GPU; "
        "available: 2 nodes with 32 CPU and 10 GPU"
    )
    assert (
        inventory([ResourceRequest("rollout", 1, cpus=1)], [{"CPU": 2.0}])
        == "requested: 1 rollout x 1 CPU = 1 CPU; available: 1 node with 2 CPU"
    )


@pytest.mark.parametrize(
    ("requests", "line"),
    [
        (
            [
                ResourceRequest("rollout", 8, cpus=1, gpus=1),
                ResourceRequest("learner", 4, gpus=0.5),
            ],
            "rollout: 8 actors x 1 GPU + learner: 4 actors x 0.5 GPU = 10 GPU requested, the "
            "cluster has 6",
        ),
        (
            [ResourceRequest("rollout", 8, cpus=8)],
            "rollout: 8 actors x 8 CPU = 64 CPU requested, the cluster has 32",
        ),
        (
            [ResourceRequest("rollout", 1, gpus=5)],
            "rollout: 5 GPU per actor requested, the largest node has 4",
        ),
        (
            [ResourceRequest("rollout", 2, gpus=3)],
            "rollout: 0 CPU and 3 GPU for each of 2 actors requested; actor 2 fits on no node "
            "beside the others; nodes: 16 CPU and 4 GPU, 16 CPU and 2 GPU",
        ),
        (
            [
                ResourceRequest("rollout", 4, cpus=1, gpus=1),
                ResourceRequest("learner", 4, gpus=0.5),
            ],
            None,
        ),
    ],
)
def test_check_names_the_missing_resource(requests, line):
    nodes = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}]
    if line is None:
        return check(requests, nodes)
    with pytest.raises(InputError) as error:
        check(requests, nodes)
    assert str(error.value) == line


def test_bundles_has_one_per_worker_that_takes_any_resource():
    requests = [
        ResourceRequest("rollout", 2, cpus=1, gpus=1),
        ResourceRequest("learner", 1, gpus=0.5),
        ResourceRequest("reward", 3),
    ]
    assert bundles(requests) == [{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"GPU": 0.5}]
