"""How a pool is woken and put to sleep.

Each activator may be told the same twice, and by several gateways at a time. What they are told comes from
the operator's file alone: nothing of a request reaches a path, a body or a command line.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec

from backends.contract import Endpoint, HttpRequest, SleepControl
from gateway.asking import NoAnswer, ask, ask_all, client_for
from gateway.config.snapshot import CommandWake, EngineWake, HttpStep, HttpWake, KubernetesWake, Pool, Replica
from gateway.fleet.fleet import endpoint_of

__all__ = ["ActivationFailed", "Activator", "Cluster", "activator_of", "in_cluster"]

MAX_ANSWER = 64 * 1024
"""Bytes of an answer to a wake."""
QUESTION = 3.0
"""Seconds for the question whether an engine is awake."""
MAX_OUTPUT = 64 * 1024
"""Bytes of a command's output that are read; the rest is read and dropped."""
SHOWN = 300
"""Characters of it that are logged when the command fails."""
TERMINATION = 2.0
"""Seconds between asking a command to end and ending it."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, its cluster's authority and its namespace (Kubernetes docs: Accessing the
Kubernetes API from a Pod)."""


Work = Callable[[], Awaitable[object]]


class ActivationFailed(Exception):
    """A pool could not be woken, or put to sleep. The message is a phrase for operators."""


class Activator(Protocol):
    """Wakes a pool, and puts it to sleep. Whoever calls bounds the time; cancelling leaves no process."""

    can_cool: bool

    async def wake(self) -> None:
        """What is done once, before all else. Returns when that is done; the engines may still need a while.
        Raises ActivationFailed."""

    async def wake_replica(self, replica: Replica) -> None:
        """What is done at each replica, so that a slow one keeps nobody waiting. Raises ActivationFailed."""

    async def cool(self) -> None:
        """Raises ActivationFailed."""

    async def awake(self, replica: Replica) -> bool | None:
        """Whether an engine is awake, apart from being well; None where that cannot be asked or it does not
        say."""


def activator_of(pool: Pool, *, cluster: "Callable[[], Cluster] | None" = None) -> Activator:
    """The activator of a pool that has one."""
    assert pool.activation is not None, "it is never woken"
    match pool.activation.wake:
        case EngineWake():
            assert pool.adapter.sleep is not None, "checked at load"
            return EngineActivator(pool, pool.adapter.sleep)
        case HttpWake() as wake:
            return HttpActivator(pool, wake)
        case CommandWake() as wake:
            return CommandActivator(pool.name, wake)
        case KubernetesWake() as wake:
            return KubernetesActivator(wake, cluster or in_cluster)


# ------------------------------------------------------------------------------------------- the engine's


class EngineActivator:
    """The engine's own way, at each replica."""

    can_cool = True

    def __init__(self, pool: Pool, control: SleepControl) -> None:
        self._pool = pool
        self._control = control
        self._models = tuple(dict.fromkeys(name for name in pool.serves.values() if name != "*"))

    async def wake(self) -> None:
        """Nothing."""

    async def wake_replica(self, replica: Replica) -> None:
        if not await self.awake(replica):
            await self._tell(replica, self._control.wake_requests(self._models))

    async def cool(self) -> None:
        requests = self._control.sleep_requests(self._models)
        await _all([partial(self._tell, replica, requests) for replica in self._pool.replicas])

    async def awake(self, replica: Replica) -> bool | None:
        endpoint = endpoint_of(self._pool, replica)
        questions = self._control.awake_requests(self._models)
        try:
            async with client_for(endpoint) as client:
                answers = await ask_all(client, endpoint, questions, seconds=QUESTION, most=MAX_ANSWER)
        except (OSError, ValueError):  # a CA file that is not there or is none
            return None
        # One that is silent is not well; whether it sleeps is not known.
        return self._control.read_awake(answers) if len(answers) == len(questions) else None

    async def _tell(self, replica: Replica, requests: Sequence[HttpRequest]) -> None:
        endpoint = endpoint_of(self._pool, replica)
        for request in requests:
            await _told(endpoint, request, f"replica {replica.id}")


# --------------------------------------------------------------------------------------------------- HTTP


class HttpActivator:
    """Requests that the operator wrote down, to each replica or somewhere else, in their order."""

    def __init__(self, pool: Pool, wake: HttpWake) -> None:
        self._pool = pool
        self._steps = wake
        self._each = all(step.url is None for step in wake.wake)
        """Whether replicas can be woken independently of each other."""
        self.can_cool = bool(wake.cool)

    async def wake(self) -> None:
        for step in () if self._each else self._steps.wake:
            works = self._works(step)
            failed = await _failures(works)
            if len(failed) == len(works):
                raise failed[0]

    async def wake_replica(self, replica: Replica) -> None:
        for step in self._steps.wake if self._each else ():
            await self._at(replica, step)

    async def cool(self) -> None:
        for step in self._steps.cool:
            await _all(self._works(step))

    async def awake(self, replica: Replica) -> bool | None:
        return None

    def _works(self, step: HttpStep) -> list[Work]:
        if step.url is not None:
            return [partial(_told, Endpoint(step.url, {}), _request_of(step), "the activator")]
        return [partial(self._at, replica, step) for replica in self._pool.replicas]

    async def _at(self, replica: Replica, step: HttpStep) -> None:
        await _told(endpoint_of(self._pool, replica), _request_of(step), f"replica {replica.id}")


def _request_of(step: HttpStep) -> HttpRequest:
    return HttpRequest(step.method, step.path, step.headers, step.body)


# ------------------------------------------------------------------------------------------------ command


class CommandActivator:
    """A program with its arguments, for no shell. It gets PATH, HOME, LANG and HEADGATE_POOL, no secrets."""

    def __init__(self, pool: str, wake: CommandWake) -> None:
        self._pool = pool
        self._commands = wake
        self.can_cool = bool(wake.cool)

    async def wake(self) -> None:
        await self._run(self._commands.wake)

    async def wake_replica(self, replica: Replica) -> None:
        """Nothing."""

    async def cool(self) -> None:
        await self._run(self._commands.cool)

    async def awake(self, replica: Replica) -> bool | None:
        return None

    async def _run(self, command: Sequence[str]) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**kept, "HEADGATE_POOL": self._pool},
                start_new_session=True,
            )
        except OSError as error:
            raise ActivationFailed(f"{command[0]}: {error.strerror}") from error
        try:
            assert process.stdout is not None, "it is a pipe"
            output = await _read(process.stdout)
            status = await process.wait()
        except BaseException:
            await asyncio.shield(_end(process))
            raise
        if status:
            words = " ".join(output.decode(errors="replace").split())[-SHOWN:]
            raise ActivationFailed(f"{command[0]} ended with {status}" + (f": {words}" if words else ""))


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Everything, of which the last bytes are kept."""
    kept = b""
    while piece := await stream.read(MAX_OUTPUT):
        kept = (kept + piece)[-MAX_OUTPUT:]
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a command and what it started, which shares its process group."""
    for number, patience in ((signal.SIGTERM, TERMINATION), (signal.SIGKILL, TERMINATION)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await process.wait()
                return


# --------------------------------------------------------------------------------------------- Kubernetes


@dataclass(frozen=True, slots=True)
class Cluster:
    """The API server, and the namespace that the gateway runs in. `endpoint` holds a credential."""

    endpoint: Endpoint
    namespace: str


def in_cluster(directory: Path = SERVICE_ACCOUNT, environ: Mapping[str, str] = os.environ) -> Cluster:
    """As a pod sees it. The token is read each time: it is replaced every hour. Raises ActivationFailed."""
    try:
        host, port = environ["KUBERNETES_SERVICE_HOST"], environ["KUBERNETES_SERVICE_PORT"]
        token = (directory / "token").read_text().strip()
        namespace = (directory / "namespace").read_text().strip()
    except (OSError, KeyError) as error:
        raise ActivationFailed("the gateway runs in no pod with a service account") from error
    host = f"[{host}]" if ":" in host else host
    endpoint = Endpoint(
        f"https://{host}:{port}", {"authorization": f"Bearer {token}"}, str(directory / "ca.crt")
    )
    return Cluster(endpoint, namespace)


class KubernetesActivator:
    """Patches `spec.replicas` of the scale subresource. It never shrinks what is larger than asked for."""

    can_cool = True

    def __init__(self, wake: KubernetesWake, cluster: Callable[[], Cluster]) -> None:
        self._wake = wake
        self._cluster = cluster

    async def wake(self) -> None:
        cluster = await asyncio.to_thread(self._cluster)
        scale = await self._scale(cluster, HttpRequest("GET", self._path(cluster)))
        spec = scale.get("spec")
        replicas = spec.get("replicas", 0) if isinstance(spec, dict) else 0
        if not isinstance(replicas, int) or replicas < self._wake.replicas:
            await self._set(cluster, self._wake.replicas)

    async def wake_replica(self, replica: Replica) -> None:
        """Nothing."""

    async def cool(self) -> None:
        await self._set(await asyncio.to_thread(self._cluster), 0)

    async def awake(self, replica: Replica) -> bool | None:
        return None

    def _path(self, cluster: Cluster) -> str:
        namespace = self._wake.namespace or cluster.namespace
        return f"/apis/apps/v1/namespaces/{namespace}/{self._wake.resource}s/{self._wake.name}/scale"

    async def _set(self, cluster: Cluster, replicas: int) -> None:
        body = msgspec.json.encode({"spec": {"replicas": replicas}})
        headers = {"content-type": "application/merge-patch+json"}
        await self._scale(cluster, HttpRequest("PATCH", self._path(cluster), headers, body))

    async def _scale(self, cluster: Cluster, request: HttpRequest) -> dict[str, Any]:
        body = await _told(cluster.endpoint, request, "the Kubernetes API")
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ActivationFailed("the Kubernetes API answers no scale") from error


# ------------------------------------------------------------------------------------------------- shared


async def _told(endpoint: Endpoint, request: HttpRequest, who: str) -> bytes:
    """The body of a good answer; the caller's own timeout bounds it. Raises ActivationFailed."""
    what = f"{request.method} {request.path.partition('?')[0]}"
    try:
        async with client_for(endpoint) as client:
            answer = await ask(client, endpoint, request, seconds=86400, most=MAX_ANSWER)
    except NoAnswer as error:
        raise ActivationFailed(f"{who}: {what}: {error}") from error
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ActivationFailed(f"{who}: {what}: {type(error).__name__}") from error
    if not 200 <= answer.status < 300:
        raise ActivationFailed(f"{who} answers {answer.status} to {what}")
    return answer.body


async def _failures(works: Sequence[Work]) -> list[ActivationFailed]:
    """All of them side by side, to their end."""
    failed: list[ActivationFailed] = []

    async def one(work: Work) -> None:
        try:
            await work()
        except ActivationFailed as error:
            failed.append(error)

    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(one(work))
    return failed


async def _all(works: Sequence[Work]) -> None:
    failed = await _failures(works)
    if failed:
        raise failed[0]
