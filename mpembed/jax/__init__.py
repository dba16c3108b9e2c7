"""A collection's calls inside `jax.jit`; ``docs/jax.md`` is their guide.

``import mpembed`` does not import JAX; this package does. Import its names from here: modules with
a leading underscore are private.
"""

try:
    import jax as _jax
except ModuleNotFoundError as _error:
    if _error.name != "jax":
        raise
    raise ModuleNotFoundError(
        "mpembed.jax needs JAX: pip install 'mpembed[jax]'", name="jax"
    ) from None

if _jax.__version_info__ < (0, 10):
    raise ImportError(
        f"mpembed.jax needs JAX 0.10 or newer, this is {_jax.__version__}: "
        "pip install -U 'mpembed[jax]'"
    )

from mpembed._bindings.xla import StaleStateError
from mpembed.jax._jit_collection import JitCollection
from mpembed.jax._layout import JitTicket

__all__ = ["JitCollection", "JitTicket", "StaleStateError"]
