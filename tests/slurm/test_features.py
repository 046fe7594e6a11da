"""sbatch's language of features: what is refused here, Slurm refuses too."""

import subprocess

import pytest

from slurm import queue
from slurm.cluster import load_cluster
from slurm.features import fits, met, names
from slurm.target import refuse_beyond_partition


@pytest.mark.parametrize(
    ("constraint", "node", "holds"),
    [
        ("a", "a b", True),
        ("a", "b", False),
        ("a&b", "a b", True),
        ("a&b", "a", False),
        ("a,b", "a", False),
        ("a|b", "b", True),
        ("a|b", "c", False),
        ("a&b|c", "c", True),
        ("a|b&c", "a", True),  # Slurm may read it otherwise: it is not for us to refuse
        ("(a|b)&c", "a", False),
        ("((a))", "a", True),
        ("gpu-80g.v2", "gpu-80g.v2", True),
        ("a*2", "a", True),
        ("[a*2&b*1]", "b", True),  # some nodes have the one, some the other
        ("[a|b]", "c", False),
        # Not of this language, as far as we know it: Slurm will say.
        ("!a", "a", True),
        ("a&", "c", True),
        ("(a", "c", True),
        ("a)", "c", True),
        ("a b", "c", True),
        ("", "c", True),
    ],
)
def test_whether_a_node_fits(constraint, node, holds):
    assert fits(constraint, node.split()) is holds


def test_features_of_several_nodes():
    assert names("[a*2&b-c]|(d,e)") == ["a", "b-c", "d", "e"]
    assert names("!a") == []
    assert met("[a*2&b]", ["a", "b"])
    assert not met("[a*2&b]", ["a"])
    assert met("[a|b]", ["a"])


NODES = {"n1": "a100,big", "n2": "h100"}
TAKEN = ["a100", "a100&big", "a100,big", "a100|h100", "[a100|h100]", "(a100&big)|h100", "a100*1"]
REFUSED = ["nosuch", "a100|nosuch", "a100&nosuch", "a100&h100", "(a100|big)&h100"]


@pytest.mark.slurm
def test_slurm_itself_agrees(playground, monkeypatch):
    """`a100*2` is two nodes, so nothing that is not for one is asked here."""
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    cluster = load_cluster(str(playground.cluster_file)).model_copy(update={"max_nodes": 1})
    try:
        for node, its in NODES.items():
            update = (f"NodeName={node}", f"AvailableFeatures={its}", f"ActiveFeatures={its}")
            playground.run("scontrol", "update", *update)
        for constraint in [*TAKEN, *REFUSED]:
            done = subprocess.run(
                ["sbatch", "--test-only", f"--constraint={constraint}", "--partition=main"],
                input="#!/bin/sh\n",
                capture_output=True,
                text=True,
                env=playground.environment,
                check=False,
            )
            assert (done.returncode == 0) == (constraint in TAKEN), (constraint, done.stderr)
            asked = cluster.model_copy(update={"constraint": constraint})
            if constraint in TAKEN:
                refuse_beyond_partition(asked)
            else:
                with pytest.raises(ValueError, match="wanted features that nodes of 'main' have"):
                    refuse_beyond_partition(asked)
        assert queue.longest_array() == queue.LONGEST_ARRAY  # of the 10,001 that this one takes
    finally:
        for node in NODES:
            none = ("AvailableFeatures=", "ActiveFeatures=")
            playground.run("scontrol", "update", f"NodeName={node}", *none)
