"""What the teams of a batch are made from: a team that is copied for every run, or a function that makes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from autogen_agentchat.base import ChatAgent, Team
from autogen_agentchat.messages import MessageFactory
from autogen_agentchat.teams import BaseGroupChat

from halo_adapters.autogen import drive
from halo_adapters.autogen.clone import clone
from halo_adapters.autogen.lift import lift
from halo_core.errors import ConfigError, HaloError

App = Team | ChatAgent
AppOrFactory = App | Callable[[], Any]
DriverChoice = Literal["auto", "native", "autogen"]


class Template:
    """What the teams of the runs are made from: a team that is copied, or a function that makes one."""

    def __init__(self, source: AppOrFactory, driver: DriverChoice = "auto") -> None:
        """Raises `ConfigError` for anything else, and for a driver that cannot drive this team."""
        if driver not in ("auto", "native", "autogen"):
            raise ConfigError(f"driver={driver!r}: choose 'auto', 'native' or 'autogen'")
        self._driver = driver
        self._factory: Callable[[], Any] | None = None
        self._state: Mapping[str, Any] | None = None
        if isinstance(source, Team | ChatAgent):
            self.app: Any = source
            self._used = isinstance(source, BaseGroupChat) and source._initialized
            clone(source)  # a team that cannot be copied is told of before anything runs
        elif callable(source):
            self._factory = source
            self.app = None
            self._used = False
        else:
            raise ConfigError(f"run_batch takes a team, an agent, or a function that makes one, not {source!r}")

    async def prepare(self) -> None:
        """Make the first team of a factory, and take what a used team's runtime keeps."""
        if self._factory is not None:
            self.app = await self._made()
        if self._used:
            self._state = await self.app.save_state()
        if self._driver == "native" and isinstance(self.app, Team):
            why = drive.why_not_native(clone(self.app))
            if why is not None:
                raise ConfigError(f"driver='native' cannot run team {self.app.name!r}: {why}; use driver='auto'")

    async def make(self) -> Any:
        """The team of one run."""
        app = await self._made() if self._factory is not None else clone(self.app)
        if self._driver != "autogen":
            drive.attach(app)
        if self._state is not None:
            await app.load_state(self._state)
        return app

    async def _made(self) -> Any:
        made = self._factory() if self._factory is not None else None
        if inspect.isawaitable(made):
            made = await made
        if not isinstance(made, Team | ChatAgent):
            raise ConfigError(f"the function must make a team or an agent; it made {made!r}")
        return made

    @property
    def copies(self) -> bool:
        """Whether the runs' teams are Halo's own copies; those of a function may be kept by it."""
        return self._factory is None

    @property
    def name(self) -> str:
        """The team's name."""
        return str(self.app.name)

    @property
    def messages(self) -> MessageFactory:
        """Knows the message types of the team."""
        return getattr(self.app, "_message_factory", None) or MessageFactory()

    def fingerprint(self) -> str:
        """Changes when the team changes; ties a journal to it."""
        return fingerprint(self.app)


def fingerprint(app: Any) -> str:
    """A text that changes when the team changes in anything that its plan knows of."""
    # A team that cannot be lifted runs all the same.
    return lifted_fingerprint(app) or f"autogen:{app.name}:not lifted"


def lifted_fingerprint(app: Any) -> str:
    """The same, empty where the team cannot be lifted: the catalog then keeps nothing."""
    try:
        return f"autogen:{app.name}:{lift(app).fingerprint}"
    except HaloError:
        return ""
