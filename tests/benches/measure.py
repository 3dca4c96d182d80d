"""Runs a command to its end and measures it: what a process cost, as the system counted it."""

import dataclasses
import os
import pathlib
import platform
import subprocess
import threading
import time


@dataclasses.dataclass(frozen=True)
class Measured:
    wall_seconds: float
    # User and system time of the process and of the children it waited for.
    cpu_seconds: float
    peak_memory_mib: float
    stdout: str
    stderr: str = ""
    returncode: int = 0


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


def measure_tree(command, folder=None, environment=None, checked=True):
    """As `measure`, of the command and of all processes that it starts: what they hold together at their most, by looking every 50 ms.

    Pages that processes share are counted in each. With `checked` a failure ends the benchmark; without, the code is `returncode`.
    """
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak, seconds, ended = 0, {}, threading.Event()

    def look():
        nonlocal peak
        looks, known = 0, []
        while not ended.is_set():
            # Going through all processes of the machine takes its time.
            if looks % 5 == 0:
                known = tree(process.pid)
            looks += 1
            held = 0
            for pid in known:
                try:
                    held += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
                    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                    seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                except (OSError, IndexError):
                    continue
            peak = max(peak, held * os.sysconf("SC_PAGE_SIZE"))
            ended.wait(0.05)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)
    reader.start()
    stdout = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    ended.set()
    watcher.join()
    reader.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if checked and process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}\n{stdout}\n{''.join(errors)}")
    return Measured(
        wall_seconds=wall,
        # Children that were not waited for are in what was seen of them alone.
        cpu_seconds=max(usage.ru_utime + usage.ru_stime, sum(seconds.values())),
        peak_memory_mib=max(peak / 2**20, usage.ru_maxrss / 1024),
        stdout=stdout,
        stderr="".join(errors),
        returncode=process.returncode,
    )


def tree(pid):
    """The process and its descendants."""
    children = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found
