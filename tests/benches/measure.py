"""Runs a command to its end and measures it: what a process cost, as the system counted it."""

import dataclasses
import os
import platform
import subprocess
import time


@dataclasses.dataclass(frozen=True)
class Measured:
    wall_seconds: float
    # User and system time of the process and of the children it waited for.
    cpu_seconds: float
    peak_memory_mib: float
    stdout: str


def measure(command, folder=None):
    """Runs a command; a failure ends the benchmark with what the command said."""
    # What earlier runs left to be written must not slow this one.
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    # The output is small: one JSON document, read while the process runs.
    stdout = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}\n{stdout}")
    return Measured(
        wall_seconds=wall,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        # Linux counts in KiB.
        peak_memory_mib=usage.ru_maxrss / 1024,
        stdout=stdout,
    )


def machine():
    """One line about where this runs; the load tells whether it ran alone."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()} {platform.system()}, load {load:.1f} at start"
