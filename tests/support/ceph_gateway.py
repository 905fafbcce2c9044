"""A Ceph RADOS Gateway on this machine: an S3 server that checks signatures. One monitor, one
storage daemon, one gateway; ends with the context.

    with CephGateway(folder) as gateway:
        os.environ.update(gateway.environment)

    python tests/support/ceph_gateway.py /var/tmp/ceph --port 7480

Needs root and the Debian packages radosgw, ceph-mon and ceph-osd; about 20 s to start and 300 MB of
memory.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Self

PACKAGES = "radosgw ceph-mon ceph-osd"
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
# The same as for the tests' S3 server in this process, so that one Ray cluster reads from both.
ACCESS_KEY, SECRET_KEY = "testing", "testing"
START_SECONDS = 900
# One copy on one disk, no replication, and no authentication but that of the gateway's users.
CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
crash_dir = {folder}
[mon.a]
mon_data = {folder}/mon
mon_cluster_log_file = {folder}/cluster.log
[osd.0]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = 10737418240
osd_memory_target = 939524096
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
rgw_override_bucket_index_max_shards = 1
rgw_run_sync_thread = false
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class CephGateway:
    """`folder` is new. Its path is shorter than 80 characters, because the daemons' sockets are in
    it.
    """

    def __init__(self, folder: str | Path, *, port: int = 0) -> None:
        self.folder = Path(folder).resolve()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise RuntimeError(f"{', '.join(missing)}: not installed; apt-get install {PACKAGES}")
        for name in ("mon", "osd"):
            (self.folder / name).mkdir(parents=True)
        monitor, fsid = free_port(), str(uuid.uuid4())
        (self.folder / "ceph.conf").write_text(
            CONFIGURATION.format(fsid=fsid, monitor=monitor, folder=self.folder, gateway=self.port)
        )
        self.call(
            "monmaptool",
            "--create",
            "--fsid",
            fsid,
            "--addv",
            "a",
            f"[v2:127.0.0.1:{monitor}]",
            f"{self.folder}/monmap",
            configured=False,
        )
        self.call("ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{self.folder}/monmap")
        self.spawn("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self.call("ceph", "osd", "new", osd)
        self.call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.call("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=here", "root=default")
        self.spawn("ceph-osd", "-i", "0")
        self.add_user("tests", ACCESS_KEY, SECRET_KEY)
        self.spawn("radosgw", "-n", "client.rgw.a")
        self.wait_until_it_answers()

    def add_user(self, name: str, access_key: str, secret_key: str, *more: str) -> None:
        keys = (f"--access-key={access_key}", f"--secret-key={secret_key}")
        self.call(
            "radosgw-admin",
            "-n",
            "client.rgw.a",
            "user",
            "create",
            f"--uid={name}",
            f"--display-name={name}",
            *keys,
            *more,
        )

    def call(self, program: str, *arguments: str, configured: bool = True) -> None:
        command = [program, *(["-c", f"{self.folder}/ceph.conf"] if configured else []), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")

    def spawn(self, program: str, *arguments: str) -> None:
        # In the foreground, so that it is a child that can be ended and waited for.
        with open(self.folder / f"{program}.out", "wb") as log:
            command = [program, "-f", "-c", f"{self.folder}/ceph.conf", *arguments]
            self.daemons.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.daemons[-1].poll() is None:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(
            f"the gateway did not come up, see {self.folder}:"
            f" {(self.folder / 'radosgw.out').read_text()[-2000:]}"
        )

    def __exit__(self, *_: object) -> None:
        # The gateway first: it waits for the others.
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a new folder for its data")
    parser.add_argument("--port", type=int, default=0, help="0 for any free one")
    given = parser.parse_args()
    with CephGateway(given.folder, port=given.port) as gateway:
        print(
            "\n".join(f"export {name}={value}" for name, value in gateway.environment.items()),
            flush=True,
        )
        # Both end it in order; a shell starts its background jobs with Ctrl-C ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
