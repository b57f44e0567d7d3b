"""The errors of lghard that need no other package.

Database and HTTP errors stay psycopg's and langgraph_sdk's own; these exist only where upstream
has none. One that is also a psycopg or SDK class lives in its room.
"""


class LghardError(Exception):
    """Base of every error that lghard itself defines."""

    __module__ = "lghard"
