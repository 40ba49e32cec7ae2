"""Finding the Cron that the command line names: `jobs.py`, `jobs.py:cron` or `package.module:cron`."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from lockd_scheduler.cron import Cron
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.finding import finding_jobs

HERE = Path(__file__).parent


def load_cron(reference: str) -> Cron:
    """Import the file or module and return its Cron: the one named, `cron`, or the only one.

    The file's folder, or for a module the current one, comes first on the import path. Raises
    BadSchedule in one line, also for an error that the import raised.
    """
    place, colon, attribute = reference.partition(":")
    module = load_module(place)
    if colon:
        found = getattr(module, attribute, None)
        if not isinstance(found, Cron):
            raise BadSchedule(f"{place}: {attribute!r} is not a Cron")
        return found
    crons = {id(value): value for value in vars(module).values() if isinstance(value, Cron)}
    named = getattr(module, "cron", None)
    if isinstance(named, Cron):
        return named
    if len(crons) != 1:
        if not crons:
            raise BadSchedule(f"{place} has no Cron; it needs one, like cron = Cron('ops')")
        raise BadSchedule(f"{place} has {len(crons)} Crons; name one, like {place}:cron")
    return next(iter(crons.values()))


def load_module(place: str) -> ModuleType:
    """Import a file or module, as `load_cron` does. Raises BadSchedule."""
    path = Path(place)
    if path.suffix in (".yaml", ".yml", ".toml"):
        raise BadSchedule(f"{place}: a file of schedules is not served but applied: apply {place}")
    is_path = path.suffix == ".py" or (path.is_dir() and not path.name.isidentifier())
    with finding_jobs(place):
        return _import_file(path) if is_path else _import_module(place)


def _import_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise BadSchedule(f"{path} is a folder; name a file of it, like {path / 'jobs.py'}")
    if not path.is_file():
        raise BadSchedule(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise BadSchedule(_import_text(str(path), error)) from error
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise BadSchedule(f"there is no module {name!r}; a file is named with its .py") from None
        raise BadSchedule(_import_text(name, error)) from error
    except (Exception, SystemExit) as error:
        raise BadSchedule(_import_text(name, error)) from error


def _import_text(place: str, error: BaseException) -> str:
    """Where in the user's code it went wrong, and how, in one line."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        is_named_so = file.name == Path(place).name or file.stem == place.rpartition(".")[2]
        if is_named_so and file.parent != HERE:  # jobs.py is the name of one of ours, too
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno
    where = place if line is None else f"{place}, line {line}"
    text = str(error).splitlines()
    kind = "" if isinstance(error, BadSchedule) else f"{type(error).__name__}: "
    return f"{where}: {kind}{text[0] if text else 'no further text'}"
