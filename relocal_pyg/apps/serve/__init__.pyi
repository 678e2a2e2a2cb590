from .app import make_app as make_app
from .jobs import SearchQueue as SearchQueue
from .library import Collection as Collection
from .library import Library as Library
from .running import run as run
