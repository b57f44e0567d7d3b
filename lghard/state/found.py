"""A finding of the static check before its path is complete, and the place it is looked for."""

from dataclasses import dataclass, replace

from lghard.state.report import Finding, Severity
from lghard.state.rules import finding
from lghard.state.source import Site


@dataclass(frozen=True)
class Found:
    """A finding whose path is not complete yet.

    Attributes:
        rule: its id.
        fields: what the rule's message wants to be told.
        steps: the path from the type down, ".plan", "[*]".
        sites: where a comment may say that it is ignored.
        severity: if not the rule's own.
    """

    rule: str
    fields: tuple[tuple[str, object], ...] = ()
    steps: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    severity: Severity | None = None

    def under(self, step: str, site: Site | None = None) -> "Found":
        """The same, one step further from its type."""
        sites = self.sites if site is None else (site, *self.sites)
        return replace(self, steps=(step, *self.steps), sites=sites)

    @property
    def ignored(self) -> bool:
        """A comment says so."""
        return any(site.ignores(self.rule) for site in self.sites)

    def at(self, path: str) -> Finding:
        """The finding."""
        known = {"channel": path} | dict(self.fields)
        made = finding(self.rule, path + "".join(self.steps), **known)
        return made if self.severity is None else replace(made, severity=self.severity)


@dataclass(frozen=True)
class Place:
    """Where a type stands, as far as that changes what is done with its values.

    Attributes:
        dumped: inside a pydantic model, whose dump has plain dicts in place of classes.
        healed: pydantic validates it on the way back.
        inline: it is a channel's own value, which Postgres keeps as JSON.
        union: other types are possible here, so that a value may be taken for one of those.
        outer: the class around it.
        shape: the annotation of the channel.
    """

    dumped: bool = False
    healed: bool = False
    inline: bool = False
    union: bool = False
    outer: str = ""
    shape: str = ""

    def inside(self) -> "Place":
        """One level down."""
        return replace(self, inline=False, union=False)

    def unvalidated(self, outer: str) -> "Place":
        """One level down, in an object of the class `outer`, which takes what it is given."""
        return replace(self.inside(), healed=False, outer=outer)


def found_by(rule: str, severity: Severity | None = None, /, **fields: object) -> Found:
    """What a rule has found right here."""
    return Found(rule, tuple(fields.items()), severity=severity)
