"""The scheduler over HTTP: a JSON API with its OpenAPI document, a page for people, health and metrics.

Promised: it reads and asks, and decides nothing. A start or a cancel is a row that the office finds at
its next turn (`asking`), so any replica may serve it, and a page that hangs stops no job. What jobs
have said is shown as text, whatever it contains.

Refused: requests from pages of other sites, names that are not this machine's where there are no
users, changes without the role for them, and to listen beyond this machine without either users or
`--insecure`.

Start reading at `app`, the paths; `guard` and `access` decide who comes in, `endpoints` is the table of
the API, `queries` what is read, `page` and `templates` what people see, `serving` the thread.
"""

from lockd_scheduler.web.app import app
from lockd_scheduler.web.health import Standing
from lockd_scheduler.web.users import Users

__all__ = ["Standing", "Users", "app"]
