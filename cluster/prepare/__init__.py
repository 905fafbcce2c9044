"""From annotations and pictures to a shard set: plan, read the images, write. Imports formats,
reports, shards and storage; `tasks` alone knows Ray.
"""

from __future__ import annotations
