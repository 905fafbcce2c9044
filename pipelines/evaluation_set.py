"""What `evaluate` scores on: a shard set, or annotated images, of which one is made first."""

from __future__ import annotations

import hashlib
import json

from cluster.compute.session import RayConfig
from cluster.errors import DataError, joined
from cluster.reports.anchor_fit import DEFAULT_VIEW
from cluster.shards.index import ShardSet
from cluster.storage import uris
from pipelines.data_section import DataSection, identity, prepare_shards, summary
from pipelines.scoring_inputs import open_set

SETS = "data"
"""The folder of the shard sets that are made, beside the results."""


def evaluation_set(data: str | DataSection, results: str, ray: RayConfig) -> ShardSet:
    """The shard set `data`, or that of annotated images: `<results>/data/<12 characters>`, whose
    name is the digest of what `identity` looks at. While that stays the same the set is reused.
    `results` is a folder of `evaluate`. Errors: see `prepare_shards` and `open_set`.
    """
    if isinstance(data, str):
        return open_set(data)
    text = json.dumps(identity(data), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = uris.join(uris.absolute(results), SETS, digest[:12])
    try:
        _, prepared = prepare_shards(data, output=folder, ray=ray, view=DEFAULT_VIEW)
    except DataError as error:
        remedy = "such options are those of prepare; make the set with it and give --data"
        raise DataError(joined(str(error), remedy)) from error
    print("\n".join(summary(prepared)), flush=True)
    return open_set(folder)
