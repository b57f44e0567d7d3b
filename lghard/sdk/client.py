"""The SDK's clients, under a policy."""

from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, overload

import httpx
import langgraph_sdk
from langgraph_sdk.client import (
    AssistantsClient,
    HttpClient,
    LangGraphClient,
    StoreClient,
    SyncAssistantsClient,
    SyncHttpClient,
    SyncLangGraphClient,
    SyncStoreClient,
)

from lghard.sdk.circuit import guarded, unguarded
from lghard.sdk.policy import RunPolicy
from lghard.sdk.retrying import Retries, RetryingHttp, RetryingSyncHttp
from lghard.sdk.runs import HardenedRunsClient, HardenedSyncRunsClient
from lghard.sdk.threads import (
    HardenedCronClient,
    HardenedSyncCronClient,
    HardenedSyncThreadsClient,
    HardenedThreadsClient,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _harden_http(client: httpx.AsyncClient, policy: RunPolicy) -> HttpClient:
    """Return what sends the requests of a client, under retries and the circuit breaker."""
    client = guarded(client) if policy.circuit else unguarded(client)
    return RetryingHttp(client, Retries(policy.retries))


def _harden_sync_http(client: httpx.Client, policy: RunPolicy) -> SyncHttpClient:
    """Do the same for the synchronous client."""
    client = guarded(client) if policy.circuit else unguarded(client)
    return RetryingSyncHttp(client, Retries(policy.retries))


class HardenedClient(LangGraphClient):
    """A `LangGraphClient` under a policy; made by `get_client` and `harden_client`.

    Attributes:
        policy: What it does where a caller says nothing.
    """

    def __init__(self, client: httpx.AsyncClient, *, policy: RunPolicy | None = None) -> None:
        super().__init__(client)
        self.policy = policy or RunPolicy()
        self.http = _harden_http(client, self.policy)
        self.assistants = AssistantsClient(self.http)
        self.threads = HardenedThreadsClient(self.http, self.policy)
        self.runs = HardenedRunsClient(self.http, self.policy)
        self.crons = HardenedCronClient(self.http, self.policy)
        self.store = StoreClient(self.http)

    def __repr__(self) -> str:
        return f"<HardenedClient {self.http.client.base_url!r}, {self.policy!r}>"


class HardenedSyncClient(SyncLangGraphClient):
    """A `SyncLangGraphClient` under a policy; made by `get_sync_client` and `harden_client`.

    Attributes:
        policy: What it does where a caller says nothing.
    """

    def __init__(self, client: httpx.Client, *, policy: RunPolicy | None = None) -> None:
        super().__init__(client)
        self.policy = policy or RunPolicy()
        self.http = _harden_sync_http(client, self.policy)
        self.assistants = SyncAssistantsClient(self.http)
        self.threads = HardenedSyncThreadsClient(self.http, self.policy)
        self.runs = HardenedSyncRunsClient(self.http, self.policy)
        self.crons = HardenedSyncCronClient(self.http, self.policy)
        self.store = SyncStoreClient(self.http)

    def __repr__(self) -> str:
        return f"<HardenedSyncClient {self.http.client.base_url!r}, {self.policy!r}>"


@overload
def harden_client(
    client: LangGraphClient, *, policy: RunPolicy | None = None
) -> LangGraphClient: ...


@overload
def harden_client(
    client: SyncLangGraphClient, *, policy: RunPolicy | None = None
) -> SyncLangGraphClient: ...


def harden_client(
    client: LangGraphClient | SyncLangGraphClient, *, policy: RunPolicy | None = None
) -> LangGraphClient | SyncLangGraphClient:
    """Return a client with safe defaults over the connections of one that exists.

    In-process clients (`url=None`) work as well. The given client stays what it was; both share
    their connections, so closing one closes the other. What belongs to the connections is kept
    (transports, authentication, event hooks); what a subclass adds to the SDK's own classes is not.

    Args:
        client: A client of `langgraph_sdk`, or one that is hardened already and gets another
            policy.
        policy: The defaults; None: `RunPolicy()`.

    Raises:
        TypeError: It is no client of `langgraph_sdk`.

    Example:
        ```python
        graph = RemoteGraph("agent", client=harden_client(langgraph_sdk.get_client(url=url)))
        ```
    """
    if isinstance(client, LangGraphClient):
        return HardenedClient(client.http.client, policy=policy)
    if isinstance(client, SyncLangGraphClient):
        return HardenedSyncClient(client.http.client, policy=policy)
    raise TypeError(
        "harden_client takes a LangGraphClient or a SyncLangGraphClient of langgraph_sdk,"
        f" not {type(client).__name__}"
    )


if TYPE_CHECKING:

    def get_client(
        *,
        url: str | None = None,
        api_key: str | None = ...,
        headers: Mapping[str, str] | None = None,
        timeout: httpx._types.TimeoutTypes | None = None,
        policy: RunPolicy | None = None,
    ) -> LangGraphClient:
        """Like `langgraph_sdk.get_client`, with safe defaults."""

    def get_sync_client(
        *,
        url: str | None = None,
        api_key: str | None = ...,
        headers: Mapping[str, str] | None = None,
        timeout: httpx._types.TimeoutTypes | None = None,
        policy: RunPolicy | None = None,
    ) -> SyncLangGraphClient:
        """Like `langgraph_sdk.get_sync_client`, with safe defaults."""

else:

    def _with_policy(upstream: "Callable[..., Any]") -> "Callable[..., Any]":
        """Give a factory of the SDK a `policy`, and leave it every argument it has or will have."""

        @wraps(upstream)
        def factory(*, policy: RunPolicy | None = None, **options: Any) -> Any:
            return harden_client(upstream(**options), policy=policy)

        own = signature(upstream)
        argument = Parameter(
            "policy", Parameter.KEYWORD_ONLY, default=None, annotation="RunPolicy | None"
        )
        factory.__signature__ = Signature(
            [*own.parameters.values(), argument], return_annotation=own.return_annotation
        )
        factory.__module__ = __name__
        return factory

    get_client = _with_policy(langgraph_sdk.get_client)
    get_sync_client = _with_policy(langgraph_sdk.get_sync_client)
