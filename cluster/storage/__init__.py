"""Files and folders on a local disk or in object storage: read, write, list, and check access
before work starts. Imports errors alone.
"""

from __future__ import annotations
