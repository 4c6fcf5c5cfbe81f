"""How long the threads of a process had a CPU, whatever else ran on the machine."""

from __future__ import annotations

from pathlib import Path


class Runtime:
    """From its making on; time in the kernel on a thread's behalf is part of it."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._before = self._all()

    def _all(self) -> dict[str, int]:
        found = {}
        for task in self._tasks.iterdir():
            try:
                found[task.name] = int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
        return found

    def seconds(self, threads: int = 1) -> float:
        """Of so many threads together, the busiest ones."""
        spent = sorted((now - self._before.get(name, 0) for name, now in self._all().items()),
                       reverse=True)
        return sum(spent[:threads]) / 1e9
