"""The two deployments and how they are bound together."""

from typing import Any

from lineahead.errors import BackendError, needs_package
from lineahead.runtime.ray_app.arguments import RayArguments

FRONT_REQUESTS = 10_000


def build(arguments: RayArguments) -> Any:
    """The Serve application: a front on every node that has a proxy, and replicas of the engine.

    Args:
        arguments: Serve makes them from ``key=value`` pairs or a config file.

    Raises:
        BackendError: when Ray Serve or the server's packages are not installed.
    """
    cure = 'Run `pip install "lineahead[serve,ray]"`.'
    with needs_package("this application needs Ray Serve", cure, BackendError):
        from ray import serve
        from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    from lineahead.runtime.ray_app.front import Front
    from lineahead.runtime.ray_app.prefix_router import PrefixRouter
    from lineahead.runtime.ray_app.replica import Replica

    room = arguments.slots
    count: dict[str, Any] = (
        {"num_replicas": arguments.replicas}
        if arguments.replicas
        else {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=arguments.min_replicas,
                max_replicas=arguments.max_replicas,
                target_ongoing_requests=room,
            )
        }
    )
    engines = serve.deployment(Replica).options(
        name="engine",
        max_ongoing_requests=room + arguments.queue,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"room": room}
        ),
        graceful_shutdown_timeout_s=arguments.drain,
        health_check_period_s=2.0,
        **count,
    )
    front = serve.deployment(Front).options(
        name="front", max_ongoing_requests=FRONT_REQUESTS, ray_actor_options={"num_cpus": 0}
    )
    return front.bind(engines.bind(arguments), arguments.prefix_characters)
