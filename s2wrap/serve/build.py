"""The application of Ray Serve: replicas of a model, their number, their resources, and the queue before them."""

from typing import Any

from s2wrap.errors import MissingExtraError
from s2wrap.serve.options import ServeOptions, parse_settings
from s2wrap.serve.source import Source

STOP_SECONDS = 10
"""How long a replica that is stopped may go on with what it has begun."""
RETRY_SECONDS = 1
"""After which a client that was answered 503 should try again, as the answer says."""


def application(settings: dict[str, Any]) -> Any:
    """What Ray Serve runs: `serve run s2wrap.serve:application spec=…`, or `serve.run(application({"spec": …}))`.

    Args:
        settings: `spec`, a model by its name or the path of an exported file; and by name the options of `ServeOptions`
            and of `s2wrap.load`.

    Raises:
        S2WrapError: no `spec`, an unknown option, a value that cannot be, an unknown device.
        MissingExtraError: Ray Serve is not installed.
    """
    spec, options, model = parse_settings(settings)
    return make_application(Source(spec, model, options.device), options)


def make_application(source: Source, options: ServeOptions) -> Any:
    """The application, as `application` makes it of settings."""
    serve = import_serve()
    from s2wrap.serve.replica import Replica

    source.check_device()
    resources: dict[str, Any] = {"num_cpus": options.cpus or 1}
    if source.needs_gpu:
        resources["num_gpus"] = 1
    if options.max_replicas is None:
        number: dict[str, Any] = {"num_replicas": options.num_replicas}
    else:
        bounds = {"min_replicas": options.min_replicas, "max_replicas": options.max_replicas}
        number = {"autoscaling_config": bounds | {"target_ongoing_requests": options.batch}}
    deployment = serve.deployment(serve.ingress()(Replica)).options(
        name="model",
        ray_actor_options=resources,
        max_ongoing_requests=options.max_ongoing,
        max_queued_requests=options.max_queued,
        backpressure_config={"retry_after_s": RETRY_SECONDS},
        graceful_shutdown_timeout_s=STOP_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=1,
        **number,
    )
    return deployment.bind(source.absolute(), options)


def import_serve() -> Any:
    """The module ray.serve; MissingExtraError without it."""
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("ray[serve]", "serve") from error
    return serve
