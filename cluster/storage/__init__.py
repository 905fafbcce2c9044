"""Files and folders on a local disk or in S3: read, write, list, check before work starts. Imports
errors alone.
"""

from __future__ import annotations
