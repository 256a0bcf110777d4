"""Hermetic single-machine SLURM for tests (Debian slurm-wlm 22.05; no systemd, no root needed)."""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

CONF = """\
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={cport}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={d}/munge.sock,cred_expire=5
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool.%n
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.%n.pid
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd.%n.log
PlugStackConfig={d}/plugstack.conf
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={d}/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
EnforcePartLimits=ALL
MinJobAge=86400
KillWait=2
ReturnToService=2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=6
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def free_ports(n):
    socks = [socket.socket() for _ in range(n)]
    try:
        for s in socks:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in socks]
    finally:
        for s in socks:
            s.close()


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Slurm:
    """with Slurm(nodes=2, cpus=8, gpus=4) as s: s.run("sbatch", ...)"""

    def __init__(self, nodes, cpus, gpus, extra=""):
        self.nodes, self.cpus, self.gpus, self.extra = nodes, cpus, gpus, extra
        self.procs, self.user = [], pwd.getpwuid(os.getuid()).pw_name

    def start(self):
        self.d = d = Path(tempfile.mkdtemp(prefix="slurm.", dir="/tmp"))  # short: unix sockets <= 108 chars
        self.conf = d / "slurm.conf"
        drop = ("SLURM", "SBATCH_", "SQUEUE_", "SINFO_", "SRUN_", "SALLOC_", "SCANCEL_")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
        self.env["SLURM_CONF"] = str(self.conf)
        try:
            self._start()
        except BaseException:
            self.stop(keep=True)
            raise
        return self

    def _start(self):
        d = self.d
        d.chmod(0o755)  # mkdtemp's 0700 makes munged refuse its socket
        for x in ("state", "log", "dev"):
            (d / x).mkdir()
        (d / "plugstack.conf").write_text("")
        for g in range(self.gpus):  # fake GPUs: must stat() as character devices, distinct names
            (d / f"dev/gpu{g}").symlink_to("/dev/null")
        (d / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={d}/dev/gpu[0-{self.gpus - 1}]\n")
        cport, *dports = free_ports(1 + self.nodes)
        names = [f"n{i}" for i in range(self.nodes)]
        self.conf.write_text(
            CONF.format(
                d=d,
                cport=cport,
                user=self.user,
                nodes="\n".join(
                    f"NodeName={n} NodeHostname=localhost NodeAddr=127.0.0.1 Port={p} CPUs={self.cpus} "
                    f"RealMemory=8000 Gres=gpu:{self.gpus} State=UNKNOWN"
                    for n, p in zip(names, dports, strict=True)
                ),
            )
            + self.extra
        )
        self._munged()
        self._spawn("slurmctld", "slurmctld", "-D", "-i", "-f", self.conf)
        for n in names:
            self._spawn("slurmd." + n, "slurmd", "-D", "-N", n, "-f", self.conf)
        end = time.monotonic() + 20
        while self.run("sinfo", "-h", "-p", "debug", "-t", "idle", "-o", "%D", check=False).stdout.strip() != str(
            self.nodes
        ):
            for name, p in self.procs:
                if p.poll() is not None:
                    raise RuntimeError(
                        f"{name} exited {p.returncode}: {(d / 'log' / (name + '.out')).read_text()[-800:]}"
                    )
            if time.monotonic() > end:
                raise TimeoutError(f"nodes not idle; logs in {d}/log")
            time.sleep(0.1)

    def _munged(self):
        d = self.d
        (d / "munge.key").touch(0o600)
        (d / "munge.key").write_bytes(os.urandom(128))
        self._spawn(
            "munged",
            "munged",
            "-F",
            "--num-threads=2",
            f"--key-file={d}/munge.key",
            f"--socket={d}/munge.sock",
            f"--pid-file={d}/munged.pid",
            f"--log-file={d}/log/munged.log",
            f"--seed-file={d}/munge.seed",
        )
        for _ in range(100):
            if (d / "munge.sock").exists():
                return
            time.sleep(0.05)
        raise TimeoutError("munged: " + (d / "log/munged.out").read_text())

    def _spawn(self, name, *argv):
        with open(self.d / "log" / (name + ".out"), "wb") as out:
            self.procs.append(
                (
                    name,
                    subprocess.Popen(
                        [str(a) for a in argv],
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                        env=self.env,
                        start_new_session=True,
                        preexec_fn=_die_with_parent,
                    ),
                )
            )

    def run(self, *argv, check=True):
        argv = [str(a) for a in argv]
        return subprocess.run(argv, env=self.env, text=True, capture_output=True, check=check, timeout=60)

    def jobs(self, jid):
        """scontrol show job as dicts: JobState, ExitCode ("rc:signal"), ArrayTaskId, Restarts, Reason, ..."""
        out = self.run("scontrol", "-o", "show", "job", jid).stdout
        return [dict(w.split("=", 1) for w in line.split() if "=" in w) for line in out.splitlines()]

    def stop(self, keep=False):
        if any(n == "slurmctld" and p.poll() is None for n, p in self.procs):
            self.run("scancel", "-u", self.user, check=False)
            end = time.monotonic() + 6
            while time.monotonic() < end and self.run("squeue", "-h", "-a", check=False).stdout.strip():
                time.sleep(0.1)
        for _, p in reversed(self.procs):
            if p.poll() is None:
                p.terminate()
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        self.procs.clear()
        self._reap()
        if not keep:
            shutil.rmtree(self.d, ignore_errors=True)

    def _reap(self):
        """slurmstepd and jobs outlive slurmd: kill whatever still carries our SLURM_CONF in its environment."""
        mark = b"SLURM_CONF=" + str(self.conf).encode()
        for _ in range(5):
            left = []
            for p in Path("/proc").glob("[0-9]*"):
                try:
                    if int(p.name) != os.getpid() and mark in (p / "environ").read_bytes().split(b"\0"):
                        left.append(int(p.name))
                        os.kill(left[-1], signal.SIGKILL)
                except OSError:
                    pass
            if not left:
                return
            time.sleep(0.1)

    __enter__ = start

    def __exit__(self, t, *_):
        self.stop(keep=t is not None)
