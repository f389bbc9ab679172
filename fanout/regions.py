"""Reads the list of homes, `iad=redis://…,iad-2=redis+sentinel://…`: which there are, and where. Connects to none.

What is wrong with a list is said without the URL, which has a password.
"""

import re
from typing import Final

from fanout.ids import is_home_name
from fanout.redis import check_url

_NEXT_HOME: Final = re.compile(r",(?=[^:/?@,=]*=|\s*$)")  # other commas stand between a URL's hosts


def read_regions(text: str) -> dict[str, str]:
    """URLs by home. Raises ValueError for a name that is none or is there twice, and for a URL that can't be used."""
    regions: dict[str, str] = {}
    for part in filter(str.strip, _NEXT_HOME.split(text)):
        name, equals, url = (word.strip() for word in part.partition("="))
        if not equals or not is_home_name(name):
            raise ValueError(
                "expected name=url,name=url, a name of 1 to 24 letters and digits; for a shard, a dash and 1 to 8 more"
            )
        if name in regions:
            raise ValueError(f"{name!r} is there twice")
        regions[name] = "".join(url.split())  # a list of hosts may be folded
        check_url(regions[name])
    return regions
