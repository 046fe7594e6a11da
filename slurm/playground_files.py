"""The files of a private Slurm (`slurm.playground`): its configuration, its ports and its key."""

import getpass
import os
import random
import socket
from contextlib import suppress
from pathlib import Path

PORTS = range(30_000, 32_000)  # below those that the system gives out, above those where ranks meet

CONF = """\
ClusterName=playground
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,NoShared
AccountingStorageType={accounting}
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge.socket
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=5
SlurmdParameters=config_overrides
SlurmdTimeout=10
# Seconds: a save on a busy machine takes longer than Slurm's own 30.
KillWait=60
InactiveLimit=0
ReturnToService=2
MaxArraySize=10001
DefMemPerCPU=500
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs={cpus} RealMemory={memory_mb}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2 MaxTime=120
"""

DATABASE_CONF = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
PidFile={folder}/slurmdbd.pid
"""

CLUSTER = """\
# The playground's cluster file: {nodes} nodes of {cpus} cores.
executor = "slurm"
partition = "main"
cpus_per_task = 1
memory_gb = 1.5
tasks_per_node = 2
max_nodes = {nodes}
max_minutes = 60
concurrent_jobs = 2
"""


def write_files(folder: Path, nodes: int, *, cpus: int, memory_mb: int, accounting: bool) -> None:
    """Everything that the daemons read."""
    controller, accounting_port, *node_ports = _free_ports(nodes + 2)
    words = {
        "folder": folder,
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "nodes": nodes,
        "cpus": cpus,
        "memory_mb": memory_mb,
        "accounting": f"accounting_storage/{'slurmdbd' if accounting else 'none'}",
        "controller_port": controller,
        "accounting_port": accounting_port,
        "node_ports": f"{node_ports[0]}-{node_ports[-1]}",
    }
    (folder / "slurm.conf").write_text(CONF.format(**words))
    (folder / "cluster.toml").write_text(CLUSTER.format(**words))
    (folder / "state").mkdir()
    _write_secret(folder / "slurmdbd.conf", DATABASE_CONF.format(**words).encode())
    _write_secret(folder / "munge.key", os.urandom(128))


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)  # the daemons refuse a file that others can read
    path.write_bytes(content)


def _free_ports(number: int) -> range:
    """A row of ports that nobody listens on, at a random place: two playgrounds are unlikely to meet."""
    for _ in range(200):
        first = random.randrange(PORTS.start, PORTS.stop - number)
        row = range(first, first + number)
        if all(_free(port) for port in row):
            return row
    raise RuntimeError(f"no {number} free ports in a row between {PORTS.start} and {PORTS.stop}")


def _free(port: int) -> bool:
    with socket.socket() as tried, suppress(OSError):
        tried.bind(("127.0.0.1", port))
        return True
    return False
