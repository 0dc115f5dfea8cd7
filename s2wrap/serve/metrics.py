"""The metrics of a server, of all replicas, as Prometheus reads them."""

from collections.abc import Iterable
from contextlib import suppress
from urllib.request import ProxyHandler, build_opener

PREFIXES = ("ray_serve_", "ray_s2wrap_")
"""Of the metrics that are about the server, and not about Ray itself."""
SECONDS = 5.0
"""How long a node may take to answer."""


def read_metrics() -> str:
    """What the nodes of the Ray cluster know of the server; each node counts what its processes do."""
    import ray

    opener, texts = build_opener(ProxyHandler({})), []
    for node in ray.nodes():
        host, port = node["NodeManagerAddress"], node.get("MetricsExportPort")
        if node["Alive"] and port:
            with suppress(OSError), opener.open(f"http://{host}:{port}/metrics", timeout=SECONDS) as answer:
                texts.append(answer.read().decode())
    return select_metrics(texts)


def select_metrics(texts: Iterable[str]) -> str:
    r"""The lines about the server in the metrics of several nodes, those of each metric together.

    >>> node = "# TYPE ray_serve_a gauge\nray_serve_a{} 1\n# TYPE ray_b gauge\nray_b{} 2"
    >>> select_metrics([node, node]).splitlines()
    ['# TYPE ray_serve_a gauge', 'ray_serve_a{} 1', 'ray_serve_a{} 1']
    """
    families: dict[str, list[str]] = {}
    family = ""
    for text in texts:
        for line in text.splitlines():
            comment = line.startswith("#")
            if comment:
                family = line.split(" ", 3)[2] if line.count(" ") >= 2 else ""
            if family.startswith(PREFIXES):
                lines = families.setdefault(family, [])
                if not comment or line not in lines:
                    lines.append(line)
    return "".join(f"{line}\n" for lines in families.values() for line in lines)
