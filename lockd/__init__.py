"""lockd: locks that are safe to rely on, with a fencing token for each grant.

    client = lockd.Client("127.0.0.1:7420")
    with client.lock("invoice:42", wait=5) as lease:
        ...                       # lease.token, lease.fence, lease.remaining(), lease.check()

This package exports the client: what `lockd.client.public` has. A lock alone protects nothing: let
the storage refuse a stale token, with `lockd_storage`. The errors are grouped by what the caller may
conclude, in `lockd.errors`. To read on, start with `lockd.client`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lockd.client.public import *  # noqa: F403 - they are this package's
else:

    def __getattr__(name: str) -> object:
        """Import the client with the first use of a name.

        pytest imports this package in every run, for the plugin in `lockd.testing`, and so do programs
        that need an id or an error of it: they do not pay for the client.
        """
        from lockd.client import public  # noqa: PLC0415 - see above

        globals().update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
        if name not in globals():  # where the modules are as well that came with it: lockd.errors
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        __getattr__("__all__")
        return sorted(globals())
