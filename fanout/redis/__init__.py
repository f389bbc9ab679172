"""One home's Redis behind the `Store` interface: standalone, Sentinel or Cluster; the only package with redis-py."""
