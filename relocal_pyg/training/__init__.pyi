from .loop import FitResult as FitResult
from .loop import fit as fit
from .presets import PAPER as PAPER
from .presets import PRESETS as PRESETS
from .presets import RECOMMENDED as RECOMMENDED
from .presets import Preset as Preset
from .presets import TrainingConfig as TrainingConfig
