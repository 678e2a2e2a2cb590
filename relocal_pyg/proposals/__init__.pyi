from .actionness import ActionnessClassifier as ActionnessClassifier
from .actionness import fit_actionness as fit_actionness
from .tag import PAPER as PAPER
from .tag import SSN_CODE as SSN_CODE
from .tag import TagConfig as TagConfig
from .tag import group as group
from .tag import propose as propose
from .tag import tag_proposals as tag_proposals
