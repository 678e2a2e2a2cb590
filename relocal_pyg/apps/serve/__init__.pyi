from .app import make_app as make_app
from .app import run as run
from .library import Collection as Collection
from .library import Library as Library
from .searches import SearchQueue as SearchQueue
