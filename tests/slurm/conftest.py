"""A SLURM of our own: one controller, two nodes, all on this machine and in one temporary folder."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from projects import environment

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")

# config_overrides: the nodes have the cores that are written here, whatever the machine has.
# CR_LLN: the least loaded node first, so that both are used: of four runs and one job of two cores, in whatever order
# they come, at least one run lies on each node. filetxt: SLURM's own record of every job that ended.
CONF = """
ClusterName=floral
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,CR_LLN
SchedulerParameters=batch_sched_delay=0,sched_interval=2
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=1
KillWait=15
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
NodeName=n1 NodeHostname=localhost Port={ports[1]} CPUs=4 RealMemory=16000
NodeName=n2 NodeHostname=localhost Port={ports[2]} CPUs=4 RealMemory=16000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=60 PriorityTier=10
PartitionName=closed Nodes=n1,n2 MaxTime=60 AllowAccounts=lab
"""


@dataclass(frozen=True)
class Cluster:
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """What its commands need; the executor forgets SLURM_CONF within a job, so there is an srun that knows it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands says."""
        told = subprocess.run(command, env=environment(**self.variables), capture_output=True, text=True, timeout=60)
        assert told.returncode == 0, (command, told.stderr)
        return told.stdout

    def at_once(self, job: str) -> None:
        """Let a job that goes back into the queue start without the two minutes that SLURM gives its node, but not
        before all of it has ended there."""
        until = time.monotonic() + 200
        while self.ask("squeue", "--noheader", "--job", job, "--format=%T").strip() != "PENDING" or at_work(job):
            assert time.monotonic() < until, self.ask("scontrol", "show", "job", job)
            time.sleep(0.2)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def records(self) -> dict[str, list[dict[str, str]]]:
        """SLURM's own record of the jobs that ended: job → its ends, more than one if it was requeued."""
        path = self.folder / "jobcomp.txt"
        found: dict[str, list[dict[str, str]]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            record = dict(re.findall(r"(\w+)=(\S*)", line))
            found.setdefault(record["JobId"], []).append(record)
        return found


def at_work(job: str) -> bool:
    """Whether a step of the job is left on this machine."""
    return any(f"slurmstepd: [{job}.".encode() in commandline(path.name) for path in Path("/proc").glob("[0-9]*"))


def commandline(pid: int | str) -> bytes:
    """Nothing for a process that has ended, also if nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    lacking = [name for name in COMMANDS if shutil.which(name) is None]
    if lacking or os.geteuid() != 0:
        why = f"{', '.join(lacking)} not found; .ci/setup installs them" if lacking else "call it as root"
        pytest.fail(f"make test-slurm starts SLURM's daemons on this machine: {why}", pytrace=False)
    folder = Path(tempfile.mkdtemp(prefix="floral-slurm-"))
    folder.chmod(0o755)  # munge asks that all may reach its socket
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, ports=free_ports(3)))
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    made = Cluster(folder)
    try:
        start(made)
        yield made
    finally:
        shut_down(made)
        shutil.rmtree(folder)


def start(cluster: Cluster) -> None:
    folder = cluster.folder
    munged = ["munged", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    for command in (munged, ["slurmctld"], *(["slurmd", "-N", node] for node in NODES)):
        subprocess.run(command, env=environment(**cluster.variables), check=True, timeout=30, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while cluster.ask("sinfo", "--noheader", "--format=%T", "--partition=main").split() != ["idle"]:
        assert time.monotonic() < until, cluster.ask("sinfo", "--long")
        time.sleep(0.2)


def shut_down(cluster: Cluster) -> None:
    """End what was started, jobs first."""
    with suppress(AssertionError, subprocess.TimeoutExpired):
        cluster.ask("scancel", "--user=root")
        ended(lambda: not cluster.ask("squeue", "--noheader").strip(), 30)
    files = (*cluster.folder.glob("slurmd-*.pid"), cluster.folder / "slurmctld.pid", cluster.folder / "munged.pid")
    daemons = [int(path.read_text()) for path in files if path.exists()]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in daemons:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if ended(lambda: not any(map(commandline, daemons)), 10):
            break


def ended(happened: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
