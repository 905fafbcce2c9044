"""A PostgreSQL server on this machine, in a folder of its own; ends with the context.

with PostgreSql() as database:
    print(database.uri)

Needs the Debian package postgresql. Run by root, it runs as the user postgres, because PostgreSQL
refuses root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tests.support.ray_nodes import LIMIT_S, free_port

USER = "postgres"


def program(name: str) -> str:
    """Debian keeps them out of the PATH."""
    inside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(inside[-1]) if inside else None)
    if found is None:
        raise RuntimeError(f"{name}: not installed; apt-get install postgresql")
    return found


class PostgreSql:
    def __init__(self) -> None:
        self.port = free_port()
        # SQLAlchemy 2.1 takes psycopg 3 where no driver is named, which MLflow does not ask for.
        self.uri = f"postgresql+psycopg2://{USER}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        # Not below pytest's folders, which only their owner may enter.
        self.folder = tempfile.mkdtemp(prefix="rr-postgresql-")
        as_user: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": self.folder}
        if os.getuid() == 0:
            shutil.chown(self.folder, USER)
            as_user |= {"user": USER, "group": USER, "extra_groups": []}
        try:
            self.start(as_user)
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def start(self, as_user: dict[str, Any]) -> None:
        data = f"{self.folder}/data"
        made = [program("initdb"), "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, timeout=LIMIT_S, **as_user)
        command = [program("postgres"), "-D", data, "-p", str(self.port), "-k", self.folder]
        # Nothing of it outlives the tests.
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with open(f"{self.folder}/log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **as_user
            )
        ready = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + LIMIT_S
        while subprocess.run(ready).returncode:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"PostgreSQL: {Path(self.folder, 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder)
