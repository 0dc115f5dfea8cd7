"""The first page of a server, for a browser: what it serves, and how it is called."""

from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>s2wrap: $title</title>
<style>
  :root { color-scheme: light dark }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem }
  h1 { font-size: 1.4rem; overflow-wrap: anywhere }
  h2 { font-size: 1.1rem; margin-top: 2rem }
  pre { overflow-x: auto; padding: .8rem; border-radius: .4rem; background: light-dark(#f0f0f3, #26262b) }
  code, pre { font: .9rem/1.45 ui-monospace, monospace }
  .wide { overflow-x: auto }
  table { border-collapse: collapse }
  th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; vertical-align: top }
</style>
<h1>$title</h1>
<p>Send pictures, get their multi-scale features. $kind on $device.</p>
<h2>From a shell</h2>
<pre>curl --data-binary @photo.jpg "$address/features?features=$default&amp;format=json"</pre>
<h2>From Python</h2>
<pre>import urllib.request
from safetensors.numpy import load

with open("photo.jpg", "rb") as file:
    request = urllib.request.Request("$address/features?features=$default", file.read())
with urllib.request.urlopen(request) as answer:
    features = load(answer.read())
features["$default"].shape  # $shape</pre>
<h2>Features</h2>
<div class="wide"><table>
<tr><th>features=</th><th>arrays of a picture of $image_hw pixels</th></tr>
$rows
</table></div>
<p>Several with commas between. Several pictures as <code>multipart/form-data</code>, or an array as safetensors or
<code>.npy</code>: <code>(batch, height, width, channels)</code> of uint8, or normalised floats
<code>(batch, channels, height, width)</code>.</p>
<h2>More</h2>
<p><a href="model">model</a>: input, shapes, limits and versions · <a href="docs">docs</a> and
<a href="openapi.json">openapi.json</a> · <a href="health">health</a> · <a href="metrics">metrics</a></p>
</html>
""")


def first_page(facts: Mapping[str, Any], address: str) -> str:
    """The page as HTML, which loads nothing from elsewhere.

    Args:
        facts: what is served, as `describe` says it.
        address: of the server, as the browser called it.
    """
    rows = []
    for name, arrays in facts["features"].items():
        shapes = ", ".join(f"{key} ({', '.join(map(str, shape))})" for key, shape in arrays.items())
        rows.append(f"<tr><td><code>{escape(name)}</code></td><td><code>{escape(shapes)}</code></td></tr>")
    for name, why in facts["unavailable"].items():
        rows.append(f"<tr><td>{escape(name)}</td><td>not here: {escape(why)}</td></tr>")
    kind = "PyTorch" if facts["kind"] == "torch" else f"An exported file ({facts['kind']})"
    default = facts["default"]
    return PAGE.substitute(
        title=escape(facts["spec"] or facts["file"]),
        kind=escape(kind),
        device=escape(facts["device"]),
        address=escape(address.rstrip("/")),
        default=default,
        shape=f"({', '.join(map(str, facts['features'][default][default]))})",
        image_hw="×".join(map(str, facts["image_hw"])),
        rows="\n".join(rows),
    )
