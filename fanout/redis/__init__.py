"""One home's Redis behind the `Store` interface: standalone, Sentinel or Cluster; the only package with redis-py."""

from fanout.redis.store import open_store
from fanout.redis.target import check_url

__all__ = ["check_url", "open_store"]
